"""What must hold of each method in the table, whatever it does."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from method_bench import CPU, STREAM, TRANSFORMER, Bench, bench, learn, rehearsal, toy_images
from torch import Tensor

from dynammo_core.configuration.settings import MethodSettings
from dynammo_core.data.samples import Samples
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods import METHODS
from dynammo_core.methods.base import plan_steps
from dynammo_core.methods.decisions import MEANS
from dynammo_core.methods.settings.heads import RehearsalSettings
from dynammo_core.models.heads import head_rows
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import Action, Evaluate, Fit, LearningStage, Remember, Stage, Summarise
from dynammo_core.scoring.evaluation import embed_samples
from dynammo_core.support.seeding import seeded_initialisation
from dynammo_core.wire.protocol import names_up

REHEARSED = [name for name, method in METHODS.items() if issubclass(method.Params, RehearsalSettings)]
VARIANTS: Mapping[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name in METHODS},
    "dynammo without adapters": ("dynammo", {"adapters": False}),
    "dynammo by Fisher information, adapters of low rank": (
        "dynammo",
        {"merge": "fisher", "merge_alpha": "fold", "adapter_form": "low_rank"},
    ),
    **{f"{name} by nearest mean": (name, {"prediction": "nearest_mean"}) for name in REHEARSED if name != "icarl"},
    "dynammo_ridge with the bare network": ("dynammo_ridge", {"frozen_beside": True, "pooling": "grid"}),
    "fecam with a covariance of each class": ("fecam", {"covariance": "class"}),
    "icarl by classifier": ("icarl", {"prediction": "classifier"}),
}
KINDS: Mapping[Action, type[Stage]] = {
    **{Action.FIT: Fit, Action.SUMMARISE: Summarise, Action.REMEMBER: Remember, Action.EVALUATE: Evaluate},
}
TASKS = range(len(STREAM))
WITHOUT_GRADIENTS = {"ridge", "streaming_ridge", "ranpac", "fecam", "fecam with a covariance of each class"}
ADAPT_ONCE = {"first_session"}

variants = pytest.mark.parametrize("variant", VARIANTS)


def make(variant: str) -> Bench:
    name, params = VARIANTS[variant]
    return bench(name, **params)


def begun(variant: str, last: int, stream: TaskStream = STREAM) -> Bench:
    """As the server has it when a task begins, no stage of it done and no site asked in those before."""
    return deepcopy(_begun(variant, last, stream))


@cache
def _begun(variant: str, last: int, stream: TaskStream) -> Bench:
    made = begun(variant, last - 1, stream) if last else make(variant)
    made.method.stream = stream
    for stage in made.method.stages(last - 1) if last else ():
        made.finish(stage.name, last - 1)
    made.begin(last)
    return made


def shapes(made: Bench) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in made.model.state_dict().items()}


def test_the_table_can_only_be_read() -> None:
    paper = {"icarl", "lucir", "podnet", "dynamic_er", "dark_er", "acl", "wa", "dynammo"}
    bounds, beyond = {"fine_tune", "replay", "joint"}, {"dynammo_ridge", "moving_ridge"} | ADAPT_ONCE
    assert METHODS.keys() == paper | bounds | beyond | (WITHOUT_GRADIENTS & METHODS.keys())
    with pytest.raises(TypeError):
        METHODS["dynammo"] = METHODS["joint"]  # type: ignore[index]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_listed_by_its_name_with_paper_and_parameters(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.paper_url.startswith(("https://arxiv.org/abs/", "https://openaccess.thecvf.com/"))
    assert issubclass(method.Params, MethodSettings)
    assert method.Params(name=name).model_config["frozen"]
    assert method.__doc__


@variants
def test_a_site_grows_the_structure_the_server_has(variant: str) -> None:
    for task in TASKS:
        server, site = begun(variant, task), make(variant)
        for earlier in range(task + 1):
            site.method.grow(site.model, earlier)
        assert shapes(site) == shapes(server)
        assert head_rows(site.model) == head_rows(server.model)


@variants
def test_losses_are_finite_and_reach_exactly_what_goes_up(variant: str) -> None:
    for task in TASKS:
        made = begun(variant, task)
        assert bool(made.fits(task)) == (variant not in (WITHOUT_GRADIENTS | ADAPT_ONCE if task else WITHOUT_GRADIENTS))
        for stage in made.fits(task):
            loss_reaches_what_goes_up(made, stage, task)


def loss_reaches_what_goes_up(made: Bench, stage: Fit, task: int) -> None:
    made.model.zero_grad()
    loss = made.loss(stage, task, stage.learns_from(rehearsal(task)))
    assert loss.shape == ()
    assert loss.isfinite()
    assert loss > 0
    loss.backward()  # type: ignore[no-untyped-call]
    reached = {n for n, p in made.model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    parameters = dict(made.model.named_parameters())
    assert reached == {name for name in names_up(made.model, stage) if name in parameters}


@variants
def test_stages_declare_what_travels(variant: str) -> None:
    for task in TASKS:
        made = begun(variant, task)
        stages, names = made.method.all_stages(task), travelling_names(made.model)
        assert len({stage.name for stage in stages}) == len(stages)
        assert stages[-1].action is Action.EVALUATE
        for stage in stages:
            assert isinstance(stage, KINDS[stage.action])
            if stage.action is Action.FIT:
                assert set(matching(names, stage.up)) <= set(matching(names, stage.down))  # nobody trains what is unset
            assert bool(stage.up) == (stage.action in (Action.FIT, Action.SUMMARISE))
            if made.method.freezes_backbone:
                assert not any("backbone" in name for name in matching(names, stage.down + stage.up))
            for pattern in stage.down + stage.up:  # no pattern is a slip
                assert matching([*names, *made.archive], [pattern.lstrip("!")]) or not applies(pattern, made)


def applies(pattern: str, made: Bench) -> bool:
    """Whether a pattern must fit a name: those of adapters and of class means fit nothing where there are none."""
    names = made.model.state_dict()
    return not any(part in pattern and not any(part in name for name in names) for part in ("adapters.", ".means."))


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
    prediction = made.method.decision.predict(
        made.model, embed_samples(made.model, toy_images(STREAM.seen(3)), "half", CPU)
    )
    return torch.stack([prediction.labels.float(), prediction.probability, prediction.known])


@variants
def test_answers_are_classes_seen_with_probabilities(variant: str) -> None:
    for task in TASKS:
        are_answers(answers(begun(variant, task)), task)


def are_answers(given: Tensor, task: int) -> None:
    labels, probability, known = given
    assert set(labels.int().tolist()) <= set(STREAM.seen(task))
    assert (probability > 0).all()
    for value in (probability, known):
        assert (value >= 0).all()
        assert (value <= 1).all()


@variants
def test_a_plan_visits_every_stage_of_every_task(variant: str) -> None:
    method = make(variant).method
    steps = plan_steps(method, len(STREAM))
    assert [(step.task, step.stage.name) for step in steps if step.is_last_round] == [
        (task, stage.name) for task in TASKS for stage in method.all_stages(task)
    ]


# Sites and streams as they may come


def gradient(made: Bench, stage: Fit, task: int, images: Samples) -> Tensor:
    """Of the loss, all parameters in a row."""
    made.model.zero_grad()
    loss = made.loss(stage, task, images)
    assert loss.isfinite()
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten() for p in made.model.parameters() if p.grad is not None])


@variants
@pytest.mark.parametrize("classes", [(0, 1), (2, 3), (2,), (0,)], ids=["exemplars", "new", "one new", "one old"])
def test_any_batch_can_be_learnt_from(variant: str, classes: tuple[int, ...]) -> None:
    made = begun(variant, 1)
    for stage in made.fits(1):
        assert gradient(made, stage, 1, toy_images(classes, each=2)).isfinite().all()


@variants
@pytest.mark.parametrize("task", range(3))
def test_tasks_may_bring_a_single_class(variant: str, task: int) -> None:
    made = begun(variant, task, TaskStream(((0,), (1,), (2,))))
    for stage in made.fits(task):
        assert gradient(made, stage, task, toy_images(tuple(range(task + 1)), each=4)).isfinite().all()


@variants
def test_a_site_that_holds_nothing_abstains_and_one_without_exemplars_learns_what_is_new(variant: str) -> None:
    made = begun(variant, 1)
    held = replace(rehearsal(1), memory=Samples.empty(), seen=rehearsal(1).new)
    for stage in made.method.all_stages(1):
        if not isinstance(stage, LearningStage):
            continue
        nothing = replace(held, new=Samples.empty(), seen=Samples.empty())
        assert not len(stage.learns_from(nothing))
        trained = stage.learns_from(held)
        assert trained.record_ids == (() if stage.name == MEANS else held.new.record_ids)
        if isinstance(stage, Fit):
            assert gradient(made, stage, 1, trained).any()


# A transformer

ONCE: Mapping[str, object] = {"rounds": 1, "epochs": 1, "learning_rate": 0.02}
ON_TOKENS: Mapping[str, tuple[str, dict[str, object]]] = {
    **{name: VARIANTS[name] for name in METHODS},
    "dynammo by Fisher information": ("dynammo", {"merge": "fisher"}),
    "dynammo with bottlenecks": ("dynammo", {"adapter": "bottleneck"}),
    "dynammo by an operator for each block": ("dynammo", {"merge": ("mean", "ties", "slerp") * 2}),
}


@pytest.mark.parametrize("variant", ON_TOKENS)
def test_each_learns_on_a_transformer(variant: str) -> None:
    name, params = ON_TOKENS[variant]
    stages = {key: ONCE for key in ("train", "adapt", "balance") if key in METHODS[name].Params.model_fields}
    made = bench(name, TRANSFORMER, **stages, **params)
    learn(made, 2)
    for stage in made.fits(1):
        loss_reaches_what_goes_up(made, stage, 1)
    assert "recalibrate" not in {stage.name for stage in made.method.stages(1)}  # a layer norm keeps no statistics
    are_answers(answers(made), 1)


# The whole

BUDGET: Mapping[str, object] = {"rounds": 2, "epochs": 8, "learning_rate": 0.02}
HEADS: Mapping[str, object] = {"epochs": 25, "optimizer": "adam", "learning_rate": 0.01}


def learnt(name: str, **params: object) -> float:
    """Accuracy over all classes after three tasks of two, three exemplars of each old class at hand."""
    fields = METHODS[name].Params.model_fields
    budgets = {"train": BUDGET, "adapt": BUDGET, "balance": HEADS, "alpha": 0.5}
    chosen = {key: budgets[key] for key in budgets if key in fields and (key != "alpha" or "adapt" in fields)}
    made = bench(name, **chosen, **params)
    learn(made, 3)
    return made.accuracy(toy_images(STREAM.seen(2), seed=1))


@cache
def forgetful() -> float:
    return learnt("fine_tune")


# The nearest mean decides alike on any network: it is tried on one head that grows, and on extractors side by side.
TRAINED = {name for name in VARIANTS if "by nearest mean" not in name} | {
    *("replay by nearest mean", "dynamic_er by nearest mean"),
}


@pytest.mark.parametrize("variant", sorted(TRAINED - {"fine_tune"}))
def test_each_beats_fine_tuning_clearly(variant: str) -> None:
    name, params = VARIANTS[variant]
    assert forgetful() < 0.4  # a third: the last task's two classes of six
    assert learnt(name, **params) > forgetful() + 0.3
