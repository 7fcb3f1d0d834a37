"""Compare the app that came with a run with the installed one, as bytes, without unpacking it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from io import BytesIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from client.service.own_code import ROOT
from dynammo_core.support.code_files import code_files

LARGEST = 8 * 2**20
"""Most bytes of an app; this one has about two million."""
BESIDE_CODE = re.compile(r"pyproject\.toml|LICENSE|\.info/CONTENT|configs/.+\.yaml")
"""Files of an app that are not code; a site reads none of them."""
SHOWN = 3


def difference(content: bytes) -> str | None:
    """Return how an app differs from the installed one, or None if all of its code is the same.

    Each Python file that `code_hash` covers must be in the archive once, with the same bytes. Nothing else may be there
    but the app's description and experiments. A file of another size is not even decompressed.

    Args:
        content: the app as Flower sends it, a zip archive.
    """
    if len(content) > LARGEST:
        return f"it has {len(content)} bytes; at most {LARGEST} are accepted"
    try:
        with ZipFile(BytesIO(content)) as archive:
            return _difference(archive)
    except Exception as error:  # what a damaged or forged archive makes a reader raise has no common type
        return f"it is not an archive ({type(error).__name__})"


def _difference(archive: ZipFile) -> str | None:
    entries = archive.infolist()
    entry_of = {entry.filename: entry for entry in entries}
    installed = {name: file.read_bytes() for name, file in code_files(ROOT)}
    surplus = [name for name in entry_of if name not in installed and not BESIDE_CODE.fullmatch(name)]
    changed = [name for name in installed if name in entry_of and not _same(archive, entry_of[name], installed[name])]
    for what, names in {
        "it lacks": [name for name in installed if name not in entry_of],
        "it also has": surplus,
        "it has a different": changed,
        "it has twice": [entry.filename for entry in entries if entry is not entry_of[entry.filename]],
    }.items():
        if names:
            return f"{what} {_some(names)}"
    return None


def _same(archive: ZipFile, entry: ZipInfo, content: bytes) -> bool:
    if entry.file_size != len(content) or entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return False
    return archive.read(entry) == content


def _some(names: Iterable[str]) -> str:
    """List the first names, quoted and shortened."""
    known = list(names)
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(f"{name[:100]!r}" for name in known[:SHOWN]) + more
