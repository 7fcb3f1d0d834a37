"""PATH16 (Zhang et al., ACL, arXiv 2304.09042): 16 classes of seven pathology sets, 800 + 100 images per class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.class_folders import class_folders
from dynammo_core.data.index.folders import require_folder
from dynammo_core.data.index.image_files import PassedOver, image_files, subfolders
from dynammo_core.data.index.records import ImageRecord, assemble
from dynammo_core.data.samples import Dataset
from dynammo_core.support.errors import DataError, nearest_match

# Names, class counts and order as in ACL's released loader (its order 5); the names of the classes are not published
SETS: Mapping[str, int] = {
    "MHIST": 2,
    "breast_cancer": 2,
    "oral_cancer": 2,
    "Patch_Camelyon": 2,
    "TCGA_STD": 4,
    "lung": 2,
    "colon": 2,
}
LAYOUT = (
    "ROOT/<set>/train/<class>/<image> and ROOT/<set>/test/<class>/<image>, or ROOT/<set>/<class>/<image> in every set "
    "to be split 80/20, with the sets and so many class folders: "
    f"{', '.join(f'{name} ({count})' for name, count in SETS.items())}"
)


def load_path16(settings: DataSettings) -> Dataset:
    """Load the seven sets under `data.root`, one after the other; a class is named after set and folder: `MHIST/SSA`.

    Within a set classes are sorted by name, in train and test alike. `data.train_per_class` and `data.test_per_class`
    draw the protocol's 800 training and 100 test images per class, `tasks.class_order` names its orders.

    Raises:
        DataError: a set is missing or unknown or has another number of classes, only some sets are split, or
            `assemble` refuses the images.
    """
    root = require_folder(settings, LAYOUT)
    _check_sets(root)
    names: list[str] = []
    records: list[ImageRecord] = []
    seen = PassedOver()
    for name, count in SETS.items():
        folders = class_folders(root / name, LAYOUT, seen)
        classes = sorted({folder.path.name for folder in folders})
        if len(classes) != count:
            raise DataError(
                f"{root / name} holds {len(classes)} classes ({', '.join(classes) or 'no folders'})",
                accepted=f"{count} class folders: {LAYOUT}",
            )
        names += [f"{name}/{label}" for label in classes]
        records += [
            ImageRecord(
                path,
                f"{name}/{folder.path.name}",
                path.as_posix().removeprefix(f"{root.as_posix()}/"),
                split=folder.part,
            )
            for folder in folders
            for path in image_files(folder.path, seen)
        ]
    if len({record.split is None for record in records}) > 1:
        raise DataError(f"in {root} some sets are split into train and test, and others are not", accepted=LAYOUT)
    return assemble(settings, records, tuple(names), str(root), absent=False, notes=seen.notes())


def _check_sets(root: Path) -> None:
    found = [folder.name for folder in subfolders(root)]
    for name in found:
        if name not in SETS:
            raise DataError(f"{root / name} is no set of PATH16{nearest_match(name, SETS)}", accepted=LAYOUT)
    for name in SETS:
        if name not in found:
            raise DataError(f"PATH16's set {name!r} is not in {root}", accepted=LAYOUT)
