"""Two methods that are not in the table, each whole in this file: the hooks carry what later methods need."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from method_bench import STREAM, Bench, bench, rehearsal, toy_images
from small_runs import Outcome, events, run_small, small_settings
from torch import Tensor
from torch.nn import functional as F

from dynammo_core import experiment as experiment_module
from dynammo_core.configuration import config as config_module
from dynammo_core.configuration.config import resolve
from dynammo_core.configuration.settings import MethodSettings, Optimisation
from dynammo_core.data.samples import Samples
from dynammo_core.methods import METHODS
from dynammo_core.methods.base import CLASSES, TEACHER_PREFIX, Archive, Batch, LossContext, Method, Rehearsal
from dynammo_core.methods.single_head import mean_unit_features
from dynammo_core.models.heads import LinearHead, NearestMeanHead
from dynammo_core.models.incremental_model import IncrementalModel, travelling_names
from dynammo_core.plan import Action, Stage, plan_steps


class DistilSettings(MethodSettings):
    strength: float = 1.0
    train: Optimisation = Optimisation(rounds=2, epochs=5, learning_rate=0.02)


class Distil(Method):
    """Replay in which the old classes' logits stay near those of the previous task's model."""

    name = "distil"
    paper_url = "https://arxiv.org/abs/1606.09282"
    Params = DistilSettings
    params: DistilSettings

    def stages(self, task: int) -> Sequence[Stage]:
        down = (*self.deployed, f"{TEACHER_PREFIX}*")
        return (Stage("train", Action.FIT, down, self.deployed, self.params.train),)

    def grow(self, model: IncrementalModel, task: int) -> None:
        new = self.stream.classes(task)
        model.heads[CLASSES] = model.head(CLASSES).extended(new) if task else LinearHead(model.feature_dim, new)

    def begin_task(self, model: IncrementalModel, archive: Archive, task: int) -> None:
        if task:
            tensors = model.state_dict()
            archive.update({TEACHER_PREFIX + name: tensors[name].clone() for name in travelling_names(model)})
        self.grow(model, task)

    def training_set(self, stage: Stage, rehearsal: Rehearsal) -> Samples:
        return Samples.concatenate([rehearsal.new, rehearsal.memory])

    def loss(self, model: IncrementalModel, inputs: Tensor, labels: Tensor, context: LossContext) -> Tensor:
        head, teacher = model.head(CLASSES), context.teacher
        logits = head(model.extractor(inputs))
        loss = F.cross_entropy(logits, head.targets(labels))
        if teacher is None:
            return loss
        with torch.no_grad():
            taught = teacher.head(CLASSES)(teacher.extractor(inputs))
        return loss + self.params.strength * F.mse_loss(logits[:, : taught.shape[1]], taught)


class NearestMean(Method):
    """A frozen network; each class is the mean of its unit features. No gradient anywhere, no exemplar."""

    name = "nearest_mean"
    paper_url = "https://arxiv.org/abs/1611.07725"
    Params = MethodSettings
    freezes_backbone = True
    uses_memory = False
    deployed = ("heads.*",)

    def stages(self, task: int) -> Sequence[Stage]:
        return (Stage("means", Action.SUMMARISE, ("heads.*",), (f"heads.{CLASSES}.weight",), inputs="features"),)

    def grow(self, model: IncrementalModel, task: int) -> None:
        grown = NearestMeanHead(model.feature_dim, self.stream.seen(task))
        if task:
            grown.weight[: len(self.stream.seen(task - 1))] = model.head(CLASSES).weight
        model.heads[CLASSES] = grown

    def summarise(self, model: IncrementalModel, batches: Iterable[Batch], stage: Stage) -> dict[str, Tensor]:
        head = model.head(CLASSES)
        means = mean_unit_features(batches, head)
        return {f"heads.{CLASSES}.weight": torch.where(means.isnan(), head.weight, means)}


WHOLE: dict[type[Method], type[MethodSettings]] = {Distil: DistilSettings, NearestMean: MethodSettings}


def test_both_are_short() -> None:
    for method, settings in WHOLE.items():
        own = [method, settings] if settings is not MethodSettings else [method]
        assert sum(len(inspect.getsourcelines(part)[0]) for part in own) < 60


# In the table: a real run


@pytest.fixture
def _listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table with two more lines, for all who read it."""
    table = {**METHODS, Distil.name: Distil, NearestMean.name: NearestMean}
    for module in (config_module, experiment_module):
        monkeypatch.setattr(module, "METHODS", table)


def run_listed(section: dict[str, object], runs: Path) -> Path:
    """Server loop, messages, three sites with the real client app."""
    return run_small(resolve(small_settings() | {"method": section}, "new.yaml", {}), runs).path


@pytest.mark.usefixtures("_listed")
def test_a_line_in_the_table_is_all_that_a_run_needs(tmp_path: Path) -> None:
    path = run_listed({"name": "distil", "train": {"rounds": 4, "epochs": 4, "learning_rate": 0.02}}, tmp_path)
    summary = Outcome.of(path).summary
    assert (summary["method"], summary["status"]) == ("distil", "completed")
    assert summary["last_accuracy"] > 60  # of four classes, 25 by chance; who forgets the first task gets 50
    down = [event["bytes_down"] for event in events(path, "step_finished") if event["stage"] == "train"]
    # Two rows of 64 weights and a bias, for each of three sites: what the model gains. The teacher is what they tested.
    assert down[-1] == down[0] + 3 * 4 * 2 * (64 + 1)


@pytest.mark.usefixtures("_listed")
def test_so_has_a_method_without_gradients(tmp_path: Path) -> None:
    path = run_listed({"name": "nearest_mean"}, tmp_path)
    assert Outcome.of(path).summary["last_accuracy"] > 50
    assert [event["stage"] for event in events(path, "step_finished")] == ["means", "evaluate"] * 2


# On the bench


@torch.no_grad()
def logits_of(model: IncrementalModel, images: Tensor) -> Tensor:
    return model.head(CLASSES)(model.eval().extractor(images))


def drift(strength: float) -> tuple[float, float]:
    """How far the old classes' logits go in the second task, and how well its own classes are learnt."""
    made = bench(Distil, strength=strength)
    made.begin(0)
    first, second = made.fit(made.stage("train", 0), 0, rehearsal(0).new)
    assert second < first
    unseen = toy_images((0, 1, 2, 3), seed=1)
    images = made.inputs(made.stage("train", 0), unseen)
    before = logits_of(copy.deepcopy(made.model), images)
    made.begin(1)
    teacher = made.teacher(made.stage("train", 1), 1)
    assert teacher is not None
    assert torch.equal(logits_of(teacher, images), before)
    made.fit(made.stage("train", 1), 1, rehearsal(1).new)
    moved = (logits_of(made.model, images)[:, :2] - before).abs().mean().item()
    return moved, made.accuracy(unseen.subset(range(24, 48)))


def test_a_method_with_a_teacher_plans_trains_and_distils() -> None:
    steps = plan_steps(bench(Distil).method, 2)
    assert [step.stage.name for step in steps] == ["train", "train", "remember", "evaluate"] * 2
    (without, _), (with_teacher, learnt) = drift(0.0), drift(3.0)
    assert with_teacher < without / 2
    assert learnt > 0.7


def nearest_mean(sites: Sequence[Sequence[Samples]]) -> Bench:
    """Two tasks, the server averaging what the sites send."""
    made = bench(NearestMean)
    for task in range(2):
        made.begin(task)
        made.summarise(made.stage("means", task), [held[task] for held in sites])
        made.finish("means", task)
    return made


def test_a_closed_form_method_gives_three_sites_the_answer_of_one() -> None:
    whole = [rehearsal(task).new for task in range(2)]
    shares = [[part.subset(range(site, len(part), 3)) for part in whole] for site in range(3)]
    one, three = nearest_mean([whole]), nearest_mean(shares)
    assert one.head.rows == STREAM.seen(1)
    torch.testing.assert_close(dict(three.model.state_dict()), dict(one.model.state_dict()))
    assert three.accuracy(toy_images(STREAM.seen(1), seed=1)) > 0.9


def test_unknown_parameters_of_a_new_method_are_refused() -> None:
    with pytest.raises(ValueError, match="strenght"):
        bench(Distil, strenght=2.0)
