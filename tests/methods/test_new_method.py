"""Two methods that are not in the table: the one that the guide shows, word for word, and one without gradients."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import torch
from method_bench import STREAM, Bench, bench, rehearsal, toy_images
from small_runs import Outcome, events, run_small, small_settings
from tables import registered
from torch import Tensor

from dynammo_core.configuration.config import resolve
from dynammo_core.configuration.settings import MethodSettings
from dynammo_core.data.samples import Samples
from dynammo_core.methods import METHODS
from dynammo_core.methods.base import Method, plan_steps
from dynammo_core.methods.decisions import CLASSES
from dynammo_core.methods.heads import mean_unit_features
from dynammo_core.methods.rehearsal import new_images
from dynammo_core.models.heads import NearestMeanHead
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Batch, Fit, Stage, Summarise

GUIDE = Path(__file__).parent.parent.parent / "docs" / "how-to" / "add-a-method.md"


def shown_in_the_guide() -> ModuleType:
    """The example as a module that can be found by its name: pydantic looks up annotations there."""
    (text,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    module = sys.modules["eeil"] = ModuleType("eeil")
    exec(compile(text, "eeil.py", "exec"), vars(module))
    return module


EEIL: type[Method[MethodSettings]] = shown_in_the_guide().EEIL


class NearestMean(Method[MethodSettings]):
    """A frozen network; each class is the mean of its unit features. No gradient anywhere, no exemplar."""

    name = "nearest_mean"
    paper_url = "https://arxiv.org/abs/1611.07725"
    freezes_backbone = True
    deployed = ("heads.*",)

    def grow(self, model: IncrementalModel, task: int) -> None:
        grown = NearestMeanHead(model.feature_dim, self.stream.seen(task))
        if task:
            grown.weight[: len(self.stream.seen(task - 1))] = model.head(CLASSES).weight
        model.heads[CLASSES] = grown

    def stages(self, task: int) -> Sequence[Stage]:
        weight = (f"heads.{CLASSES}.weight",)
        return (
            Summarise(
                "means", down=("heads.*",), up=weight, inputs="features", learns_from=new_images, computes=class_means
            ),
        )


def class_means(model: IncrementalModel, batches: Iterable[Batch]) -> dict[str, Tensor]:
    head = model.head(CLASSES)
    means = mean_unit_features(batches, head)
    return {f"heads.{CLASSES}.weight": torch.where(means.isnan(), head.weight, means)}


def test_a_whole_method_is_short() -> None:
    assert len(inspect.getsourcelines(NearestMean)[0]) < 30
    assert len(GUIDE.read_text().partition("```python\n")[2].partition("```")[0].splitlines()) < 70


def test_the_guide_lists_all_that_a_method_and_its_settings_say_and_all_that_a_stage_carries() -> None:
    says, settings, carries = (
        {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)", row.split("|")[1])}
        for table in re.findall(r"(?:^\|.*\n)+", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    )
    own = {name for name in vars(Method) if not name.startswith("_")} - {"all_stages", "uses_memory"}
    assert says == own | {"Method"}
    assert settings == {name for name in vars(MethodSettings) if not name.startswith(("_", "model_"))}
    assert carries == {field.name for kind in (Fit, Summarise) for field in fields(kind)} - {"name"}


# In the table: a real run


@pytest.fixture
def _listed() -> Iterator[None]:
    """The table with two more entries."""
    with registered(METHODS, "eeil", EEIL), registered(METHODS, NearestMean.name, NearestMean):
        yield


def run_listed(section: dict[str, object], runs: Path) -> Path:
    """Server loop, messages, three sites with the real client app."""
    return run_small(resolve(small_settings() | {"method": section}, "new.yaml", {}), runs).path


@pytest.mark.usefixtures("_listed")
def test_a_line_in_the_table_is_all_that_a_run_needs(tmp_path: Path) -> None:
    section = {"name": "eeil", "train": {"rounds": 4, "epochs": 4, "learning_rate": 0.02}}
    path = run_listed(section, tmp_path)
    summary = Outcome.of(path).summary
    assert (summary["method"], summary["status"]) == ("eeil", "completed")
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


def drift(*, taught: bool) -> tuple[float, float]:
    """How far the answers among old classes go in the second task, and how well its own classes are learnt."""
    made = bench(EEIL, train={"rounds": 2, "epochs": 5, "learning_rate": 0.02})
    made.begin(0)
    train = made.stage("train", 0)
    first, second = made.fit(train, 0, rehearsal(0).new)
    assert second < first
    unseen = toy_images((2, 3), seed=1)
    images = made.inputs(train, unseen)
    before = logits_of(copy.deepcopy(made.model), images)
    made.begin(1)
    train = made.stage("train", 1)
    teacher = made.teacher(train, 1)
    assert teacher is not None
    assert torch.equal(logits_of(teacher, images), before)
    if not taught:
        made.archive.clear()
    made.fit(train, 1, rehearsal(1).new)
    old = logits_of(made.model, images)[:, :2]
    moved = (old.softmax(dim=1) - before.softmax(dim=1)).abs().mean().item()
    return moved, made.accuracy(unseen)


def test_a_method_with_a_teacher_plans_trains_and_distils() -> None:
    steps = plan_steps(bench(EEIL, train={"rounds": 2}).method, 2)
    first, later = ["train", "train", "remember", "evaluate"], ["train", "train", "balance", "remember", "evaluate"]
    assert [step.stage.name for step in steps] == first + later
    (held, learnt), (loose, _) = drift(taught=True), drift(taught=False)
    assert held < loose
    assert learnt > 0.7


def nearest_mean(sites: Sequence[Sequence[Samples]]) -> Bench:
    """Two tasks, the server averaging what the sites send."""
    made = bench(NearestMean)
    for task in range(2):
        made.begin(task)
        (means, _) = made.method.all_stages(task)
        assert isinstance(means, Summarise)
        made.summarise(means, [held[task] for held in sites])
    return made


def test_a_closed_form_method_gives_three_sites_the_answer_of_one() -> None:
    whole = [rehearsal(task).new for task in range(2)]
    shares = [[part.subset(range(site, len(part), 3)) for part in whole] for site in range(3)]
    one, three = nearest_mean([whole]), nearest_mean(shares)
    assert one.head.rows == STREAM.seen(1)
    torch.testing.assert_close(dict(three.model.state_dict()), dict(one.model.state_dict()))
    assert three.accuracy(toy_images(STREAM.seen(1), seed=1)) > 0.9


def test_unknown_parameters_of_a_new_method_are_refused() -> None:
    with pytest.raises(ValueError, match="temprature"):
        bench(EEIL, temprature=2.0)
