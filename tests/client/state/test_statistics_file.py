"""What a site keeps of its own statistics: found by the model that was tested, and opened by its own key alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from client.state.statistics_file import StatisticsFile, own_tensors_for_model
from dynammo_core.support.errors import MemoryStoreError

KEY = bytes(range(32))
ONE, TWO = ({"norm.running_mean": torch.full((3,), value)} for value in (1.0, 2.0))


def kept(folder: Path) -> Path:
    """Two runs of one site, each tested after its first task."""
    for run, model, tensors in (("run-a", "aa", ONE), ("run-b", "bb", TWO)):
        StatisticsFile(folder / run, run=run, site="north", key=KEY).save_tested(tensors, task=0, model=model)
    return folder


def test_they_are_found_by_the_model_in_whichever_run(tmp_path: Path) -> None:
    for model, wanted in (("aa", ONE), ("bb", TWO)):
        found = own_tensors_for_model(kept(tmp_path), task=0, model=model, site="north", key=KEY)
        assert found.keys() == wanted.keys()
        assert torch.equal(found["norm.running_mean"], wanted["norm.running_mean"])
    file = tmp_path / "run-a" / "tested" / "task-01.sealed"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "cc"}, r"this model after its task 1; it keeps those of run-a, run-b"),
        ({"task": 1}, r"this model after its task 2\. Accepted"),
        ({"site": "south"}, "belongs to .*north"),
        ({"key": None}, "names no key"),
        ({"key": bytes(32)}, "another key"),
    ],
)
def test_no_others_are_taken_for_them(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    wanted: dict[str, object] = {"task": 0, "model": "aa", "site": "north", "key": KEY} | changes
    with pytest.raises(MemoryStoreError, match=said):
        own_tensors_for_model(kept(tmp_path), **wanted)  # type: ignore[arg-type]


def test_a_changed_bit_is_noticed(tmp_path: Path) -> None:
    file = kept(tmp_path) / "run-a" / "tested" / "task-01.sealed"
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)
    with pytest.raises(MemoryStoreError, match="cannot be read"):
        own_tensors_for_model(tmp_path, task=0, model="aa", site="north", key=KEY)


def test_a_damaged_file_of_another_run_is_in_the_way_of_its_own_model_alone(tmp_path: Path) -> None:
    file = kept(tmp_path) / "run-a" / "tested" / "task-01.sealed"
    file.write_bytes(b"")
    assert torch.equal(
        own_tensors_for_model(tmp_path, task=0, model="bb", site="north", key=KEY)["norm.running_mean"],
        TWO["norm.running_mean"],
    )
    with pytest.raises(MemoryStoreError, match=f"the sealed file {file} cannot be read"):
        own_tensors_for_model(tmp_path, task=0, model="aa", site="north", key=KEY)
