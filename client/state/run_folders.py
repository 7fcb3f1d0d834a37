"""Locate a site's runs in `<memory>/runs/<run>`, so that a run's name cannot collide with a file of the site.

Beside `runs` lies what belongs to the whole site, such as the ledger of withdrawn records. Older versions kept each run
directly in the memory folder; what they left is moved, each folder by one rename, whenever some is found.
"""

from __future__ import annotations

import re
from pathlib import Path

from client.consent.settings import RUNS
from dynammo_core.memory.private_files import locked_folder, make_private
from dynammo_core.support.errors import MemoryStoreError, ProtocolError
from dynammo_core.support.files import sync_folder

RUN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
IMAGES = "images"
"""Folder of the decoded images that all runs of a site share, beside `RUNS`."""
ASIDE = ".runs"  # no run's name begins with a dot
OF_A_RUN = frozenset(
    {
        "memory.safetensors",
        "received.safetensors",
        "feedback.safetensors",
        "statistics.sealed",
        "sums.sealed",
        "secure.json",
        "privacy.json",
        "features",
        "tested",
    }
)
"""What a run's folder was known to hold when runs lay directly in the memory folder."""


def runs_folder(memory: Path) -> Path:
    """Return the folder of a site's runs, with all runs in it.

    Args:
        memory: the site's memory folder.

    Raises:
        MemoryStoreError: an older version's run cannot be moved, or lies in both places.
    """
    if _left_behind(memory):
        _carry_over(memory)
    return memory / RUNS


def run_folder(memory: Path, run: str) -> Path:
    """Return the folder of one run.

    Raises:
        ProtocolError: the run's name is invalid, or differs from another run's name in capital letters alone.
        MemoryStoreError: as `runs_folder`.
    """
    if not re.fullmatch(RUN, run):
        raise ProtocolError(f"{run!r} is not a valid run name", accepted=RUN)
    runs = runs_folder(memory)
    kept_runs = [folder.name for folder in runs.iterdir()] if runs.is_dir() else []
    if run not in kept_runs and run.lower() in {name.lower() for name in kept_runs}:
        raise ProtocolError(
            f"the run {run!r} differs from another run of this site only in upper and lower case",
            remedy="Give the experiment another name: some disks would keep both in one folder",
        )
    return runs / run


def _left_behind(memory: Path) -> list[Path]:
    """Return the folders of runs that do not lie where they belong."""
    try:
        here = sorted(memory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MemoryStoreError(
            f"the memory folder {memory} cannot be read: {error.strerror}",
            remedy="Give read permission, or set memory.folder in site.yaml to a folder of this account",
        ) from error
    return [folder for folder in here if _is_misplaced(folder)]


def _is_misplaced(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    if folder.name == ASIDE:
        return True
    if not re.fullmatch(RUN, folder.name):
        return False
    known = [folder / name for name in OF_A_RUN]
    if folder.name == RUNS:
        # Runs in there may be named like files of a run, but they are folders.
        return any(one.is_file() for one in known)
    # Folders of the site have no dot in their names, so one that stands where a file belongs is a run's.
    return "." in folder.name or any(one.exists() for one in known)


def _carry_over(memory: Path) -> None:
    """Move what was left behind. Cut off anywhere, it goes on from there the next time."""
    runs, aside = memory / RUNS, memory / ASIDE
    with locked_folder(memory):
        try:
            left = _left_behind(memory)  # again: another process may have been faster
            if runs in left and aside not in left:
                runs.rename(aside)
            make_private(runs)
            for folder in left:
                target = runs / (RUNS if folder in (runs, aside) else folder.name)
                source = aside if folder == runs else folder
                if source.exists():
                    _move(source, target)
            sync_folder(runs)
            sync_folder(memory)
        except OSError as error:
            raise MemoryStoreError(
                f"cannot move the runs in {memory} to {runs}: {error.strerror}",
                remedy=f"Give write permission, or move each run's folder to {runs} by hand",
            ) from error


def _move(source: Path, target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        raise MemoryStoreError(
            f"one run is in two folders, {source} and {target}, and only a person can tell which is right",
            remedy="Move one of them out of the memory folder: an older version may have run in between",
        )
    source.rename(target)
