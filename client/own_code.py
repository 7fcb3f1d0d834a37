"""A site runs the code that was installed there, never the code that came with a run.

Flower sends each run's code to the sites and starts `flwr-clientapp` to execute it. `dynammo-site start` puts a program
of that name first on the path of its SuperNode: this module, which starts Flower's own one in a Python that finds no
module below FLWR_HOME, where Flower unpacks what it got. So what a person at the site has approved is what runs.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

PROGRAM = "flwr-clientapp"


class OwnCode(PathFinder):
    """Finds modules as Python does, but for those below a folder."""

    foreign: Path

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As `PathFinder.find_spec`."""
        places = [place for place in (sys.path if path is None else path) if not cls._is_foreign(place)]
        return super().find_spec(fullname, places, target)

    @classmethod
    def _is_foreign(cls, place: str) -> bool:
        return Path(place or ".").resolve().is_relative_to(cls.foreign)


def refuse_code_below(folder: Path) -> None:
    """From now on this process imports nothing from below `folder`, whatever is put on its path."""
    OwnCode.foreign = folder.resolve()
    sys.meta_path[sys.meta_path.index(PathFinder)] = OwnCode


def install_program(folder: Path) -> None:
    """Write the program into `folder`, which is to come first on the PATH of a SuperNode.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / PROGRAM
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m {__name__} "$@"\n', encoding="utf-8")
    program.chmod(0o700)


def main() -> None:
    """Flower's own program, once this process is deaf to foreign code."""
    refuse_code_below(Path(os.environ["FLWR_HOME"]))
    sys.argv[0] = PROGRAM
    (program,) = entry_points(group="console_scripts", name=PROGRAM)
    program.load()()


if __name__ == "__main__":
    main()
