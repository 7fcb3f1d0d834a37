"""What a site tells of its images before any training: counts by class and side, sizes and brightness in fixed bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.announcement import require_names
from dynammo_core.wire.protocol import MOST

SIDES = (1, 64, 128, 256, 512, 1024, 2048, 4096)
"""Lower edges in pixels of the bins of an image's shorter side, before it is resized."""
GREYS = tuple(range(0, 256, 32))
"""Lower edges of the bins of an image's mean value, 0 to 255, over pixels and channels."""
TABLES = ("train_images", "train_patients", "test_images", "test_patients")
HISTOGRAMS: Mapping[str, tuple[int, ...]] = {"sides": SIDES, "greys": GREYS}


@dataclass(frozen=True)
class Statistics:
    """Counts of one site. A count that would be small is 0 and means: not given.

    Attributes:
        classes: names of C classes, of each of which there is something to tell.
        train_images, train_patients, test_images, test_patients: [C] counts by class.
        sides: [8] of the images counted above those with a shorter side in each bin of `SIDES`.
        greys: [8] the same by mean value and `GREYS`.
    """

    classes: tuple[str, ...]
    train_images: tuple[int, ...]
    train_patients: tuple[int, ...]
    test_images: tuple[int, ...]
    test_patients: tuple[int, ...]
    sides: tuple[int, ...]
    greys: tuple[int, ...]

    def __post_init__(self) -> None:
        require_names(self.classes)
        lengths = dict.fromkeys(TABLES, len(self.classes)) | {name: len(bins) for name, bins in HISTOGRAMS.items()}
        for name, length in lengths.items():
            counts = getattr(self, name)
            if len(counts) != length or any(type(count) is not int or not 0 <= count <= MOST for count in counts):
                raise ProtocolError(f"{name} is not a list of {length} counts")
        if any(sum(getattr(self, name)) > self.images for name in HISTOGRAMS):
            raise ProtocolError("a histogram counts more images than the classes have")

    @property
    def images(self) -> int:
        """Return the number of all images that are counted."""
        return sum(self.train_images) + sum(self.test_images)

    def cells(self) -> dict[tuple[str, str], int]:
        """Return every number of images that can be read off: by class and side, in a bin, and in no bin given."""
        by_class = {
            (table, name): count
            for table in ("train_images", "test_images")
            for name, count in zip(self.classes, getattr(self, table), strict=True)
        }
        bins = {(name, str(edge)): count for name, edge, count in self._bins()}
        rest = {(name, "elsewhere"): self.images - sum(getattr(self, name)) for name in HISTOGRAMS}
        return by_class | bins | rest

    def persons(self) -> dict[tuple[str, str], int]:
        """Return every number of patients that can be read off."""
        tables = ("train_patients", "test_patients")
        return {
            (table, name): n for table in tables for name, n in zip(self.classes, getattr(self, table), strict=True)
        }

    def too_few(self, images: int, patients: int) -> list[tuple[str, str]]:
        """Name every number, but 0, of fewer images or patients than these."""
        counts = ((self.cells(), images), (self.persons(), patients))
        return [key for told, fewest in counts for key, count in told.items() if 0 < count < fewest]

    def as_fields(self) -> dict[str, Any]:
        """Return the fields for JSON: by class, and by the lower edge of each bin."""
        rows = zip(self.classes, *(getattr(self, table) for table in TABLES), strict=True)
        by_class = {name: dict(zip(TABLES, counts, strict=True)) for name, *counts in rows}
        histograms: dict[str, dict[str, int]] = {name: {} for name in HISTOGRAMS}
        for name, edge, count in self._bins():
            histograms[name][str(edge)] = count
        return {"classes": by_class, **histograms}

    def _bins(self) -> list[tuple[str, int, int]]:
        return [
            (name, edge, n)
            for name, edges in HISTOGRAMS.items()
            for edge, n in zip(edges, getattr(self, name), strict=True)
        ]


def steady(before: Statistics | None, now: Statistics, images: int, patients: int) -> Statistics:
    """Return the new counts, or those told before where one of them differs by a few: that would tell of these few.

    Args:
        before: what was told last.
        now: what there is now.
        images: fewer images than this are few.
        patients: so are fewer patients than this.
    """
    if before is None:
        return now
    pairs: Sequence[tuple[Mapping[Any, int], Mapping[Any, int], int]] = (
        (before.cells(), now.cells(), images),
        (before.persons(), now.persons(), patients),
    )
    changes = ((abs(new.get(key, 0) - old.get(key, 0)), few) for old, new, few in pairs for key in {*old, *new})
    return now if all(change == 0 or change >= few for change, few in changes) else before
