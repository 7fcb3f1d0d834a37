"""What is merged across tasks: the adapter sets that the tasks left, and what the first of them started from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class TaskSets:
    """Adapter sets of tasks 0..t, all with the same names and shapes, and how they are to be merged.

    Attributes:
        sets: one state dict a task, oldest first; each set was inherited from the one before.
        initial: the set that task 0 started from; what operators on task vectors subtract.
        samples: images that each set was tuned on, all sites together; what `weighted` weighs by.
        density: share in (0, 1] of a task vector's entries that sparse operators keep.
        scale: times the merged task vector; 1 leaves the length that the operator gives it.
    """

    sets: Sequence[State]
    initial: State = field(default_factory=dict)
    samples: Sequence[float] = ()
    density: float = 1.0
    scale: float = 1.0


MergeOperator = Callable[[TaskSets], dict[str, Tensor]]
