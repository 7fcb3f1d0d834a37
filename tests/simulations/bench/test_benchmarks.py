"""The benchmark reads what it says it reads, and its exit code follows the ratio that it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dynammo_core.memory.sealed_file import read_header
from dynammo_core.support.terminal import command_line
from simulations.bench import command as benchmarks
from simulations.bench.command import bench, memory_reading

KINDS = ("safetensors, unchecked", "plain, checksum", "encrypted")


def run(*words: str) -> Result:
    app = command_line("dynammo-sim")
    app.add_typer(bench, name="bench")
    return CliRunner().invoke(app, ["bench", *words])


def test_each_kind_of_file_is_read(tmp_path: Path) -> None:
    seconds = memory_reading(tmp_path, megabytes=1, repeats=3)
    assert tuple(seconds) == KINDS
    assert min(seconds.values()) > 0
    files = {path.parent.name: path for path in tmp_path.glob("*/*")}
    assert {name: read_header(path).key is not None for name, path in files.items()} == {
        "plain": False,
        "encrypted": True,
    }
    pixels = 1_000_000 // 12_288 * 12_288
    for path in (*files.values(), tmp_path / "bare.safetensors"):
        assert pixels < path.stat().st_size < 1.02 * pixels


@pytest.mark.parametrize(("encrypted", "exit_code"), [(2.0, 0), (2.5, 0), (2.6, 1)])
def test_the_command_prints_speeds_and_ratios(
    monkeypatch: pytest.MonkeyPatch, encrypted: float, exit_code: int
) -> None:
    taken = dict(zip(KINDS, (1.0, 2.0, encrypted), strict=True))
    monkeypatch.setattr(benchmarks, "memory_reading", lambda *_: taken)
    result = run("memory", "--megabytes", "1000")
    assert result.exit_code == exit_code
    speeds = re.findall(r"(\S.*\S) +(\d+\.\d\d) GB/s", result.stdout)
    assert speeds == [(kind, f"{1 / seconds:.2f}") for kind, seconds in taken.items()]
    assert f"encrypted / plain: {2 / encrypted:.2f} (required: 0.8); / unchecked: {1 / encrypted:.2f}" in result.stdout


def test_the_command_runs() -> None:
    result = run("memory", "--megabytes", "1", "--repeats", "1")
    assert result.exit_code in (0, 1)
    assert result.stdout.count("GB/s") == 3
