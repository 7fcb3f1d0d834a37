"""A method and a merge operator of another package: in a program, in a comparison, and at a site without them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from flwr.app import Message, RecordDict
from plugins import FILES, METHOD, install, on_the_path
from small_runs import SETTINGS, instruction, records, small_settings
from typer.testing import CliRunner

from client.app import app as client_app
from client.consent.approvals import Proposal
from dynammo_core.code_identity import code_hash, code_of, plugins_of, project_hash
from dynammo_core.configuration.approval import config_from_json
from dynammo_core.configuration.config import Config, load_config, resolve
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import ConfigError
from simulations import run
from simulations.cli import app as command_line
from simulations.engines.local_grid import LocalGrid

METHOD_SECTION = {"name": "half_replay", "share": 0.25, "train": {"rounds": 1, "epochs": 1}}


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that holds the package; this process and those it starts find it."""
    folder = install(tmp_path / "installed")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    with on_the_path(folder):
        yield folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "half.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "method": METHOD_SECTION}))
    return path


def test_a_program_runs_a_method_from_outside(outside: Path, file: Path, tmp_path: Path) -> None:
    """By this engine; the test of the wheel has both run it."""
    config = load_config(file)
    assert config.method.share == 0.25
    summary = run(config, runs=tmp_path / "runs").summary
    assert (summary["method"], summary["status"]) == ("half_replay", "completed")
    assert summary["code_hash"] == code_hash(config) != project_hash()


@pytest.mark.slow
def test_a_comparison_runs_it_in_processes_of_its_own(outside: Path, file: Path, tmp_path: Path) -> None:
    rows = {"theirs": {}, "ours": {"method.name": "replay", "method.train.rounds": 1, "method.train.epochs": 1}}
    comparison = tmp_path / "compared.yaml"
    comparison.write_text(yaml.safe_dump({"base": file.name, "seeds": [1], "rows": rows}))
    words = ["compare", str(comparison), "--runs", str(tmp_path / "runs"), "--workers", "2"]
    done = CliRunner().invoke(command_line, words)
    assert done.exit_code == 0, done.output
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/summary.json")]
    assert {summary["method"] for summary in summaries} == {"replay", "half_replay"}
    assert len({summary["code_hash"] for summary in summaries}) == 2
    assert CliRunner().invoke(command_line, [*words, "--no-run"]).exit_code == 0
    for name in ("theirs", "ours"):  # a run by other code would count as missing
        assert name in (tmp_path / "runs" / "compared" / "tables" / "runs.csv").read_text()


def plugged_in(**sections: object) -> Config[object]:
    return resolve({**small_settings(), **sections}, "half.yaml", {})


def test_only_what_an_experiment_names_is_in_its_hash(outside: Path) -> None:
    plain, method = plugged_in(), plugged_in(method=METHOD_SECTION)
    merge = plugged_in(method={**small_settings()["method"], "merge": ["mean", "newest_half", "last"]})
    assert code_hash(plain) == project_hash()
    assert len({code_hash(config) for config in (plain, method, merge)}) == 3
    assert [(plugin.kind, plugin.name) for plugin in plugins_of(merge)] == [("merge operator", "newest_half")]


def test_an_approval_covers_one_version_of_the_plugin(tmp_path: Path) -> None:
    proposals = []
    for number, files in enumerate((FILES, FILES, {**FILES, "outside/method.py": METHOD + "# changed"})):
        with on_the_path(install(tmp_path / str(number), files)):
            proposals.append(Proposal.of(plugged_in(method=METHOD_SECTION)))
    assert proposals[0].id == proposals[1].id != proposals[2].id
    assert proposals[0].experiment_hash == proposals[2].experiment_hash


def test_a_site_with_another_version_or_without_it_refuses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with on_the_path(install(tmp_path / "server")):
        experiment = Experiment(plugged_in(method=METHOD_SECTION))
        sent = records(instruction(experiment, experiment.steps[0], 0, tmp_path / "site"))
        hash_ = code_hash(experiment.config)[:12]
        assert not answered(sent).has_error()
    with on_the_path(install(tmp_path / "other", {**FILES, "outside/method.py": METHOD + "# changed"})):
        assert answered(sent).error.code == 105
        assert f"the server runs the code {hash_}, this site runs" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        assert answered(sent).error.code == 105
    assert "method.name: unknown method 'half_replay'" in caplog.text
    assert "if another package provides it, install that package in this environment" in caplog.text
    with pytest.raises(ConfigError, match="unknown method 'half_replay'"):
        plugged_in(method=METHOD_SECTION)


def answered(content: RecordDict) -> Message:
    """Through Flower's own serialisation, there and back, by a process that has read no experiment yet."""
    config_from_json.cache_clear()
    code_of.cache_clear()
    grid = LocalGrid(client_app, nodes=1, run_config={})
    (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], "train.fit", ttl=60.0)], timeout=60)
    return reply
