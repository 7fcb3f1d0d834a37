"""A site runs the code that was installed there, never the code that came with a run.

Each process of Flower that a site needs is a module of this project, and this file starts it. It does so in a Python
that heeds neither its working directory nor PYTHONPATH, and whose `sys.path` is fixed before anything of a run is
received: modules and the metadata of packages are found where this environment has them, and nowhere else.
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
    """A `sys.path` that stays as it is: whoever changes it is not told, and changes nothing."""

    def _stay(self, *_: object, **__: object) -> None:
        """Do nothing."""

    append = extend = insert = remove = clear = sort = reverse = __setitem__ = __delitem__ = _stay

    def pop(self, index: SupportsIndex = -1) -> str:
        """Return an entry, which stays."""
        return self[index]

    def __iadd__(self, _: Iterable[str]) -> FixedPlaces:  # type: ignore[misc,override]
        return self

    def __imul__(self, _: SupportsIndex) -> FixedPlaces:
        return self


def start_command(module: str, *words: str) -> list[str]:
    """Say how to start a module of this project that executes no code but what is installed here."""
    return [sys.executable, "-E", "-P", "-u", str(Path(__file__).resolve()), module, *words]


def only_installed() -> None:
    """From now on, find modules and packages only where Python looks now, and this project where this file lies."""
    found = find_spec("client")
    if found is None or found.origin is None or Path(found.origin).resolve().parent.parent != ROOT:
        sys.path.insert(0, str(ROOT))
    sys.path = FixedPlaces(sys.path)


def main() -> None:
    """Run the module that the first argument names, with the others as its own."""
    only_installed()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
