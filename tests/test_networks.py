"""A run that goes over to another pretrained network: which task has which, what moves, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Outcome, Stopped, events, run_small, small_settings

from dynammo_core.configuration.config import Config, resolve
from dynammo_core.data.transforms import to_input
from dynammo_core.deployed.model_files import ModelFiles
from dynammo_core.deployed.predictor import Predictor
from dynammo_core.experiment import Experiment
from dynammo_core.models.description import title_of
from dynammo_core.support.errors import ConfigError
from server.report.export import export_model
from server.run_directory.checkpoint import identity_of
from server.run_directory.lineage import forbidden_changes, with_network

OTHER = "timm/test_convnext"
LATER = {"task": 2, "name": OTHER, "weights": "random"}


def config(*changes: dict[str, Any], method: str = "moving_ridge", **more: Any) -> Config[Any]:
    """The small run at 32 pixels; the first network is small_cnn."""
    settings = small_settings(method)
    settings["backbone"]["changes"] = list(changes)
    settings["data"]["image_size"] = 32
    settings["tasks"] = {"sizes": [2, 1, 1]}
    settings["method"] |= more
    return resolve(settings, "small.yaml", {})


def test_each_task_has_its_network_and_the_features_before_have_their_width() -> None:
    experiment = Experiment(config(LATER))
    first, second = experiment.build_model(0), experiment.build_model(1)
    assert [experiment.config.backbone_of(task).name for task in (0, 1, 5)] == ["small_cnn", OTHER, OTHER]
    assert first.feature_dim != second.feature_dim and first.network != second.network
    pairs = second.head("pairs").weight.shape[1]
    assert pairs == first.feature_dim + second.feature_dim
    assert experiment.model_before(1).features_before == first.feature_dim
    assert experiment.networks.of(1) is experiment.networks.of(5)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over two networks; not to be changed."""
    return run_small(config(LATER, adapt={"rounds": 1, "epochs": 1}), tmp_path_factory.mktemp("moved")).path


def test_a_run_goes_over_to_another_network_and_its_models_answer(moved: Path) -> None:
    summary = json.loads((moved / "summary.json").read_text())
    assert summary["backbone"] == OTHER
    first, second = (moved / "models" / f"task-{task:02d}" for task in (1, 2))
    named = [json.loads((model / "model.json").read_text())["backbone"] for model in (first, second)]
    assert named == ["small_cnn", OTHER]
    for model in (first, second, moved):
        assert len(Predictor.load(model / "model.safetensors").predict(torch.zeros(1, 3, 32, 32).byte()).labels) == 1
    assert [each["stage"] for each in events(moved) if each["event"] == "step_finished"].count("pairs") == 2


def test_a_run_that_stops_at_the_change_goes_on_to_the_same_end(moved: Path, tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step_finished" and (event["task"], event["stage"]) == (1, "pairs"):
            raise Stopped

    again = config(LATER, adapt={"rounds": 1, "epochs": 1})
    with pytest.raises(Stopped):
        run_small(again, tmp_path, listeners=[stop])
    (stopped,) = tmp_path.iterdir()
    assert Outcome.of(run_small(again, tmp_path, resume=stopped).path) == Outcome.of(moved)


def test_a_network_comes_with_a_new_task_and_never_with_one_that_was_planned() -> None:
    """As `extend` makes it: what a run accepts when it continues."""
    settings = json.loads(config().canonical_json())
    settings["data"] |= {"classes": [str(digit) for digit in range(10)]}
    then = resolve(settings, "then", {})
    grown = resolve({**settings, "tasks": {"sizes": [2, 1, 1, 2]}}, "grown", {})
    now = with_network(grown, OTHER, weights="random")
    assert [later.task for later in now.backbone.changes] == [4]
    assert forbidden_changes(then.canonical_json(), now.canonical_json()) == []
    with pytest.raises(ConfigError, match=r"small_cnn has no pretrained weights.*--weights random"):
        with_network(grown, "small_cnn")
    settings["backbone"]["changes"] = [LATER]
    planned = resolve(settings, "planned", {})
    (refused,) = forbidden_changes(then.canonical_json(), planned.canonical_json())
    assert refused.startswith("backbone.changes")


def test_each_network_sees_the_same_images_at_a_size_of_its_own(tmp_path: Path) -> None:
    larger = {"task": 3, "name": "small_cnn", "weights": "random", "image_size": 40}
    settings = json.loads(config(larger, adapt={"rounds": 1, "epochs": 1}).canonical_json())
    settings["backbone"]["image_size"] = 16
    found = resolve(settings, "test", {})
    experiment = Experiment(found)
    first, second = experiment.build_model(1), experiment.build_model(2)
    assert first.network != second.network, "what one computes is never taken for what the other does"
    images = torch.rand(1, 3, 32, 32)
    halved = [model.extractor.embed(images, start="images", end="prefix") for model in (first, second)]
    assert [maps.shape[-1] for maps in halved] == [8, 20], "the network's first step halves them"
    run = run_small(found, tmp_path).path
    for model, size in ((run / "models" / "task-02", 16), (run, 40)):
        files = ModelFiles.read(model)
        assert files.facts.network_size == size
        for kind in ("onnx", "torchscript"):
            assert export_model(files, kind, tmp_path / f"{size}.{kind}").difference < 1e-5
        noise = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(size)).byte()
        deployed = Predictor.load(model / "model.safetensors").predict(noise).open_set_scores
        learnt = experiment.build_model(files.facts.lineage.after_task - 1)
        learnt.load_state_dict(files.tensors, strict=False)
        with torch.no_grad():
            features = learnt.eval().extractor(to_input(noise, found.normalisation, torch.device("cpu")))
            expected = experiment.method.decision.predict(learnt, features).known
        torch.testing.assert_close(deployed, expected, atol=1e-5, rtol=1e-4)


def test_the_same_network_goes_on_at_another_size() -> None:
    settings = json.loads(config().canonical_json())
    settings["data"]["classes"] = [str(digit) for digit in range(10)]
    planned = resolve(settings, "planned", {})
    now = with_network(planned, image_size=48)
    assert [(later.task, later.name, later.weights, later.image_size) for later in now.backbone.changes] == [
        (3, "small_cnn", "random", 48)
    ]
    (refused,) = forbidden_changes(planned.canonical_json(), now.canonical_json())
    assert refused.startswith("backbone.changes"), "the task was planned with another size"
    settings["backbone"]["changes"] = [LATER]
    again = with_network(resolve(settings, "planned", {}), image_size=48).backbone.changes[-1]
    assert (again.name, again.image_size) == (OTHER, 48), "the network before is not always the first"


def test_a_run_is_of_the_weights_of_each_network_and_its_size_is_told() -> None:
    assert identity_of(config()).backbone_sha256 == "random"
    assert identity_of(config(LATER)).backbone_sha256 == "random,random"
    first = config(LATER).backbone
    assert [title_of(first.model_copy(update={"image_size": size})) for size in (None, 48)] == [
        "small_cnn",
        "small_cnn at 48 pixels",
    ]


def test_what_cannot_change_networks_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"dynammo cannot go over to another network.*accepted: moving_ridge"):
        config(LATER, method="dynammo")
    with pytest.raises(ConfigError, match=r"changes at the tasks \[3, 2\] must ascend"):
        config({**LATER, "task": 3}, LATER)
    with pytest.raises(ConfigError, match=r"weights /a/b.pth of small_cnn must be one of"):
        config({"task": 2, "name": "small_cnn", "weights": "/a/b.pth"})
    with pytest.raises(ConfigError, match="greater than or equal to 2"):
        config({**LATER, "task": 1})
    settings = config({**LATER, "name": "resnet18"}).model_dump(mode="json")
    settings["data"]["normalisation"] = "backbone"
    with pytest.raises(ConfigError, match=r"differs between the networks.*Set data.normalisation"):
        Experiment(resolve(settings, "test", {})).check()
    with pytest.raises(ConfigError, match="past: kept leaves sums of another network's features"):
        config(LATER, past="kept")
    with pytest.raises(ConfigError, match=r"with task 9 of 3.*2 to 3"):
        Experiment(config({**LATER, "task": 9})).check()
    settings = config(LATER).model_dump(mode="json")
    settings["scanners"]["own_statistics"] = "frozen"
    with pytest.raises(ConfigError, match="own_statistics: frozen keeps statistics of one network"):
        Experiment(resolve(settings, "test", {})).check()
