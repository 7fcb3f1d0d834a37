"""What a hospital's records were charged for in all runs, by class names: each experiment has its own numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from client.state.privacy_ledger import LEDGER_FILE, LedgerFile
from dynammo_core.memory.store import locked_folder
from dynammo_core.privacy.accounting import Charge, compose
from dynammo_core.support.errors import CheckpointError
from dynammo_core.support.files import write_atomically

FOLDER, FILE = "_privacy", "ledger.json"
"""No run can have this name: runs begin with a letter or a digit."""

EVERY_CLASS = "*"
"""Of charges whose classes are known by number alone: every record is charged for them."""


@dataclass(frozen=True)
class NamedCharge:
    """Equal mechanisms of one run, on the records of some classes.

    Attributes:
        run: that they were charged in.
        noise_multiplier: as of `Charge`.
        sampling_rate: as of `Charge`.
        steps: of all of them together.
        classes: names, sorted; or `EVERY_CLASS` alone.
    """

    run: str
    noise_multiplier: float
    sampling_rate: float
    steps: int
    classes: tuple[str, ...]

    @classmethod
    def of(cls, charge: Charge, run: str, class_names: Sequence[str]) -> NamedCharge:
        """A charge with the names that an experiment has for its classes."""
        names = tuple(sorted(class_names[label] for label in charge.classes))
        return cls(run, charge.noise_multiplier, charge.sampling_rate, charge.steps, names)


class SiteLedger:
    """The ledger of a site over all of its runs, on its disk.

    Args:
        memory: the folder that holds the folders of runs, whose own ledgers are carried over when this one begins.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self.path = memory / FOLDER / FILE

    def read(self) -> tuple[NamedCharge, ...]:
        """All charges as last written, or, before the first, those of runs that older versions kept a ledger of.

        Raises:
            CheckpointError: it, or a ledger of a run, cannot be read.
        """
        if not self.path.exists():
            return tuple(self._carried_over())
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))["charges"]
            return tuple(NamedCharge(**{**one, "classes": tuple(one["classes"])}) for one in content)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"the privacy ledger {self.path} cannot be read ({type(error).__name__}: {error})",
                remedy="Restore it from a backup: without it this site answers no private experiment",
            ) from error

    @contextmanager
    def locked(self) -> Iterator[tuple[NamedCharge, ...]]:
        """All charges, while no other process can add one.

        Raises:
            CheckpointError: as `read`.
        """
        with locked_folder(self.path.parent):
            yield self.read()

    def write(self, charges: Iterable[NamedCharge]) -> None:
        """Replace the ledger; inside `locked`. Equal mechanisms of a run become one line."""
        steps: Counter[NamedCharge] = Counter()
        for charge in charges:
            steps[replace(charge, steps=0)] += charge.steps
        lines = [asdict(replace(charge, steps=count)) for charge, count in steps.items()]
        write_atomically(self.path, json.dumps({"charges": lines}, indent=1).encode(), mode=0o600)

    def _carried_over(self) -> Iterator[NamedCharge]:
        """Of each run, for every class what the dearest of its classes was charged: the run's ledger has no names."""
        for pattern in (f"*/{LEDGER_FILE}", f"*/*/{LEDGER_FILE}"):
            for path in sorted(self._memory.glob(pattern)):
                charges = LedgerFile(path.parent).read().charges.values()
                steps: dict[tuple[float, float], Counter[int]] = {}
                for charge in charges:
                    kind = steps.setdefault((charge.noise_multiplier, charge.sampling_rate), Counter())
                    kind.update(dict.fromkeys(charge.classes, charge.steps))
                for (noise, rate), by_class in steps.items():
                    yield NamedCharge(path.parent.name, noise, rate, max(by_class.values(), default=0), (EVERY_CLASS,))


def spent_by_class(charges: Iterable[NamedCharge], delta: float) -> Mapping[str, float]:
    """Epsilon of a record of each class, by its name; of any other class under `EVERY_CLASS`, where there is such."""
    every = tuple(charges)
    names = sorted({name for charge in every for name in charge.classes})
    return {name: compose([charge for charge in every if _touches(charge, name)], delta) for name in names}


def total_epsilon(charges: Iterable[NamedCharge], delta: float) -> float:
    """Epsilon of the class that was charged for most; 0 for none."""
    return max(spent_by_class(charges, delta).values(), default=0.0)


def _touches(charge: NamedCharge, name: str) -> bool:
    return name in charge.classes or EVERY_CLASS in charge.classes
