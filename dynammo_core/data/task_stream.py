"""The class-incremental stream: which classes arrive with which task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynammo_core.configuration.settings import TaskSettings
from dynammo_core.support.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class TaskStream:
    """Tasks 0..T-1, each a tuple of class indices; no class arrives twice.

    Attributes:
        tasks: the classes that arrive with each.
        names: of all classes, by index; empty if they are not known.
    """

    tasks: tuple[tuple[int, ...], ...]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tasks)

    def classes(self, task: int) -> tuple[int, ...]:
        """Return the classes that arrive with a task."""
        return self.tasks[task]

    def seen(self, task: int) -> tuple[int, ...]:
        """Return the classes of tasks 0..task, in the order of their arrival."""
        return tuple(label for classes in self.tasks[: task + 1] for label in classes)

    def name_of(self, label: int) -> str:
        """Return the name of a class, or its index if names are not known."""
        return self.names[label] if self.names else str(label)

    def task_of(self, label: int) -> int:
        """Return the task with which a class arrives.

        Raises:
            ConfigError: the class arrives with no task (the sizes of the tasks left it out).
        """
        for task, classes in enumerate(self.tasks):
            if label in classes:
                return task
        raise ConfigError(f"class {label} is in no task", accepted=", ".join(map(str, sorted(self.seen(len(self))))))


def build_task_stream(settings: TaskSettings, classes: int | Sequence[str], seed: int) -> TaskStream:
    """Deal classes, given by their names or their number, out to tasks.

    One size for all tasks covers every class, and if it does not divide their number the last task is smaller. Sizes
    per task may leave classes over, which then take no part, as do those that an explicit order leaves out.
    A shuffled order is `numpy.random.RandomState(seed).permutation`, as in PyCIL, so that a seed names the class order
    the literature uses.

    Raises:
        ConfigError: the tasks need more classes than there are, or an explicit order names an unknown one.
    """
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    order = _order(settings, names, seed)
    sizes = len(order) if settings.sizes == "all" else settings.sizes
    needed = sizes if isinstance(sizes, int) else sum(sizes)
    if needed > len(order):
        what = f"one task of {sizes}" if isinstance(sizes, int) else f"{' + '.join(map(str, sizes))} = {needed}"
        source = "the data set has" if len(order) == len(names) else "tasks.class_order names"
        raise ConfigError(
            f"tasks.sizes needs {what} classes, and {source} {len(order)}",
            accepted=f"sizes that sum to at most {len(order)}",
        )
    if isinstance(sizes, int):
        starts = list(range(0, len(order), sizes))
        ends = [*starts[1:], len(order)]
    else:
        ends = np.cumsum(sizes).tolist()
        starts = [0, *ends[:-1]]
    return TaskStream(tuple(tuple(order[start:end]) for start, end in zip(starts, ends, strict=True)))


def _order(settings: TaskSettings, names: Sequence[str], seed: int) -> list[int]:
    wanted = settings.class_order
    if isinstance(wanted, tuple):
        order = [_index(label, names) for label in wanted]
        if len(set(order)) < len(order):
            raise ConfigError(f"tasks.class_order {list(wanted)} has a class twice, once by name and once by index")
        return order
    order = list(range(len(names)))
    if wanted == "shuffled":
        order = np.random.RandomState(seed % 2**32).permutation(len(names)).tolist()
    return order


def _index(label: int | str, names: Sequence[str]) -> int:
    """Return the index of a class that an explicit order names, or gives the index of."""
    if isinstance(label, str):
        if label not in names:
            raise ConfigError(f"tasks.class_order: {unknown_name('class', label, names)}", accepted=", ".join(names))
        return names.index(label)
    if label >= len(names):
        raise ConfigError(
            f"tasks.class_order names class {label}, and the data set has {len(names)} classes",
            accepted=f"indices from 0 to {len(names) - 1}",
        )
    return label
