"""An experiment: what its parts are made of, that all processes build the same, and what is refused at the start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import ALL_METHODS, hospital_config, small_config, write_hospitals

from dynammo_core.experiment import Experiment, experiment_from_json
from dynammo_core.plan import Action
from dynammo_core.support.errors import ConfigError, DataError, DynammoError, RunError

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("method", ALL_METHODS)
def test_the_plan_is_every_round_of_every_stage_of_every_task(method: str) -> None:
    experiment = Experiment(small_config(method))
    expected = [
        (task, stage.name, round_)
        for task in range(2)
        for stage in experiment.method.all_stages(task)
        for round_ in range(stage.rounds)
    ]
    assert [(step.task, step.stage.name, step.round) for step in experiment.steps] == expected
    assert [step.index for step in experiment.steps] == list(range(len(expected)))
    assert ("remember" in [name for _, name, _ in expected]) == experiment.method.uses_memory


def test_the_plan_of_dynammo_in_full() -> None:
    """Written out from configuration and method: one round of adapting, two of balancing; one set needs no merging."""
    steps = Experiment(small_config()).steps
    first = ["adapt", "balance", "balance", "remember", "evaluate"]
    second = ["adapt", "recalibrate", "balance", "balance", "remember", "evaluate"]
    assert [(step.task, step.stage.name) for step in steps] == [(0, s) for s in first] + [(1, s) for s in second]
    assert steps[7].stage.action is Action.FIT
    assert [step.index for step in steps if step.is_last_round] == [0, 2, 3, 4, 5, 6, 8, 9, 10]


@pytest.mark.parametrize("method", ALL_METHODS)
def test_all_processes_build_the_same_model_and_spend_no_randomness(method: str) -> None:
    config = small_config(method)
    before = torch.get_rng_state()
    one = Experiment(config).build_model(1).state_dict()
    torch.manual_seed(7)
    other = Experiment(config).build_model(1).state_dict()
    torch.set_rng_state(before)
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    Experiment(config).build_model(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_is_another_network() -> None:
    one, other = (Experiment(small_config(overrides={"seed": seed})).new_model().state_dict() for seed in (1, 2))
    assert not torch.equal(*(state["extractor.backbone.prefix.block0.0.weight"] for state in (one, other)))


@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_backbone_is_shared_only_where_it_is_frozen(method: str) -> None:
    experiment = Experiment(small_config(method))
    one, other = experiment.new_model().extractor.backbone, experiment.new_model().extractor.backbone
    assert (one is other) == experiment.method.freezes_backbone == one.frozen
    assert all(parameter.requires_grad != experiment.method.freezes_backbone for parameter in one.parameters())


def test_a_process_that_sees_a_config_again_keeps_what_it_built() -> None:
    text = small_config().canonical_json()
    assert experiment_from_json(text) is experiment_from_json(text)
    assert experiment_from_json(text).config == small_config()
    assert experiment_from_json(small_config("replay").canonical_json()) is not experiment_from_json(text)


def test_a_config_that_the_server_could_not_mean_is_refused() -> None:
    text = small_config().canonical_json().replace('"sites":3', '"sights":3')
    with pytest.raises(ConfigError, match="sights: unknown key"):
        experiment_from_json(text)


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        ({"federation.sites": 201}, DataError, "federation.sites is 201, and there are 200 training images"),
        ({"tasks.sizes": 11}, ConfigError, "tasks.sizes"),
        ({"data.dataset": "digit"}, ConfigError, "did you mean 'digits'"),
        ({"backbone.name": "small_cn"}, ConfigError, "did you mean 'small_cnn'"),
        ({"backbone.weights": "imagenet"}, ConfigError, "small_cnn has no pretrained weights"),
        ({"backbone.weights": "/nowhere/weights.pth"}, DynammoError, "/nowhere/weights.pth"),
        ({"compute.device": "gpu"}, ConfigError, "compute.device: 'gpu' cannot be used here"),
        ({"compute.device": "cuda:99"}, ConfigError, "compute.device: 'cuda:99' cannot be used here"),
        ({"federation.partition": "natural"}, DataError, "do not say which site"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(
    overrides: dict[str, str | int], error: type[DynammoError], said: str
) -> None:
    """20 training images of each of ten digits are 200."""
    with pytest.raises(error) as caught:
        Experiment(small_config(overrides=overrides)).check()
    assert said in str(caught.value)


def test_a_task_that_nobody_has_images_of_is_refused_by_its_classes(tmp_path: Path) -> None:
    folder = write_hospitals(tmp_path, {"a": {"0": 3, "1": 3}, "b": {"0": 3}})
    config = hospital_config(folder, "fine_tune", 2, {"data.classes": "['0', '1', '2', '3']"})
    with pytest.raises(RunError, match=r"task 2 \(classes 2, 3\) has no training images at any site"):
        Experiment(config).check()
    one_class_is_enough = {"data.classes": "['0', '2', '1', '3']"}
    Experiment(hospital_config(folder, "fine_tune", 2, one_class_is_enough)).check()


def test_a_task_from_which_every_site_would_abstain_is_refused() -> None:
    def check(method: str, sizes: str) -> None:
        Experiment(
            small_config(method, {"tasks.sizes": sizes, "data.train_per_class": 1, "federation.sites": 1})
        ).check()

    check("replay", "[2, 1]")  # beside one new image it has two exemplars
    with pytest.raises(RunError, match=r"task 1 \(classes 0\): no site has 2 training images of it, and a site"):
        check("replay", "[1, 1]")
    with pytest.raises(RunError, match=r"task 2 \(classes 2\): no site has 2 training images of it, and a site"):
        check("fine_tune", "[2, 1]")


def test_check_passes_what_works() -> None:
    for method in ALL_METHODS:
        Experiment(small_config(method)).check()


def test_use_torch_sets_what_makes_results_repeat() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(False)
        Experiment(small_config(overrides={"compute.threads": 2})).use_torch()
        assert torch.get_num_threads() == 2
        assert torch.are_deterministic_algorithms_enabled()
        used = Experiment(small_config(overrides={"compute.threads": 2}))
        used.use_torch()
        torch.set_num_threads(1)
        used.use_torch()
        assert torch.get_num_threads() == 2  # though it had set them before
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
