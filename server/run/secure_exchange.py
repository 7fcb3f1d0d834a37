"""Do a step of which the server learns only the sum over sites, in four exchanges with them.

Sites offer keys, deal shares to each other, send masked vectors, and open shares that remove the masks: the own-mask
seed of each site whose vector came, and the masking key of each that dealt shares and then dropped out.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynammo_core.support.errors import RunError
from dynammo_core.wire.protocol import MOST, Phase, Report
from dynammo_core.wire.secure_aggregation.encoding import Encoding, Total
from dynammo_core.wire.secure_aggregation.masking import PUBLIC_BYTES, Context, unmasked
from dynammo_core.wire.secure_aggregation.phases import (
    ATTEMPT,
    ATTEMPT_BYTES,
    KEYS,
    PHASE_UP,
    SHARES,
    SITES,
    SURVIVORS,
    check_phase,
)
from dynammo_core.wire.secure_aggregation.shamir import combine
from server.run.answers import Answers, Failure, TooFewAnswers
from server.run.exchange import Check

Tensors = Mapping[str, Tensor]
Vectors = Mapping[int, NDArray[np.uint64]]
Ask = Callable[[Phase, Check, Tensors, Mapping[int, Tensors], int], Answers]
"""Asks sites in an exchange. Arguments: phase, check, tensors for all, tensors for each, answers needed."""


@dataclass
class SecureExchange:
    """One attempt at a step.

    Attributes:
        ask: sends and receives.
        encoding: encoding of the stage's vectors.
        run: unique name of the run.
        step: index of the step.
        needed: sites whose vectors must be in the sum.
        threshold: sites that must stay to the end, t; at least `needed`.
        label: what people call a site.
    """

    ask: Ask
    encoding: Encoding
    run: str
    step: int
    needed: int
    threshold: int
    label: Callable[[int], str]
    _failures: dict[int, Failure] = field(default_factory=dict)
    _totals: Answers = field(default_factory=Answers)  # what all exchanges cost

    def sum_of(self, sites: Iterable[int], sent: Tensors) -> Answers:
        """Return the sum over the sites that stay to the end; `sent` are the step's own tensors.

        Raises:
            RunError: too few sites stay to the end, or their answers do not yield a sum.
        """
        context = Context(self.run, self.step, secrets.token_bytes(ATTEMPT_BYTES))
        attempt = {ATTEMPT: torch.frombuffer(bytearray(context.attempt), dtype=torch.uint8)}
        offered = self._exchange(Phase.KEYS, attempt, _nothing(sites))
        common = attempt | _roster({site: report.weights[PHASE_UP[Phase.KEYS]] for site, report in offered.items()})
        dealt = self._exchange(Phase.SHARES, common, _nothing(offered), peers=len(offered))
        places = {site: place for place, site in enumerate(offered)}
        keys = {site: offered[site].weights[PHASE_UP[Phase.KEYS]] for site in dealt}
        common = attempt | _roster(keys)
        hidden = self._exchange(Phase.MASKED, {**common, **sent}, _nothing(dealt), peers=len(dealt))
        ending = common | {SURVIVORS: torch.tensor(list(hidden))}
        shares = {site: report.weights[PHASE_UP[Phase.SHARES]] for site, report in dealt.items()}
        relayed = {
            site: {SHARES: torch.stack([dealt_by[places[site]] for dealt_by in shares.values()])} for site in hidden
        }
        opened = self._exchange(Phase.OPEN, ending, relayed, peers=len(dealt))
        public = {site: offer.numpy().tobytes()[:PUBLIC_BYTES] for site, offer in keys.items()}
        total = self._open({site: _vector(report) for site, report in hidden.items()}, opened, public, context)
        failures = [failure for site, failure in sorted(self._failures.items()) if site not in hidden]
        return replace(self._totals, reports=hidden, failures=failures, total=total)

    def _exchange(
        self, phase: Phase, common: Tensors, individual: Mapping[int, Tensors], peers: int = 0
    ) -> dict[int, Report]:
        """Return the answers of one exchange, by site, ascending; a site that fails is not asked again."""
        needed = self.threshold if phase is Phase.OPEN else max(self.needed, self.threshold)
        length = len(self.encoding)

        def check(_: int, report: Report) -> Report:
            check_phase(report, phase, peers, length)
            return report

        answers = self.ask(phase, check, common, individual, needed)
        self._totals = self._totals.then(answers)
        self._failures |= {failure.site: failure for failure in answers.failures}
        if len(answers.reports) < needed:
            raise TooFewAnswers(
                f"secure aggregation, exchange {list(Phase).index(phase) + 1} of 4 ({phase.value}): "
                f"{len(answers.reports)} sites answered, {needed} are needed (threshold {self.threshold}), and the "
                "server learnt nothing",
                self._failures.values(),
                self.label,
            )
        return answers.reports

    def _open(
        self,
        vectors: Vectors,
        opened: Mapping[int, Report],
        public: Mapping[int, bytes],
        context: Context,
    ) -> Total:
        """Return the sum of the vectors with the masks removed."""
        secret: dict[int, bytes] = {}
        try:
            for place, site in enumerate(public):
                shares = {
                    holder: report.weights[PHASE_UP[Phase.OPEN]][place].numpy().tobytes()
                    for holder, report in opened.items()
                }
                secret[site] = combine(shares, self.threshold)
            seeds = [secret[site] for site in vectors]
            lost = {site: key for site, key in secret.items() if site not in vectors}
            hidden: NDArray[np.uint64] = np.sum(list(vectors.values()), axis=0, dtype=np.uint64)
            total = self.encoding.decode(unmasked(hidden, seeds, lost, vectors, public, context))
            if not all(0 <= count <= len(vectors) * MOST for counts in total.counts.values() for count in counts):
                raise ValueError("the counts of images are impossible")
        except ValueError as error:
            raise RunError(
                f"secure aggregation, step {self.step}: the sum cannot be computed ({error})",
                remedy="A site broke the protocol, and the sum hides which; have each run `dynammo-site doctor`",
            ) from error
        return total


def _nothing(sites: Iterable[int]) -> dict[int, Tensors]:
    """Return an empty mapping of tensors per site."""
    return {site: {} for site in sites}


def _roster(keys: Mapping[int, Tensor]) -> dict[str, Tensor]:
    return {SITES: torch.tensor(list(keys)), KEYS: torch.stack(list(keys.values()))}


def _vector(report: Report) -> NDArray[np.uint64]:
    return report.weights[PHASE_UP[Phase.MASKED]].numpy().view(np.uint64)
