"""Play a person who follows a tutorial to the letter, in an empty folder, and count what it takes."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pages import blocks, shell

STRICT = "set -euo pipefail; trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT\n"
PROGRAM = re.compile(r"dynammo-(sim|server|site)")
ERROR = re.compile(r"^(?:error|wrong) +(.*)$", re.MULTILINE)
"""How our commands begin what they refuse."""


@dataclass(frozen=True)
class Played:
    """What a tutorial took, from an empty folder to its end.

    Attributes:
        folder: what it left.
        commands: number of commands of this project that the page tells to type.
        minutes: how long they ran.
        errors: the error messages on the person's screen.
        output: all that was on it.
    """

    folder: Path
    commands: int
    minutes: float
    errors: list[str]
    output: str


def play(door: str, folder: Path) -> Played:
    """Run the page's blocks of shell one after another; whatever asks is told `approve`.

    The first block installs this project, which has been done.
    """
    page = f"docs/tutorials/{door}.md"
    install, *steps = blocks(page, "sh")
    assert install.splitlines()[:2] == ["make install", 'export PATH="$PWD/.venv/bin:$PATH"']
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    person, keyboard = pty.openpty()  # a terminal hands out a line at a time; a pipe, all of them to the first reader
    os.write(person, b"approve\n" * 4)
    screen, started = folder / "screen.txt", time.monotonic()
    with screen.open("wb") as terminal:
        done = subprocess.run(
            ["timeout", "1800", "bash", "-c", STRICT + "".join(steps)],
            cwd=folder,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            stdin=keyboard,
            stdout=terminal,
            stderr=subprocess.STDOUT,
        )
    os.close(person)
    os.close(keyboard)
    output = screen.read_text(errors="replace")
    assert done.returncode == 0, output[-3000:]
    typed = [words for words in shell(page) if any(PROGRAM.fullmatch(word) for word in words)]
    played = Played(folder, len(typed), (time.monotonic() - started) / 60, ERROR.findall(output), output)
    print(f"\n{door}: {played.commands} commands, {played.minutes:.1f} minutes, {len(played.errors)} error messages")
    for error in played.errors:
        print(f"  {error}")
    return played
