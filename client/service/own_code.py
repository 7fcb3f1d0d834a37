"""Run only the code that was installed at the site, never the code that came with a run.

Each process of Flower that a site needs is a module of this project, and this file starts it. It uses a Python
that ignores its working directory and PYTHONPATH, and whose `sys.path` is fixed before anything of a run is received.
So modules and package metadata are found only in this environment.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import SupportsIndex

ROOT = Path(__file__).resolve().parents[2]
"""Where this project is installed: the folder of its packages."""


class FixedPlaces(list[str]):
    """A `sys.path` that silently ignores all changes."""

    def _stay(self, *_: object, **__: object) -> None:
        """Do nothing."""

    append = extend = insert = remove = clear = sort = reverse = __setitem__ = __delitem__ = _stay

    def pop(self, index: SupportsIndex = -1) -> str:
        """Return an entry without removing it."""
        return self[index]

    def __iadd__(self, _: Iterable[str]) -> FixedPlaces:  # type: ignore[misc,override]
        return self

    def __imul__(self, _: SupportsIndex) -> FixedPlaces:
        return self


def start_command(module: str, *arguments: str) -> list[str]:
    """Return the command that starts a module of this project with installed code only."""
    return [sys.executable, "-E", "-P", "-u", str(Path(__file__).resolve()), module, *arguments]


def only_installed() -> None:
    """Fix the module search path to its current entries, and this project to this file's folder."""
    spec = find_spec("client")
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parent.parent != ROOT:
        sys.path.insert(0, str(ROOT))
    sys.path = FixedPlaces(sys.path)


def main() -> None:
    """Run the module that the first argument names, with the others as its own."""
    only_installed()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
