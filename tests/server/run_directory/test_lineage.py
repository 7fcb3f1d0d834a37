"""What a run may gain when it goes on, what it may not, and that growing leaves what was learnt as it was."""

from __future__ import annotations

import csv
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hospitals import Hospitals, deployed, make_hospital, make_hospitals, with_images
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_runs import ALL_METHODS, events, run_small, small_config, small_settings

from dynammo_core.configuration.config import Config, resolve
from dynammo_core.experiment import Experiment
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.support.errors import CheckpointError, ConfigError
from dynammo_core.wire.announcement import with_new_task
from server.run.exchange import Exchange
from server.run.task_loop import TaskLoop
from server.run_directory.checkpoint import CheckpointStore
from server.run_directory.directory import RunDirectory
from server.run_directory.lineage import forbidden_changes, refuse_another_plan, with_sites
from server.run_directory.progress import Identity, Progress

NAMES = ("a", "b", "c", "d")


def test_a_run_whose_last_step_was_another_one_does_not_go_on(tmp_path: Path) -> None:
    """As after an update that gave a method one more stage: the second step was once the test of the first task."""
    steps = Experiment(small_config("streaming_ridge")).steps
    log = tmp_path / "events.jsonl"
    done = [{"event": "step_finished", "step": step.index, **step.as_fields()} for step in steps[:2]]
    log.write_text("".join(json.dumps(event) + "\n" for event in done))
    for step in steps[:3]:  # of the third the log knows nothing, as after a crash
        refuse_another_plan(log, step)
    done[1] |= {"stage": "evaluate"}
    log.write_text("".join(json.dumps(event) + "\n" for event in done))
    refuse_another_plan(log, steps[0])
    with pytest.raises(CheckpointError, match=r"step 2, .* the stage 'evaluate' of task 1 then, .* the stage 'sum'"):
        refuse_another_plan(log, steps[1])


def settings(**sections: Any) -> dict[str, Any]:
    """Two tasks of two classes at two hospitals; sections are changed by what is given."""
    plain = small_settings("replay")
    plain["data"] = {"dataset": "manifest", "classes": list(NAMES), "image_size": 16}
    plain["tasks"] = {"sizes": [2, 2]}
    plain["federation"] = {"site_names": ["alpha", "beta"]}
    for section, values in deepcopy(sections).items():
        plain[section] = {**plain[section], **values} if isinstance(values, dict) else values
    return plain


def text(plain: dict[str, Any]) -> str:
    return resolve(deepcopy(plain), "then", {}).canonical_json()


def forbidden(then: dict[str, Any] | None = None, **now: Any) -> list[str]:
    return forbidden_changes(text(then or settings()), text(settings(**now)))


MORE_CLASSES = {"classes": [*NAMES, "e", "f"]}
ACCEPTED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "quorum": {"federation": {"quorum": 0.5}},
    "deadlines": {"federation": {"deadline_seconds": 5, "patience_seconds": 5, "attempts": 3}},
    "rules of a stage": {"federation": {"stages": {"train": {"quorum": 0.5}}}},
    "a site has a new key": {"federation": {"site_keys": [f"SHA256:{'a' * 43}", f"SHA256:{'b' * 43}"]}},
    "one only tests": {"federation": {"evaluate_only": ["beta"]}},
    "a task": {"data": MORE_CLASSES, "tasks": {"sizes": [2, 2, 2]}},
    "two tasks": {"data": MORE_CLASSES, "tasks": {"sizes": [2, 2, 1, 1]}},
    "a task in another order": {
        "data": MORE_CLASSES,
        "tasks": {"sizes": [2, 2, 2], "class_order": [0, 1, 2, 3, 5, 4]},
    },
    "the same tasks said otherwise": {"tasks": {"sizes": 2, "class_order": [0, 1, 2, 3]}},
    "classes that no task has": {"data": MORE_CLASSES},
    "a site": {"federation": {"site_names": ["alpha", "beta", "gamma"]}},
    "all of it": {
        "data": MORE_CLASSES,
        "tasks": {"sizes": [2, 2, 2]},
        "federation": {"site_names": ["alpha", "beta", "gamma"], "quorum": 0.5},
    },
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a class renamed": ({"data": {"classes": ["a", "B", "c", "d"]}}, "data.classes (then"),
    "classes reordered": ({"data": {"classes": ["b", "a", "c", "d"]}}, "data.classes (then"),
    "a class in between": ({"data": {"classes": ["a", "e", "b", "c", "d"]}}, "data.classes (then"),
    "a class taken out": ({"data": {"classes": ["a", "b", "c"]}, "tasks": {"sizes": [2, 1]}}, "data.classes (then"),
    "a task made longer": ({"data": MORE_CLASSES, "tasks": {"sizes": [2, 4]}}, "tasks.sizes (then [2, 2], now [2, 4])"),
    "a task made shorter": ({"tasks": {"sizes": [2, 1, 1]}}, "tasks.sizes"),
    "tasks reordered": ({"tasks": {"class_order": [2, 3, 0, 1]}}, "tasks.class_order (then 'fixed', now [2, 3, 0, 1])"),
    "a task left out": ({"tasks": {"sizes": [2]}}, "tasks.sizes"),
    "sites reordered": ({"federation": {"site_names": ["beta", "alpha"]}}, "federation.site_names"),
    "a site put first": ({"federation": {"site_names": ["gamma", "alpha", "beta"]}}, "federation.site_names"),
    "a site that left": ({"federation": {"site_names": ["alpha"]}}, "federation.sites (then 2, now 1)"),
    "sites that lost their names": ({"federation": {"site_names": None, "sites": 2}}, "federation.site_names"),
    "another method": ({"method": {"name": "fine_tune"}}, "method.name (then 'replay', now 'fine_tune')"),
    "another rate": ({"method": {"train": {"rounds": 1}}}, "method.train.rounds (then 2, now 1)"),
    "another seed": ({"seed": 2}, "seed (then 1, now 2)"),
    "another network": ({"backbone": {"name": "resnet18"}}, "backbone.name"),
    "another memory": ({"memory": {"exemplars": 12}}, "memory.exemplars (then 24, now 12)"),
    "another aggregator": ({"federation": {"aggregator": "median", "liars": 0}}, "federation.aggregator"),
    "another size of images": ({"data": {"image_size": 32}}, "data.image_size (then 16, now 32)"),
    "another name": ({"name": "other"}, "name (then 'small', now 'other')"),
}


@pytest.mark.parametrize("change", ACCEPTED)
def test_what_a_run_may_gain(change: str) -> None:
    assert forbidden(**ACCEPTED[change]) == []


@pytest.mark.parametrize("change", REFUSED)
def test_what_a_run_may_not_lose_or_change(change: str) -> None:
    sections, words = REFUSED[change]
    assert any(found.startswith(words) for found in forbidden(**sections)), forbidden(**sections)


@pytest.mark.parametrize(
    ("mechanism", "noise", "words"),
    [("client", None, ["data.classes", "tasks.sizes"]), ("client", 9.0, []), ("example", None, [])],
)
def test_a_task_more_must_not_change_the_noise_that_the_server_has_accounted_for(
    mechanism: str, noise: float | None, words: list[str]
) -> None:
    """A site's own ledger says what noise its answers had; of `client` the plan alone does."""

    def private(**sections: Any) -> str:
        privacy = {"mechanism": mechanism, "noise_multiplier": noise}
        return text(settings(**sections) | {"method": {"name": "dynammo", "adapters": False}, "privacy": privacy})

    found = forbidden_changes(private(), private(data=MORE_CLASSES, tasks={"sizes": [2, 2, 2]}))
    assert [change.split(" ")[0] for change in found] == words
    assert forbidden_changes(private(), private(federation={"site_names": ["alpha", "beta", "gamma"]})) == []


def test_growth_does_not_carry_another_change_through() -> None:
    assert forbidden(data=MORE_CLASSES, tasks={"sizes": [2, 2, 2]}, seed=2) == ["seed (then 1, now 2)"]


def test_growth_is_not_undone() -> None:
    grown = settings(**ACCEPTED["all of it"])
    assert {found.split()[0] for found in forbidden(grown, federation={"quorum": 0.5})} == {
        "data.classes",
        "federation.site_names",
        "federation.sites",
        "tasks.sizes",
    }


@pytest.mark.parametrize("sites", [1, 3])
def test_simulated_sites_share_out_one_data_set_so_their_number_stays(sites: int) -> None:
    then = settings(federation={"site_names": None, "sites": 2})
    now = settings(federation={"site_names": None, "sites": sites})
    assert forbidden_changes(text(then), text(now)) == [f"federation.sites (then 2, now {sites})"]


def test_a_shuffled_order_is_kept_by_the_new_task_and_by_nothing_else() -> None:
    then = resolve(settings(tasks={"sizes": 2, "class_order": "shuffled"}), "then", {})
    assert forbidden_changes(then.canonical_json(), with_new_task(then, ["e"]).canonical_json()) == []
    again = settings(data={"classes": [*NAMES, "e"]}, tasks={"sizes": [2, 2, 1], "class_order": "shuffled"})
    # numpy's RandomState(1) deals four classes as 3, 2, 0, 1, and five as 2, 1, 4, 0, 3
    assert forbidden_changes(then.canonical_json(), text(again))


@pytest.mark.parametrize("method", ALL_METHODS)
def test_every_method_plans_and_builds_the_old_tasks_as_before(method: str) -> None:
    plain = settings()
    plain["method"] = small_settings(method)["method"]
    before = Experiment(resolve(plain, "then", {}))
    after = Experiment(with_new_task(before.config, ["e"]))
    assert after.steps[: len(before.steps)] == before.steps
    for task in range(2):
        old, now = before.build_model(task).state_dict(), after.build_model(task).state_dict()
        assert list(old) == list(now)
        assert all(torch.equal(old[name], now[name]) for name in old)


# --- sites


def test_sites_that_join_come_last() -> None:
    config = resolve(settings(), "then", {})
    assert with_sites(config, ()) is config
    assert with_sites(config, ["gamma", "delta"]).federation.site_names == ("alpha", "beta", "gamma", "delta")
    assert with_sites(config, ["gamma"]).federation.sites == 3
    assert forbidden_changes(config.canonical_json(), with_sites(config, ["gamma"]).canonical_json()) == []
    for names in (["alpha"], ["gamma", "gamma"]):
        with pytest.raises(ConfigError, match=rf"the site {names[0]!r} takes part already, or is named twice"):
            with_sites(config, names)


# --- progress


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_progress_grows_around_what_was_counted(
    tasks: int, sites: int, classes: int, more_sites: int, more_classes: int, random: Any
) -> None:
    before = [[[random.randrange(9) for _ in range(classes**2)] for _ in range(sites)] for _ in range(tasks)]
    progress = Progress(confusion=deepcopy(before))
    progress.grow(sites + more_sites, classes + more_classes)
    size = classes + more_classes
    assert [len(by_site) for by_site in progress.confusion] == [sites + more_sites] * tasks
    for task in range(tasks):
        for site in range(sites + more_sites):
            for true in range(size):
                for predicted in range(size):
                    old = site < sites and true < classes and predicted < classes
                    expected = before[task][site][true * classes + predicted] if old else 0
                    assert progress.confusion[task][site][true * size + predicted] == expected


def test_progress_that_gains_nothing_stays() -> None:
    progress = Progress(3, 1, 2, 0.5, [[[1, 2, 3, 4]]], "run")
    progress.grow(1, 2)
    assert progress == Progress(3, 1, 2, 0.5, [[[1, 2, 3, 4]]], "run")


def test_the_checkpoint_asks_the_lineage(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, Identity(text(settings()), "c", "w")).save(Progress(1), {}, {})
    grown = Identity(text(settings(**ACCEPTED["all of it"])), "c", "w")
    assert CheckpointStore(tmp_path, grown).load()[0] == Progress(1)
    other = Identity(text(settings(seed=2)), "c", "w")
    with pytest.raises(CheckpointError, match=r"another experiment: seed \(then 1, now 2\)"):
        CheckpointStore(tmp_path, other).load()


# --- a run that grows

LONGER = {
    "adapt": {"rounds": 1, "epochs": 8, "learning_rate": 0.02},
    "balance": {"rounds": 2, "epochs": 12, "optimizer": "adam", "learning_rate": 0.02, "weight_decay": 0.0},
}
OLD, GROWN = ["0", "1", "2", "3"], ["0", "1", "2", "3", "5", "7"]
HELD = {"0": 10, "1": 10, "2": 10, "3": 10}


def extended(config: Config[Any], site: str | None = None) -> Config[Any]:
    return with_sites(with_new_task(config, ["5", "7"], distinct=True), [site] if site else [])


class Grown:
    """A run of two tasks that was finished, and was then extended by a class task and a site; done once."""

    def __init__(self, folder: Path, method: str) -> None:
        self.hospitals = make_hospitals(folder, {"alpha": HELD, "beta": HELD})
        self.config = deployed(["alpha", "beta"], OLD, method, {"method": LONGER if method == "dynammo" else {}})
        self.path = run_small(self.config, folder / "runs", grid=self.hospitals).path
        self.before = {file.name: file.read_bytes() for file in self.path.iterdir() if file.is_file()}
        self.confusion_before = rows(self.path)
        self.folder = folder
        # the first hospital meets new diseases, and a third one joins that has nothing but these
        with_images(folder, "alpha", {**HELD, "5": 10})
        joined = with_images(folder, "gamma", {"5": 10, "7": 10})
        files = {**self.hospitals.files, "gamma": make_hospital(folder / "gamma", "gamma", joined)}
        self.grown = extended(self.config, "gamma")
        loop = TaskLoop(
            Experiment(self.grown), Exchange(self.hospitals, self.grown.federation), RunDirectory(self.path)
        )
        loop.load()
        self.learnt = cloned(loop.model)
        loop.experiment.method.begin_task(loop.model, loop.archive, 2)
        self.begun = cloned(loop.model)
        run_small(self.grown, folder / "runs", resume=self.path, grid=Hospitals(files))


@pytest.fixture(scope="module", params=["dynammo", "replay"])
def grown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    return Grown(tmp_path_factory.mktemp("grown"), request.param)


def cloned(model: IncrementalModel) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "confusion_matrix.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_finished_run_goes_on_with_the_new_task_alone(grown: Grown) -> None:
    first, second = events(grown.path, "run_started")
    assert second["resumed_at"] == len(first["plan"])
    assert second["run"] == first["run"]
    assert second["tasks"] == [["0", "1"], ["2", "3"], ["5", "7"]]
    assert second["site_names"] == ["alpha", "beta", "gamma"]
    finished = [event["step"] for event in events(grown.path, "step_finished")]
    assert finished == list(range(len(second["plan"])))
    assert resolve(grown.grown.model_dump(mode="json"), "", {}) == grown.grown
    assert json.loads((grown.path / "summary.json").read_text())["tasks"] == 3


def test_what_was_counted_before_stays(grown: Grown) -> None:
    after = rows(grown.path)
    assert [row for row in after if row["after_task"] != "3"] == grown.confusion_before
    assert {row["true"] for row in after if row["after_task"] == "3"} == set(GROWN)
    accuracies = json.loads((grown.path / "summary.json").read_text())["accuracy_after_tasks"]
    assert accuracies[:2] == json.loads(grown.before["summary.json"])["accuracy_after_tasks"]


def test_the_new_classes_are_learnt(grown: Grown) -> None:
    last = [row for row in rows(grown.path) if row["after_task"] == "3" and row["true"] in ("5", "7")]
    right = sum(int(row["count"]) for row in last if row["true"] == row["predicted"])
    # one test image of a class at each site that holds it: 5 at two sites, 7 at one
    assert sum(int(row["count"]) for row in last) == 3
    assert right >= 2


def test_sites_remember_the_old_and_the_new(grown: Grown) -> None:
    remembered = [event for event in events(grown.path, "step_finished") if event["stage"] == "remember"]
    assert [[site["site"] for site in event["sites"]] for event in remembered] == [[0, 1], [0, 1], [0, 1, 2]]
    # of 24 exemplars of all sites a third each; alpha has five classes, beta four, gamma two: 1 or 2, 2 and 4 of each
    counts = [site["samples"] for site in remembered[-1]["sites"]]
    assert counts[1:] == [8, 8]
    assert 5 <= counts[0] <= 8


def test_growing_leaves_what_old_heads_have_learnt(grown: Grown) -> None:
    """Before anyone trains on the new task."""
    learnt, begun = grown.learnt, grown.begun
    heads = [name for name in learnt if name.startswith("heads.") and ".auxiliary." not in name]
    assert heads
    for name in heads:
        assert torch.equal(begun[name][: len(learnt[name])], learnt[name]), name
    rows_of_new = sum(len(begun[name]) - len(learnt.get(name, [])) for name in begun if name.endswith(".weight"))
    assert rows_of_new > 0


def test_the_model_of_the_old_tasks_is_in_the_checkpoint_that_grew(grown: Grown) -> None:
    """What `learnt` holds is what was deployed after the second task."""
    model = grown.folder / "model.safetensors"
    model.write_bytes(grown.before["model.safetensors"])
    deployed_before = load_file(model)
    assert len(deployed_before) > 2
    assert all(torch.equal(grown.learnt[name], tensor) for name, tensor in deployed_before.items())
