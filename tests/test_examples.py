"""The examples run as they are; the notebook is stored without what it printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
RUN_CELLS = """
import json, sys
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
scope = {"__name__": "__main__"}
for cell in cells:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)
"""


def output_of(*words: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    named = Path(__file__).read_text(encoding="utf-8")
    assert all(path.name in named for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))


@pytest.mark.slow
def test_the_script_trains_and_answers(tmp_path: Path) -> None:
    said = output_of(str(EXAMPLES / "first_run.py"), str(tmp_path), cwd=tmp_path).splitlines()
    assert said[0].startswith("dynammo at 3 sites: ")
    assert [line.split(" are taken for ")[0] for line in said[1:]] == [f"images of {digit}" for digit in range(4)]
    assert len(list(tmp_path.glob("*/report.html"))) == 1


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last() -> None:
    said = output_of("-c", RUN_CELLS, str(EXAMPLES / "two_methods.ipynb"), cwd=EXAMPLES).splitlines()
    assert said[0].startswith("fine_tune [") and said[1].startswith("replay [")
    assert said[2] == "('0', '1', '2', '3') 16"


def test_notebooks_are_stored_without_results() -> None:
    for path in EXAMPLES.glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
