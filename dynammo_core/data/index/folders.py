"""The folders of data sets on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.support.errors import DataError

DATA_VARIABLE = "DYNAMMO_DATA"
DEFAULT_HOME = "~/.cache/dynammo"
ARCHIVES = (".zip", ".gz", ".tgz", ".tar")


def data_root(settings: DataSettings) -> Path:
    """Return `data.root`, else the data set's folder in $DYNAMMO_DATA or in ~/.cache/dynammo; it need not exist.

    Raises:
        DataError: the path begins with the ~ of a user whose home is not known.
    """
    home = os.environ.get(DATA_VARIABLE) or DEFAULT_HOME
    path = Path(home) / settings.dataset if settings.root is None else Path(settings.root)
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise DataError(f"{path} is no place for data: {error}", remedy="Write the whole path out") from error


def missing(settings: DataSettings, path: Path, what: str, layout: str) -> DataError:
    """Return the error that `path` does not exist: what was looked for, and how to lay it out."""
    source = f"data.root is {settings.root!r}"
    if settings.root is None:
        home = os.environ.get(DATA_VARIABLE)
        source = f"data.root is not set, and ${DATA_VARIABLE} is {repr(home) if home else 'not set either'}"
    if path.suffix.lower() in ARCHIVES and path.is_file():
        what, remedy = f"an archive, not {what}", "Unpack it and set data.root to the folder that comes out"
    else:
        what, remedy = (
            f"not {what}" if path.exists() else f"not there; it should be {what}",
            "Set data.root to the data",
        )
    return DataError(f"{path} is {what} ({source})", accepted=layout, remedy=remedy)


def require_folder(settings: DataSettings, layout: str) -> Path:
    """Return the data set's root, which must be a folder.

    Raises:
        DataError: it is not a folder; `layout` says what should be there.
    """
    root = data_root(settings)
    if not root.is_dir():
        raise missing(settings, root, "a folder", layout)
    return root
