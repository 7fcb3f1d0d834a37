"""Images in class folders: root/train/<class>/ and root/test/<class>/, or root/<class>/ split 80/20 by a fixed seed."""

from __future__ import annotations

from pathlib import Path

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.images.formats import EXTENSIONS
from dynammo_core.data.index.class_folders import ClassFolder, class_folders, refuse_no_classes, refuse_seeming_classes
from dynammo_core.data.index.folders import require_folder
from dynammo_core.data.index.image_files import PassedOver, image_files, require_utf8
from dynammo_core.data.index.labels import refuse_unclear_labels, require_registered
from dynammo_core.data.index.records import ImageRecord, assemble
from dynammo_core.data.samples import Dataset
from dynammo_core.support.errors import DataError

LAYOUT = (
    "ROOT/train/<class>/<image> and ROOT/test/<class>/<image> (or Training and Testing), or ROOT/<class>/<image> to be "
    "split 80/20"
)


def load_image_folder(settings: DataSettings) -> Dataset:
    """Load the class folders under `data.root`; the classes are the folders' names, sorted, or `data.classes`.

    Raises:
        DataError: a folder is missing or is not a class of the registry, or `assemble` refuses the images.
    """
    return load_class_folders(settings, settings.classes, LAYOUT, absent=settings.classes is not None)


def image_folder_labels(settings: DataSettings) -> tuple[str, ...]:
    """Return the names of the class folders, sorted.

    Raises:
        DataError: as `load_image_folder`, or a name is unclear.
    """
    root = require_folder(settings, LAYOUT)
    folders = _found(root, settings.classes, LAYOUT, PassedOver())
    refuse_unclear_labels(_counts(folders), str(root), settings.classes)
    return tuple(sorted({folder.path.name for folder in folders}))


def load_class_folders(
    settings: DataSettings, class_names: tuple[str, ...] | None, layout: str, *, absent: bool
) -> Dataset:
    """Load the class folders under the data set's root; without `class_names`, the classes are their names, sorted.

    Hidden files, files without an image's extension and folders for validation are passed over, and a note counts
    them; subfolders of a class folder belong to it.

    Raises:
        DataError: as `load_image_folder`.
    """
    root, seen = require_folder(settings, layout), PassedOver()
    folders = _found(root, class_names, layout, seen)
    names = class_names or tuple(sorted({folder.path.name for folder in folders}))
    for folder in folders:
        require_registered(folder.path.name, names, f"the folder {folder.path}")
    records = [
        ImageRecord(path, folder.path.name, path.as_posix().removeprefix(f"{root.as_posix()}/"), split=folder.part)
        for folder in folders
        for path in image_files(folder.path, seen)
    ]
    if not records:
        remedy = "; ".join(seen.notes())
        raise DataError(
            f"{root} holds no images", accepted=f"{layout}, with files named {', '.join(EXTENSIONS)}", remedy=remedy
        )
    empty = sorted({folder.path.name for folder in folders} - {record.label for record in records})
    notes = [f"class folders without images: {', '.join(empty)}"] if empty else []
    return assemble(settings, records, names, str(root), absent=absent, notes=[*seen.notes(), *notes])


def _found(root: Path, registry: tuple[str, ...] | None, layout: str, seen: PassedOver) -> list[ClassFolder]:
    folders = class_folders(root, layout, seen)
    refuse_no_classes(root, folders, layout)
    for folder in folders:
        require_utf8(folder.path)
    refuse_seeming_classes(folders, registry or (), layout)
    return folders


def _counts(folders: list[ClassFolder]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for folder in folders:
        counts[folder.path.name] = counts.get(folder.path.name, 0) + len(image_files(folder.path))
    return counts
