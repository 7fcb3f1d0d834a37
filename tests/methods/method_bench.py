"""A method on a small network and toy images: what the server and one site do with it, without either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dynammo_core.aggregation.class_aware import Update, class_aware_mean
from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.configuration.settings import BackboneSettings, MemorySettings
from dynammo_core.data.samples import Samples
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.data.transforms import to_input
from dynammo_core.methods import METHODS
from dynammo_core.methods.adapters import AUXILIARY
from dynammo_core.methods.base import TEACHER_PREFIX, Method
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.methods.rehearsal import Rehearsal
from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.backbones import build_backbone
from dynammo_core.models.heads import Head, head_rows, summed_names
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import Fit, LossContext, Remember, Stage, Summarise
from dynammo_core.scoring.evaluation import embed_samples
from dynammo_core.support.seeding import seeded_generator, seeded_initialisation
from dynammo_core.training import fit, shuffled, train_only
from dynammo_core.wire.protocol import names_up
from dynammo_core.wire.sums_form import whole

STREAM = TaskStream(((0, 1), (2, 3), (4, 5), (6, 7)))
CLASS_COUNT = 8
CPU = torch.device("cpu")
EACH = {0: 20, 1: 2, 2: 5, 3: 11}
"""Images of each class of an uneven set."""
RANDOM_NETWORK = BackboneSettings(name="small_cnn", weights="random")
TRANSFORMER = BackboneSettings(name="timm/test_vit", weights="random")


def toy_images(classes: tuple[int, ...], each: int = 12, seed: int = 0) -> Samples:
    """Images of 16 pixels a side: a pattern of 4 x 4 squares for each class, under noise."""
    images = [torch.empty(0, 3, 16, 16, dtype=torch.uint8)]
    for label in classes:
        pattern = torch.rand(1, 3, 4, 4, generator=seeded_generator("pattern", label))
        noise = torch.randn(each, 3, 16, 16, generator=seeded_generator("noise", label, seed))
        shown = pattern.repeat_interleave(4, 2).repeat_interleave(4, 3) + 0.2 * noise
        images.append((shown.clamp(0, 1) * 255).to(torch.uint8))
    labels = torch.tensor(classes, dtype=torch.int64).repeat_interleave(each)
    return Samples(torch.cat(images), labels, tuple(f"{label}/{seed}/{i}" for i, label in enumerate(labels.tolist())))


def uneven(classes: tuple[int, ...], seed: int = 0) -> Samples:
    return Samples.concatenate([toy_images((label,), each=EACH[label], seed=seed) for label in classes])


def halves(images: Samples) -> list[Samples]:
    return [images.subset(range(start, len(images), 2)) for start in range(2)]


def rehearsal(task: int, *, holds_new: bool = True) -> Rehearsal:
    """12 images of each class of the task (or none) and of all seen ones, and 3 exemplars of each old class."""
    old = STREAM.seen(task - 1) if task else ()
    return Rehearsal(
        task=task,
        new=toy_images(STREAM.classes(task)) if holds_new else Samples.empty(),
        seen=toy_images(STREAM.seen(task)),
        memory=toy_images(old, each=3) if task else Samples.empty(),
        settings=MemorySettings(exemplars=3 * len(old)),
        sites=1,
        seed=5,
    )


@dataclass
class Bench:
    """One method, the model it grows and the archive it keeps."""

    method: Method
    model: IncrementalModel
    archive: dict[str, Tensor] = field(default_factory=dict)
    network: BackboneSettings = RANDOM_NETWORK
    task: int = 0

    def begin(self, task: int) -> None:
        self.task = task
        with seeded_initialisation("begin", task):
            self.method.begin_task(self.model, self.archive, task)

    def stage(self, name: str, task: int) -> Stage:
        return next(stage for stage in self.method.all_stages(task) if stage.name == name)

    def fits(self, task: int) -> list[Fit]:
        """The stages that train."""
        return [stage for stage in self.method.all_stages(task) if isinstance(stage, Fit)]

    def finish(self, name: str, task: int) -> None:
        with seeded_initialisation("finish", task, name):
            self.stage(name, task).finish(self.model, self.archive, task)

    def inputs(self, stage: Stage, images: Samples) -> Tensor:
        if stage.inputs == "images":
            return to_input(images.images, "half", CPU)
        return embed_samples(self.model, images, "half", CPU, stage.inputs)

    @property
    def head(self) -> Head:
        """The one classifier of a method that has one."""
        return self.model.head(CLASSES)

    def teacher(self, stage: Stage, task: int) -> IncrementalModel | None:
        """The previous task's model, as a site makes it of what the stage brings; None if none is wanted."""
        sent = [name for name in matching(self.archive, stage.down) if name.startswith(TEACHER_PREFIX)]
        if not sent and not (isinstance(stage, Summarise) and stage.beside_teacher):
            return None
        teacher = new_model(type(self.method), self.network)
        for earlier in range(task):
            self.method.grow(teacher, earlier)
        assert sent == matching((TEACHER_PREFIX + name for name in travelling_names(teacher)), stage.down)
        teacher.load_state_dict({n.removeprefix(TEACHER_PREFIX): self.archive[n] for n in sent}, strict=False)
        return teacher.requires_grad_(False).eval()

    def loss(self, stage: Fit, task: int, images: Samples) -> Tensor:
        """The loss of all images in one batch, as a site has it."""
        inputs, teacher = self.inputs(stage, images), self.teacher(stage, task)
        train_only(self.model, set(names_up(self.model, stage)))
        return stage.loss(self.model, inputs, images.labels, LossContext(task, stage.inputs, teacher))

    def fit(self, stage: Fit, task: int, images: Samples) -> list[float]:
        """All rounds of a stage at one site; the loss of each."""
        how = stage.optimisation
        inputs, teacher = self.inputs(stage, images), self.teacher(stage, task)
        parameters = train_only(self.model, set(names_up(self.model, stage)))

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            for index in shuffled(len(inputs), how.batch_size, seeded_generator("epoch", epoch)):
                yield inputs[index], images.labels[index]

        def loss(inputs: Tensor, labels: Tensor) -> Tensor:
            return stage.loss(self.model, inputs, labels, LossContext(task, stage.inputs, teacher))

        return [fit(parameters, loss, batches, how, round_=round_) for round_ in range(stage.rounds)]

    def summarised(self, stage: Summarise, images: Samples) -> Tensor:
        """The inputs of a stage without gradients, beside those that the previous task's model makes if it asks."""
        inputs = self.inputs(stage, images)
        if not stage.beside_teacher:
            return inputs
        teacher = self.teacher(stage, self.task)
        assert teacher is not None
        return torch.cat([embed_samples(teacher, images, "half", CPU), inputs], dim=1)

    @torch.no_grad()
    def summarise(self, stage: Summarise, sites: Sequence[Samples]) -> dict[str, Tensor]:
        """What the server makes of the sites' answers to a stage."""
        updates = []
        for images in sites:
            site = deepcopy(self.model).eval()  # a site builds a model of its own, which has summed nothing
            for name in summed_names(site):
                site.get_buffer(name).zero_()
            batches = [(self.summarised(stage, half), half.labels) for half in halves(images) if len(half)]
            sums = stage.computes(site, batches)
            updates.append(Update(whole(sums, site), images.class_counts(CLASS_COUNT)))
        rows, summed = head_rows(self.model), summed_names(self.model)
        merged = class_aware_mean(updates, rows, self.model.state_dict(), summed)
        self.model.load_state_dict(merged, strict=False)
        return merged

    @torch.no_grad()
    def accuracy(self, images: Samples) -> float:
        features = embed_samples(self.model, images, "half", CPU)
        return (self.method.decision.predict(self.model, features).labels == images.labels).double().mean().item()


def new_model(kind: type[Method], network: BackboneSettings) -> IncrementalModel:
    """The network of a method before the first task."""
    backbone = build_backbone(network, seed=0, image_size=16)
    return IncrementalModel(backbone.freeze() if kind.freezes_backbone else backbone)


def bench(method: str | type[Method], network: BackboneSettings = RANDOM_NETWORK, **params: object) -> Bench:
    """A method of the table, or one that is not in it, before the first task."""
    kind = METHODS[method] if isinstance(method, str) else method
    fitted = kind.Params(name=kind.name, **params).fitted_to(network, FederationSettings())
    return Bench(kind(fitted, STREAM), new_model(kind, network), network=network)


def learn(made: Bench, tasks: int, first: int = 0) -> None:
    """All stages of the first tasks at one site, as the server and the site go through them."""
    for task in range(first, tasks):
        made.begin(task)
        held = rehearsal(task)
        for stage in made.method.all_stages(task):
            if isinstance(stage, Remember):
                held = replace(held, memory=toy_images(STREAM.seen(task), each=3))
            elif isinstance(stage, Fit):
                made.fit(stage, task, stage.learns_from(held))
            elif isinstance(stage, Summarise):
                made.summarise(stage, [stage.learns_from(held)])
            made.finish(stage.name, task)


def answer(made: Bench, name: str, task: int, sites: list[Samples]) -> None:
    """A stage of sums, each site's of all its images, whether they are new or not."""
    made.summarise(made.stage(name, task), sites)  # type: ignore[arg-type]
    made.finish(name, task)


def learn_sums(made: Bench, task: int, sites: list[Samples], stages: Sequence[str]) -> None:
    made.begin(task)
    for name in stages:
        answer(made, name, task, sites)


def state(made: Bench) -> dict[str, Tensor]:
    """A copy of all tensors of the model."""
    return {name: tensor.clone() for name, tensor in made.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def adapters(made: Bench) -> AdapterSet:
    inserted = made.model.extractor.adapters
    assert inserted is not None
    return inserted


def adapter_state(made: Bench) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in adapters(made).state_dict().items()}


@torch.no_grad()
def finish_stage_1(made: Bench, task: int) -> dict[str, Tensor]:
    """As if adapters and auxiliary head had learnt something of that task alone; returns the set learnt."""
    for tensor in [*adapters(made).state_dict().values(), *made.model.head(AUXILIARY).state_dict().values()]:
        tensor.add_(0.5 * (task + 1) ** 2)
    learnt = adapter_state(made)
    made.finish("adapt", task)
    return learnt


def grown(tasks: int = 2, **params: object) -> Bench:
    """DynaMMo after stage 1 of so many tasks."""
    made = bench("dynammo", **params)
    for task in range(tasks):
        made.begin(task)
        finish_stage_1(made, task)
    return made
