"""The command that attacks a run: what it prints, what it leaves, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from small_runs import Finished
from typer.testing import CliRunner

from simulations.cli import app

LITTLE = ("--shadow-pairs", "0", "--iterations", "8")
FILES = ("privacy_audit.json", "privacy_audit.html")


def command(run: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["audit-privacy", str(run), *options], env={"COLUMNS": "160"})


@pytest.fixture(scope="module")
def audited(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    """A copy of a run, audited beside another; what was printed; and the file of figures."""
    folder = tmp_path_factory.mktemp("audited")
    runs = [Path(shutil.copytree(finished(method).path, folder / method)) for method in ("dynammo", "streaming_ridge")]
    result = command(runs[0], "--compare", str(runs[1]), *LITTLE)
    assert result.exit_code == 0, result.output
    assert not any((runs[1] / name).exists() for name in FILES)
    return runs[0], result.output, json.loads((runs[0] / FILES[0]).read_text())


@pytest.mark.slow
def test_the_file_holds_both_runs(audited: tuple[Path, str, dict[str, Any]]) -> None:
    run, _, content = audited
    assert (content["seed"], content["shadow_pairs"], content["iterations"]) == (1, 0, 8)
    assert content["command"].startswith(f"dynammo-sim audit-privacy {run} --compare ")
    one, other = content["runs"]
    assert (one["method"], other["method"]) == ("dynammo", "streaming_ridge")
    assert one["config_hash"] == json.loads((run / "summary.json").read_text())["config_hash"]
    assert list(one["skipped"]) == ["statistics"]
    assert list(other["skipped"]) == ["inversion"]
    assert {found["attack"] for found in one["findings"]} == {"loss threshold", "update inversion"}
    assert {found["attack"] for found in other["findings"]} == {"loss threshold", "feature sums"}


def test_the_table_shows_the_figures_of_both(audited: tuple[Path, str, dict[str, Any]]) -> None:
    _, printed, content = audited
    area = [
        next(f for f in run["findings"] if f["measure"] == "AUC" and f["target"] == "other training images")
        for run in content["runs"]
    ]
    (line,) = [line for line in printed.splitlines() if f"{area[0]['value']:.3f} [" in line and "AUC" in line]
    assert f"{area[1]['value']:.3f} [{area[1]['low']:.3f}, {area[1]['high']:.3f}]" in line
    assert "0.500" in line
    assert "streaming_ridge: no inversion attack, no site sends trained weights" in printed


def test_the_page_is_whole(audited: tuple[Path, str, dict[str, Any]]) -> None:
    run, _, content = audited
    page = (run / FILES[1]).read_text()
    assert page.count("data:image/png;base64,") == 3  # two messages, and one feature of the other run
    assert "http://" not in page and "https://" not in page
    for found in content["runs"][0]["findings"]:
        assert found["attack"] in page
    assert page.count("<tr>") - 1 == len(
        {(f["attack"], f["target"], f["measure"]) for r in content["runs"] for f in r["findings"]}
    )


def test_the_same_seed_finds_the_same(
    finished: Finished, audited: tuple[Path, str, dict[str, Any]], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished("dynammo").path, tmp_path / "dynammo"))
    assert command(run, "--attacks", "membership", *LITTLE).exit_code == 0
    again = json.loads((run / FILES[0]).read_text())["runs"][0]["findings"]
    assert again == [found for found in audited[2]["runs"][0]["findings"] if found["attack"] == "loss threshold"]


def test_an_unknown_attack_is_refused(finished: Finished) -> None:
    result = command(finished("dynammo").path, "--attacks", "membership,inversoin")
    assert result.exit_code == 1
    assert "unknown attack 'inversoin' (did you mean 'inversion'?)" in " ".join(result.stderr.split())


def test_what_is_no_finished_run_of_simulated_sites_is_refused(finished: Finished, tmp_path: Path) -> None:
    result = command(tmp_path / "nothing")
    assert (result.exit_code, "is not a run directory" in result.stderr) == (1, True)

    run = Path(shutil.copytree(finished("streaming_ridge").path, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["federation"] |= {"site_names": ["north", "south", "west"]}
    config["data"] |= {"classes": [str(digit) for digit in range(10)]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    result = command(run, *LITTLE)
    assert (result.exit_code, "among hospitals" in result.stderr) == (1, True)

    summary = json.loads((run / "summary.json").read_text()) | {"status": "running"}
    (run / "summary.json").write_text(json.dumps(summary))
    result = command(run, *LITTLE)
    assert (result.exit_code, "has not finished" in result.stderr) == (1, True)
    assert not any((run / name).exists() for name in FILES)
