"""The table of data sets: one file each, from the section `data` of a configuration to an index of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets.cifar100 import load_cifar100
from dynammo_core.data.datasets.digits import load_digits
from dynammo_core.data.datasets.fashion_mnist import load_fashion_mnist
from dynammo_core.data.datasets.fed_isic2019 import load_fed_isic2019
from dynammo_core.data.datasets.image_folder import image_folder_labels, load_image_folder
from dynammo_core.data.datasets.manifest import load_manifest, manifest_labels
from dynammo_core.data.datasets.medical_mnist import load_medical_mnist
from dynammo_core.data.datasets.medmnist import load_medmnist
from dynammo_core.data.datasets.path16 import load_path16
from dynammo_core.data.datasets.skin8 import load_skin8
from dynammo_core.data.samples import Dataset

DATASETS: Mapping[str, Callable[[DataSettings], Dataset]] = {
    "cifar100": load_cifar100,
    "digits": load_digits,
    "fashion_mnist": load_fashion_mnist,
    "fed_isic2019": load_fed_isic2019,
    "image_folder": load_image_folder,
    "manifest": load_manifest,
    "medical_mnist": load_medical_mnist,
    "medmnist": load_medmnist,
    "path16": load_path16,
    "skin8": load_skin8,
}

LABELS: Mapping[str, Callable[[DataSettings], tuple[str, ...]]] = {
    "image_folder": image_folder_labels,
    "manifest": manifest_labels,
}
"""The labels found, sorted, in data sets whose classes are not fixed."""
