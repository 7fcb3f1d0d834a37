"""How little of a hospital an answer may speak of: a class of fewer images, or of fewer patients, stays out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Fewest:
    """The least that an answer may speak of, class by class.

    Attributes:
        images: fewer images of a class are too few.
        patients: so are images of fewer patients than this.
    """

    images: int = 1
    patients: int = 1

    def words(self) -> str:
        """Say how much of a class there has to be."""
        shown = f", of {self.patients} patients or more" if self.patients > 1 else ""
        return f"{self.images} images or more of a class{shown}"

    def at_most(self, share: int) -> Fewest:
        """Return the same for a class that may have no more than `share` images."""
        return Fewest(min(self.images, share), min(self.patients, share))

    def enough(self, patients: Collection[str]) -> bool:
        """Tell whether an answer may speak of images of one class, of which each shows one of `patients`."""
        return len(patients) >= self.images and len(set(patients)) >= self.patients

    def class_counts(self, labels: NDArray[np.int64], patients: Sequence[str], classes: int) -> NDArray[np.int64]:
        """Count the images of each of `classes` classes, and return 0 for those of which there are too few.

        Args:
            labels: [N] class indices.
            patients: N patients that the images show.
            classes: number C of classes.
        """
        counts = np.bincount(labels, minlength=classes)
        persons = counts
        if self.patients > 1:
            held = {*zip(labels.tolist(), patients, strict=True)}
            persons = np.bincount([label for label, _ in held], minlength=classes).astype(np.int64)
        return np.where((counts >= self.images) & (persons >= self.patients), counts, 0)


ANYTHING = Fewest()
"""The least of a simulation, where nobody is protected."""
