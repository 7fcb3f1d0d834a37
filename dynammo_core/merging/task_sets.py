"""The input of merging across tasks: the adapter sets that the tasks left, and the set that the first started from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class TaskSets:
    """Adapter sets of tasks 0..t, all with the same names and shapes, and how they are to be merged.

    Attributes:
        sets: one state dict per task, oldest first; each set was inherited from the one before.
        initial: the set that task 0 started from, which operators on task vectors subtract.
        samples: images that each set was tuned on, all sites together: the weights of `weighted`.
        importance: for each set, how much each entry counts, by the names of its parameters: the weights of `fisher`.
        density: share in (0, 1] of a task vector's entries that sparse operators keep.
        scale: factor of the merged task vector; 1 leaves the length that the operator gives it.
    """

    sets: Sequence[State]
    initial: State = field(default_factory=dict)
    samples: Sequence[float] = ()
    importance: Sequence[State] = ()
    density: float = 1.0
    scale: float = 1.0

    def at(self, place: int) -> TaskSets:
        """Return the same for the adapter at one insertion point alone, counted from 0."""

        def at_point(state: State) -> State:
            return {name: tensor for name, tensor in state.items() if name.startswith(f"{place}.")}

        return replace(
            self,
            sets=[at_point(state) for state in self.sets],
            initial=at_point(self.initial),
            importance=[at_point(state) for state in self.importance],
        )


MergeOperator = Callable[[TaskSets], dict[str, Tensor]]
