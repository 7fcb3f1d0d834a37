"""Writing files so that a crash, a full disk or a power cut leaves the old file or the new one, never half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dynammo_core.support.errors import CheckpointError


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `content`: write beside it, sync, rename, sync the folder.

    Raises:
        CheckpointError: the file cannot be written (full disk, no permission); the old file at `path` is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def utf8(text: object) -> str:
    """Return a path or another text as UTF-8 can hold it: bytes of file names that are not UTF-8 become `\\xff`."""
    return os.fsencode(str(text)).decode("utf-8", "backslashreplace")


def sync_folder(folder: Path) -> None:
    """Sync a folder's names to the disk: until then a power cut can undo a new file or a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot write {path}: {error.strerror or error}",
        remedy="Free disk space or permit writing there; what was written before is whole",
    )
