"""Photographs are loaded in each way that is compared, and many of them are learnt twice."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from dynammo_core.support.terminal import command_line
from simulations.bench.command import bench

FEW = ("--images", "20", "--megapixels", "0.01", "--size", "32")


def printed(*words: str) -> tuple[int, list[list[str]]]:
    app = command_line("dynammo-sim")
    app.add_typer(bench, name="bench")
    result = CliRunner().invoke(app, ["bench", *words, *FEW])
    lines = [line.strip("│┃ ") for line in result.output.splitlines() if line.startswith(("│", "┃"))]
    return result.exit_code, [[cell.strip() for cell in line.replace("┃", "│").split("│")] for line in lines]


def test_each_way_of_loading_is_measured() -> None:
    code, (heading, *rows) = printed("images", "--repeats", "1")
    assert code == 0
    assert heading[1:] == ["images/s", "/ one core", "/ torchvision"]
    assert rows[0][0] == "one core"
    assert all(float(row[1]) > 0 for row in rows)
    assert rows[0][2] == "1.00"


def test_many_are_learnt_twice_and_the_exit_code_tells_whether_memory_was_enough(tmp_path: Path) -> None:
    code, (heading, *rows) = printed("large", str(tmp_path), "--gigabytes", "0.001")
    assert code == 1
    assert heading == ["20 photographs of 0.01 megapixels", "first run", "second run"]
    figures = {row[0]: [float(cell.replace(",", "")) for cell in row[1:]] for row in rows}
    assert min(figures["peak memory with files, GB"]) > 0.001
    assert len(list(tmp_path.glob("20-of-*/*/*.jpg"))) == 20
