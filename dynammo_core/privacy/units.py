"""Whom the noise of a site hides: one image, or one patient with all images.

Under `privacy.unit: patient` an image weighs 1 / n wherever images are added up, with n the number of its patient's
images in the same set, and batches draw patients. If no image can change a sum by more than s (L2), a patient changes
it by at most s too, since the norm of a mean is at most the mean of the norms. So noise that is made for one image
hides a patient, however many images there are of them. What a patient adds depends on that patient's images alone, so
one patient more or less changes nothing else.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dynammo_core.data.samples import Samples, Split
from dynammo_core.support.errors import DataError

Unit = Literal["image", "patient"]


def owners(samples: Samples, unit: Unit) -> Tensor:
    """Return, for each of N images, the number of the image or the patient that it counts for, Tensor[N] int64."""
    if unit == "image":
        return torch.arange(len(samples))
    numbers: dict[str, int] = {}
    return torch.tensor(
        [numbers.setdefault(patient, len(numbers)) for patient in samples.patient_ids], dtype=torch.int64
    )


def shares(owner: Tensor) -> Tensor:
    """Return what each image weighs, 1 / (images of its owner), Tensor[N] float64."""
    return 1 / torch.bincount(owner).double()[owner]


def require_patients(split: Split, unit: Unit) -> None:
    """Refuse to protect patients where the data do not say whom an image shows: each image would count as a patient.

    Raises:
        DataError: no image names its patient.
    """
    if unit == "patient" and len(split.labels) and not split.patients:
        raise DataError(
            "privacy.unit is patient, and the data set does not say which patient an image shows",
            accepted="a data set that names patients, such as a manifest with the column patient",
            remedy="Name the patients, or set privacy.unit: image, which protects each image by itself",
        )
