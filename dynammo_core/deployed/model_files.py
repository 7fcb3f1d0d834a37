"""The files of a deployed model: weights as safetensors, and JSON that says what they are, beside or inside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from dynammo_core.data.images.reading import FROM_FILE, WINDOWS, Fit, Reading, Window
from dynammo_core.data.transforms import Normalisation
from dynammo_core.deployed.preparation import preparation_in_words
from dynammo_core.methods import METHODS
from dynammo_core.methods.base import Method
from dynammo_core.models import BACKBONES
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.models.timm_networks.hub import without_the_net
from dynammo_core.support.errors import WeightsError, nearest_match, unknown_name

WEIGHTS = "model.safetensors"
FACTS = "model.json"
METADATA_KEY = "dynammo_model"
"""Key under which a single file carries its description."""
PREPARATION_KEY = "preparation"
"""Key under which a single file says in words how images are prepared."""


class Lineage(BaseModel):
    """Where a model comes from; `tensors_sha256` is absent in files of versions that did not write it."""

    model_config = ConfigDict(frozen=True)

    config_hash: str
    code_hash: str
    backbone_sha256: str
    after_task: int
    tensors_sha256: str | None = None


class OwnStatistics(BaseModel):
    """Present if the sites were tested with batch-norm statistics of their own, which stay there.

    Attributes:
        kind: which statistics, a value of `scanners.own_statistics`.
        tested_sha256: hash of the tensors as they arrived at the sites, by which a site recognises the model.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    tested_sha256: str


class ModelFacts(BaseModel):
    """The content of `model.json`: all that is needed to build the network and to name its answers.

    Files of versions without `fit`, `window` and `frame` are of models that took stretched images of 8 bits. If it is
    set, the network resizes images to `network_size`. Of the sites' test images of learnt classes, 95 % have an
    open-set score of at least `open_set_threshold`; it is None if nobody counted. Without `own_statistics` all sites
    were tested with the statistics in the file. With `own_heads_sha256` each has a head of its own, for the common one
    with that hash as it arrived there.
    """

    model_config = ConfigDict(frozen=True)

    class_names: tuple[str, ...]
    tasks: tuple[tuple[str, ...], ...] = Field(min_length=1)
    backbone: str
    backbone_licence: str = "not recorded"
    insertion_points: tuple[str, ...]
    method: dict[str, Any]
    image_size: int = Field(ge=1)
    network_size: int | None = Field(default=None, ge=1)
    normalisation: Literal["half", "imagenet"] | Normalisation
    fit: Fit = "stretch"
    window: Window = FROM_FILE
    frame: int | None = Field(default=None, ge=1)
    heads: dict[str, tuple[int, ...]]
    open_set_threshold: float | None = None
    own_statistics: OwnStatistics | None = None
    own_heads_sha256: str | None = None
    versions: dict[str, str]
    lineage: Lineage

    @property
    def open_set_words(self) -> str:
        """Return a description of the method's open-set score."""
        return METHODS[self.method["name"]].decision.open_set_score

    @property
    def reading(self) -> Reading:
        """Return how image files are read."""
        return Reading(self.window, self.frame)

    @property
    def preparation(self) -> str:
        """Return, in words, how an image file becomes the model's input."""
        return preparation_in_words(self.image_size, self.fit, self.window, self.frame)

    @model_validator(mode="after")
    def _known_here(self) -> Self:
        name = str(self.method.get("name"))
        if problem := BACKBONES.problem(self.backbone) or METHODS.problem(name):
            raise ValueError(problem)
        if self.insertion_points != BACKBONES[self.backbone].insertion_points:
            raise ValueError(f"{self.backbone} is cut here at {BACKBONES[self.backbone].insertion_points}")
        METHODS[name].Params.model_validate(self.method)
        if isinstance(self.window, str) and self.window not in (FROM_FILE, *WINDOWS):
            raise ValueError(unknown_name("window", self.window, (FROM_FILE, *WINDOWS)))
        learnt = [name for names in self.tasks for name in names]
        if len(set(learnt)) < len(learnt) or not learnt or not set(learnt) <= set(self.class_names):
            raise ValueError("tasks must name some of class_names, each at most once")
        return self


@dataclass(frozen=True)
class ModelFiles:
    """The contents of a deployed model's files.

    Attributes:
        facts: what the model is.
        tensors: its weights, by name.
        origin: the file of weights, for messages.
    """

    facts: ModelFacts
    tensors: dict[str, Tensor]
    origin: Path

    @classmethod
    def read(cls, path: Path) -> ModelFiles:
        """Read a folder with model.safetensors and model.json, such as a run directory, or one `.safetensors` file.

        A file holds its description itself, or has it beside it, under its own name with the suffix `.json`.

        Raises:
            WeightsError: a file is missing, unreadable or corrupt, or its model is unknown to this version.
        """
        weights = path / WEIGHTS if path.is_dir() else path
        if path.is_dir() and not weights.exists() and (path / "config.yaml").exists():
            told = f"{path} is a run without a model: its first task has not ended"
            raise WeightsError(told, remedy="Wait for it, or resume the run")
        return cls.parse(read_model_file(weights), weights)

    @classmethod
    def parse(cls, content: bytes, origin: Path) -> ModelFiles:
        """Parse the model in the bytes of a safetensors file; raises what `read` raises."""
        try:
            tensors = safetensors.torch.load(content)
            size = int.from_bytes(content[:8], "little")
            inside = json.loads(content[8 : 8 + size]).get("__metadata__", {}).get(METADATA_KEY)
        except Exception as error:  # what decoders raise for damaged files has no common type
            raise WeightsError(
                f"{origin} is no safetensors file, or a damaged one ({type(error).__name__})",
                accepted="a run directory, its model.safetensors, or what `export` wrote as safetensors or .onnx; not "
                "TorchScript, since opening such a file can run code that is in it",
            ) from error
        beside = origin.with_suffix(".json")
        facts = parse_facts(inside, origin) if inside else parse_facts(read_model_file(beside), beside)
        expected = facts.lineage.tensors_sha256
        if expected is not None and (found := tensors_sha256(tensors)) != expected:
            raise WeightsError(
                f"the tensors in {origin} have the SHA-256 {found}, and their description says {expected}",
                remedy="Fetch both files again: one of them is damaged, or of another model",
            )
        return cls(facts, tensors, origin)

    def in_one_file(self) -> bytes:
        """Return the bytes of a safetensors file of the weights that carries its description."""
        metadata = {METADATA_KEY: self.facts.model_dump_json(), PREPARATION_KEY: self.facts.preparation}
        content: bytes = safetensors.torch.save(self.tensors, metadata=metadata)
        return content


def deployed_names(method: Method[Any], model: IncrementalModel) -> list[str]:
    """List the names in the state dict of all that prediction needs, the frozen backbone included."""
    changing = set(travelling_names(model))
    kept = set(matching(changing, method.deployed))
    return [name for name in model.state_dict() if name not in changing or name in kept]


def deployed_tensors(method: Method[Any], model: IncrementalModel) -> dict[str, Tensor]:
    """Return all tensors that prediction needs, on the CPU; a tensor that parts share once, under its first name."""
    state = model.state_dict()
    first = {state[name].data_ptr(): name for name in reversed(deployed_names(method, model))}
    return {name: state[name].cpu().contiguous() for name in sorted(first.values())}


def answering_tensors(method: Method[Any], model: IncrementalModel) -> dict[str, Tensor]:
    """Return the tensors of the heads that answer, by which a site knows the model that its own head stands beside."""
    return {name: tensor for name, tensor in deployed_tensors(method, model).items() if name.startswith("heads.")}


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and values, in hex: the same tensors give the same in any file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_model_file(path: Path) -> bytes:
    """Read a file of a model; a WeightsError says what is accepted where there is none."""
    try:
        return path.read_bytes()
    except OSError as error:
        here = [str(file) for file in path.parent.glob("*.safetensors")] if path.parent.is_dir() else []
        raise WeightsError(
            f"cannot read {path}: {error.strerror}{nearest_match(str(path), here)}",
            accepted=f"a folder with {WEIGHTS} and {FACTS}, a .safetensors file with its .json beside it, or .onnx",
        ) from error


def parse_facts(text: str | bytes, origin: Path) -> ModelFacts:
    """Parse a model's description; a WeightsError names the file that it is from, and what is wrong."""
    try:
        with without_the_net():
            return ModelFacts.model_validate_json(text)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'the whole'}: {e['msg']}" for e in error.errors()]
        raise WeightsError(
            f"{origin} describes no model that this version can build ({'; '.join(problems)})",
            remedy="Use the file that the run wrote, and the version of this project that its `versions` name",
        ) from error
