"""Prediction with a deployed model, which needs `model.safetensors` and `model.json` alone.

No data set, no internet and no experiment is needed; commands and exports all answer through the one module here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.data.loading import load_samples
from dynammo_core.data.samples import Split
from dynammo_core.data.sources import FileSource
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.data.transforms import Normalisation, statistics_of
from dynammo_core.deployed.model_files import ModelFacts, ModelFiles, deployed_names
from dynammo_core.methods import METHODS
from dynammo_core.methods.base import Method
from dynammo_core.models.backbones import build_backbone
from dynammo_core.models.folding import fold_batch_norm, fold_low_rank
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.scoring.own_choice import own_answers
from dynammo_core.support.devices import find_device
from dynammo_core.support.errors import WeightsError
from dynammo_core.support.seeding import seeded_generator

BATCH = 64


@dataclass(frozen=True)
class Answers:
    """A deployed model's answers for N images, with its C classes in the order in which it learnt them.

    Attributes:
        labels: Tensor[N] int64, the predicted classes, as indices into `Predictor.classes`; exactly what the method's
            own evaluation predicts.
        probabilities: Tensor[N, C]. For methods with a single classifier: its softmax, a row sums to 1. For methods
            with a head per task: what the head of the class's own task gives it, against everything else. Such heads
            judge independently, so a row need not sum to 1, and `labels` (the head least in favour of "others", then
            its best class) need not be the largest entry: if they differ, heads contradict each other.
        open_set_scores: Tensor[N] in [0, 1], high for an image of a class that was learnt, low for one that is like
            nothing learnt. One minus the lowest probability of "others" over the heads; for closed forms from the
            largest regressed label's share; for other methods without "others" the maximum softmax probability
            (Hendrycks and Gimpel, arXiv 1610.02136), which with C classes is at least 1 / C. Of the sites' test images
            of learnt classes, 95 % reach `ModelFacts.open_set_threshold`.
    """

    labels: Tensor
    probabilities: Tensor
    open_set_scores: Tensor


class OwnHead(NamedTuple):
    """Tensors of a site's own head by name, and the classes that it was made of, by global label, Tensor[K]."""

    tensors: Mapping[str, Tensor]
    held: Tensor


class DeployedModel(nn.Module):
    """A module from pixels to answers that can be traced and exported: normalisation, network, prediction."""

    def __init__(self, method: Method[Any], model: IncrementalModel, normalisation: str | Normalisation) -> None:
        super().__init__()
        self.method = method
        self.model = model
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics_of(normalisation))
        rows = [row for head in method.decision.heads(model) for row in head.rows]
        learnt = [label for classes in method.stream.tasks for label in classes]
        position = torch.full((max(learnt) + 1,), -1)
        position[torch.tensor(learnt)] = torch.arange(len(learnt))
        self.mean: Tensor
        self.std: Tensor
        self.columns: Tensor
        self.position: Tensor
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.register_buffer("columns", torch.tensor([rows.index(label) for label in learnt]), persistent=False)
        self.register_buffer("position", position, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return labels, probabilities and open-set scores (see `Answers`) of images Tensor[N, 3, S, S] uint8, RGB."""
        return self.answer(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Return the features Tensor[N, D] of images."""
        scaled = (images.to(torch.float32) / 255 - self.mean) / self.std
        features: Tensor = self.model.extractor(scaled.contiguous(memory_format=torch.channels_last))
        return features

    def answer(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `forward` does, of features Tensor[N, D]."""
        prediction = self.method.decision.predict(self.model, features)
        by_row = torch.cat(self.method.decision.probabilities(self.model, features), dim=1)
        return self.position[prediction.labels], by_row.index_select(1, self.columns), prediction.known


class ModelOfSite(nn.Module):
    """A deployed model with a site's own head beside the common ones, over the same features.

    How sure it is that an image shows a learnt class is asked of the common heads: the threshold was counted with them.
    """

    def __init__(self, common: DeployedModel, own: DeployedModel, held: Tensor) -> None:
        super().__init__()
        own.model.extractor = common.model.extractor
        self.common, self.own = common, own
        self.held: Tensor
        self.register_buffer("held", common.position[held], persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `DeployedModel.forward` does: answers of the own head where it may answer."""
        features = self.common.features(images)
        labels, probabilities, known = self.common.answer(features)
        own_labels, own_probabilities, _ = self.own.answer(features)
        own = own_answers(labels, own_labels, self.held)
        return torch.where(own, own_labels, labels), torch.where(own[:, None], own_probabilities, probabilities), known


class Predictor:
    """A deployed model on a device, ready to predict.

    Attributes:
        facts: what `model.json` says.
        classes: names of the C classes that it has learnt, in the order of learning.
        module: the module that predicts.
        device: the device that it is on.
        held: names of the classes that a site's own head was made of; none without such a head.
    """

    def __init__(self, facts: ModelFacts, module: nn.Module, device: torch.device) -> None:
        self.facts = facts
        self.classes = tuple(name for names in facts.tasks for name in names)
        self.module = module.to(device).eval().requires_grad_(False)
        self.device = device
        places = module.held.tolist() if isinstance(module, ModelOfSite) else []
        self.held = tuple(self.classes[place] for place in places)

    @classmethod
    def load(cls, path: Path | str, device: str = "cpu") -> Self:
        """Load the model of a run directory, a `.safetensors` file with its `.json` beside it, or an exported file.

        Raises:
            WeightsError: a file is missing or corrupt, or this version cannot build its model.
            ConfigError: this machine lacks the device.
        """
        return cls.of_files(ModelFiles.read(Path(path)), device)

    @classmethod
    def of_files(cls, files: ModelFiles, device: str = "cpu", own: OwnHead | None = None) -> Self:
        """Build the model that its files describe, with a site's own head if it has one; raises what `load` raises."""
        where = find_device(device)
        common = _deployed(files)
        size = files.facts.image_size
        fold_low_rank(common.model.extractor)
        example = torch.rand(2, 3, size, size, generator=seeded_generator("fold"))
        fold_batch_norm(common.model.extractor.eval(), example)
        if own is None:
            return cls(files.facts, common, where)
        beside = _deployed(replace(files, tensors={**files.tensors, **own.tensors}))
        return cls(files.facts, ModelOfSite(common, beside, own.held), where)

    def read(self, paths: Sequence[Path]) -> Tensor:
        """Read image files, decoded and resized as at the training sites: Tensor[N, 3, S, S] uint8, RGB.

        Raises:
            DataError: a file is missing, damaged, not an image, or not to be read as the model's images were.
        """
        names = tuple(map(str, paths))
        source = FileSource(tuple(paths), ("",) * len(names), self.facts.reading)
        split = Split(source, np.zeros(len(names), dtype=np.int64), names)
        images = load_samples(split, range(len(names)), self.facts.image_size, self.facts.fit).images[:]
        return images.expand(len(names), 3, self.facts.image_size, self.facts.image_size)

    @torch.no_grad()
    def predict(self, images: Tensor, batch_size: int = BATCH) -> Answers:
        """Return answers, on the CPU, for images Tensor[N, C, S, S] uint8 with C = 1 or 3 and S = `facts.image_size`.

        Raises:
            ValueError: the images have another shape or type.
            WeightsError: the model answers otherwise than its description says, as a foreign ONNX file can.
        """
        size = self.facts.image_size
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be uint8 [N, 1 or 3, {size}, {size}], got {images.dtype} {images.shape}")
        if images.shape[2:] != (size, size):
            raise ValueError(f"this model takes images of {size}x{size} pixels, got {tuple(images.shape[2:])}")
        batches = torch.split(images.expand(-1, 3, -1, -1), batch_size)
        parts = [[part.cpu() for part in self.module(batch.to(self.device))] for batch in batches]
        answers = Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))
        _check(answers, len(images), len(self.classes))
        return answers


def _check(answers: Answers, images: int, classes: int) -> None:
    """Refuse answers that do not fit N images and C classes."""
    labels, numbers = answers.labels, (answers.probabilities, answers.open_set_scores)
    shapes = [tuple(one.shape) for one in (labels, *numbers)]
    fits = shapes == [(images,), (images, classes), (images,)] and not labels.is_floating_point()
    if not fits or bool(((labels < 0) | (labels >= classes)).any()) or any(bool(one.isnan().any()) for one in numbers):
        raise WeightsError(
            f"the model says that it has learnt {classes} classes, and answers {images} images with labels of others, "
            f"numbers that are none, or tables of other shapes: {shapes}",
            remedy="Use the file that the run or its export wrote",
        )


def _deployed(files: ModelFiles) -> DeployedModel:
    method, model = _build(files)
    _fill(method, model, files)
    return DeployedModel(method, model, files.facts.normalisation)


def _build(files: ModelFiles) -> tuple[Method[Any], IncrementalModel]:
    """Build the method and the network that the facts describe, without weights and without heads for training only."""
    facts = files.facts
    label = {name: index for index, name in enumerate(facts.class_names)}
    method_type = METHODS[facts.method["name"]]
    stream = TaskStream(tuple(tuple(label[name] for name in names) for names in facts.tasks))
    method = method_type(method_type.Params.model_validate(facts.method), stream)
    settings = BackboneSettings(name=facts.backbone, weights="random", image_size=facts.network_size)
    backbone = build_backbone(settings, seed=0, image_size=facts.image_size)
    model = IncrementalModel(backbone.freeze() if method.freezes_backbone else backbone)
    for task in range(len(stream)):
        method.grow(model, task)
    for name in set(model.heads) - set(facts.heads):
        del model.heads[name]
    rows = {name: model.head(name).rows for name in model.heads}
    if rows != facts.heads:
        raise WeightsError(
            f"{files.origin} names the heads {facts.heads}, and {facts.method['name']} has {rows} after these tasks",
            remedy="Use the model.json that was written with these weights, and the version that wrote it",
        )
    return method, model.to(memory_format=torch.channels_last)


def _fill(method: Method[Any], model: IncrementalModel, files: ModelFiles) -> None:
    """Load the tensors, after a check that all that prediction needs are there and that all fit."""
    state = model.state_dict()
    # Passes that share a backbone find it under its first name.
    held = {state[name].data_ptr() for name in files.tensors if name in state}
    lacking = [name for name in deployed_names(method, model) if state[name].data_ptr() not in held]
    surplus = [name for name in files.tensors if name not in state]
    misshapen = [
        f"{name} as {tensor.dtype} {tuple(tensor.shape)} instead of {state[name].dtype} {tuple(state[name].shape)}"
        for name, tensor in files.tensors.items()
        if name in state and (tensor.shape, tensor.dtype) != (state[name].shape, state[name].dtype)
    ]
    broken = [name for name, tensor in files.tensors.items() if not bool(tensor.isfinite().all())]
    for what, names in (
        ("lacks", lacking),
        ("has the surplus", surplus),
        ("holds", misshapen),
        ("holds values that are not finite in", broken),
    ):
        if names:
            raise WeightsError(
                f"{files.origin} is not the model that its description says: it {what} {names[0]} "
                f"({len(names)} such tensors)",
                remedy="Fetch model.safetensors and model.json again, both from the same run",
            )
    model.load_state_dict(files.tensors, strict=False)
