"""The hash of the code: what changes it, and what does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import dynammo_core.code_identity as module
from dynammo_core.code_identity import project_hash

ROOT = Path(__file__).parent.parent


@pytest.fixture
def copied_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packages that `code_hash` takes for its own."""
    for package in ("client", "dynammo_core", "server", "simulations"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "__file__", str(tmp_path / "dynammo_core" / "code_identity.py"))
    return tmp_path


def test_the_projects_hash_is_that_of_what_server_and_sites_run(copied_code: Path) -> None:
    compute = project_hash.__wrapped__
    start = compute()
    assert len(start) == 64
    assert compute() == start
    (copied_code / "simulations" / "cli.py").write_text("")  # only starts runs
    (copied_code / "server" / "notes.md").write_text("no code")
    assert compute() == start


@pytest.mark.parametrize(
    "change", ["edit client/app.py", "add server/new.py", "move client/steps/site.py", "add nested"]
)
def test_the_projects_hash_sees_every_change(copied_code: Path, change: str) -> None:
    start = project_hash.__wrapped__()
    if change == "edit client/app.py":
        with (copied_code / "client" / "app.py").open("a") as file:
            file.write("\n")
    elif change == "add server/new.py":
        (copied_code / "server" / "new.py").write_text("")
    elif change == "move client/steps/site.py":
        (copied_code / "client" / "steps" / "site.py").rename(copied_code / "client" / "steps" / "place.py")
    else:
        (copied_code / "dynammo_core" / "methods" / "new.py").write_text("")
    assert project_hash.__wrapped__() != start
