"""All that travels between the server and a site, and nothing else does: both ends check every message against this."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

import torch
from torch import Tensor

from dynammo_core.compression import packed_form, unpack
from dynammo_core.compression.base import Codec
from dynammo_core.errors import ProtocolError, unknown_name
from dynammo_core.models.incremental_model import IncrementalModel, matching, travelling_names
from dynammo_core.plan import Action, Stage
from dynammo_core.secure_aggregation.masking import PUBLIC_BYTES
from dynammo_core.secure_aggregation.shamir import SHARE_BYTES
from dynammo_core.secure_aggregation.sharing import SEALED_BYTES

Numbers = Mapping[str, float | list[int]]
"""Numbers by name: a float, or a list of counts."""

NUMBERS: Mapping[Action, frozenset[str]] = MappingProxyType(
    {
        Action.FIT: frozenset({"class_counts", "loss", "seconds"}),
        Action.SUMMARISE: frozenset({"class_counts", "seconds"}),
        Action.REMEMBER: frozenset({"class_counts", "memory_bytes", "seconds"}),
        Action.EVALUATE: frozenset({"class_counts", "confusion", "seconds"}),
    }
)
"""The numbers a site returns, by action. `class_counts` [C]: samples used of each class; `loss`: mean of the last
epoch; `memory_bytes`: size of its memory; `confusion` [C * C]: its test images by true and predicted class, row by row;
`seconds`: time the site took."""

PRIVATE_NUMBERS: Mapping[Action, frozenset[str]] = MappingProxyType(
    {
        Action.FIT: frozenset({"class_counts", "epsilon"}),
        Action.SUMMARISE: frozenset({"class_counts", "epsilon"}),
        Action.REMEMBER: frozenset({"class_counts", "epsilon"}),
        Action.EVALUATE: NUMBERS[Action.EVALUATE],
    }
)
"""The same under example-level differential privacy, which speaks of training images alone: `class_counts` are made of
noised numbers, `epsilon` is what the site has spent so far, and nothing that was not noised goes with them. A site that
abstains says `epsilon` alone."""


def numbers_of(action: Action, private: bool) -> frozenset[str]:
    """Names of the numbers of an action, of training images that are protected one by one or not."""
    return (PRIVATE_NUMBERS if private else NUMBERS)[action]


MOST = 10**12
"""More images than any site has: a larger count is no count."""

SUMMED: Mapping[Action, frozenset[str]] = MappingProxyType(
    {action: NUMBERS[action] - {"seconds"} for action in (Action.FIT, Action.SUMMARISE, Action.EVALUATE)}
)
"""The actions whose answers are added up under masks by secure aggregation, and the numbers that leave in no other way.
Then `remember` tells nothing but its seconds."""


class Phase(StrEnum):
    """The four exchanges of a step of which the server learns only the sum."""

    KEYS = "keys"
    SHARES = "shares"
    MASKED = "masked"
    OPEN = "open"


ATTEMPT, SITES, KEYS, SHARES, SURVIVORS = (
    f"secure.{name}" for name in ("attempt", "sites", "keys", "shares", "survivors")
)
ATTEMPT_BYTES = 16
PHASE_DOWN: Mapping[Phase, frozenset[str]] = MappingProxyType(
    {
        Phase.KEYS: frozenset({ATTEMPT}),
        Phase.SHARES: frozenset({ATTEMPT, SITES, KEYS}),
        Phase.MASKED: frozenset({ATTEMPT, SITES, KEYS}),
        Phase.OPEN: frozenset({ATTEMPT, SITES, KEYS, SHARES, SURVIVORS}),
    }
)
"""What goes down in an exchange; in MASKED, the tensors of the stage too. `attempt` uint8 [16]: random bytes, by which
sites tell attempts at a step apart; `sites` int64 [n], ascending, and `keys` uint8 [n, 64]: who takes part, and the
public keys; `shares` uint8 [n, 82]: what each of them dealt to the receiver; `survivors` int64: those in the sum."""

PHASE_UP: Mapping[Phase, str] = MappingProxyType(
    {
        Phase.KEYS: "secure.keys",
        Phase.SHARES: "secure.shares",
        Phase.MASKED: "secure.masked",
        Phase.OPEN: "secure.opened",
    }
)
"""The one tensor that comes up. `keys` uint8 [64]; `shares` uint8 [n, 82]: for each of the sites, encrypted for it;
`masked` int64 [N]: the masked vector; `opened` uint8 [n, 33]: of each survivor the share of its own mask, of each other
site that of its masking key."""


@dataclass(frozen=True)
class Instruction:
    """What the server asks of a site in one step.

    Attributes:
        experiment: the resolved configuration as canonical JSON.
        code_hash: of the code the server runs; a site with other code refuses.
        run: unique name of the run; a site keeps one memory for each.
        step: index of the step in the experiment's plan.
        site: index of the site that is asked.
        workspace: folder for the site's private state; used by simulated sites only, a deployed site has its own.
        weights: tensors by name, exactly those the stage sends down.
    """

    experiment: str
    code_hash: str
    run: str
    step: int
    site: int
    workspace: str
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class Report:
    """What a site answers.

    Attributes:
        abstained: the site has nothing to learn from in this stage and sends no tensors.
        weights: tensors by name, exactly those the stage sends up.
        numbers: exactly those that `NUMBERS` lists for the stage's action.
    """

    abstained: bool
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Numbers = field(default_factory=dict)

    @property
    def class_counts(self) -> list[int]:
        """Samples of each class that the report speaks for."""
        counts = self.numbers["class_counts"]
        assert isinstance(counts, list)
        return counts

    @property
    def bytes(self) -> int:
        """Bytes of its tensors."""
        return tensor_bytes(self.weights)


def tensor_bytes(weights: Mapping[str, Tensor]) -> int:
    """Bytes that the tensors take on the wire, without framing."""
    return sum(tensor.numel() * tensor.element_size() for tensor in weights.values())


def names_up(model: IncrementalModel, stage: Stage) -> list[str]:
    """Names of the model's tensors that a site may return in a stage."""
    return matching(travelling_names(model), stage.up)


def check_packed(report: Report, stage: Stage, model: IncrementalModel, codec: Codec) -> None:
    """Refuse a report whose tensors do not have the very types and shapes in which the codec writes those declared.

    Raises:
        ProtocolError: a tensor that is undeclared, missing, or of another form.
    """
    state = model.state_dict()
    form = packed_form(codec, {} if report.abstained else {name: state[name] for name in names_up(model, stage)})
    _same_names("tensor", set(report.weights), set(form))
    for name, tensor in report.weights.items():
        dtype, shape = form[name]
        if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
            raise ProtocolError(
                f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)} on the wire, in the stage {stage.name!r}",
                accepted=f"{dtype} {shape}",
            )


def opened_report(
    report: Report,
    stage: Stage,
    model: IncrementalModel,
    classes: int,
    seen: Collection[int] | None = None,
    *,
    codec: Codec,
    sent: Mapping[str, Tensor],
    private: bool = False,
    secure: bool = False,
) -> Report:
    """The report that a codec packed, checked in both forms; `sent` is what the site was sent in this step.

    The other arguments are those of `check_report`.

    Raises:
        ProtocolError: of `check_packed` or `check_report`.
    """
    check_packed(report, stage, model, codec)
    report = replace(report, weights=unpack(codec, report.weights, sent))
    check_report(report, stage, model, classes, seen, private=private, secure=secure)
    return report


def check_report(
    report: Report,
    stage: Stage,
    model: IncrementalModel,
    classes: int,
    seen: Collection[int] | None = None,
    *,
    private: bool = False,
    secure: bool = False,
) -> None:
    """Refuse a report that holds anything but what the stage declares; by the site before sending, and at the door.

    Args:
        report: the answer.
        stage: the stage it answers.
        model: a model with the structure of the stage's task.
        classes: number C of classes of the experiment.
        seen: the classes learnt so far, all C by default: a test speaks of no other.
        private: whether training images are protected one by one, see `PRIVATE_NUMBERS`.
        secure: whether the report leaves under secure aggregation as it is, so without all that says how many.

    Raises:
        ProtocolError: a tensor or number that is undeclared, missing, of another shape or type, or not finite.
    """
    state = model.state_dict()
    declared = {name: state[name] for name in names_up(model, stage)} if not report.abstained else {}
    _same_names("tensor", set(report.weights), set(declared))
    for name, tensor in report.weights.items():
        if tensor.shape != declared[name].shape or tensor.dtype != declared[name].dtype:
            raise ProtocolError(
                f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)} in the stage {stage.name!r}",
                accepted=f"{declared[name].dtype} {tuple(declared[name].shape)}",
            )
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise ProtocolError(f"tensor {name!r} holds values that are not finite floating-point numbers")
    if report.abstained and not report.numbers:
        return
    if secure:
        numbers = frozenset({"seconds"})
    elif private and report.abstained:
        numbers = frozenset({"epsilon"})
    else:
        numbers = numbers_of(stage.action, private)
    _same_names("number", set(report.numbers), set(numbers))
    lengths = {"class_counts": classes, "confusion": classes * classes}
    for name, value in report.numbers.items():
        if name in lengths:
            fits = isinstance(value, list) and len(value) == lengths[name]
            if not fits or not all(0 <= count <= MOST for count in value):  # type: ignore[union-attr]
                raise ProtocolError(f"number {name!r} is not a list of {lengths[name]} counts")
        elif isinstance(value, list):
            raise ProtocolError(f"number {name!r} is a list", accepted="one number")
        elif not math.isfinite(value):
            raise ProtocolError(f"number {name!r} is {value}", accepted="a finite number")
    if "confusion" in report.numbers and seen is not None:
        known = {true * classes + predicted for true in seen for predicted in range(classes)}
        counts: list[int] = report.numbers["confusion"]  # type: ignore[assignment]
        if any(count for cell, count in enumerate(counts) if cell not in known):
            raise ProtocolError("number 'confusion' counts images of classes that are not learnt yet")
    if report.weights and not any(report.class_counts):
        raise ProtocolError("the tensors come from no sample", accepted="an answer that abstains, without tensors")


def phase_shape(phase: Phase, sites: int, length: int) -> tuple[torch.dtype, tuple[int, ...]]:
    """Type and shape of what comes up in an exchange among n sites with vectors of N integers."""
    return {
        Phase.KEYS: (torch.uint8, (PUBLIC_BYTES,)),
        Phase.SHARES: (torch.uint8, (sites, SEALED_BYTES)),
        Phase.MASKED: (torch.int64, (length,)),
        Phase.OPEN: (torch.uint8, (sites, SHARE_BYTES)),
    }[phase]


def check_phase(report: Report, phase: Phase, sites: int, length: int) -> None:
    """Refuse an answer of an exchange of secure aggregation that is not exactly as declared; at both ends.

    Args:
        report: the answer.
        phase: the exchange.
        sites: number n of sites whose keys were sent.
        length: number N of a vector's integers.

    Raises:
        ProtocolError: it abstains, or a tensor or number is undeclared, missing, or of another shape or type.
    """
    if report.abstained:
        raise ProtocolError("a site that has nothing to say says so in its vector, as 0")
    _same_names("tensor", set(report.weights), {PHASE_UP[phase]})
    _same_names("number", set(report.numbers), {"seconds"} if phase is Phase.MASKED else set())
    check_tensor(PHASE_UP[phase], report.weights[PHASE_UP[phase]], *phase_shape(phase, sites, length))
    if any(isinstance(value, list) or not math.isfinite(value) for value in report.numbers.values()):
        raise ProtocolError("number 'seconds' is not one finite number")


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another type or shape.

    Raises:
        ProtocolError: it is.
    """
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ProtocolError(f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}", accepted=f"{dtype} {shape}")


def _same_names(kind: str, got: set[str], declared: set[str]) -> None:
    for name in sorted(got - declared):
        raise ProtocolError(unknown_name(kind, name, declared), accepted=", ".join(sorted(declared)[:8]) or "none")
    for name in sorted(declared - got):
        raise ProtocolError(f"the {kind} {name!r} is missing")
