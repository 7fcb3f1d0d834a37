"""Class folders under a root: which part of the data each belongs to, and roots that are not what they seem."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from dynammo_core.data.images.formats import EXTENSIONS
from dynammo_core.data.index.image_files import PassedOver, image_files, subfolders
from dynammo_core.support.errors import DataError

Part = Literal["train", "test"]

PARTS: dict[str, Part | Literal["validation"]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
}
"""The names, in any case, by which data sets call their parts. Validation images take no part."""


class ClassFolder(NamedTuple):
    """A folder whose name is a class, and the part that it belongs to; None if the data are not split."""

    part: Part | None
    path: Path


def class_folders(root: Path, layout: str, passed_over: PassedOver | None = None) -> list[ClassFolder]:
    """List each class folder under a root with its part.

    Args:
        root: holds class folders, or a folder for training and one for the test that do.
        layout: what should be there, for messages.
        passed_over: is told what was not taken.

    Raises:
        DataError: the root lies a level too high or too low, one of the two parts is missing or there twice, or class
            folders lie beside them.
    """
    seen = PassedOver() if passed_over is None else passed_over
    folders = subfolders(root, seen)
    parts: dict[str, Path] = {}
    for folder in folders:
        if (part := PARTS.get(folder.name.lower())) and (earlier := parts.setdefault(part, folder)) != folder:
            raise DataError(f"{earlier} and {folder} are both for {part}", accepted=layout, remedy="Join the two")
    if not parts.keys() & {"train", "test"}:
        _refuse_part(root, layout)
        _refuse_parts_below(folders, layout)
        return [ClassFolder(None, folder) for folder in folders]
    _refuse_half(parts, layout)
    for folder in folders:
        if folder not in parts.values():
            raise DataError(
                f"{folder} lies beside {parts['train'].name}/ and {parts['test'].name}/, and is neither",
                accepted=layout,
                remedy="Take it away, or begin its name with a dot if it is to be passed over",
            )
    if validation := parts.get("validation"):
        seen.unused[validation.name] += len(image_files(validation))
    found: list[ClassFolder] = []
    for name in ("train", "test"):
        _refuse_parts_below(subfolders(parts[name]), layout)
        found += [ClassFolder(name, folder) for folder in subfolders(parts[name], seen)]
    return found


def refuse_no_classes(root: Path, folders: list[ClassFolder], layout: str) -> None:
    """Refuse a root without class folders, such as a class folder itself.

    Raises:
        DataError: there is none; the message counts the images that lie there.
    """
    if not folders:
        here = [path for path in root.iterdir() if path.suffix.lower() in EXTENSIONS]
        what = f"{root} holds no class folders"
        if here:
            what += f", and {len(here)} images, as a class folder does"
        raise DataError(what, accepted=layout, remedy="Set data.root to the folder that holds the class folders")


def refuse_seeming_classes(folders: list[ClassFolder], registry: Iterable[str], layout: str) -> None:
    """Refuse folders that are no classes by all appearance; those whose names a person has listed are.

    Raises:
        DataError: they seem to be training and test under other names, or to hold the classes themselves: a single
            folder holds several, or all hold the same ones, two or more, and no images beside them.
    """
    paths = list({folder.path.name: folder.path for folder in folders}.values())
    if {path.name for path in paths} <= set(registry):
        return
    if not folders[0].part:
        _refuse_parts_by_other_names(paths, layout)
    inner = set.intersection(*({folder.name for folder in subfolders(path)} for path in paths))
    if len(inner) < 2 or any(path.suffix.lower() in EXTENSIONS for one in paths for path in one.iterdir()):
        return
    names, first = ", ".join(sorted(inner)[:5]), paths[0]
    what = f"{first} is the only class folder, and holds folders ({names}) and no images itself"
    if len(paths) > 1:
        what = f"{', '.join(path.name for path in paths[:5])} in {first.parent} would be classes, and all hold {names}"
    raise DataError(
        what,
        accepted=layout,
        remedy=f"Set data.root to {first}, if these are the classes; if they are patients, or kinds of images, list "
        "the classes in data.classes",
    )


def _refuse_parts_by_other_names(folders: list[Path], layout: str) -> None:
    """Refuse folders such as train_images/ and TestSet/, which would be two classes."""
    found: list[Path] = []
    for beginning in ("train", "test"):
        found += [folder for folder in folders if any(word.startswith(beginning) for word in _words(folder.name))][:1]
    if len(set(found)) == 2:
        raise DataError(
            f"{found[0]} and {found[1]} would be classes, and seem to be the two parts of the data",
            accepted=layout,
            remedy="Rename them to train and test; if they are classes, list them in data.classes",
        )


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)]


def _refuse_part(root: Path, layout: str) -> None:
    """Refuse a root that is itself one part of a data set: its images would be split once more."""
    own, beside = PARTS.get(root.name.lower()), list[Path]()
    if own is not None and os.access(root.parent, os.R_OK):
        beside = [folder for folder in subfolders(root.parent) if PARTS.get(folder.name.lower()) not in (None, own)]
    if beside:
        raise DataError(
            f"{root} has {beside[0].name}/ beside it, so that it is a part of a data set and not the whole",
            accepted=layout,
            remedy=f"Set data.root to {root.parent}",
        )


def _refuse_half(parts: dict[str, Path], layout: str) -> None:
    for name, lacking in (("train", "test"), ("test", "train")):
        if name in parts and lacking not in parts:
            validation = parts.get("validation")
            raise DataError(
                f"{parts[name]} has no {lacking}/ beside it",
                accepted=layout,
                remedy=f"Rename {validation.name}/ to {lacking}/ if it is to be that part" if validation else "",
            )


def _refuse_parts_below(folders: list[Path], layout: str) -> None:
    """Refuse class folders that hold train/ or test/ themselves: the root lies a level too high."""
    for folder in folders:
        below = [path.name for path in subfolders(folder) if PARTS.get(path.name.lower()) in ("train", "test")]
        if below:
            raise DataError(
                f"{folder} would be a class, and holds {' and '.join(f'{name}/' for name in below)}",
                accepted=layout,
                remedy=f"Set data.root to {folder}, or put the parts above the classes",
            )
