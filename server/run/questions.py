"""What a step asks of which sites, how often and how many answers are enough: for reports, or for a sum of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from dynammo_core.experiment import Experiment, code_hash
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Action, Step
from dynammo_core.support.errors import ProtocolError, RunError
from dynammo_core.wire.compression import CODECS
from dynammo_core.wire.protocol import SUMMED, Instruction, Phase, Report
from dynammo_core.wire.protocol_checks import opened_report
from dynammo_core.wire.secure_aggregation.encoding import Encoding
from dynammo_core.wire.secure_aggregation.total_checks import check_total
from server.run.exchange import Answers, Exchange
from server.run.run_directory import RunDirectory
from server.run.secure_exchange import SecureExchange

Check = Callable[[int, Report], Report]


@dataclass(frozen=True)
class _Question:
    """What all messages of an exchange have in common; `phase` is one of secure aggregation."""

    step: Step
    run: str
    check: Check
    phase: Phase | None = None
    taken: Mapping[str, list[int]] = field(default_factory=dict)
    corrected: int = 0


class Questions:
    """Asks the sites of a run."""

    def __init__(self, experiment: Experiment, exchange: Exchange, directory: RunDirectory) -> None:
        self._experiment = experiment
        self._federation = experiment.config.federation
        self._exchange = exchange
        self._directory = directory

    def ask(
        self,
        step: Step,
        sent: Mapping[str, Tensor],
        model: IncrementalModel,
        *,
        run: str,
        needed: int,
        taken: Mapping[str, list[int]] | None = None,
        corrected: int = 0,
    ) -> Answers:
        """Ask every site that takes part in a step.

        Args:
            step: the step.
            sent: the tensors that go down.
            model: with the structure of the step's task.
            run: unique name of the run.
            needed: sites without which there is no point in asking.
            taken: of a correction, `Progress.taken`; it asks, once, the sites that are named there.
            corrected: corrections that the run's sums had before.

        Raises:
            RunError: under secure aggregation, too few sites hold out.
        """
        if step.stage.action is Action.FORGET:
            named = taken or {}
            question = _Question(step, run, partial(self._check, step, model, sent), taken=named, corrected=corrected)
            return self._ask_once(question, dict.fromkeys(sorted(map(int, named)), sent), needed)
        sites = self.taking_part(step)
        if not self._federation.secure_aggregation or step.stage.action not in SUMMED:
            question = _Question(step, run, partial(self._check, step, model, sent), corrected=corrected)
            return self._ask(question, dict.fromkeys(sites, sent), needed)
        exchange = SecureExchange(
            ask=lambda phase, check, tensors, enough: self._ask(_Question(step, run, check, phase), tensors, enough),
            encoding=self.encoding(step, model),
            run=run,
            step=step.index,
            needed=needed,
            threshold=self._federation.threshold(len(sites)),
            label=self._federation.site_label,
        )
        answers = exchange.sum_of(sites, sent)
        self._check_total(step, model, answers)
        return answers

    def _check_total(self, step: Step, model: IncrementalModel, answers: Answers) -> None:
        """Hold a sum against what the answers in it could be, as far as a sum tells."""
        experiment, action = self._experiment, step.stage.action
        assert answers.total is not None
        try:
            check_total(
                answers.total,
                step.stage,
                model,
                experiment.classes,
                experiment.stream.seen(step.task),
                encoding=self.encoding(step, model),
                most=sum(experiment.most_samples(site, action) for site in answers.reports),
            )
        except ProtocolError as error:
            raise RunError(
                f"secure aggregation, step {step.index}: the sum is none of honest answers ({error})",
                remedy="A site lies, and the sum does not say which; let each run `dynammo-site doctor`",
            ) from error

    def taking_part(self, step: Step) -> list[int]:
        """The sites that a step asks."""
        return self._federation.taking_part(testing=step.stage.action is Action.EVALUATE)

    def needed(self, step: Step) -> int:
        """Sites whose answers make a quorum."""
        quorum, _ = self._federation.rules(step.stage.name)
        # Rounded first, so that 0.07 * 100 = 7.000000000000001 needs 7 sites and not 8.
        return max(1, math.ceil(round(quorum * len(self.taking_part(step)), 6)))

    def encoding(self, step: Step, model: IncrementalModel) -> Encoding:
        """How answers to a step are added up under secure aggregation."""
        return Encoding(step.stage, model, self._experiment.classes, self._federation.sites)

    def _ask(self, question: _Question, sent: Mapping[int, Mapping[str, Tensor]], needed: int) -> Answers:
        """Ask sites, and those that fail again, as often as is set."""
        answers = Answers()
        for attempt in range(self._federation.attempts):
            done = len(answers.reports)
            left = {site: tensors for site, tensors in sent.items() if site not in answers.reports}
            answers = answers.then(self._ask_once(question, left, needed - done, done))
            if not answers.failures:
                break
            if attempt + 1 < self._federation.attempts:
                failures = [vars(failure) for failure in answers.failures]
                self._directory.log("asking_again", step=question.step.index, failures=failures)
        return answers

    def _ask_once(
        self, question: _Question, sent: Mapping[int, Mapping[str, Tensor]], needed: int, done: int = 0
    ) -> Answers:
        text, workspace = self._experiment.config.canonical_json(), str(self._directory.sites.resolve())
        step, run = question.step, question.run
        _, deadline = self._federation.rules(step.stage.name)
        known = {site: question.taken.get(str(site), []) for site in sent}
        return self._exchange.ask(
            question.phase or step.stage.action,
            [
                Instruction(
                    experiment=text,
                    code_hash=code_hash(),
                    run=run,
                    step=step.index,
                    site=site,
                    workspace=workspace,
                    weights=own,
                    correction=step.correction,
                    taken=known[site],
                    corrected=question.corrected,
                )
                for site, own in sent.items()
            ],
            group=f"task{step.task + 1}/{step.stage.name}/{step.round + 1}",
            needed=needed,
            deadline=deadline,
            on_waiting=lambda waiting: self._directory.log("waiting", step=step.index, sites=waiting),
            on_answers=lambda answered: self._directory.log(
                "answers", step=step.index, answered=done + answered, asked=done + len(sent)
            ),
            check=question.check,
        )

    def _check(
        self, step: Step, model: IncrementalModel, sent: Mapping[str, Tensor], site: int, report: Report
    ) -> Report:
        return opened_report(
            report,
            step.stage,
            model,
            self._experiment.classes,
            self._experiment.stream.seen(step.task),
            codec=CODECS[self._federation.compression],
            sent=sent,
            most=self._experiment.most_samples(site, step.stage.action),
            private=self._experiment.protects_images,
            secure=self._federation.secure_aggregation,
        )
