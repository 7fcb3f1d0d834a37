"""Processes of a site find modules and metadata where they are installed, and nowhere else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from client.service.own_code import ROOT, FixedPlaces, start_command

LOOK = """
import importlib, importlib.metadata, importlib.util, os, sys
from pathlib import Path
sent = Path(sys.argv[1])
sys.path.insert(0, str(sent))
sys.path.append(str(sent))
sys.path += [str(sent), ""]
sys.path[:0] = [str(sent)]
sys.path.extend([os.path.relpath(sent)])
os.chdir(sent)
for name in ("evil", "client.evil", "google.evil", "calendar"):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError:
        print(name, "refused")
    else:
        print(name, Path(module.__file__).is_relative_to(sent))
print([point.value for point in importlib.metadata.entry_points(group="torch.backends")])
print([found.name for found in importlib.metadata.distributions() if found.name == "evil"])
print(importlib.util.find_spec("client").origin)
"""
FOUND_NOWHERE = ["evil refused", "client.evil refused", "google.evil refused", "calendar False", "[]", "[]"]


def sent_to(folder: Path) -> Path:
    """What an app could bring: a name of its own, a package of ours, a namespace, a standard module, and metadata."""
    names = ("evil.py", "client/__init__.py", "client/evil.py", "google/evil.py", "calendar.py", "sitecustomize.py")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("print('executed')")
    (folder / "evil-1.0.dist-info").mkdir()
    (folder / "evil-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (folder / "evil-1.0.dist-info" / "entry_points.txt").write_text("[torch.backends]\nx = evil:x\n")
    return folder


def installation(folder: Path) -> Path:
    """A copy of this project elsewhere, with a module that looks around."""
    shutil.copytree(ROOT / "client", folder / "client", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "client" / "look.py").write_text(LOOK)
    return folder


def looked(command: list[str], cwd: Path, **environment: str) -> list[str]:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_nothing_is_found_but_what_is_installed(tmp_path: Path) -> None:
    """Neither from a path that is changed, nor in the working directory, nor in places of the environment."""
    sent, own = sent_to(tmp_path / "sent"), installation(tmp_path / "own")
    command = [
        *start_command("client.look")[:-2],
        str(own / "client" / "service" / "own_code.py"),
        "client.look",
        str(sent),
    ]
    said = looked(command, sent, PYTHONPATH=str(sent), PYTHONSTARTUP=str(sent / "evil.py"), PYTHONHOME="")
    assert said == [*FOUND_NOWHERE, str(own / "client" / "__init__.py")]


def test_without_the_fixed_places_it_would_be_found(tmp_path: Path) -> None:
    """So the test above looks in the right places."""
    sent, own = sent_to(tmp_path / "sent"), installation(tmp_path / "own")
    said = looked([sys.executable, str(own / "client" / "look.py"), str(sent)], tmp_path)
    assert "evil True" in said
    assert "google.evil True" in said
    assert "['evil:x']" in said


@pytest.mark.parametrize("change", ["clear", "pop", "remove", "sort", "reverse", "del", "*="])
def test_places_are_not_taken_away_either(change: str) -> None:
    """Who inserts a folder for a moment takes it away again, which must not take another."""
    places = FixedPlaces(["b", "a", "c"])
    if change == "del":
        del places[0]
    elif change == "*=":
        places *= 0
    elif change == "pop":
        assert places.pop(0) == "b"
    elif change == "remove":
        places.remove("d")
    else:
        getattr(places, change)()
    assert places == ["b", "a", "c"]
