"""Everything that may travel between the server and a site; both ends check every message against it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from dynammo_core.models.names import Network, matching, travelling_names
from dynammo_core.plan import ALONE, PERSONAL, Action, Stage
from dynammo_core.scoring.reliability import LENGTHS as RELIABILITY

if TYPE_CHECKING:  # types alone: an operator's command asks without PyTorch
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

Numbers = Mapping[str, float | list[int]]
"""Numbers by name: a float, or a list of counts."""

NUMBERS: Mapping[Action, frozenset[str]] = MappingProxyType(
    {
        Action.FIT: frozenset({"class_counts", "loss", "seconds"}),
        Action.SUMMARISE: frozenset({"class_counts", "seconds"}),
        Action.REMEMBER: frozenset({"class_counts", "memory_bytes", "seconds"}),
        Action.EVALUATE: frozenset({"class_counts", "confusion", *RELIABILITY, "seconds"}),
        Action.FORGET: frozenset({"class_counts", "seconds"}),
    }
)
"""The numbers a site returns, by action. `class_counts` [C]: samples used of each class; `loss`: mean of the last
epoch; `memory_bytes`: size of its memory; `confusion` [C * C]: its test images by true and predicted class, row by row,
see `TABLES`; `calibration` [45] and `open_set` [256]: these by confidence, and by open-set
score beside those of classes to come, see `Reliability`; `seconds`: time the site took."""

PRIVATE_NUMBERS: Mapping[Action, frozenset[str]] = MappingProxyType(
    {
        Action.FIT: frozenset({"class_counts", "epsilon"}),
        Action.SUMMARISE: frozenset({"class_counts", "epsilon"}),
        Action.REMEMBER: frozenset({"class_counts", "epsilon"}),
        Action.EVALUATE: NUMBERS[Action.EVALUATE],
    }
)
"""The same under example-level differential privacy, for actions on training images: `class_counts` are made of noised
numbers, `epsilon` is what the site has spent so far, and nothing that was not noised goes with them. A site that
abstains sends `epsilon` alone."""


def numbers_of(stage: Stage, private: bool) -> frozenset[str]:
    """Return the names of the numbers that a stage reports; `private`: training images are protected one by one."""
    return (PRIVATE_NUMBERS if private else NUMBERS)[stage.action].union(stage.tables)


def lengths_of(classes: int) -> dict[str, int]:
    """Return the lengths of the numbers that are lists of counts, for C classes."""
    return {"class_counts": classes, **dict.fromkeys(TABLES, classes**2), **RELIABILITY}


TABLES = ("confusion", PERSONAL, ALONE)
"""The numbers that count test images by true and predicted class, which travel as `sparse_counts` says: as the model
answers that was sent and, with `method.personal`, as the site's own head does, and the one that it would have alone."""

TOGETHER = 1 << 16
"""Most values of a tensor that is looked at together with others."""

NEVER_NEGATIVE = frozenset({"seconds", "memory_bytes", "epsilon"})
"""The names of single numbers that cannot be negative."""

MOST = 10**12
"""More images than any site has: a larger count is invalid, whatever the limit of the site."""

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


@dataclass(frozen=True)
class Instruction:
    """What the server asks of a site in one step.

    Attributes:
        experiment: the resolved configuration as canonical JSON.
        code_hash: hash of the code that the server runs; a site with other code refuses.
        run: unique name of the run; a site keeps one memory for each.
        step: index of the step in the experiment's plan.
        site: index of the site that is asked.
        workspace: folder for the site's private state; used by simulated sites only, a deployed site has its own.
        weights: tensors by name, exactly those that the stage sends to sites.
        correction: 0 for a step of the plan; else the number of a correction, and `step` is the last one done or, if
            sums move along with their features, the one that brought those to be corrected.
        taken: for a correction, and where the site solves own heads from the sums that it is sent, the contributions of
            this site (`Step.contribution`) that the server's sums contain.
        corrected: corrections that the run's sums had before; what was asked before one may be asked anew after it.
        packages: those from outside that `code_hash` covers, with their versions, for the words of a refusal.
    """

    experiment: str
    code_hash: str
    run: str
    step: int
    site: int
    workspace: str
    weights: Mapping[str, Tensor]
    correction: int = 0
    taken: list[int] = field(default_factory=list)
    corrected: int = 0
    packages: str = ""


@dataclass(frozen=True)
class Report:
    """A site's answer to an instruction.

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
        """Return the number of samples of each class that the report speaks for."""
        counts = self.numbers["class_counts"]
        assert isinstance(counts, list)
        return counts

    @property
    def bytes(self) -> int:
        """Return the number of bytes of the report's tensors."""
        return tensor_bytes(self.weights)


def tensor_bytes(weights: Mapping[str, Tensor]) -> int:
    """Return the number of bytes that the tensors take on the wire, without framing."""
    return sum(tensor.numel() * tensor.element_size() for tensor in weights.values())


def extremes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Return the smallest and the largest value of each tensor that has any, both nan where it holds a nan.

    Args:
        tensors: in the CPU's memory, by name.
    """
    found = dict[str, tuple[float, float]]()
    small: dict[torch.dtype, dict[str, NDArray[Any]]] = {}
    for name, tensor in tensors.items():
        if tensor.numel() > TOGETHER:
            low, high = tensor.aminmax()
            found[name] = float(low), float(high)
        elif tensor.numel():
            small.setdefault(tensor.dtype, {})[name] = tensor.numpy().ravel(order="K")
    for arrays in small.values():  # a network has many, and looking at each by itself takes longer than at their values
        values, sizes = np.concatenate(list(arrays.values())), list(map(len, arrays.values()))
        starts = np.cumsum([0, *sizes[:-1]])
        lows, highs = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        found.update(zip(arrays, zip(lows.tolist(), highs.tolist(), strict=True), strict=True))
    return found


def all_finite(tensor: Tensor) -> bool:
    """Tell whether a tensor in the CPU's memory holds no infinite value and no nan."""
    return bool(np.isfinite(tensor.numpy()).all())


def tensors_of(model: Network, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors of a model by their names."""
    state = model.state_dict()
    return {name: state[name] for name in names}


def names_up(model: Network, stage: Stage) -> list[str]:
    """List the names of the model's tensors that a site may return in a stage."""
    return matching(travelling_names(model), stage.up)
