"""The table of data sets: one file each, from the section `data` of a configuration to an index of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dynammo_core.data.datasets.digits import load_digits
from dynammo_core.data.datasets.fashion_mnist import load_fashion_mnist
from dynammo_core.data.datasets.image_folder import load_image_folder
from dynammo_core.data.datasets.manifest import load_manifest
from dynammo_core.data.datasets.medical_mnist import load_medical_mnist
from dynammo_core.data.samples import Dataset
from dynammo_core.settings import DataSettings

DATASETS: Mapping[str, Callable[[DataSettings], Dataset]] = {
    "digits": load_digits,
    "fashion_mnist": load_fashion_mnist,
    "image_folder": load_image_folder,
    "manifest": load_manifest,
    "medical_mnist": load_medical_mnist,
}
