"""What must hold of each method in the table, whatever it does."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from method_bench import CPU, STREAM, Bench, bench, learn, rehearsal, toy_images
from torch import Tensor

from dynammo_core.evaluation import embed_samples
from dynammo_core.methods import METHODS
from dynammo_core.models.heads import head_rows
from dynammo_core.models.incremental_model import matching, travelling_names
from dynammo_core.plan import Action, plan_steps
from dynammo_core.protocol import names_up
from dynammo_core.seeding import seeded_initialisation
from dynammo_core.settings import MethodSettings

VARIANTS: Mapping[str, dict[str, object]] = {name: {} for name in METHODS} | {"dynammo without adapters": {}}
TASKS = range(len(STREAM))

variants = pytest.mark.parametrize("variant", VARIANTS)


def make(variant: str) -> Bench:
    name, _, without = variant.partition(" without ")
    return bench(name, **{without: False} if without else {})


def begun(variant: str, last: int) -> Bench:
    """As the server has it when a task begins, no stage of it done; adapters of earlier tasks are archived."""
    made = make(variant)
    for task in range(last + 1):
        made.begin(task)
        if task < last:
            for stage in made.method.stages(task):
                made.method.finish_stage(made.model, made.archive, task, stage)
    return made


def shapes(made: Bench) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in made.model.state_dict().items()}


def test_the_table_can_only_be_read() -> None:
    assert METHODS.keys() >= {"dynammo", "fine_tune", "replay", "joint"}
    with pytest.raises(TypeError):
        METHODS["dynammo"] = METHODS["joint"]  # type: ignore[index]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_listed_by_its_name_with_paper_and_parameters(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.paper_url.startswith("https://arxiv.org/abs/")
    assert issubclass(method.Params, MethodSettings)
    assert method.Params(name=name).model_config["frozen"]
    assert method.__doc__


@variants
@pytest.mark.parametrize("task", TASKS)
def test_a_site_grows_the_structure_the_server_has(variant: str, task: int) -> None:
    server, site = begun(variant, task), make(variant)
    for earlier in range(task + 1):
        site.method.grow(site.model, earlier)
    assert shapes(site) == shapes(server)
    assert head_rows(site.model) == head_rows(server.model)


@variants
@pytest.mark.parametrize("task", TASKS)
def test_losses_are_finite_and_reach_exactly_what_goes_up(variant: str, task: int) -> None:
    made = begun(variant, task)
    stages = [stage for stage in made.method.stages(task) if stage.action is Action.FIT]
    assert stages
    for stage in stages:
        made.model.zero_grad()
        loss = made.loss(stage, task, made.method.training_set(stage, rehearsal(task)))
        assert loss.shape == ()
        assert loss.isfinite()
        assert loss > 0
        loss.backward()  # type: ignore[no-untyped-call]
        reached = {n for n, p in made.model.named_parameters() if p.grad is not None and bool(p.grad.any())}
        parameters = dict(made.model.named_parameters())
        assert reached == {name for name in names_up(made.model, stage) if name in parameters}


@variants
@pytest.mark.parametrize("task", TASKS)
def test_stages_declare_what_travels(variant: str, task: int) -> None:
    made = begun(variant, task)
    stages, names = made.method.all_stages(task), travelling_names(made.model)
    assert len({stage.name for stage in stages}) == len(stages)
    assert stages[-1].action is Action.EVALUATE
    for stage in stages:
        assert (stage.optimisation is not None) == (stage.action is Action.FIT)
        assert set(matching(names, stage.up)) <= set(matching(names, stage.down))  # nobody trains what is unset
        assert bool(stage.up) == (stage.action in (Action.FIT, Action.SUMMARISE))
        if made.method.freezes_backbone:
            assert not any("backbone" in name for name in matching(names, stage.down + stage.up))
        if not names_without_adapters(made):
            assert all(matching(names, [pattern]) for pattern in stage.down + stage.up)  # no pattern is a slip


def names_without_adapters(made: Bench) -> bool:
    """Whether this is the control, in which the patterns of adapters fit nothing."""
    return made.method.freezes_backbone and made.model.extractor.adapters is None


@variants
def test_what_is_deployed_is_enough_to_predict(variant: str) -> None:
    server, site = make(variant), make(variant)
    learn(server, 2)
    with seeded_initialisation("another"):
        for task in range(2):
            site.method.grow(site.model, task)
    assert not torch.equal(answers(site), answers(server))
    tensors = server.model.state_dict()
    sent = matching(travelling_names(server.model), server.method.deployed)
    site.model.load_state_dict({name: tensors[name] for name in sent}, strict=False)
    assert torch.equal(answers(site), answers(server))


@torch.no_grad()
def answers(made: Bench) -> Tensor:
    """Labels, probabilities and how known it all is, for images of all classes: Tensor[3, N]."""
    prediction = made.method.predict(made.model, embed_samples(made.model, toy_images(STREAM.seen(3)), "half", CPU))
    return torch.stack([prediction.labels.float(), prediction.probability, prediction.known])


@variants
@pytest.mark.parametrize("task", TASKS)
def test_answers_are_classes_seen_with_probabilities(variant: str, task: int) -> None:
    labels, probability, known = answers(begun(variant, task))
    assert set(labels.int().tolist()) <= set(STREAM.seen(task))
    for value in (probability, known):
        assert (value > 0).all()
        assert (value <= 1).all()


@variants
def test_a_plan_visits_every_stage_of_every_task(variant: str) -> None:
    method = make(variant).method
    steps = plan_steps(method, len(STREAM))
    assert [(step.task, step.stage.name) for step in steps if step.is_last_round] == [
        (task, stage.name) for task in TASKS for stage in method.all_stages(task)
    ]
