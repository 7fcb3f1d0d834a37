"""What the commands about deployments refuse before they start anything, and how memory is watched."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulations.bench.memory_watch import peak_memory
from simulations.cli import app

DIGITS = str(Path(__file__).parents[3] / "configs" / "deployed_digits.yaml")


def test_a_rehearsal_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    result = CliRunner().invoke(app, ["deploy", DIGITS, "--folder", str(tmp_path)])
    assert result.exit_code == 1
    assert "is not empty" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["faults", DIGITS, "--fault", "site kiled"], "unknown fault 'site kiled' (did you mean 'site killed'?)"),
        (["bench", "sites", DIGITS, "--engine", "flour"], "unknown engine 'flour'"),
        (["deploy", DIGITS, "--set", "federation.quorum"], "has no value"),
        (["deploy", "nothing.yaml"], "no configuration file 'nothing.yaml'"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


def test_the_peak_of_memory_is_seen() -> None:
    with peak_memory() as before:
        time.sleep(1.2)
    with peak_memory() as with_more:
        block = bytearray(b"x" * 200_000_000)
        time.sleep(1.2)
    assert 190e6 < with_more.bytes - before.bytes < 450e6  # the block, and while it is made its source
    assert len(block) == 200_000_000
