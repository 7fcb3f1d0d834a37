"""Whether the app that came with a run is the one that is installed: compared as bytes, never unpacked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from io import BytesIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from client.service.own_code import ROOT
from dynammo_core.support.code_files import code_files

LARGEST = 4 * 2**20
"""Bytes of an app; this one has about a million."""
BESIDE_CODE = re.compile(r"pyproject\.toml|\.info/CONTENT|configs/.+\.yaml")
"""Files of an app that are no code; a site reads none of them."""
SHOWN = 3


def difference(content: bytes) -> str | None:
    """Say what of an app is not as it is installed here; none where all of its code is.

    Each of the Python files that `code_hash` covers must be in the archive, once and with the same bytes, and nothing
    beside them but the description of the app and experiments. A file of another size is not even decompressed.

    Args:
        content: the app as Flower sends it, a zip archive.
    """
    if len(content) > LARGEST:
        return f"it has {len(content)} bytes, more than {LARGEST}"
    try:
        with ZipFile(BytesIO(content)) as archive:
            return _difference(archive)
    except Exception as error:  # what a damaged or forged archive makes a reader raise has no common type
        return f"it is no archive ({type(error).__name__})"


def _difference(archive: ZipFile) -> str | None:
    entries = archive.infolist()
    found = {entry.filename: entry for entry in entries}
    own = {name: file.read_bytes() for name, file in code_files(ROOT)}
    surplus = [name for name in found if name not in own and not BESIDE_CODE.fullmatch(name)]
    changed = [name for name in own if name in found and not _same(archive, found[name], own[name])]
    for what, names in {
        "it lacks": [name for name in own if name not in found],
        "it also has": surplus,
        "it has another": changed,
        "it has twice": [entry.filename for entry in entries if entry is not found[entry.filename]],
    }.items():
        if names:
            return f"{what} {_some(names)}"
    return None


def _same(archive: ZipFile, entry: ZipInfo, content: bytes) -> bool:
    if entry.file_size != len(content) or entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return False
    return archive.read(entry) == content


def _some(names: Iterable[str]) -> str:
    """The first names, in a form that no name can break."""
    known = list(names)
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(f"{name[:100]!r}" for name in known[:SHOWN]) + more
