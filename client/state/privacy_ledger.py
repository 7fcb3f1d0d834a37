"""Record the privacy charges on a site's records, in each run and over all runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dynammo_core.memory.private_files import JsonFile
from dynammo_core.privacy.accounting import Charge, compose, site_epsilon

LEDGER_FILE = "privacy.json"
"""A run's ledger, in the run's folder."""
SITE_FOLDER, SITE_FILE = "_privacy", "ledger.json"
"""The ledger of all runs. No run can have the folder's name: runs begin with a letter or a digit."""

EVERY_CLASS = "*"
"""Stands for the classes of charges that are known by number alone: every record is charged for them."""
ANY_PATIENT = "**"
"""Stands for what a patient was charged for, whatever the classes, beside the classes of single images."""


@dataclass
class Ledger:
    """All charges of one site in one run, and its census.

    Attributes:
        charges: by the name of the answer that was paid for.
        census: noised number of training images, by class; given out once and used ever after.
    """

    charges: dict[str, Charge] = field(default_factory=dict)
    census: dict[int, int] = field(default_factory=dict)

    def epsilon(self, delta: float, *more: Charge) -> float:
        """Return what the site has spent, or would have spent with more charges."""
        return site_epsilon((*self.charges.values(), *more), delta)


class LedgerFile:
    """The ledger of one run on the site's disk, beside the run's memory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER_FILE
        self._file = _privacy_file(self.path, "cannot answer in this run")

    def read(self) -> Ledger:
        """Return the ledger as last written; an empty one before the first charge.

        Raises:
            CheckpointError: it cannot be read. A site that does not know what it has spent must not spend more.
        """
        return self._file.read(_ledger) or Ledger()

    @contextmanager
    def changing(self) -> Iterator[Ledger]:
        """Give the ledger to be changed inside; write it at the end, while no other process can change it.

        Raises:
            CheckpointError: it cannot be read or written.
        """
        with self._file.locked():
            ledger = self.read()
            yield ledger
            charges = {name: _fields(charge) for name, charge in ledger.charges.items()}
            self._file.write({"charges": charges, "census": ledger.census})


@dataclass(frozen=True)
class NamedCharge:
    """Equal mechanisms of one run, on the records of some classes.

    Attributes:
        run: that they were charged in.
        noise_multiplier: as of `Charge`.
        sampling_rate: as of `Charge`.
        steps: of all of them together.
        classes: names, sorted; or `EVERY_CLASS` alone.
        unit: as of `Charge`.
    """

    run: str
    noise_multiplier: float
    sampling_rate: float
    steps: int
    classes: tuple[str, ...]
    unit: Literal["image", "patient"] = "image"

    @classmethod
    def of(cls, charge: Charge, run: str, class_names: Sequence[str]) -> NamedCharge:
        """Return a charge with the names that an experiment has for its classes."""
        names = tuple(sorted(class_names[label] for label in charge.classes))
        return cls(run, charge.noise_multiplier, charge.sampling_rate, charge.steps, names, charge.unit)

    @property
    def of_an_image(self) -> NamedCharge:
        """Return what an image is charged for: a charge of patients bounds what it tells of one of their images.

        With one image less a patient's others weigh more, and other exemplars may be kept. So all that the patient adds
        may change, by twice the most that it adds; and what is gained from drawing patients at random is not counted.
        """
        if self.unit == "image":
            return self
        return replace(self, noise_multiplier=self.noise_multiplier / 2, sampling_rate=1.0)


class SiteLedger:
    """The ledger of a site over all of its runs, on its disk.

    Args:
        memory: the folder that holds the folders of runs, whose own ledgers are carried over when this one begins.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self.path = memory / SITE_FOLDER / SITE_FILE
        self._file = _privacy_file(self.path, "cannot answer private experiments")

    def read(self) -> tuple[NamedCharge, ...]:
        """Return all charges as last written, or, before the first, those of runs that older versions kept a ledger of.

        Raises:
            CheckpointError: it, or a ledger of a run, cannot be read.
        """
        charges = self._file.read(_named_charges)
        return tuple(self._carried_over()) if charges is None else charges

    @contextmanager
    def locked(self) -> Iterator[tuple[NamedCharge, ...]]:
        """Give all charges, while no other process can add one.

        Raises:
            CheckpointError: as `read`.
        """
        with self._file.locked():
            yield self.read()

    def write(self, charges: Iterable[NamedCharge]) -> None:
        """Replace the ledger; inside `locked`. Equal mechanisms of a run become one line."""
        steps: Counter[NamedCharge] = Counter()
        for charge in charges:
            steps[replace(charge, steps=0)] += charge.steps
        self._file.write({"charges": [_fields(replace(charge, steps=count)) for charge, count in steps.items()]})

    def _carried_over(self) -> Iterator[NamedCharge]:
        """Yield for each run, for every class, what its most charged class was charged: a run's ledger has no names."""
        for pattern in (f"*/{LEDGER_FILE}", f"*/*/{LEDGER_FILE}"):
            for path in sorted(self._memory.glob(pattern)):
                charges = LedgerFile(path.parent).read().charges.values()
                steps: dict[Charge, Counter[int]] = {}
                for charge in charges:
                    kind = replace(charge, task=0, stage="", round=0, steps=0, classes=())
                    touched = charge.classes if charge.unit == "image" else (0,)
                    steps.setdefault(kind, Counter()).update(dict.fromkeys(touched, charge.steps))
                for kind, by_class in steps.items():
                    most = replace(kind, steps=max(by_class.values(), default=0))
                    yield replace(NamedCharge.of(most, path.parent.name, ()), classes=(EVERY_CLASS,))


def spent_by_class(charges: Iterable[NamedCharge], delta: float) -> Mapping[str, float]:
    """Return epsilon of an image per class, by its name, and of a patient under `ANY_PATIENT`, if any was charged.

    That of an image of any other class is under `EVERY_CLASS`, if charged. Charges of images do not count for patients,
    of whom they promise nothing.
    """
    every = tuple(charges)
    patients = [charge for charge in every if charge.unit == "patient"]
    names = sorted({name for charge in every if charge.unit == "image" for name in charge.classes})
    spent = {name: compose([charge.of_an_image for charge in every if _touches(charge, name)], delta) for name in names}
    return spent | ({ANY_PATIENT: compose(patients, delta)} if patients else {})


def total_epsilon(charges: Iterable[NamedCharge], delta: float) -> float:
    """Return epsilon of the class or patient that was charged for most; 0 without charges."""
    return max(spent_by_class(charges, delta).values(), default=0.0)


def _touches(charge: NamedCharge, name: str) -> bool:
    return charge.unit == "patient" or name in charge.classes or EVERY_CLASS in charge.classes


def _privacy_file(path: Path, without: str) -> JsonFile:
    return JsonFile(path, "the privacy ledger", f"Restore it from a backup; without it this site {without}", indent=1)


def _ledger(content: Mapping[str, Any]) -> Ledger:
    charges = {name: Charge(**_with_classes(fields)) for name, fields in content["charges"].items()}
    return Ledger(charges, {int(label): int(count) for label, count in content["census"].items()})


def _named_charges(content: Mapping[str, Any]) -> tuple[NamedCharge, ...]:
    return tuple(NamedCharge(**_with_classes(fields)) for fields in content["charges"])


def _fields(charge: Charge | NamedCharge) -> dict[str, Any]:
    """Return a charge as a ledger holds it: without its unit if that is an image, as before there was another."""
    fields = asdict(charge)
    return fields if charge.unit != "image" else {name: fields[name] for name in fields if name != "unit"}


def _with_classes(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a charge's fields with its classes as a tuple, which JSON does not know."""
    return {**fields, "classes": tuple(fields["classes"])}
