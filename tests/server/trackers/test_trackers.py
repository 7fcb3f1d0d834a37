"""A finished run told to trackers anew, cut off and resumed; read back from the real stores."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from small_runs import Finished, FinishedRun, events
from tables import registered
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from dynammo_core.support.errors import ConfigError
from server.trackers import TRACKERS
from server.trackers.curves import points_of
from server.trackers.mlflow import URI
from server.trackers.tracker import TrackedRun
from server.trackers.tracking import FILES, find_trackers, tracking

CUT = 5
"""Steps that are finished when the run is cut off; the last of them had not reached the checkpoint."""


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> FinishedRun:
    whole = finished("replay")
    copy = tmp_path / whole.path.name
    shutil.copytree(whole.path, copy)
    return FinishedRun(whole.config, copy, whole.messages)


def tell(run: FinishedRun, *names: str) -> None:
    """Cut off after five steps by Ctrl-C, and resumed with the fifth."""
    log = events(run.path)
    finished, started = (
        [number for number, event in enumerate(log) if event["event"] == kind]
        for kind in ("step_finished", "step_started")
    )
    with pytest.raises(KeyboardInterrupt), tracking(names, run.config, run.path) as listen:
        for event in log[: finished[CUT - 1] + 1]:
            listen(event)
        raise KeyboardInterrupt
    with tracking(names, run.config, run.path) as listen:
        for event in [log[0] | {"resumed_at": CUT - 1}, *log[started[CUT - 1] :]]:
            listen(event)


def expected(run: FinishedRun) -> dict[str, list[tuple[int, float]]]:
    """Each curve's points, from the run's own log."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for event in events(run.path):
        at, values = points_of(event, lambda site: f"site {site}")
        for name, value in values.items():
            curves.setdefault(name, []).append((at, value))
    return curves


def test_curves_are_what_the_log_says(run: FinishedRun) -> None:
    curves, summary = expected(run), run.summary
    assert [value for _, value in curves["accuracy/all sites"]] == summary["accuracy_after_tasks"]
    assert [at for at, _ in curves["accuracy/all sites"]] == [1, 2]
    assert curves["accuracy/site 1"][-1] == (2, summary["site_accuracies"][1])
    assert [value for _, value in curves["mean_class_recall/all sites"]] == summary["mean_class_recall_after_tasks"]
    assert curves["mean_class_recall/site 1"][-1] == (2, summary["site_mean_class_recalls"][1])
    earlier = {"event": "task_evaluated", "task": 0, "accuracy": 70.0, "site_accuracies": [90.0, None]}
    assert points_of(earlier, str) == (1, {"accuracy/all sites": 70.0, "accuracy/0": 90.0})
    assert curves["result/forgetting"] == [(2, summary["forgetting"])]
    first = next(event for event in events(run.path, "step_finished") if event["stage"] == "train")
    by_site = [(site["metrics"]["loss"], site["samples"]) for site in first["sites"] if "loss" in site["metrics"]]
    mean = sum(loss * samples for loss, samples in by_site) / sum(samples for _, samples in by_site)
    assert len(by_site) > 1 and curves["loss train/all sites"][0] == (1, pytest.approx(mean))
    secret = {**first, "total": {"samples": 40, "loss": 0.5}, "sites": [{"site": 0, "metrics": {}}]}
    _, values = points_of(secret, str)
    assert values["loss train/all sites"] == 0.5 and "loss train/0" not in values


def test_tensorboard_reads_back_one_run_after_a_resume(run: FinishedRun) -> None:
    tell(run, "tensorboard")
    store = EventAccumulator(str(run.path / "tensorboard"))
    store.Reload()
    for name, points in expected(run).items():
        shown = [(point.step, point.value) for point in store.Scalars(name)]
        assert shown == [(at, pytest.approx(value)) for at, value in points], name
    shown = store.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    assert HParamsPluginData.FromString(shown).session_start_info.hparams["method.name"].string_value == "replay"
    assert "model_card/text_summary" in store.Tags()["tensors"]


def test_mlflow_reads_back_one_run_after_a_resume(
    run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv(URI, str(tmp_path / "store"))
    tell(run, "mlflow")
    client = MlflowClient(str(tmp_path / "store"))
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    (shown,) = client.search_runs([experiment.experiment_id])
    assert (shown.info.run_name, shown.info.status) == (run.path.name, "FINISHED")
    assert shown.data.params["federation.alpha"] == "0.5" and shown.data.params["method.name"] == "replay"
    for name, points in expected(run).items():
        history = {(point.step, point.value) for point in client.get_metric_history(shown.info.run_id, name)}
        assert history == set(points), name
    kept = {file.path for file in client.list_artifacts(shown.info.run_id)}
    assert kept == {
        *("config.yaml", "summary.json", "model.json", "model_card.md"),
        *("accuracy_matrix.csv", "confusion_matrix.csv"),
    }


@pytest.mark.soak
def test_mlflow_keeps_a_database_beside_the_runs_by_default(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URI, raising=False)
    tell(run, "mlflow")
    client = MlflowClient(f"sqlite:///{run.path.parent / 'mlflow.db'}")
    shown = client.get_run(json.loads((run.path / "trackers.json").read_text())["mlflow"])
    assert shown.info.artifact_uri.startswith((run.path.parent / "mlartifacts").as_uri())
    assert shown.data.metrics["result/last_accuracy"] == run.summary["last_accuracy"]


def test_wandb_writes_offline(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tell(run, "wandb")
    sent = [*(run.path / "wandb").glob("offline-run-*/*.wandb"), *(run.path / "wandb").glob("offline-run-*/files/*")]
    content = b"".join(path.read_bytes() for path in sent if path.is_file() and path.name not in FILES)
    assert b"accuracy/site 1" in content
    for untold in (sys.executable, str(run.path), platform.release()):
        assert untold.encode() not in content, untold
    assert not {"requirements.txt", "output.log", "wandb-metadata.json"} & {path.name for path in sent}
    (name,) = {path.name.rpartition("-")[2] for path in (run.path / "wandb").glob("offline-run-*")}
    assert name == json.loads((run.path / "trackers.json").read_text())["wandb"]


def test_a_tracker_that_fails_warns_once_and_the_run_goes_on(
    run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    class Broken:
        id = "x"

        def __init__(self, run: TrackedRun) -> None:
            calls.append("begin")

        def __getattr__(self, name: str) -> Callable[..., None]:
            calls.append(name)
            if name == "points":
                raise ConnectionError("[bold]no network")
            return lambda *_: None

    heard: list[str] = []
    with (
        registered(TRACKERS, "broken", Broken),
        tracking(["broken"], run.config, run.path, lambda event: heard.append(event["event"])) as listen,
    ):
        for event in events(run.path):
            listen(event)
    assert heard == [event["event"] for event in events(run.path)]
    assert calls == ["begin", "parameters", "points"]
    said = capsys.readouterr().err
    assert said == "warning broken tracks this run no longer: ConnectionError: [bold]no network\n"


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "server.trackers.wandb", raising=False)
    with pytest.raises(ConfigError, match=r"needs a package .*\(wandb\)\. Run: pip install 'federated-dynammo\[wandb"):
        find_trackers(["wandb"])
    with pytest.raises(ConfigError, match=r"--track: unknown tracker 'mlfow' \(did you mean 'mlflow'\?\)"):
        find_trackers(["mlfow"])


def test_paths_of_the_server_are_no_parameters(finished: Finished, tmp_path: Path) -> None:
    seen: dict[str, str | float] = {}

    class Notes:
        id = "x"

        def __init__(self, run: TrackedRun) -> None: ...

        def parameters(self, values: dict[str, str | float]) -> None:
            seen.update(values)

        def end(self, ending: str) -> None: ...

    config = finished("replay").config
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": "/home/alice"})})
    with registered(TRACKERS, "notes", Notes), tracking(["notes"], config, tmp_path) as listen:
        listen({"event": "run_started", "resumed_at": 0})
    assert seen["method.train.rounds"] == 2 and seen["data.root"] == "None"
