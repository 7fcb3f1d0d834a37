"""Fed-ISIC2019 (FLamby, arXiv 2210.04620): ISIC 2019 by its six centres of origin; 23,247 images, eight classes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets.isic2019 import CLASSES, IMAGES, METADATA, SOURCE, read_table, with_lesions
from dynammo_core.data.index.folders import missing, require_folder
from dynammo_core.data.index.records import ImageRecord, assemble
from dynammo_core.data.index.tables import Row
from dynammo_core.data.samples import Dataset
from dynammo_core.support.errors import DataError

CENTRES = ("BCN", "HAM_vidir_molemax", "HAM_vidir_modern", "HAM_rosendahl", "MSK", "HAM_vienna_dias")
"""The names that FLamby gives the centres 0..5."""

SPLIT = "train_test_split"
PREPROCESSED = f"{IMAGES}_preprocessed"
SPLIT_SOURCE = (
    "https://github.com/owkin/FLamby/blob/main/flamby/datasets/fed_isic2019/dataset_creation_scripts/train_test_split"
)
LAYOUT = (
    f"ROOT/{SPLIT}, FLamby's table, from {SPLIT_SOURCE}, and ROOT/{PREPROCESSED}/<image>.jpg, as FLamby's "
    f"resize_images.py makes it, or ROOT/{IMAGES}/<image>.jpg, from {SOURCE}; optionally ROOT/{METADATA}, from there "
    "too, which knows the lesions"
)
COLUMNS = ("target", "center", "fold2")


def load_fed_isic2019(settings: DataSettings) -> Dataset:
    """Load FLamby's training and test images of six centres, for `federation.partition: natural` with six sites.

    Relies on these columns of its table: image; target, the index of a class in ISIC 2019's order; center, 0..5; fold2,
    such as `train_0` or `test_3`, by which FLamby deals images to its centres. Images are taken from its preprocessed
    folder (shorter side 224, colour constancy) if it exists, else as ISIC published them. The published split is by
    image: one image stands on both sides of it, so that it needs `data.duplicates: drop`, and a note tells how many
    test images show a lesion that is also in training. With `data.split: patient` lesions are split instead.

    Raises:
        DataError: the table or the images are missing, a column or value is not FLamby's, or `assemble` refuses them.
    """
    root = require_folder(settings, LAYOUT)
    file = root / SPLIT
    if not file.is_file():
        raise missing(settings, file, "FLamby's table", LAYOUT)
    images = root / PREPROCESSED if (root / PREPROCESSED).is_dir() else root / IMAGES
    if not images.is_dir():
        raise missing(settings, images, "a folder of images", LAYOUT)
    records = with_lesions(root, [_record(images, row) for row in read_table(file, COLUMNS).values()])
    return assemble(settings, records, CLASSES, str(root), absent=False, tell_patients=True)


def _record(images: Path, row: Row) -> ImageRecord:
    name, target, centre = (row.values[column] for column in ("image", "target", "center"))
    label, site = _numbered(CLASSES).get(target), _numbered(CENTRES).get(centre)
    splits: dict[str, Literal["train", "test"]] = {f"train_{centre}": "train", f"test_{centre}": "test"}
    split = splits.get(row.values["fold2"])
    if label is None or site is None or split is None:
        raise DataError(
            f"{row.place} has {', '.join(f'{column} {row.values[column]!r}' for column in COLUMNS)}",
            accepted=f"target 0..{len(CLASSES) - 1}, center 0..{len(CENTRES) - 1}, and fold2 train_ or test_ with the "
            "number of the center",
            remedy=f"Take the table as it was published, from {SPLIT_SOURCE}",
        )
    return ImageRecord(images / f"{name}.jpg", label, name, row.place, split, site)


def _numbered(names: tuple[str, ...]) -> dict[str, str]:
    return {str(i): name for i, name in enumerate(names)}
