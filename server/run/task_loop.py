"""Run the server's side: for each step ask the sites, merge their answers, and save the progress."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dynammo_core.aggregation.server_optimizer import forget_rounds, stepped
from dynammo_core.best_round import LOSS, ROUND, Check, close, left_out, note_round
from dynammo_core.experiment import Experiment
from dynammo_core.models.heads import head_rows
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import Action, Finish, LearningStage, Step, Summarise
from dynammo_core.support.errors import RunError
from dynammo_core.support.seeding import seeded_initialisation
from dynammo_core.wire.compression import CODECS, carried
from dynammo_core.wire.protocol import names_up
from server.run.answers import Answers, TooFewAnswers, required
from server.run.asking import Asking
from server.run.deploy_gate import broken_bounds
from server.run.exchange import Exchange
from server.run.merge import merged
from server.run.results import TESTED, confusion_of, pooled, write_model, write_results
from server.run_directory.advice import held_words, release_command
from server.run_directory.checkpoint import CheckpointStore, identity_of
from server.run_directory.deployed import deployed_task
from server.run_directory.directory import EVENTS, RunDirectory
from server.run_directory.lineage import refuse_another_plan
from server.run_directory.progress import Progress
from server.run_directory.start import start_fields


class TaskLoop:
    """Take a model through all steps of an experiment, resumable after any step."""

    def __init__(self, experiment: Experiment, exchange: Exchange, directory: RunDirectory) -> None:
        self.experiment = experiment
        self._asking = Asking(experiment, exchange, directory)
        self.directory = directory
        config = experiment.config
        identity = identity_of(config)
        self.checkpoints = CheckpointStore(directory.checkpoints, identity)
        self.model: IncrementalModel = experiment.new_model()
        self.archive: dict[str, Tensor] = {}
        self._codec = CODECS[experiment.config.federation.compression]
        self.progress = Progress(run=f"{experiment.config.name}-{secrets.token_hex(8)}")

    def resume(self, *, accept_new_code: bool = False) -> None:
        """Resume the run at its last checkpoint, with the classes and sites that were added since.

        Raises:
            CheckpointError: the checkpoint cannot be loaded, as in `load`.
        """
        self.load(accept_new_code=accept_new_code)
        if self.checkpoints.of_other_code:
            self.directory.log("code_changed", **self.progress.code_changes[-1])
            if self.progress.next_step == len(self.experiment.steps):  # no step will save it under the new code
                self._save()
        self.directory.write("config.yaml", self.experiment.config.to_yaml())

    def load(self, *, accept_new_code: bool = False) -> None:
        """Load the last checkpoint, without changing the run.

        Raises:
            CheckpointError: the checkpoint is missing or corrupt, or belongs to another experiment or code.
        """
        self.progress, weights, self.archive = self.checkpoints.load(accept_new_code=accept_new_code)
        self.progress.grow(self.experiment.config.federation.tested_apart, self.experiment.classes)
        last_done = self.experiment.steps[self.progress.next_step - 1]
        refuse_another_plan(self.directory.path / EVENTS, last_done)
        self.model = self.experiment.build_model(last_done.task)
        self.model.load_state_dict(weights, strict=False)

    @property
    def stands_after_task(self) -> bool:
        """Return whether the last step finished a task; if not, a task is half learnt."""
        return self.experiment.steps[self.progress.next_step - 1].stage.action is Action.EVALUATE

    def evaluate(self) -> tuple[int, Answers]:
        """Test the model after the last finished task at every site, and return that task and the answers.

        Raises:
            RunError: no task is finished, or no site answers.
        """
        last = self.experiment.steps[self.progress.next_step - 1]
        if not self.stands_after_task:
            raise RunError(
                f"the run is in the middle of task {last.task + 1}, and its model is half trained",
                remedy="Evaluate when the task is finished, or read the report for the last one",
            )
        return last.task, required([self._ask_beside(last)], self.experiment.config)[0]

    def _ask_beside(self, step: Step) -> Answers:
        """Ask the connected sites once, outside the plan."""
        self.experiment.use_torch()
        sent = carried(self._codec, self._tensors(step.stage.down))
        return self._asking.ask(step, sent, self.model, self.progress, needed=0)

    def run(self) -> dict[str, object]:
        """Do every step that is left, and return the summary.

        Raises:
            RunError: fewer sites answered than the quorum, or no site holds a task's data.
            CheckpointError: the disk is full; the last checkpoint stands.
        """
        self.experiment.use_torch()
        self.directory.log("run_started", **start_fields(self.experiment, self.progress))
        for step in self.experiment.steps[self.progress.next_step :]:
            self._do(step)
        summary = write_results(self.directory, self.experiment, self.model, self.progress, status="completed")
        self.directory.log("run_finished", summary=summary)
        return summary

    def _do(self, step: Step) -> None:
        if left_out(self.archive, step):
            self.progress.next_step = step.index + 1
            return
        started = time.monotonic()
        self.directory.log("step_started", step=step.index, **step.as_fields())
        if self._opens_task(step):
            if step.task in self.experiment.method.new_networks:
                self.model = self.experiment.model_before(step.task)
            with seeded_initialisation(self.experiment.config.seed, "grow", step.task):
                self.experiment.method.begin_task(self.model, self.archive, step.task)
        sent = carried(self._codec, self._tensors(step.stage.down))
        answers = self._asking.ask(step, sent, self.model, self.progress, needed=self._asking.needed(step))
        self._require_quorum(step, answers)
        self._take_in(step, answers)
        if isinstance(step.stage, Check):
            self._note_round(step, step.stage, answers.loss)
        elif step.is_last_round:
            self._finish(step.task, step.stage.name, step.stage.finish)
        self._count(step, answers, time.monotonic() - started)

    def _finish(self, task: int, name: str, finish: Finish) -> None:
        with seeded_initialisation(self.experiment.config.seed, "finish", task, name):
            finish(self.model, self.archive, task)

    def _note_round(self, step: Step, check: Check, loss: float) -> None:
        """Note how good a round's weights are; at the end of its stage go back to the best."""
        if note_round(self.model, self.archive, step, names_up(self.model, check.of), loss):
            kept = {"stage": check.of.name, "kept": int(self.archive[ROUND]), "loss": float(self.archive[LOSS])}
            self.directory.log("round_kept", step=step.index, **{**step.as_fields(), **kept})
            close(self.archive, early=not step.is_last_round)
            forget_rounds(self.archive)
            self._finish(step.task, check.of.name, check.ends_with)

    def _require_quorum(self, step: Step, answers: Answers) -> None:
        needed = self._asking.needed(step)
        if len(answers.reports) < needed:
            raise TooFewAnswers(
                f"task {step.task + 1}, stage {step.stage.name}, round {step.round + 1}: {len(answers.reports)} of "
                f"{len(self._asking.taking_part(step))} sites answered, {needed} are needed",
                answers.failures,
                self.experiment.site_label,
            )

    def _take_in(self, step: Step, answers: Answers) -> None:
        """Merge the sites' answers into the model, the archive and the progress."""
        epsilons = {str(site): report.numbers.get("epsilon") for site, report in answers.reports.items()}
        self.progress.epsilon |= {site: spent for site, spent in epsilons.items() if isinstance(spent, float)}
        if step.stage.action is Action.EVALUATE:
            self._note_tests(step, answers)
        elif isinstance(step.stage, LearningStage) and not isinstance(step.stage, Check):
            self._learn(step, step.stage, answers)

    def _note_tests(self, step: Step, answers: Answers) -> None:
        """Note the counts of a task's tests by site or, under secure aggregation, for all sites together."""
        sites = range(self.experiment.config.federation.sites)
        own = {name: answers.table(name, sites, self.experiment.classes) for name in step.stage.tables}
        self.progress.confusion.append(answers.table("confusion", sites, self.experiment.classes))
        self.progress.own_heads = own
        self.progress.reliability[str(step.task)] = pooled(answers).as_numbers()

    def _learn(self, step: Step, stage: LearningStage, answers: Answers) -> None:
        """Merge what the sites sent up into one model, and note whose answers are in sums that the server keeps."""
        total = answers.total
        if not (total.samples if total else any(not report.abstained for report in answers.reports.values())):
            raise RunError(
                f"task {step.task + 1}, stage {step.stage.name}: every site abstained: no site has images of these "
                f"classes{self._or_budget()}",
                remedy="Give at least one site images of these classes (or, for a stage that needs exemplars, raise "
                "memory.exemplars), or leave the task out",
            )
        if total:
            class_counts = total.class_counts
            learnt = self._asking.encoding(step, self.model).mean(total, self.model.state_dict())
        else:
            asked = len(self._asking.taking_part(step))
            learnt, class_counts, limited = merged(self.experiment, self.model, step, answers.reports, asked=asked)
            if limited:
                self.directory.log("share_limited", step=step.index, sites=limited)
        if stage.action is Action.FIT:
            learnt = self._stepped(step, learnt)
        self.model.load_state_dict(learnt, strict=False)
        stage.note_counts(self.archive, step.task, class_counts)
        if isinstance(stage, Summarise) and stage.keeps_sums:
            for site, report in answers.reports.items():
                if not report.abstained:
                    self.progress.taken.setdefault(str(site), []).append(step.contribution)

    def _stepped(self, step: Step, merged: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights that the server goes to from those it sent, given what the sites' were merged into."""
        settings, current = self.experiment.config.federation, self.model.state_dict()
        if settings.server_optimizer == "none":
            return merged
        sent = carried(self._codec, {name: current[name] for name in merged})
        weights = stepped(settings, sent, merged, current, head_rows(self.model), self.archive)
        if step.is_last_round:
            forget_rounds(self.archive)
        return weights

    def _or_budget(self) -> str:
        """Return the other reason for which all sites may abstain."""
        return ", or no site has enough of privacy.epsilon left" if self.progress.epsilon else ""

    def _count(self, step: Step, answers: Answers, seconds: float) -> None:
        """Log the step, write the results if it ends a task, and save the checkpoint.

        The checkpoint comes last: a run interrupted before that repeats the step and writes the results again.
        """
        down, up = answers.bytes_down.total(), answers.bytes_up.total()
        self.progress.next_step = step.index + 1
        self.progress.bytes_down += down
        self.progress.bytes_up += up
        self.progress.seconds += seconds
        self.directory.log(
            "step_finished",
            step=step.index,
            **step.as_fields(),
            seconds=round(seconds, 3),
            bytes_up=up,
            bytes_down=down,
            bytes_held=answers.bytes_held.total(),
            **answers.fields(self._counted_classes(step)),
            failures=[vars(failure) for failure in answers.failures],
        )
        held = self._conclude(step, answers) if step.stage.action is Action.EVALUATE else ""
        self._save()
        if held and self.experiment.config.gate.broken == "stop":
            command = release_command(self.directory.path)
            raise RunError(held, remedy=f"Release it with `{command}`, or go on without it")

    def _conclude(self, step: Step, answers: Answers) -> str:
        """Write the results and the model of a task; return why it is held back, or an empty text if it is deployed."""
        summary = write_results(self.directory, self.experiment, self.model, self.progress, status="running")
        judged = self._judge(step)
        deploy = not judged.get("broken")
        write_model(self.directory, self.experiment, self.model, step.task, pooled(answers), summary, deploy=deploy)
        self.directory.log(
            "task_evaluated",
            task=step.task,
            accuracy=summary["last_accuracy"],
            **{key: summary[key] for key in TESTED},
        )
        if judged:
            self.directory.log("gate_judged", **judged)
        return "" if deploy else held_words(judged, self.experiment.site_names)

    def _save(self) -> None:
        self.checkpoints.save(self.progress, self._tensors(("*",), archive=False), self.archive)

    def _judge(self, step: Step) -> dict[str, Any]:
        """Compare the new model with the deployed one; empty without bounds, or if nothing is deployed yet."""
        bounds, before = self.experiment.config.gate.bounds, deployed_task(self.directory)
        if not bounds or before is None or before == step.task:  # the same if this step is repeated
            return {}
        known = [label for task in self.experiment.stream.tasks[: before + 1] for label in task]
        counts = confusion_of(self.experiment, self.progress)
        share = self.experiment.config.limits.largest_share
        broken = broken_bounds(counts[before], counts[step.task], known, bounds, share)
        names = self.experiment.class_names
        named = [{**vars(one), "label": None if one.label is None else names[one.label]} for one in broken]
        return {"task": step.task, "deployed": before, "broken": named}

    def _counted_classes(self, step: Step) -> list[int]:
        """Return the classes, in the order of learning, whose images the log counts: a stage's rounds repeat them."""
        first = step.round == 0 and isinstance(step.stage, LearningStage)
        return [label for task in self.experiment.stream.tasks for label in task] if first else []

    def _opens_task(self, step: Step) -> bool:
        """Return whether this step is the first of its task; a resumed run has grown the model already."""
        return step.index == 0 or self.experiment.steps[step.index - 1].task != step.task

    def _tensors(self, patterns: Sequence[str], *, archive: bool = True) -> dict[str, Tensor]:
        """Return the model's (and the archive's) tensors that fit the patterns."""
        state = self.model.state_dict()
        chosen = {name: state[name].detach().clone() for name in matching(travelling_names(self.model), patterns)}
        if archive:
            chosen |= {name: self.archive[name] for name in matching(self.archive, patterns)}
        return chosen
