"""Names, weights, sizes and licences of networks that timm and the hub bring."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from hospitals import deployed
from huggingface_hub import errors
from pydantic import ValidationError
from small_runs import small_settings
from timm import create_model
from torch import Tensor
from typer.testing import CliRunner

from dynammo_core.code_identity import code_hash, packages_of, project_hash
from dynammo_core.configuration.config import resolve
from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.methods.adapters import new_adapters
from dynammo_core.methods.settings.adapters import MergeSettings
from dynammo_core.models import BACKBONES
from dynammo_core.models.backbones import build_backbone
from dynammo_core.models.description import origin_of, weights_sha256
from dynammo_core.models.incremental_model import AdaptedBackbone
from dynammo_core.models.pretrained import WeightsFile
from dynammo_core.models.timm_networks.catalogue import TimmSpec, find
from dynammo_core.support.errors import ConfigError, WeightsError
from dynammo_core.support.seeding import seeded_initialisation
from simulations.cli import app

VIT = "timm/test_vit"  # timm's own networks for tests
CNN = "timm/test_efficientnet"


def saved(name: str, path: Path, **other: Tensor) -> Path:
    """Random weights of a network with a classifier, as a published file has them."""
    spec = BACKBONES[name]
    assert isinstance(spec, TimmSpec)
    with seeded_initialisation(4):
        tensors = dict(spec.assemble(None, None).state_dict())
    tensors |= {"head.weight": torch.zeros(9, spec.feature_dim), "head.bias": torch.zeros(9), **other}
    safetensors.torch.save_file({key: one.contiguous() for key, one in tensors.items()}, path)
    return path


def test_names_that_do_not_exist_are_answered_with_the_nearest() -> None:
    for name, words in {
        "timm/vit_tiny_patch16_242": r"unknown network of timm .*did you mean 'vit_tiny_patch16_224' or .*timm \d",
        "resnet50": r"unknown backbone 'resnet50' \(did you mean 'timm/resnet50'\?\); accepted: resnet18, ",
        "MahmoodLab/UNI": r"unknown backbone .*did you mean 'hf_hub:MahmoodLab/UNI'",
        "timm/resnet50.a1_in2k": r"unknown tag 'a1_in2k' \(did you mean 'a1_in1k'\?\) of resnet50; accepted: ",
        "hf_hub:uni": "names no repository; accepted: hf_hub:OWNER/NAME",
        "timmy/resnet50": r"unknown backbone .*accepted: .*timm/\.\.\.",
    }.items():
        with pytest.raises(ValidationError, match=words):
            BackboneSettings(name=name)


def test_the_weights_of_such_a_name_are_its_pretrained_ones() -> None:
    assert BackboneSettings(name=VIT).weights == "pretrained"
    assert BackboneSettings(name=VIT, weights="random").weights == "random"
    assert BackboneSettings().weights == "imagenet"
    with pytest.raises(ValidationError, match="imagenet does not say which"):
        BackboneSettings(name=VIT, weights="imagenet")


def test_a_file_is_loaded_whole_and_position_embeddings_fit_the_size(tmp_path: Path) -> None:
    path = saved(VIT, tmp_path / "vit.safetensors")
    settings = BackboneSettings(name=VIT, weights=str(path))
    spec = BACKBONES[VIT]
    assert isinstance(spec, TimmSpec)
    size = spec.source.image_size
    network = build_backbone(settings, 0, size).eval().state_dict()
    written = safetensors.torch.load_file(path)
    assert all(torch.equal(tensor, written[name.removeprefix("network.")]) for name, tensor in network.items())
    smaller = build_backbone(settings, 0, size // 2).eval()
    patch = size // 2
    assert smaller(torch.rand(1, 3, patch, patch)).shape == (1, spec.feature_dim)
    assert smaller.state_dict()["network.pos_embed"].shape[1] < network["network.pos_embed"].shape[1]
    with pytest.raises(ConfigError, match=r"does not take images of 81 pixels.* multiples of 16"):
        build_backbone(settings, 0, 81)


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    surplus = saved(VIT, tmp_path / "surplus.safetensors", extra=torch.zeros(1))
    pickled = tmp_path / "pickled.pth"
    torch.save({"network": SimpleNamespace()}, pickled)
    for path, words in {
        surplus: "does not fit the backbone.*extra",
        saved(CNN, tmp_path / "cnn.safetensors"): "does not fit the backbone",
        pickled: "holds objects beside tensors, and could execute what is in it.*backbone convert",
        tmp_path / "absent.safetensors": "cannot read the file",
    }.items():
        with pytest.raises(WeightsError, match=words):
            build_backbone(BackboneSettings(name=VIT, weights=str(path)), 0)


def test_a_classifier_of_several_layers_is_left_out(tmp_path: Path) -> None:
    spec = BACKBONES["timm/test_mambaout"]
    assert isinstance(spec, TimmSpec)
    with seeded_initialisation(4):
        state = create_model("test_mambaout").state_dict()
    assert any("fc2" in name for name in state)
    safetensors.torch.save_file(state, tmp_path / "whole.safetensors")
    loaded = spec.assemble(WeightsFile(tmp_path / "whole.safetensors"), None).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_the_hub_gives_safetensors_that_all_sites_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, name: str, revision: str | None = None, *, dry_run: bool = False) -> object:
        asked.append((repository, name, revision))
        path = tmp_path / name
        assert dry_run or name != "config.json" or path.stat().st_size <= 2**16, "the size is asked before the file"
        return SimpleNamespace(file_size=path.stat().st_size) if dry_run else str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    saved(VIT, tmp_path / "model.safetensors")
    facts = {"input_size": [3, 160, 160], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "classifier": "head"}
    described = {"architecture": "test_vit", "pretrained_cfg": {**facts, "license": "cc-by-nc-4.0"}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    find.cache_clear()
    name = "hf_hub:clinic/skin@v2"
    settings = BackboneSettings(name=name)
    local = BackboneSettings(name=VIT, weights=str(tmp_path / "model.safetensors"))
    pin = weights_sha256(settings)
    assert pin == weights_sha256(settings.model_copy(update={"weights": local.weights, "sha256": pin}))
    built = build_backbone(settings, 0, 160).state_dict()
    assert all(torch.equal(one, built[key]) for key, one in build_backbone(local, 0, 160).state_dict().items())
    assert set(asked) == {("clinic/skin", "config.json", "v2"), ("clinic/skin", "model.safetensors", "v2")}
    assert BACKBONES[name].normalisation == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert BACKBONES[name].licence == "cc-by-nc-4.0 (non-commercial: no use in care or products)"
    with pytest.raises(WeightsError, match="is required"):
        weights_sha256(settings.model_copy(update={"sha256": "0" * 64}))

    pinned = settings.model_copy(update={"sha256": pin})
    for content, words in (
        ({}, "describes no network of timm"),
        ({**described, "model_args": {"checkpoint_path": "/etc/x.pth"}}, "model_args.checkpoint_path"),
        ({**described, "model_args": {"pretrained_strict": False}}, "model_args.pretrained_strict"),
        ({**described, "model_args": {"depth": 10**6}}, "model_args.depth"),
        ({**described, "comment": " " * 2**16}, "has 65,.* bytes. Accepted: at most 65,536"),
        ({**described, "pretrained_cfg": {**facts, "std": [1e-4] * 3}}, "with its repository's description has"),
        ({**described, "pretrained_cfg": facts, "model_args": {"no_embed_class": True}}, "description has"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        find.cache_clear()
        with pytest.raises(WeightsError, match=words):
            build_backbone(pinned, 0, 160)


def test_weights_come_from_nowhere_but_the_file_whose_hash_was_checked(tmp_path: Path) -> None:
    """A file of nothing but a classifier, or of too little, does not send timm elsewhere."""
    whole = safetensors.torch.load_file(saved(VIT, tmp_path / "whole.safetensors"))
    spec = BACKBONES[VIT]
    assert isinstance(spec, TimmSpec)
    elsewhere = {"file": str(tmp_path / "whole.safetensors"), "url": "https://hub.invalid/x.pth"}
    source = replace(spec.source, facts={**spec.source.facts, **elsewhere})
    for tensors, words in (
        ({name: one for name, one in whole.items() if name.startswith("head.")}, "no tensor of the network"),
        ({name: one for name, one in whole.items() if name != "norm.weight"}, "Missing key"),
    ):
        safetensors.torch.save_file(tensors, tmp_path / "part.safetensors")
        with pytest.raises(WeightsError, match=words):
            source.create(160, WeightsFile(tmp_path / "part.safetensors"))


def test_another_version_of_timm_is_other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a network computes is timm's to say: site and server, an approval and a cache compare its version."""
    plain = resolve(small_settings(), "small.yaml", {})
    config = resolve({**small_settings(), "backbone": {"name": CNN, "weights": "random"}}, "small.yaml", {})
    assert code_hash(plain) == project_hash()
    assert packages_of(config) == f"timm {timm.__version__}"
    ours = code_hash(config)
    monkeypatch.setattr("dynammo_core.support.registry.distribution", lambda _: SimpleNamespace(version="1.0.99"))
    assert packages_of(config) == "timm 1.0.99"
    assert code_hash(config) not in (ours, project_hash())


def test_what_the_hub_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = httpx.Response(403, request=httpx.Request("GET", "https://hub.invalid"))
    for raised, words in {
        errors.GatedRepoError("", response=answer): "is gated.*Accept the licence",
        errors.RemoteEntryNotFoundError("", response=answer): "has no model.safetensors.*Accepted: safetensors",
        errors.RepositoryNotFoundError("", response=answer): "the hub has no repository",
        errors.LocalEntryNotFoundError(
            ""
        ): "cannot be downloaded from here. On a machine with internet access: dynammo",
        OSError("net"): "cannot download",
    }.items():

        def refuse(*_: object, error: Exception = raised, **__: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
        with pytest.raises(WeightsError, match=words):
            weights_sha256(BackboneSettings(name="timm/test_vit.r160_in1k"))


def test_what_is_in_the_cache_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> str:
        raise AssertionError("asked the hub")

    path = saved(VIT, tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", ask)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(path))
    assert weights_sha256(BackboneSettings(name=f"{VIT}.r160_in1k")) == WeightsFile(path).sha256()


def test_show_and_fetch_say_what_a_network_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = CliRunner().invoke(app, ["backbone", "show", CNN, "--image-size", "64"]).output
    for words in (
        "Parameters:",
        "GMAC",
        "Cost at 64 pixels:",
        "blocks.",
        "Licence:",
        "hub",
        "data.normalisation: backbone",
    ):
        assert words in shown
    shown = CliRunner().invoke(app, ["backbone", "show", VIT]).output
    assert "attn.qkv (64 to 192), attn.proj (64 to 64), mlp.fc1 (64 to 192), mlp.fc2 (192 to 64) of 6 blocks" in shown
    path = saved(VIT, tmp_path / "model.safetensors")
    size = SimpleNamespace(file_size=1)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, dry_run=0, **__: size if dry_run else str(path))
    out = tmp_path / "out"
    told = CliRunner().invoke(app, ["backbone", "fetch", VIT, "--out", str(out)]).output
    (file,) = out.iterdir()
    assert file.read_bytes() == path.read_bytes()
    assert str(file.absolute()) in told
    assert weights_sha256(BackboneSettings(name=VIT, weights=str(file))) in told


def test_among_hospitals_what_the_net_brings_is_pinned_and_nothing_is_asked_of_it_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(*_: object, **__: object) -> str:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", ask)
    hub, pin = "hf_hub:nice/backbone", "a" * 64
    method = {"adapter": "convolution", "merge": ["mean"] * 4}
    for backbone, words in (
        ({"name": hub, "weights": "pretrained"}, r"backbone: sha256 must pin .*nice/backbone.*backbone fetch"),
        ({"name": VIT, "weights": "pretrained"}, "backbone: sha256 must pin"),
        ({"name": hub, "weights": "random"}, "takes its shape from the net"),
        ({"name": "hf_hub:../.."}, "names no repository"),
        ({"name": "hf_hub:nice/backbone@.."}, "names no repository"),
    ):
        with pytest.raises(ConfigError, match=words):
            deployed(["alpha"], ["0", "1"], "dynammo", {"backbone": backbone, "method": method})
    with pytest.raises(ConfigError, match=r"auto cannot be chosen .*only once it is approved"):
        deployed(["alpha"], ["0", "1"], "dynammo", {"backbone": {"name": hub, "weights": "pretrained", "sha256": pin}})
    for backbone in (
        {"name": hub, "weights": "pretrained", "sha256": pin},
        {"name": VIT, "weights": "pretrained", "sha256": pin},
        {"name": VIT, "weights": "random"},
    ):
        config = deployed(["alpha"], ["0", "1"], "dynammo", {"backbone": backbone, "method": method})
        code_hash(config)
    assert origin_of(BackboneSettings(name=hub, sha256=pin)) == (
        f"weights downloaded from nice/backbone on the Hugging Face hub, SHA-256 {pin}"
    )
    network = AdaptedBackbone(build_backbone(BackboneSettings(name=CNN, weights="random"), 0, 32))
    with pytest.raises(ConfigError, match=r"method.merge lists 9 operators, but the backbone has \d insertion"):
        new_adapters(network, MergeSettings(name="dynammo", merge=("mean",) * 9))
