"""What happens in a run and in which order: stages that carry what is done in them, and the steps that they make.

Server and sites make the same plan from the same configuration. What a stage declares is compared, shown and checked at
both ends; the functions that it carries are compared by nothing and never travel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from dynammo_core.configuration.optimisation import Optimisation
from dynammo_core.models.names import Level

if TYPE_CHECKING:  # types alone: a plan is made and read without PyTorch
    from torch import Tensor

    from dynammo_core.data.samples import Samples
    from dynammo_core.methods.rehearsal import Rehearsal
    from dynammo_core.models.incremental_model import IncrementalModel
    from dynammo_core.models.ridge.personal import OwnImages


class Action(StrEnum):
    """What a site does in a stage."""

    FIT = "fit"
    SUMMARISE = "summarise"
    REMEMBER = "remember"
    EVALUATE = "evaluate"
    FORGET = "forget"


PERSONAL, ALONE = "personal", "alone"
"""Tables of a test by the site's own heads and, where that is known, by the one that it would have alone."""


@dataclass(frozen=True)
class LossContext:
    """Where a batch is being learnt.

    Attributes:
        task: counts from 0.
        inputs: level of the network at which the inputs stand.
        teacher: the previous task's model, if the stage sends it down.
    """

    task: int
    inputs: Level = "images"
    teacher: IncrementalModel | None = None


Archive: TypeAlias = "MutableMapping[str, Tensor]"
"""What the server keeps beside the model, by name: adapter sets of earlier tasks, a teacher, summed statistics."""

Batch: TypeAlias = "tuple[Tensor, Tensor]"
"""Inputs at the stage's level, Tensor[B, ...], and global labels, Tensor[B]."""

Sums: TypeAlias = "dict[str, Tensor]"
"""The tensors that a site computes for the stage's `up`, by name."""

SumNoise: TypeAlias = "Callable[[tuple[int, ...], float], Tensor]"
"""Draws noise for a sum, Tensor float64, from its shape and the most (L2) that one image can change it by."""

LearnsFrom: TypeAlias = "Callable[[Rehearsal], Samples]"
"""Chooses a site's training set; an empty one means that the site abstains."""

Loss: TypeAlias = "Callable[[IncrementalModel, Tensor, Tensor, LossContext], Tensor]"
"""Computes the scalar loss of a batch from the model, inputs Tensor[B, ...], global labels Tensor[B] and context."""

Computes: TypeAlias = "Callable[[IncrementalModel, Iterable[Batch]], Sums]"
"""Computes a site's tensors from its training set, without gradients."""

WeighedBatch: TypeAlias = "tuple[Tensor, Tensor, Tensor]"
"""A batch with what each sample weighs, Tensor[B] float64: 1, or 1 / (images of its patient)."""

ComputesPrivately: TypeAlias = "Callable[[IncrementalModel, Iterable[WeighedBatch], Mapping[int, int], SumNoise], Sums]"
"""Computes the same, by weight, so that noise hides one image (one patient) more or less; the third argument holds the
noised weight of images per class, for the classes that the training set may hold; it need not be paid for again."""

OwnHeads: TypeAlias = "Callable[[IncrementalModel, OwnImages], Mapping[str, Sums]]"
"""Solves a site's own classifiers from the model received and its training images: by the table that counts their
answers, the tensors to be loaded into it, one set after another."""

NotesCounts: TypeAlias = "Callable[[Archive, int, Sequence[int]], None]"
"""Notes, at the server, for how many samples of each class a round of a task speaks."""

Finish: TypeAlias = "Callable[[IncrementalModel, Archive, int], None]"
"""Ends a stage of a task at the server: merges across tasks, solves in closed form, aligns a classifier."""

Check: TypeAlias = "Callable[[IncrementalModel], None]"
"""Refuses, at a site, a model with received values that no honest server sends, by raising a ProtocolError."""


def nothing(*_: object) -> None:
    """Do nothing: what most stages do when they end, count or check."""


def _no_private_twin(*_: object) -> Sums:
    raise NotImplementedError("this stage has no `computes_privately`, so its method's settings must rule out privacy")


@dataclass(frozen=True)
class Stage:
    """One stage of a task: who does what, what travels down, and what alone may come back.

    Attributes:
        action: what a site does.
        name: unique within a task, such as "adapt".
        down: patterns of the tensor names that the server sends.
        up: patterns of the tensor names that a site returns.
        inputs: level from which each epoch starts; what lies before it is frozen in this stage and computed once.
        tables: names of tables of counts that come back beside the numbers of the action.
        squares: whether what comes back are squares, under the names of the tensors that they weigh: none is negative.
        check_received: what a site refuses, beyond what is checked of all tensors.
        finish: what the server does after the last round.
    """

    action: ClassVar[Action]

    name: str
    _: KW_ONLY
    down: tuple[str, ...]
    up: tuple[str, ...] = ()
    inputs: Level = "images"
    tables: tuple[str, ...] = ()
    squares: bool = False
    check_received: Check = field(default=nothing, compare=False, repr=False)
    finish: Finish = field(default=nothing, compare=False, repr=False)

    @property
    def rounds(self) -> int:
        """How many times the stage goes to the sites and back."""
        return 1


@dataclass(frozen=True)
class LearningStage(Stage):
    """A stage in which a site learns from images of its own and sends tensors.

    Attributes:
        learns_from: chooses the images.
        fewest_samples: with fewer images a site abstains; a sum over images needs one, and a batch two.
        note_counts: what the server keeps of the numbers of samples, after each round.
    """

    _: KW_ONLY
    learns_from: LearnsFrom = field(compare=False, repr=False)
    fewest_samples: int = 2
    note_counts: NotesCounts = field(default=nothing, compare=False, repr=False)

    @property
    def costs_privacy(self) -> bool:
        """Whether a site's answer says more of its images than their noised numbers do, and is paid for."""
        return True


@dataclass(frozen=True)
class Fit(LearningStage):
    """Sites descend a loss; exactly the tensors that go up are trained.

    Attributes:
        optimisation: how to descend, and for how many rounds.
        loss: what is minimised, a mean over the samples of a batch.
    """

    action = Action.FIT

    _: KW_ONLY
    optimisation: Optimisation
    loss: Loss = field(compare=False, repr=False)

    @property
    def rounds(self) -> int:
        """How many times the stage goes to the sites and back."""
        return self.optimisation.rounds


@dataclass(frozen=True)
class Carry:
    """How sums follow their features: withdrawn records are summed under those of their task, and then carried along.

    Attributes:
        recall: gives a model of a task the weights with which that task's sums were computed.
        forward: moves the sums in a model of one task into a model of another, as if computed with its features.
    """

    recall: Finish
    forward: Callable[[IncrementalModel, Archive, int, IncrementalModel, int], None]


@dataclass(frozen=True)
class Summarise(LearningStage):
    """Sites compute statistics of their images, without gradients.

    Attributes:
        computes: what they compute.
        computes_privately: the same under `privacy.mechanism: example`.
        counts_alone: whether the private answer holds nothing but noised numbers that are paid for already.
        beside_teacher: whether the features are those of the previous task's model, then those of this one.
        keeps_sums: whether the server adds what this stage brings to sums of all past images.
        correct: what the server does once sites have taken withdrawn records out of these sums; None if they cannot.
        carry: how these sums follow features that change; None if the features stay as they are.
    """

    action = Action.SUMMARISE

    _: KW_ONLY
    computes: Computes = field(compare=False, repr=False)
    computes_privately: ComputesPrivately = field(default=_no_private_twin, compare=False, repr=False)
    counts_alone: bool = False
    beside_teacher: bool = False
    keeps_sums: bool = False
    correct: Finish | None = field(default=None, compare=False, repr=False)
    carry: Carry | None = field(default=None, compare=False, repr=False)

    @property
    def costs_privacy(self) -> bool:
        """Whether a site's answer says more of its images than their noised numbers do, and is paid for."""
        return not self.counts_alone

    def correction(self) -> Forget | None:
        """Make the stage, beside the plan, in which withdrawn records leave the sums that this one brought, if any."""
        return Forget(**{**vars(self), "name": "forget", "finish": self.correct}) if self.correct else None


@dataclass(frozen=True)
class Forget(Summarise):
    """Sites send the negative of what they computed of withdrawn records, and the server corrects its sums."""

    action = Action.FORGET


@dataclass(frozen=True)
class Remember(Stage):
    """Each site takes exemplars of the task's images into its memory."""

    action = Action.REMEMBER

    name: str = "remember"
    inputs: Level = "features"


@dataclass(frozen=True)
class Evaluate(Stage):
    """Each site counts right and wrong answers on its test images.

    A site may test classifiers of its own beside the one that it was sent; they never leave.

    Attributes:
        own_heads: solves them from features of the site's images; None for none.
        learns_from: chooses the images that they are solved from.
        own_round: a stage whose last round the site does once more, for itself; None for none.
    """

    action = Action.EVALUATE

    name: str = "evaluate"
    inputs: Level = "features"
    own_heads: OwnHeads | None = field(default=None, compare=False, repr=False)
    learns_from: LearnsFrom | None = field(default=None, compare=False, repr=False)
    own_round: Fit | None = None


@dataclass(frozen=True)
class Step:
    """One exchange between the server and all sites.

    Attributes:
        index: its place in the plan; for a correction, which stands in no plan, that of the last step done before it.
        task: counts from 0.
        stage: what is done.
        round: counts from 0; for a correction its number in the run, from 1.
    """

    index: int
    task: int
    stage: Stage
    round: int

    @property
    def correction(self) -> int:
        """Number of the correction; 0 for a step of the plan."""
        return self.round if self.stage.action is Action.FORGET else 0

    @property
    def contribution(self) -> int:
        """Number by which a site's answer is known where sums are kept: the step's index, or below 0 a correction's."""
        return -self.correction or self.index

    @property
    def is_last_round(self) -> bool:
        """Whether the stage ends with this step."""
        return self.round == self.stage.rounds - 1

    def as_fields(self) -> dict[str, int | str]:
        """The step for logs: task and round count from 0."""
        return {"task": self.task, "stage": self.stage.name, "round": self.round, "rounds": self.stage.rounds}
