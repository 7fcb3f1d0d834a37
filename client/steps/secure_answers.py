"""Answer the four exchanges of secure aggregation: the site's vector leaves masked or not at all."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from client.state.answer_ledger import Recording, anew
from client.state.secure_ledger import SecureLedger
from client.steps.actions import do_step
from client.steps.site import Site
from dynammo_core.plan import Action, Step
from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.protocol import SUMMED, Instruction, Phase, Report
from dynammo_core.wire.secure_aggregation.encoding import Encoding
from dynammo_core.wire.secure_aggregation.masking import PUBLIC_BYTES, Context, SiteKeys, masked
from dynammo_core.wire.secure_aggregation.offers import OFFER_BYTES, unsigned
from dynammo_core.wire.secure_aggregation.phases import (
    ATTEMPT,
    ATTEMPT_BYTES,
    KEYS,
    PHASE_DOWN,
    PHASE_UP,
    SHARES,
    SITES,
    SURVIVORS,
    check_phase,
    check_tensor,
)
from dynammo_core.wire.secure_aggregation.sharing import SEALED_BYTES, deal, opened
from dynammo_core.wire.sums_form import whole


@dataclass(frozen=True)
class _Exchange:
    """An instruction of secure aggregation, unpacked and checked."""

    site: Site
    instruction: Instruction
    context: Context
    keys: SiteKeys
    ledger: SecureLedger
    threshold: int
    roster: Mapping[int, bytes]

    @property
    def own(self) -> int:
        return self.site.index


def secure_answer(phase: Phase, instruction: Instruction, site: Site, recording: Recording = anew) -> Report:
    """Answer one exchange, and check the answer against the protocol before it may leave.

    A pure function of the instruction, the site's images and memory, and its secret of the run: asked again, it answers
    the same, or refuses. What it masks goes through `recording`, so that another attempt at a step hides the same.

    Raises:
        ProtocolError: the instruction does not fit the experiment or the protocol, or what it asks for would tell more
            than the sum.
        DynammoError: the site's images, memory or ledger cannot serve.
    """
    report, length = _answer(phase, _exchange(phase, instruction, site), recording)
    check_phase(report, phase, len(instruction.weights.get(SITES, ())), length)
    return report


def _answer(phase: Phase, exchange: _Exchange, recording: Recording) -> tuple[Report, int]:
    """Return the answer, and the length of the vector if it is one, else 0."""
    if phase is Phase.MASKED:
        return _masked(exchange, recording)
    if phase is Phase.KEYS:
        with _refusing(phase):
            sent = _bytes(_offer(exchange))
    elif phase is Phase.SHARES:
        with _refusing(phase):
            dealt = deal(exchange.own, exchange.keys, exchange.roster, exchange.threshold, exchange.context)
        sent = torch.stack([_bytes(dealt[site]) for site in exchange.roster])
    else:
        sent = _opened(exchange)
    return Report(False, {PHASE_UP[phase]: sent}, {}), 0


def _masked(exchange: _Exchange, recording: Recording) -> tuple[Report, int]:
    """Do the step itself, and hide what comes of it, abstaining included."""
    started = time.monotonic()
    weights = {name: t for name, t in exchange.instruction.weights.items() if name not in PHASE_DOWN[Phase.MASKED]}
    asked = replace(exchange.instruction, weights=weights)
    report = recording(lambda: do_step(asked, exchange.site))
    experiment = exchange.site.experiment
    step = experiment.steps[exchange.instruction.step]
    model = experiment.build_model(step.task)
    encoding = Encoding(step.stage, model, experiment.classes, experiment.config.federation.sites)
    unfolded = replace(report, weights=whole(report.weights, model))
    with _refusing(Phase.MASKED):
        vector = masked(encoding.encode(unfolded), exchange.own, exchange.keys, exchange.roster, exchange.context)
    exchange.ledger.mask(exchange.context, exchange.roster)
    numbers = {"seconds": time.monotonic() - started}
    return Report(False, {PHASE_UP[Phase.MASKED]: torch.from_numpy(vector.view("int64"))}, numbers), len(encoding)


def _opened(exchange: _Exchange) -> Tensor:
    """Return, for each survivor, the share of its own mask; for each other site, the share of its masking key."""
    weights, roster = exchange.instruction.weights, exchange.roster
    check_tensor(SHARES, weights[SHARES], torch.uint8, (len(roster), SEALED_BYTES))
    survivors = _sites(weights[SURVIVORS], roster, exchange.threshold)
    if exchange.own not in survivors:
        raise ProtocolError("this site was asked to open a sum without its own vector")
    if exchange.site.opened_sums is not None:
        exchange.site.opened_sums.open(exchange.context.step, survivors)
    exchange.ledger.open(exchange.context, roster, survivors)
    shares = []
    for (sender, public), sealed in zip(roster.items(), weights[SHARES], strict=True):
        with _refusing(Phase.OPEN):
            own, key = opened(exchange.own, exchange.keys, sender, public, sealed.numpy().tobytes(), exchange.context)
        shares.append(_bytes(own if sender in survivors else key))
    return torch.stack(shares)


def _exchange(phase: Phase, instruction: Instruction, site: Site) -> _Exchange:
    """Check an instruction of secure aggregation, and read what an exchange needs from it."""
    federation = site.experiment.config.federation
    weights, step = instruction.weights, _step(instruction, site)
    lacking = PHASE_DOWN[phase] - set(weights)
    surplus = set() if phase is Phase.MASKED else set(weights) - PHASE_DOWN[phase]
    for name in sorted(lacking | surplus):
        raise ProtocolError(f"the tensor {name!r} is missing, or not declared for the exchange {phase.value!r}")
    check_tensor(ATTEMPT, weights[ATTEMPT], torch.uint8, (ATTEMPT_BYTES,))
    context = Context(instruction.run, instruction.step, weights[ATTEMPT].numpy().tobytes())
    ledger = SecureLedger(site.store.path.parent)
    keys = SiteKeys.derive(ledger.secret(), context, site.index)
    everyone = federation.taking_part(testing=step.stage.action is Action.EVALUATE)
    threshold = federation.threshold(len(everyone))
    roster: dict[int, bytes] = {}
    if SITES in weights:
        sites = _sites(weights[SITES], everyone, threshold)
        check_tensor(KEYS, weights[KEYS], torch.uint8, (len(sites), OFFER_BYTES))
        offers = {other: offer.numpy().tobytes() for other, offer in zip(sites, weights[KEYS], strict=True)}
        with _refusing(phase):
            roster = {other: _verified(site, offer, other, context) for other, offer in offers.items()}
        if roster.get(site.index) != keys.public:
            raise ProtocolError("the keys that the server sent are not those of this site in this attempt")
        if len(set(roster.values())) < len(roster):
            raise ProtocolError("two sites sent the same keys")
    return _Exchange(site, instruction, context, keys, ledger, threshold, roster)


def _offer(exchange: _Exchange) -> bytes:
    public, signatory = exchange.keys.public, exchange.site.signatory
    return signatory.offer(public, exchange.own, exchange.context) if signatory else unsigned(public)


def _verified(site: Site, offer: bytes, other: int, context: Context) -> bytes:
    """Return the public keys that another site offered; in a simulation nobody signs."""
    return site.signatory.verified(offer, other, context) if site.signatory else offer[:PUBLIC_BYTES]


def _step(instruction: Instruction, site: Site) -> Step:
    steps = site.experiment.steps
    if not site.experiment.config.federation.secure_aggregation:
        raise ProtocolError("this experiment does not use secure aggregation")
    if not 0 <= instruction.step < len(steps) or steps[instruction.step].stage.action not in SUMMED:
        raise ProtocolError(f"step {instruction.step} is not a step whose answers are summed")
    return steps[instruction.step]


def _sites(sent: Tensor, known: Collection[int], threshold: int) -> list[int]:
    """Return the numbers of sites that were sent.

    Raises:
        ProtocolError: they are not ascending numbers of known sites, or too few: fewer could be outvoted.
    """
    check_tensor(SITES, sent, torch.int64, (sent.numel(),))
    sites: list[int] = sent.tolist()
    if sites != sorted(set(sites)) or not set(sites) <= set(known):
        raise ProtocolError(f"{sites[:8]} are not ascending numbers of the step's sites")
    if len(sites) < threshold:
        raise ProtocolError(f"{len(sites)} sites are too few", accepted=f"{threshold} or more")
    return sites


@contextmanager
def _refusing(phase: Phase) -> Iterator[None]:
    """Turn errors from invalid keys and shares into ProtocolError, since the server sent them."""
    try:
        yield
    except ValueError as error:
        raise ProtocolError(f"the exchange {phase.value!r} cannot be answered: {error}") from error


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
