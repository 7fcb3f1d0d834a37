"""Withdrawn records leave sums that moved with their features: what stays are sums that never had them.

What adapters learnt of them stays, and what they showed of the change of features. So the run to compare with learnt of
them and compared them, too, and lost them before they were summed. Without exemplars no later task sees them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import Stopped
from test_forget import Place, records, same
from typer.testing import CliRunner

from client.commands.memory import memory
from dynammo_core.support.errors import RunError
from dynammo_core.support.files import write_atomically
from server.run_directory.checkpoint import CheckpointStore
from server.run_directory.progress import saved_state

ADAPTED: dict[str, Any] = {
    "data": {"image_size": 32},
    "tasks": {"sizes": [2, 1, 1]},
    "memory": {"exemplars": 0},
    "method": {"adapt": {"rounds": 1, "epochs": 1, "learning_rate": 0.1}, "recalibrate": False, "regulariser": 1.0},
}
NETWORKS = ADAPTED | {
    "backbone": {"changes": [{"task": 2, "name": "timm/test_convnext", "weights": "random"}]},
    "method": {"adapters": False, "regulariser": 1.0},
}
BOTH = NETWORKS | {"method": ADAPTED["method"]}
LARGER = ADAPTED | {
    "backbone": {"changes": [{"task": 2, "name": "small_cnn", "weights": "random", "image_size": 48}]},
}
GONE = [
    [*records("alpha", "0", 2, 5), *records("beta", "0", 1), *records("gamma", "1", 8)],
    records("beta", "2", 3, 4),
    records("alpha", "3", 0),
]
"""Records of each task."""


def place_in(folder: Path, sections: dict[str, Any]) -> Place:
    return Place(folder, sections=sections, method="moving_ridge")


def never_summed(folder: Path, sections: dict[str, Any], tasks: int = 3) -> Place:
    """A run that lost the records of so many tasks, each after all stages of their task but those that sum."""
    adapted = "adapt" in sections["method"]  # or the first stage sums
    place = Place(folder, sections=sections, method="moving_ridge", without=[] if adapted else GONE[0])
    for task in range(0 if adapted else 1, tasks):
        begun = (folder / "runs").exists()
        place.run_until("step_started", resume=begun, task=task, stage="count").withdraw(*GONE[task])
    return place.run(resume=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished run whose adapters changed with each task; not to be changed."""
    return place_in(tmp_path_factory.mktemp("moved") / "original", ADAPTED).run()


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run whose sums never had `GONE`."""
    return never_summed(tmp_path_factory.mktemp("never") / "never", ADAPTED)


@pytest.fixture
def place(original: Place, tmp_path: Path) -> Place:
    """A finished run of one's own."""
    return original.copy(tmp_path / "with")


def withdraw_all(place: Place) -> Place:
    return place.withdraw(*GONE[0], *GONE[1], *GONE[2])


def test_records_of_each_task_leave_sums_that_moved_once_twice_and_not_at_all(place: Place, without: Place) -> None:
    answer = withdraw_all(place).forget()
    assert answer["corrected"] == ["alpha", "beta", "gamma"]
    assert answer["failures"] == {} and answer["nothing_to_correct"] == []
    same(place, without)
    kept = [load_file(one.path / "checkpoints" / "latest.safetensors") for one in (place, without)]
    moves = [name for name in kept[0] if "archive/drift" in name or "adapters" in name]
    assert len(moves) > 10
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in moves)  # the sums alone were to differ


@pytest.mark.parametrize("sections", [NETWORKS, BOTH, LARGER], ids=["networks", "networks and adapters", "a size"])
def test_records_leave_sums_that_another_network_took_over(tmp_path: Path, sections: dict[str, Any]) -> None:
    place = withdraw_all(place_in(tmp_path / "with", sections).run())
    assert place.forget()["corrected"] == ["alpha", "beta", "gamma"]
    same(place, never_summed(tmp_path / "never", sections))


@pytest.fixture(scope="module")
def without_first(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run over two networks whose sums never had the records of the first task."""
    return never_summed(tmp_path_factory.mktemp("first") / "never", BOTH, tasks=1)


@pytest.mark.parametrize("stage", ["adapt", "pairs", "sum", "remember"])
def test_in_the_middle_of_a_task_they_leave_what_was_summed_until_then(
    without_first: Place, tmp_path: Path, stage: str
) -> None:
    """Before a task on another network; before and after its features are compared with the old ones; at its end."""
    place = place_in(tmp_path / "with", BOTH).run_until("step_started", task=1, stage=stage)
    answer = place.withdraw(*GONE[0]).forget()
    assert answer["corrected"] == ["alpha", "beta", "gamma"]
    assert answer["model_written"] is (stage == "adapt")
    same(place.run(resume=True), without_first)


def test_twice_is_as_good_as_once_and_a_lost_answer_is_asked_for_again(place: Place, without: Place) -> None:
    place.line.lose = {"beta"}
    answer = withdraw_all(place).forget()
    assert (answer["corrected"], set(answer["failures"])) == (["alpha", "gamma"], {"beta"})
    place.line.lose = set()
    assert place.forget()["corrected"] == ["beta"]
    same(place, without)
    once = place.state()
    assert place.forget()["corrected"] == []
    assert all(torch.equal(tensor, place.state()[name]) for name, tensor in once.items())


def test_sums_of_a_version_that_did_not_keep_their_adapters_are_left_alone(place: Place) -> None:
    file = place.path / "checkpoints" / "latest.safetensors"
    identity, _ = saved_state(file.parent)
    store = CheckpointStore(file.parent, identity)
    progress, weights, archive = store.load()
    store.save(progress, weights, {name: one for name, one in archive.items() if not name.startswith("summed0.")})
    before = file.read_bytes()
    with pytest.raises(RunError, match=r"adapters that images of task 1 were summed with.*an earlier version"):
        withdraw_all(place).forget()
    assert file.read_bytes() == before


def test_a_server_that_dies_between_two_tasks_goes_on_with_the_other_the_next_time(
    place: Place, without: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw_all(place)
    saved = iter([False, True])

    def die_at_the_second(*arguments: Any) -> None:
        if next(saved):
            raise Stopped
        write_atomically(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("server.run_directory.checkpoint.write_atomically", die_at_the_second)
        with pytest.raises(Stopped):
            place.forget()
    assert "beta" in place.forget()["corrected"]
    same(place, without)


def test_a_site_counts_each_image_once_though_it_was_compared_and_summed(place: Place) -> None:
    def shown() -> str:
        status = ["status", str(place.line.files["beta"])]
        return CliRunner().invoke(memory, status, catch_exceptions=False).output

    place.withdraw(*GONE[1])
    assert "the server's sums contain 18 images of this site; 2 of withdrawn records" in shown()
    place.forget()
    assert "the server's sums contain 16 images of this site\n" in shown()


def test_only_the_tasks_that_lose_records_count_as_corrections(place: Place) -> None:
    (place.folder / "beta" / "policy.yaml").write_text("fewest_images: 1\nmost_corrections: 1\n")
    assert place.withdraw(*GONE[1]).forget()["corrected"] == ["beta"]
