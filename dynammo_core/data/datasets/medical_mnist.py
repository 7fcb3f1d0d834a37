"""Medical MNIST (MedNIST): 64x64 radiology images in six class folders, gathered by B. J. Erickson, CC BY-SA 4.0."""

from __future__ import annotations

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets.image_folder import load_class_folders
from dynammo_core.data.samples import Dataset

CLASSES = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
LAYOUT = (
    "the public layout, ROOT/<class>/*.jpeg (split 80/20), or ROOT/train/<class>/*.jpeg and ROOT/test/<class>/*.jpeg, "
    f"with the classes {', '.join(CLASSES)}"
)


def load_medical_mnist(settings: DataSettings) -> Dataset:
    """Load the six class folders under `data.root`, whole or already split into train and test.

    Raises:
        DataError: a folder is missing, a class is unknown or empty, or an image is in both train and test.
    """
    return load_class_folders(settings, CLASSES, LAYOUT, absent=False)
