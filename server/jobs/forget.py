"""Remove withdrawn records from a run: sites correct its sums, and its model is solved and tested again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid
from torch import Tensor

from dynammo_core.configuration.config import Config
from dynammo_core.experiment import Experiment
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import under
from dynammo_core.plan import Carry, Forget, Step
from dynammo_core.support.errors import RunError
from dynammo_core.support.files import write_atomically
from dynammo_core.wire.protocol import names_up, tensors_of
from dynammo_core.wire.report_contents import heads_by_prefix
from server.report.report import write_report
from server.run.answers import Answers, required
from server.run.exchange import Exchange
from server.run.results import pooled, write_model, write_results
from server.run.task_loop import TaskLoop
from server.run_directory.deployed import deployed_task
from server.run_directory.directory import RunDirectory
from server.run_directory.lock import only_run


class Correction(TaskLoop):
    """The task loop of a paused run, for one exchange outside its plan."""

    def correct(self) -> list[Answers]:
        """Have every site take withdrawn records out of the archive's sums, and solve again; saved on return.

        Sums that are carried along with their features lose the records of one step after another, each saved.

        Returns:
            The answers to each question.

        Raises:
            RunError: the method keeps no sums, no site answers, or the run went on meanwhile.
        """
        last = self.progress.next_step - 1
        carried = self._step(last)[1].carry is not None
        every = [self._correct(index) for index in (self._summed if carried else [last])]
        return required(every, self.experiment.config)

    @property
    def _summed(self) -> list[int]:
        """The steps whose answers are in the archive's sums, ascending."""
        return sorted({each for taken in self.progress.taken.values() for each in taken if each >= 0})

    def _step(self, index: int) -> tuple[Step, Forget]:
        step = self.experiment.step(index, self.progress.corrections + 1)
        assert isinstance(step.stage, Forget)
        return step, step.stage

    def _correct(self, index: int) -> Answers:
        """Take records out of the sums as they are after a step or, if these are carried, out of those it brought."""
        stands = self.progress.next_step, self.progress.corrections
        (step, stage), running = self._step(index), self.model
        if stage.carry:
            self.model = self.experiment.build_model(step.task)
            stage.carry.recall(self.model, self.archive, step.task)
        answers = self._ask_beside(step)
        saved, _, _ = self.checkpoints.load()
        if (saved.next_step, saved.corrections) != stands:
            raise RunError(
                "the run has moved on meanwhile, so nothing was forgotten", remedy="Ask again when it has ended"
            )
        corrected = not all(report.abstained for report in answers.reports.values())
        if corrected:
            self._take_in(step, answers)
            if stage.carry:
                self.model = self._carried(stage.carry, self.model, step.task, running)
            taken = {name: -tensor for name, tensor in tensors_of(self.model, names_up(self.model, stage)).items()}
            stage.finish(self.model, self.archive, step.task)
            self._require_sums(taken, answers)
            self.progress.corrections = step.round
            self.progress.bytes_up += answers.bytes_up.total()
        self.model = running
        if corrected:
            self._save()
        return answers

    def _carried(self, carry: Carry, model: IncrementalModel, task: int, running: IncrementalModel) -> IncrementalModel:
        """Carry the sums in a model of a task to where the archive's stand: into the run's model, or one like it was.

        In the middle of a task the archive's sums are still those of the task before, and the run's model has others.
        """
        now, stands = (self.experiment.steps[index].task for index in (self._summed[-1], self.progress.next_step - 1))
        onto = running if now == stands else self.experiment.build_model(now)
        carry.forward(model, self.archive, task, onto, now)
        return onto

    def _require_sums(self, taken: Mapping[str, Tensor], answers: Answers) -> None:
        """Refuse a correction that takes out what was never in, before any of it is saved."""
        for prefix, head in heads_by_prefix(self.model).items():
            own = under(taken, prefix)
            if own and (obstacle := head.obstacle_to_rest(own)):
                label = self.experiment.site_label
                named = ", ".join(label(site) for site, report in answers.reports.items() if not report.abstained)
                raise RunError(
                    f"the sums {prefix}* would no longer describe any images ({obstacle}), so nothing was forgotten: "
                    f"one of these sites subtracted what it never sent: {named}",
                    remedy="To find out which, ask each of them alone, with the others disconnected",
                )

    def test_again(self) -> None:
        """Replace the model after the last finished task, its tests and the results with new ones."""
        task, answers = self.evaluate()
        self.progress.confusion.pop()
        self._take_in(self.experiment.steps[self.progress.next_step - 1], answers)
        status = "completed" if self.progress.next_step == len(self.experiment.steps) else "running"
        summary = write_results(self.directory, self.experiment, self.model, self.progress, status=status)
        deploy = deployed_task(self.directory) in (None, task)
        write_model(self.directory, self.experiment, self.model, task, pooled(answers), summary, deploy=deploy)
        self._save()


def forget_run(grid: Grid, config: Config[Any], run: Path, output: Path) -> None:
    """Correct the sums of a paused run, and write as JSON which sites took part; repeating it is harmless.

    A run in the middle of a task is corrected too; its next model is the first without the records.

    Raises:
        CheckpointError: the run has no checkpoint, or one of another experiment.
        RunError: the method does not keep sums, no site answers, or the run is in progress.
    """
    with only_run(run):
        directory = RunDirectory(run)
        loop = Correction(Experiment(config), Exchange(grid, config.federation), directory)
        loop.load()
        every = loop.correct()
        answered = sorted({site for answers in every for site in answers.reports})
        corrected = [site for site in answered if any(answers.brought(site) for answers in every)]
        failures = {failure.site: failure for answers in every for failure in answers.failures}
        directory.log(
            "forgotten",
            correction=loop.progress.corrections,
            answered=len(answered),
            corrected=len(corrected),
            failures=[vars(failure) for failure in failures.values()],
        )
        # Even if nothing was corrected: an earlier attempt may have been interrupted before this point.
        if loop.stands_after_task:
            loop.test_again()
            write_report(run)
    label = loop.experiment.site_label
    result = {
        "corrected": [label(site) for site in corrected],
        "nothing_to_correct": [label(site) for site in answered if site not in corrected],
        "failures": {label(site): f"{failure.error}, code {failure.code}" for site, failure in failures.items()},
        "model_written": loop.stands_after_task,
    }
    write_atomically(output, json.dumps(result, indent=2).encode() + b"\n")
