"""The tutorials, followed to the letter: their blocks of shell run one after another in an empty folder."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, blocks

TUTORIALS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/tutorials/*.md"))
STRICT = "set -euo pipefail; trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT\n"


@pytest.mark.soak
@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_works_to_the_letter(page: str, tmp_path: Path) -> None:
    install, *steps = blocks(page, "sh")
    assert install.splitlines()[:2] == ["make install", 'export PATH="$PWD/.venv/bin:$PATH"']
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    output = tmp_path / "output.txt"
    person, keyboard = pty.openpty()  # a terminal hands out a line at a time; a pipe, all of them to the first reader
    os.write(person, b"approve\n" * 4)
    with output.open("wb") as terminal:
        done = subprocess.run(
            ["timeout", "1800", "bash", "-c", STRICT + "".join(steps)],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            stdin=keyboard,
            stdout=terminal,
            stderr=subprocess.STDOUT,
        )
    os.close(person)
    os.close(keyboard)
    assert done.returncode == 0, output.read_text(errors="replace")[-3000:]
