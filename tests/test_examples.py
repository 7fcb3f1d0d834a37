"""The examples run as they are; the notebook is stored without what it printed."""

from __future__ import annotations

import csv
import json
import os
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def script(path: Path, *words: str) -> None:
    """Do as Python does with a script."""
    sys.argv = [str(path), *words]
    runpy.run_path(str(path), run_name="__main__")


def notebook(path: Path) -> None:
    """Run the cells of code one after another."""
    scope = {"__name__": "__main__"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)


def alone(run: Callable[..., None], folder: Path, said: Path, *words: object) -> None:
    """Run something in this process from a folder, and write down what it prints."""
    os.chdir(folder)
    with said.open("w") as file, redirect_stdout(file):
        run(*words)


@pytest.fixture
def output_of(preloaded: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """What something prints in a process of its own."""
    said = tmp_path_factory.mktemp("said") / "said.txt"

    def lines(run: Callable[..., None], *words: object, cwd: Path) -> list[str]:
        process = preloaded.Process(target=alone, args=(run, cwd, said, *words))
        process.start()
        process.join()
        assert process.exitcode == 0
        return said.read_text().splitlines()

    return lines


def test_every_example_is_run_here() -> None:
    named = Path(__file__).read_text(encoding="utf-8")
    assert all(path.name in named for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))


@pytest.mark.slow
def test_the_script_trains_and_answers(output_of: Callable[..., list[str]], tmp_path: Path) -> None:
    said = output_of(script, EXAMPLES / "first_run.py", str(tmp_path), cwd=tmp_path)
    assert said[0].startswith("dynammo at 3 sites: ")
    assert [line.split(" are taken for ")[0] for line in said[1:]] == [f"images of {digit}" for digit in range(4)]
    assert len(list(tmp_path.glob("*/report.html"))) == 1


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(output_of: Callable[..., list[str]]) -> None:
    said = output_of(notebook, EXAMPLES / "two_methods.ipynb", cwd=EXAMPLES)
    assert [line.split(":")[0] for line in said[:4]] == ["task 1", "task 2"] * 2
    assert said[4].startswith("fine_tune [") and said[5].startswith("replay [")
    assert said[6] == "('0', '1', '2', '3') 16"


def test_a_manifest_over_two_domains_keeps_sides_and_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{side}/{label}/{number}.png" for side in ("train", "test") for label in "ab" for number in range(2)]
    for place, name in enumerate(names):
        path = tmp_path / "skin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), place).save(path)
    rows = [f"skin/{name},{name[-7]},P{place},{name.split('/')[0]}" for place, name in enumerate(names)]
    (tmp_path / "scans.csv").write_text("\n".join(["path,label,patient,split", *rows]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    script(EXAMPLES / "domains.py", "near=image_folder:skin", "far=manifest:scans.csv")
    near, far = list(csv.DictReader(capsys.readouterr().out.splitlines()))[::8]
    assert (near["label"], near["split"]) == ("near/a", "train")
    assert (far["label"], far["patient"], far["split"]) == ("far/a", "far/P0", "train")
    assert Path(far["path"]) == tmp_path / "skin" / names[0]


def test_notebooks_are_stored_without_results() -> None:
    for path in EXAMPLES.glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
