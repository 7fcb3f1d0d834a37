"""A network of timm is taken out of checkpoints as programs for pretraining write them, whole or not at all."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.models import BACKBONES
from dynammo_core.models.backbones import build_backbone
from dynammo_core.support.errors import WeightsError
from dynammo_core.support.seeding import seeded_initialisation
from simulations.cli import app

VIT = "timm/test_vit"


def network() -> dict[str, Tensor]:
    """Random weights with a classifier of other classes."""
    with seeded_initialisation(4):
        tensors = dict(BACKBONES[VIT].assemble(None, None).state_dict())
    return tensors | {"head.weight": torch.ones(9, 64), "head.bias": torch.ones(9)}


def under(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in network().items()}


def converted(content: Any, folder: Path, *words: str) -> str:
    source, out = folder / "source.ckpt", folder / "out.safetensors"
    torch.save(content, source)
    result = CliRunner().invoke(app, ["backbone", "convert", str(source), "--name", VIT, "--out", str(out), *words])
    assert out.exists() == (result.exit_code == 0), result.output
    return result.output


@pytest.mark.parametrize(
    ("content", "words", "left_out"),
    [
        (network(), (), "head (2)"),
        ({"model": network(), "args": argparse.Namespace(lr=1), "epoch": 3}, (), "model.head (2)"),
        ({"state_dict": under("module.encoder.")}, (), "state_dict.module.encoder.head (2)"),
        ({**network(), "mask_token": torch.ones(1), "decoder_norm.bias": torch.ones(1)}, (), "decoder_norm (1), head"),
        (
            {"student": network(), "teacher": under("backbone."), "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
            ("--place", "teacher.backbone."),
            "optimizer (1), student (80), teacher.backbone.head (2)",
        ),
    ],
)
def test_a_network_is_found_wherever_it_stands(
    content: Any, words: tuple[str, ...], left_out: str, tmp_path: Path
) -> None:
    said = converted(content, tmp_path, *words)
    assert f"Left out: {left_out}" in said
    built = build_backbone(BackboneSettings(name=VIT, weights=str(tmp_path / "out.safetensors")), 0, 160).state_dict()
    whole = network()
    assert len(built) == len(whole) - 2
    assert all(torch.equal(tensor, whole[name.removeprefix("network.")]) for name, tensor in built.items())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"student": network(), "teacher": network()}, "several times. Accepted: --place 'student.' or 'teacher.'"),
        (
            {"model": {**network(), "blocks.0.ls1.gamma": torch.ones(64)}},
            'Unexpected key(s) in state_dict: "blocks.0.ls1',
        ),
        ({**network(), "blocks.0.mlp.fc1.bias": torch.ones(9)}, "size mismatch for blocks.0.mlp.fc1.bias"),
        (
            {"model": {name: one for name, one in network().items() if name != "norm.bias"}},
            "holds no whole timm/test_vit: it lacks model.norm.bias (1 such tensors)",
        ),
        ({"a": torch.ones(1)}, "its first tensors are a. Name"),
        ({"epoch": 1}, "it holds no tensors"),
        (nn.Linear(1, 1), "holds more than tensors and plain values, and opening that could execute what is in it"),
    ],
)
def test_what_is_not_that_network_alone_is_refused_and_nothing_written(content: Any, said: str, tmp_path: Path) -> None:
    assert said in converted(content, tmp_path)


def test_no_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.safetensors").write_text("mine")
    source = tmp_path / "source.pth"
    torch.save(network(), source)
    words = ["backbone", "convert", str(source), "--name", VIT, "--out", str(tmp_path / "out.safetensors")]
    assert "is already there" in CliRunner().invoke(app, words).output
    assert (tmp_path / "out.safetensors").read_text() == "mine"


def test_patches_of_another_size_are_not_resampled(tmp_path: Path) -> None:
    tensors = network() | {"patch_embed.proj.weight": torch.ones(64, 3, 14, 14)}
    safetensors.torch.save_file(tensors, tmp_path / "patch14.safetensors")
    with pytest.raises(WeightsError, match="takes patches of 14x14 pixels, and those of test_vit have 16x16"):
        build_backbone(BackboneSettings(name=VIT, weights=str(tmp_path / "patch14.safetensors")), 0)
