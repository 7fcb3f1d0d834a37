"""Whole experiments on timm's networks, from the server loop to ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Finished, run_small, small_config
from typer.testing import CliRunner

from dynammo_core.configuration.config import Config, Scalar
from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.deployed.model_files import ModelFiles
from dynammo_core.deployed.predictor import Predictor
from dynammo_core.experiment import Experiment
from dynammo_core.models.backbones import build_backbone
from dynammo_core.support.errors import ConfigError
from server.report.export import check_images, export_model
from simulations.cli import app

VIT, CONVNEXT = "timm/test_vit", "timm/test_convnext"


def config(method: str, name: str, side: int = 32, **params: Scalar) -> Config[Any]:
    own = {f"method.{key}": value for key, value in params.items()}
    network = {"backbone.name": name, "data.image_size": side, "data.normalisation": "backbone"}
    return small_config(method, {**network, **own})


def test_a_transformer_learns_and_its_files_answer(tmp_path: Path) -> None:
    run = run_small(config("streaming_ridge", VIT), tmp_path)
    files = ModelFiles.read(run.path)
    assert files.facts.normalisation == ((0.5,) * 3, (0.5,) * 3)
    assert files.facts.backbone_licence == "none, the weights were drawn at random"
    assert json.loads((run.path / "summary.json").read_text())["accuracy_after_tasks"][0] > 60
    assert torch.isfinite(Predictor.load(run.path).predict(check_images(32)).probabilities).all()


def test_lora_travels_alone_and_what_is_exported_is_folded(tmp_path: Path) -> None:
    run = run_small(config("dynammo", VIT), tmp_path)
    files = ModelFiles.read(run.path)
    assert files.facts.method["adapter"] == "lora"
    sets = [name for name in files.tensors if ".adapters." in name]
    assert len(sets) == 6 * 4  # B of each linear layer of each block; A is nobody's to send
    assert all(files.tensors[name].any() for name in sets)
    predictor = Predictor.of_files(files)
    assert not [name for name in predictor.module.state_dict() if ".adapters." in name]
    for kind in ("torchscript", "safetensors"):
        assert export_model(files, kind, tmp_path / f"model.{kind}").difference < 1e-4


def test_adapters_of_a_transformer_may_be_private_as_they_are() -> None:
    for kind in ("lora", "bottleneck"):
        private = {"backbone.name": VIT, "method.adapter": kind, "privacy.mechanism": "example"}
        Experiment(small_config("dynammo", private)).check()


def test_what_a_network_does_not_take_is_refused_before_the_first_step() -> None:
    convolutions = config("dynammo", VIT, adapter="convolution")
    for asked, words in (
        (convolutions, r"cannot be cut.*or method.adapter: lora.*Or set method.name: streaming_ridge"),
        (config("streaming_ridge", VIT, 33), r"does not take images of 33 pixels. Accepted: multiples of 16"),
    ):
        with pytest.raises(ConfigError, match=words):
            Experiment(asked).check()


def test_what_a_run_trained_is_where_another_starts(finished: Finished, tmp_path: Path) -> None:
    run, file = finished("fine_tune").path, tmp_path / "trained.safetensors"
    done = CliRunner().invoke(app, ["backbone", "take", str(run), "--out", str(file)])
    assert done.exit_code == 0, done.output
    assert f"weights: {file}" in done.output
    trained = ModelFiles.read(run).tensors
    started = build_backbone(BackboneSettings(name="small_cnn", weights=str(file)), 0).state_dict()
    begun = build_backbone(BackboneSettings(name="small_cnn", weights="random"), 1).state_dict()
    held = {name: tensor for name, tensor in started.items() if f"extractor.backbone.{name}" in trained}
    assert any(name.endswith("0.weight") for name in held)
    for name, tensor in held.items():
        assert torch.equal(tensor, trained[f"extractor.backbone.{name}"])
    assert not torch.equal(started["prefix.block0.0.weight"], begun["prefix.block0.0.weight"])
    frozen = CliRunner().invoke(app, ["backbone", "take", str(finished("dynammo").path), "--out", str(file)])
    assert "dynammo leaves its backbone as it was" in frozen.output


@pytest.mark.soak
def test_a_small_transformer_is_pretrained_and_then_deployed(tmp_path: Path) -> None:
    """As in configs/deployed_vit.yaml, with less of everything, and LoRA: three real sites, equal to the simulation."""
    configs, file = Path(__file__).parents[3] / "configs", tmp_path / "vit.safetensors"
    short = ["data.dataset=digits", "data.train_per_class=20", "data.test_per_class=5", "method.train.rounds=2"]
    words = [word for pair in short for word in ("--set", pair)]
    ran = ["run", str(configs / "pretrain_vit.yaml"), "--runs", str(tmp_path / "runs"), *words]
    assert CliRunner().invoke(app, ran).exit_code == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert CliRunner().invoke(app, ["backbone", "take", str(run), "--out", str(file)]).exit_code == 0
    few = ["data.train_per_class=20", "data.test_per_class=5", f"backbone.weights={file}"]
    lora = ["method.name=dynammo", "method.adapt.epochs=1", "method.balance.epochs=1", "memory.exemplars=60"]
    for method in ([], lora):
        words = [word for pair in (*few, *method) for word in ("--set", pair)]
        done = CliRunner().invoke(app, ["deploy", str(configs / "deployed_vit.yaml"), *words])
        assert done.exit_code == 0, done.output


@pytest.mark.soak
def test_the_prefix_is_cached_adapters_learn_and_all_is_exported(tmp_path: Path) -> None:
    for method, name in (
        *(("streaming_ridge", VIT), ("streaming_ridge", CONVNEXT)),
        *(("dynammo", CONVNEXT), ("acl", VIT), ("first_session", VIT)),
    ):
        run = run_small(config(method, name), tmp_path / method / name)
        assert json.loads((run.path / "summary.json").read_text())["accuracy_after_tasks"][0] > 60
        assert export_model(ModelFiles.read(run.path), "onnx", tmp_path / f"{method}.onnx").difference < 1e-4
        (tmp_path / f"{method}.onnx").unlink()
