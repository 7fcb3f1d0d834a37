"""No module below the folder of what was sent is ever imported; what is installed is found as ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.own_code import PROGRAM, install_program

ROOT = Path(__file__).parents[2]
TRY = """
import os, sys
from pathlib import Path
from client.own_code import refuse_code_below
sent = Path(sys.argv[1])
refuse_code_below(sent)
sys.path.insert(0, str(sent / "apps" / "one"))
sys.path.insert(0, os.path.relpath(sent / "apps" / "one"))
os.chdir(sent / "apps" / "one")
sys.path.insert(0, "")
try:
    __import__(sys.argv[2])
except ModuleNotFoundError:
    print("refused")
else:
    print(Path(sys.modules[sys.argv[2]].__file__).is_relative_to(sent))
"""


@pytest.mark.parametrize(
    ("name", "outcome"),
    [("evil", "refused"), ("pack.evil", "refused"), ("calendar", "False"), ("client.evil", "refused")],
)
def test_what_was_sent_is_not_found(tmp_path: Path, name: str, outcome: str) -> None:
    """A name of its own, a package, one that hides the standard library's, and one that hides this project's."""
    sent = tmp_path / "sent"
    for file in ("evil.py", "calendar.py", "pack/__init__.py", "pack/evil.py", "client/__init__.py", "client/evil.py"):
        (sent / "apps" / "one" / file).parent.mkdir(parents=True, exist_ok=True)
        (sent / "apps" / "one" / file).touch()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", TRY, str(sent), name], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == outcome


def test_the_program_is_flowers_own(tmp_path: Path) -> None:
    install_program(tmp_path / "a b")
    install_program(tmp_path / "a b")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FLWR_HOME": str(tmp_path), "PATH": str(tmp_path / "a b")}
    done = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, env=environment, check=True)
    assert "Run a Flower ClientApp" in done.stdout
    assert f"usage: {PROGRAM}" in done.stdout
