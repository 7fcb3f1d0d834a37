"""The Python files that server and sites share, by which an installation is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("client", "dynammo_core", "server")


def code_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield each Python file that a hash of the code covers, with its name below `root`, package by package."""
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            yield file.relative_to(root).as_posix(), file
