"""Images in class folders: root/train/<class>/ and root/test/<class>/, or root/<class>/ split 80/20 by a fixed seed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.folders import require_folder
from dynammo_core.data.index.records import ImageRecord, assemble, require_registered
from dynammo_core.data.samples import Dataset
from dynammo_core.support.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
LAYOUT = "ROOT/train/<class>/<image> and ROOT/test/<class>/<image>, or ROOT/<class>/<image> to be split 80/20"


def load_image_folder(settings: DataSettings) -> Dataset:
    """Load the class folders under `data.root`; the classes are the folders' names, sorted, or `data.classes`.

    Raises:
        DataError: a folder is missing or is not a class of the registry, or `assemble` refuses the images.
    """
    return load_class_folders(settings, settings.classes, LAYOUT, absent=settings.classes is not None)


def image_folder_labels(settings: DataSettings) -> tuple[str, ...]:
    """Return the names of the class folders, sorted.

    Raises:
        DataError: as `load_image_folder`.
    """
    folders = class_folders(require_folder(settings, LAYOUT), LAYOUT)
    return tuple(sorted({folder.name for _, folder in folders}))


def load_class_folders(
    settings: DataSettings, class_names: tuple[str, ...] | None, layout: str, *, absent: bool
) -> Dataset:
    """Load the class folders under the data set's root; without `class_names`, the classes are their names, sorted.

    Hidden files and files without an image's extension are passed over; subfolders of a class folder belong to it.

    Raises:
        DataError: as `load_image_folder`.
    """
    root = require_folder(settings, layout)
    folders = class_folders(root, layout)
    names = class_names or tuple(sorted({folder.name for _, folder in folders}))
    if not names:
        raise DataError(f"{root} holds no class folders", accepted=layout)
    for _, folder in folders:
        require_registered(folder.name, names, f"the folder {folder}")
    records = [
        ImageRecord(path, folder.name, path.relative_to(root).as_posix(), split=split)
        for split, folder in folders
        for path in image_files(folder)
    ]
    if not records:
        raise DataError(f"{root} holds no images", accepted=f"{layout}, with files named {', '.join(EXTENSIONS)}")
    return assemble(records, names, str(root), absent=absent)


def class_folders(root: Path, layout: str) -> list[tuple[Literal["train", "test"] | None, Path]]:
    """List each class folder under a root with the split it belongs to, None if the root is not split.

    Raises:
        DataError: there is train/ without test/, or test/ without train/.
    """
    return [(split, folder) for split, part in _parts(root, layout) for folder in subfolders(part)]


def _parts(root: Path, layout: str) -> list[tuple[Literal["train", "test"] | None, Path]]:
    train, test = root / "train", root / "test"
    if train.is_dir() and test.is_dir():
        return [("train", train), ("test", test)]
    for there, lacking in ((train, test), (test, train)):
        if there.is_dir():
            raise DataError(f"{there} has no {lacking.name}/ beside it", accepted=layout)
    return [(None, root)]


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder, sorted by name; hidden ones are passed over."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """List the image files in a folder and its subfolders, sorted; hidden ones are passed over."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    return sorted(path for path in files if not path.name.startswith(".") and path.is_file())
