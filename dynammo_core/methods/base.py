"""The hooks of a continual-learning method: a method overrides only what differs, and nobody else asks for its name."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.configuration.privacy import PrivacySettings
from dynammo_core.configuration.settings import BackboneSettings, MemorySettings, MethodSettings
from dynammo_core.data.samples import Samples
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.memory.rehearsal import balanced_set
from dynammo_core.models.heads import Head
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Action, Stage
from dynammo_core.support.seeding import derive_seed

TEACHER_PREFIX = "teacher."
"""Tensors of the archive under this prefix make the model of the previous task, for methods that distil."""

Archive = MutableMapping[str, Tensor]
"""What the server keeps beside the model, by name: adapter sets of earlier tasks, a teacher, summed statistics."""


Batch = tuple[Tensor, Tensor]
"""Inputs at the stage's level, Tensor[B, ...], and global labels, Tensor[B]."""


NO_PRIVACY = PrivacySettings()

SumNoise = Callable[[tuple[int, ...], float], Tensor]
"""Noise for a sum, Tensor float64, from the sum's shape and its sensitivity."""


@dataclass(frozen=True)
class Rehearsal:
    """All that a method may draw its training set from: the images that this site holds, and its memory."""

    task: int
    new: Samples
    seen: Samples
    memory: Samples
    settings: MemorySettings
    sites: int
    seed: int

    def has_new(self, classes: Sequence[int]) -> bool:
        """Whether there are new images of any of these classes."""
        return bool(torch.isin(self.new.labels, torch.tensor(classes)).any())

    def balanced(self) -> Samples:
        """Exemplars and equally many samples of each new class."""
        seed = derive_seed(self.seed, "balanced", self.task)
        return balanced_set(self.memory, self.new, settings=self.settings, sites=self.sites, seed=seed)


@dataclass(frozen=True)
class LossContext:
    """Where a batch is being learnt: its task and stage, and the previous task's model if the method keeps one."""

    task: int
    stage: Stage
    teacher: IncrementalModel | None = None


@dataclass(frozen=True)
class Prediction:
    """Answers for a batch.

    Attributes:
        labels: Tensor[B] int64, global class indices.
        probability: Tensor[B], of the answer.
        known: Tensor[B] in [0, 1], how sure the model is that it has learnt the image's class at all.
    """

    labels: Tensor
    probability: Tensor
    known: Tensor


class Method(ABC):
    """A class-incremental method. Attributes of the class say what it is; hooks say what it does.

    Attributes:
        name: the method's name in configurations and tables.
        paper_url: where it is published.
        Params: its section of the configuration.
        freezes_backbone: whether the pretrained network never changes (and so never travels).
        uses_memory: whether sites keep exemplars.
        deployed: patterns of the tensors that prediction needs.
        open_set_words: what `Prediction.known` is, for those who read a model card.
    """

    name: ClassVar[str]
    paper_url: ClassVar[str]
    Params: ClassVar[type[MethodSettings]]
    freezes_backbone: ClassVar[bool] = False
    uses_memory: ClassVar[bool] = True
    deployed: ClassVar[tuple[str, ...]] = ("extractor.*", "heads.*")
    open_set_words: ClassVar[str] = "the probability of the answer (the maximum softmax probability)"

    def __init__(self, params: MethodSettings, stream: TaskStream, privacy: PrivacySettings = NO_PRIVACY) -> None:
        self.params = params
        self.stream = stream
        self.privacy = privacy

    @classmethod
    def obstacle_to_privacy(cls, params: MethodSettings, mechanism: str) -> str:
        """Why noise cannot protect anybody in this method, and the remedy; empty where it can.

        It can where one image changes a training set by itself alone, a batch's loss is a mean of its samples' own,
        and what is sent are gradients, or sums that `summarise_privately` noises.
        """
        return "what one image may change in what its sites send has no bound"

    def check_received(self, model: IncrementalModel) -> None:
        """Refuse, at a site, values received that no honest server sends; beyond what is checked of all tensors.

        Args:
            model: with the weights received.

        Raises:
            ProtocolError: a value is out of its range.
        """
        return

    @classmethod
    def misfit(cls, params: MethodSettings, federation: FederationSettings, backbone: BackboneSettings) -> str:
        """Why these parameters do not go with those sections of the configuration, and the remedy; empty if they do."""
        return ""

    def needs_noise(self, stage: Stage) -> bool:
        """Whether a site's answer in this stage says more of its images than their noised numbers do."""
        return stage.action is Action.FIT

    def stages(self, task: int) -> Sequence[Stage]:
        """The training stages of a task, in order."""
        raise NotImplementedError(f"{type(self).__name__} must say which stages a task has")

    def arrives_with(self, task: int, labels: Tensor) -> Tensor:
        """Which labels are of the task's own classes, Tensor[B] bool; a site may meet a class in a later task."""
        return torch.isin(labels, torch.tensor(self.stream.classes(task), device=labels.device))

    def all_stages(self, task: int) -> Sequence[Stage]:
        """The training stages, then the memory takes in the task, then every site evaluates."""
        remember = Stage("remember", Action.REMEMBER, down=self.deployed, inputs="features")
        evaluate = Stage("evaluate", Action.EVALUATE, down=self.deployed, inputs="features")
        memory = (remember, *self.after_memory(task)) if self.uses_memory else ()
        return (*self.stages(task), *memory, evaluate)

    def after_memory(self, task: int) -> Sequence[Stage]:
        """The stages that need the exemplars of the task's own classes."""
        return ()

    def grow(self, model: IncrementalModel, task: int) -> None:
        """Give the model the structure it has in `task`, starting from that of the task before; server and sites."""
        raise NotImplementedError(f"{type(self).__name__} must say how the model grows")

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        """At the server, before the first stage of `task`."""
        self.grow(model, task)

    def training_set(self, stage: Stage, rehearsal: Rehearsal) -> Samples:
        """What a site trains on; empty means that it abstains from the stage."""
        return rehearsal.new

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        """Scalar loss of a batch; `inputs` stand at the level `context.stage.inputs`."""
        raise NotImplementedError(f"{type(self).__name__} must say what it minimises")

    def summarise(self, model: IncrementalModel, batches: Iterable[Batch], stage: Stage) -> dict[str, Tensor]:
        """The tensors that a site computes in a SUMMARISE stage, without gradients, from its training set."""
        raise NotImplementedError(f"{type(self).__name__} has no stage that summarises")

    def summarise_privately(
        self,
        model: IncrementalModel,
        batches: Iterable[Batch],
        stage: Stage,
        counts: Mapping[int, int],
        noise: SumNoise,
    ) -> dict[str, Tensor]:
        """As `summarise`, but one image more or less is hidden by noise.

        Args:
            model: the network.
            batches: as for `summarise`.
            stage: of the plan.
            counts: noised number of the training set's images, by each class that it may hold: not to be paid again.
            noise: draws noise for a sum, from its shape and the most (L2) that one image can change it by.
        """
        raise NotImplementedError(f"{type(self).__name__} has no stage that summarises privately")

    def note_counts(self, archive: Archive, task: int, stage: Stage, class_counts: Sequence[int]) -> None:
        """At the server, after each round that brings tensors: how many samples of each class they speak for."""
        return

    def finish_stage(self, model: IncrementalModel, archive: Archive, task: int, stage: Stage) -> None:
        """At the server, after the last round of a stage: merge across tasks, solve in closed form, keep a teacher."""
        return

    def forget(self, task: int) -> Stage | None:
        """The stage, beside the plan, in which sites take withdrawn records out of the sums that the server keeps.

        A site then sends the negative of what it would send of these images in a stage that summarises; the server
        takes it in as it takes in that stage. None: the server keeps no sums of all past images.
        """
        return None

    @property
    def answering_head(self) -> str:
        """Name of the head that answers by default."""
        return CLASSES

    def answering_heads(self, model: IncrementalModel) -> list[Head]:
        """The heads that answer, which together have a row for each class: by default one."""
        return [model.head(self.answering_head)]

    def probabilities(self, model: IncrementalModel, features: Tensor) -> list[Tensor]:
        """What each answering head makes of features Tensor[B, D]: the probabilities Tensor[B, R] of its rows."""
        return [head(features).softmax(dim=1) for head in self.answering_heads(model)]

    def predict(self, model: IncrementalModel, features: Tensor) -> Prediction:
        """Answers from features Tensor[B, D]: by default the most probable row of the answering head."""
        (head,), (probabilities,) = self.answering_heads(model), self.probabilities(model, features)
        probability, row = probabilities.max(dim=1)
        return Prediction(torch.tensor(head.rows, device=row.device)[row], probability, known=probability)


CLASSES = "classes"
"""Name of the one head of methods that have a single classifier."""
