"""Ask sites to do a step, retry those that fail, and decide how many answers are enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial

from torch import Tensor

from dynammo_core.code_identity import code_hash, packages_of
from dynammo_core.experiment import Experiment
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Action, Evaluate, Forget, Step
from dynammo_core.support.errors import ProtocolError, RunError
from dynammo_core.wire.compression import CODECS
from dynammo_core.wire.protocol import SUMMED, Instruction, Phase, Report, names_up, tensors_of
from dynammo_core.wire.protocol_checks import opened_report
from dynammo_core.wire.secure_aggregation.encoding import Encoding
from dynammo_core.wire.secure_aggregation.total_checks import check_total
from server.run.answers import Answers
from server.run.exchange import Check, Exchange, Question
from server.run.secure_exchange import SecureExchange
from server.run_directory.directory import RunDirectory
from server.run_directory.progress import Progress

Tensors = Mapping[str, Tensor]


class Asking:
    """Asks the sites of a run."""

    def __init__(self, experiment: Experiment, exchange: Exchange, directory: RunDirectory) -> None:
        self._experiment = experiment
        self._federation = experiment.config.federation
        self._exchange = exchange
        self._directory = directory

    def ask(self, step: Step, sent: Tensors, model: IncrementalModel, progress: Progress, *, needed: int) -> Answers:
        """Ask every site that takes part in a step, retry those that fail, and return the answers.

        A correction asks, once, the sites whose answers are in the sums.

        Args:
            step: the step.
            sent: the tensors that go down.
            model: the model, with the structure of the step's task.
            progress: where the run stands.
            needed: fewest connected sites for which asking makes sense.

        Raises:
            RunError: under secure aggregation, too few sites stay to the end.
        """
        check = partial(self._check, step, model, sent, tensors_of(model, names_up(model, step.stage)))
        question = self._question(step, step.stage.action, sent, progress, check)
        if step.stage.action is Action.FORGET:
            return self._ask_once(question, sorted(map(int, question.taken)), needed)
        if self._federation.secure_aggregation and step.stage.action in SUMMED:
            return self._ask_for_sum(step, sent, model, progress, needed)
        return self._ask(question, self.taking_part(step), needed)

    def taking_part(self, step: Step) -> list[int]:
        """Return the sites that a step asks."""
        return self._federation.taking_part(testing=step.stage.action is Action.EVALUATE)

    def needed(self, step: Step) -> int:
        """Return how many sites' answers make a quorum."""
        quorum, _ = self._federation.rules(step.stage.name)
        # Rounded first, so that 0.07 * 100 = 7.000000000000001 needs 7 sites and not 8.
        return max(1, math.ceil(round(quorum * len(self.taking_part(step)), 6)))

    def encoding(self, step: Step, model: IncrementalModel) -> Encoding:
        """Return how answers to a step are added up under secure aggregation."""
        return Encoding(step.stage, model, self._experiment.classes, self._federation.sites)

    def _ask_for_sum(
        self, step: Step, sent: Tensors, model: IncrementalModel, progress: Progress, needed: int
    ) -> Answers:
        def ask(phase: Phase, check: Check, common: Tensors, individual: Mapping[int, Tensors], enough: int) -> Answers:
            return self._ask(self._question(step, phase, common, progress, check, individual), list(individual), enough)

        sites = self.taking_part(step)
        exchange = SecureExchange(
            ask=ask,
            encoding=self.encoding(step, model),
            run=progress.run,
            step=step.index,
            needed=needed,
            threshold=self._federation.threshold(len(sites)),
            label=self._experiment.site_label,
        )
        answers = exchange.sum_of(sites, sent)
        self._check_total(step, model, answers)
        return answers

    def _question(
        self,
        step: Step,
        action: Action | Phase,
        sent: Tensors,
        progress: Progress,
        check: Check,
        individual: Mapping[int, Tensors] | None = None,
    ) -> Question:
        secure = isinstance(action, Phase)
        instruction = Instruction(
            experiment=self._experiment.config.canonical_json(),
            code_hash=code_hash(self._experiment.config),
            run=progress.run,
            step=step.index,
            site=-1,
            workspace=str(self._directory.sites.resolve()),
            weights=sent,
            correction=step.correction,
            corrected=0 if secure else progress.corrections,
            packages=packages_of(self._experiment.config),
        )
        return Question(
            action,
            instruction,
            check,
            deadline=self._federation.rules(step.stage.name)[1],
            group=f"task{step.task + 1}/{step.stage.name}/{step.round + 1}",
            taken=_taken(step, progress),
            individual=individual or {},
        )

    def _ask(self, question: Question, sites: Iterable[int], needed: int) -> Answers:
        """Ask sites, retry those that fail as often as configured, and return the answers."""
        answers = Answers()
        for attempt in range(self._federation.attempts):
            done = len(answers.reports)
            left = [site for site in sites if site not in answers.reports]
            answers = answers.then(self._ask_once(question, left, needed - done, done))
            if not answers.failures:
                break
            if attempt + 1 < self._federation.attempts:
                failures = [vars(failure) for failure in answers.failures]
                self._directory.log("asking_again", step=question.instruction.step, failures=failures)
        return answers

    def _ask_once(self, question: Question, sites: list[int], needed: int, done: int = 0) -> Answers:
        log, asked = partial(self._directory.log, step=question.instruction.step), done + len(sites)

        def on_answers(answered: list[int], failed: list[int]) -> None:
            nonlocal done
            done += len(answered)
            log("answers", answered=done, asked=asked, sites=answered, failed=failed)

        return self._exchange.ask(
            question,
            sites,
            needed=needed,
            on_waiting=lambda waiting: log("waiting", sites=waiting),
            on_asked=lambda reached: log("asked", sites=reached),
            on_answers=on_answers,
        )

    def _check(
        self, step: Step, model: IncrementalModel, sent: Tensors, declared: Tensors, site: int, report: Report
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
            sums=self._experiment.sums_form,
            declared=declared,
        )

    def _check_total(self, step: Step, model: IncrementalModel, answers: Answers) -> None:
        """Refuse a sum that no valid answers could add up to."""
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
                f"secure aggregation, step {step.index}: no honest answers could add up to this sum ({error})",
                remedy="A site lies, and the sum does not show which; have each site run `dynammo-site doctor`",
            ) from error


def _taken(step: Step, progress: Progress) -> Mapping[str, list[int]]:
    """Return, by site, which of its answers a correction or own heads are about, as the server's sums contain them.

    A correction of sums that are carried is about those of one step alone.
    """
    stage = step.stage
    if not isinstance(stage, Forget):
        return progress.taken if isinstance(stage, Evaluate) and stage.own_heads is not None else {}
    if stage.carry is None:
        return progress.taken
    asked = {site: taken for site, taken in progress.taken.items() if step.index in taken}
    return {site: [each for each in taken if each < 0 or each == step.index] for site, taken in asked.items()}
