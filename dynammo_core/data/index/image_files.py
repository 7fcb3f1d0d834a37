"""The image files in folders, and all that is passed over there, counted and named: nothing goes missing in silence."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dynammo_core.data.images.formats import EXTENSIONS, is_image_file
from dynammo_core.support.errors import DataError
from dynammo_core.support.files import utf8

SYSTEM_FOLDERS = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
NAMED = 5
"""Files and folders passed over that a note names; of more only the number is told."""


@dataclass
class PassedOver:
    """What was seen while folders were searched for images, and not taken."""

    extensions: Counter[str] = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)
    broken_links: list[str] = field(default_factory=list)
    repeated_folders: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        """Return one line that counts and names all of it, or none if nothing was passed over."""
        kinds = ", ".join(f"{count} {utf8(name)}" for name, count in sorted(self.extensions.items()))
        parts = [
            f"files of other kinds: {kinds}" if kinds else "",
            _listed("hidden or of the system", self.hidden),
            _listed("links to nothing", self.broken_links),
            _listed("folders that were searched before under another name", self.repeated_folders),
            _listed("images in no class folder", self.outside),
            *(f"{name}/ ({count} images), which is neither train nor test" for name, count in self.unused.items()),
        ]
        words = "; ".join(filter(None, parts))
        return [f"passed over: {words}"] if words else []


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{what}: {', '.join(map(utf8, sorted(names)[:NAMED]))}{more}"


def image_files(folder: Path, passed_over: PassedOver | None = None) -> list[Path]:
    """List the image files in a folder and its subfolders, sorted; links to files and to folders are followed.

    Args:
        folder: where to look.
        passed_over: is told what was not taken: hidden files and folders, files without an image's extension, links to
            nothing, and folders reached a second time by a link.

    Raises:
        DataError: a folder cannot be read.
    """
    return list(_walk(folder, PassedOver() if passed_over is None else passed_over, {os.path.realpath(folder)}))


def subfolders(folder: Path, passed_over: PassedOver | None = None) -> list[Path]:
    """List the folders in a folder, sorted by name, without those that are hidden or the system's.

    Args:
        folder: where to look.
        passed_over: is told what else lies there: what is hidden, links to nothing, images, and files of other kinds.

    Raises:
        DataError: as `image_files`.
    """
    seen, folders = PassedOver() if passed_over is None else passed_over, []
    for entry in _visible(folder, seen):
        if entry.is_dir():
            folders.append(folder / entry.name)
        elif not entry.is_file():
            seen.broken_links.append(str(folder / entry.name))
        elif (kind := _extension(entry.name)) in EXTENSIONS:
            seen.outside.append(entry.name)
        else:
            seen.extensions[kind or "without an extension"] += 1
    return folders


def _walk(folder: Path, passed_over: PassedOver, searched: set[str]) -> Iterator[Path]:
    for entry in _visible(folder, passed_over):
        path = folder / entry.name
        if entry.is_dir():
            place = os.path.realpath(path)
            if place in searched:
                passed_over.repeated_folders.append(str(path))
                continue
            searched.add(place)
            yield from _walk(path, passed_over, searched)
        elif (kind := _extension(entry.name)) in EXTENSIONS:
            if entry.is_file():
                yield path
            else:
                passed_over.broken_links.append(str(path))
        elif is_image_file(path):
            yield path
        else:
            passed_over.extensions[kind or "without an extension"] += 1


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  # of a hundred thousand names, for which no path is needed


def _visible(folder: Path, passed_over: PassedOver) -> list[os.DirEntry[str]]:
    """List what is in a folder, sorted by name, without what is hidden; whether it is a folder costs no look at it."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"the folder {folder} cannot be read: {error.strerror}", remedy="Permit reading it, or take it away"
        ) from error
    visible = []
    for entry in entries:
        if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS or entry.name.lower() in SYSTEM_FILES:
            passed_over.hidden.append(entry.name)
        else:
            visible.append(entry)
    return visible


def require_utf8(path: Path) -> None:
    """Refuse a path that is not UTF-8: it can stand in no report, checkpoint or message.

    Raises:
        DataError: the path is not UTF-8; the message spells it in ASCII.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the name '{os.fsencode(path).decode('ascii', 'backslashreplace')}' is not UTF-8",
            accepted="names in UTF-8, as every system writes them today",
            remedy="Rename it, for instance by `convmv -f latin1 -t utf8 --notest -r FOLDER`",
        ) from error
