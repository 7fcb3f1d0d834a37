"""The class-incremental stream: which classes arrive with which task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynammo_core.configuration.settings import TaskSettings
from dynammo_core.support.errors import ConfigError


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


def build_task_stream(settings: TaskSettings, class_count: int, seed: int) -> TaskStream:
    """Deal `class_count` classes out to tasks.

    One size for all tasks covers every class, and if it does not divide their number the last task is smaller. Sizes
    per task may leave classes over, which then take no part, as do those that an explicit order leaves out.
    A shuffled order is `numpy.random.RandomState(seed).permutation`, as in PyCIL, so that a seed names the class order
    the literature uses.

    Raises:
        ConfigError: the tasks need more classes than there are, or an explicit order names an unknown one.
    """
    sizes, order = settings.sizes, _order(settings, class_count, seed)
    needed = sizes if isinstance(sizes, int) else sum(sizes)
    if needed > len(order):
        what = f"one task of {sizes}" if isinstance(sizes, int) else f"{' + '.join(map(str, sizes))} = {needed}"
        source = "the data set has" if len(order) == class_count else "tasks.class_order names"
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


def _order(settings: TaskSettings, class_count: int, seed: int) -> list[int]:
    wanted = settings.class_order
    if isinstance(wanted, tuple):
        if max(wanted) >= class_count:
            raise ConfigError(
                f"tasks.class_order names class {max(wanted)}, and the data set has {class_count} classes",
                accepted=f"indices from 0 to {class_count - 1}",
            )
        return list(wanted)
    order = list(range(class_count))
    if wanted == "shuffled":
        order = np.random.RandomState(seed % 2**32).permutation(class_count).tolist()
    return order
