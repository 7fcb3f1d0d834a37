"""The table of data sets: one file each, from the section `data` of a configuration to an index of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dynammo_core.support.registry import Registry

if TYPE_CHECKING:
    from dynammo_core.configuration.settings import DataSettings
    from dynammo_core.data.samples import Dataset

    Load = Callable[[DataSettings], Dataset]
    Labels = Callable[[DataSettings], tuple[str, ...]]

DATASETS: Registry[Load] = Registry(
    "data set",
    "dynammo.datasets",
    {
        "cifar100": "dynammo_core.data.datasets.cifar100:load_cifar100",
        "digits": "dynammo_core.data.datasets.digits:load_digits",
        "fashion_mnist": "dynammo_core.data.datasets.fashion_mnist:load_fashion_mnist",
        "fed_isic2019": "dynammo_core.data.datasets.fed_isic2019:load_fed_isic2019",
        "image_folder": "dynammo_core.data.datasets.image_folder:load_image_folder",
        "manifest": "dynammo_core.data.datasets.manifest:load_manifest",
        "medical_mnist": "dynammo_core.data.datasets.medical_mnist:load_medical_mnist",
        "medmnist": "dynammo_core.data.datasets.medmnist:load_medmnist",
        "path16": "dynammo_core.data.datasets.path16:load_path16",
        "skin8": "dynammo_core.data.datasets.skin8:load_skin8",
    },
    accepted="a function from the section `data` (DataSettings) to a Dataset",
)

LABELS: Registry[Labels] = Registry(
    "data set with open classes",
    "dynammo.labels",
    {
        "image_folder": "dynammo_core.data.datasets.image_folder:image_folder_labels",
        "manifest": "dynammo_core.data.datasets.manifest:manifest_labels",
    },
    accepted="a function from the section `data` (DataSettings) to the labels found, sorted",
)
"""Functions that list the labels found, sorted, for data sets whose classes are not fixed."""
register_dataset = DATASETS.decorator
