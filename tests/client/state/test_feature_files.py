"""Features on a site's disk: the same bits as if computed again, sealed, within a budget, and never in the way."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.state.feature_files import FOLDER, FeatureFiles, discard_features
from dynammo_core.data.samples import Samples

KEY = bytes(range(32))
FEATURES = torch.linspace(-1, 1, 12).view(3, 4)
BUDGET = 2**20


def images(value: int = 0, size: int = 8) -> Samples:
    return Samples(torch.full((3, 3, size, size), value, dtype=torch.uint8), torch.arange(3), ("a", "b", "c"))


def files(memory: Path, *, budget: int = BUDGET, run: str = "run", key: bytes | None = KEY) -> FeatureFiles:
    """As a new process makes them."""
    return FeatureFiles(memory, budget, run=run, site="north", key=key)


def computes(
    held: FeatureFiles, *what: str, samples: Samples | None = None, tensor: Tensor = FEATURES
) -> tuple[bool, Tensor]:
    """Whether the tensor had to be computed, and what was given."""
    asked = []

    def compute() -> Tensor:
        asked.append(what)
        return tensor

    given = held.get(what or ("features",), samples or images(), compute)
    return bool(asked), given


def on_disk(folder: Path, run: str = "run") -> list[Path]:
    return sorted((folder / run / FOLDER).iterdir())


@pytest.mark.parametrize(
    "tensor",
    [
        FEATURES,
        FEATURES.half(),
        torch.linspace(0, 1, 72).view(2, 4, 3, 3),
        torch.linspace(0, 1, 72).view(2, 4, 3, 3).contiguous(memory_format=torch.channels_last),
    ],
    ids=["rows", "half", "maps", "channels last"],
)
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_another_process_finds_the_same_bits_in_the_same_layout(
    tmp_path: Path, tensor: Tensor, key: bytes | None
) -> None:
    assert computes(files(tmp_path, key=key), tensor=tensor)[0]
    computed, found = computes(files(tmp_path, key=key), tensor=torch.zeros(1))
    assert not computed
    assert (found.dtype, found.stride()) == (tensor.dtype, tensor.stride())
    assert torch.equal(found, tensor)


def test_other_words_other_pixels_and_another_shape_are_other_features(tmp_path: Path) -> None:
    held = files(tmp_path)
    for what, samples in (
        ("features", images()),
        ("prefix", images()),
        ("features", images(1)),
        ("features", images(size=4)),
    ):
        assert computes(held, what, samples=samples)[0]
        assert not computes(held, what, samples=samples)[0]
    assert len(on_disk(tmp_path)) == 4


def test_labels_and_records_do_not_matter(tmp_path: Path) -> None:
    computes(files(tmp_path))
    relabelled = Samples(images().images, torch.zeros(3, dtype=torch.int64), ("x", "y", "z"))
    assert not computes(files(tmp_path), samples=relabelled)[0]


def test_a_file_tells_nothing_to_who_lacks_the_key_and_its_owner_alone_reads_it(tmp_path: Path) -> None:
    computes(files(tmp_path))
    (path,) = on_disk(tmp_path)
    assert FEATURES.numpy().tobytes() not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("harm", ["damaged", "another key", "another run", "another name"])
def test_a_file_that_cannot_be_trusted_is_computed_again_and_replaced(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    run, key = ("other", KEY) if harm == "another run" else ("run", KEY[::-1] if harm == "another key" else KEY)
    computes(files(tmp_path, run=run, key=key), tensor=torch.zeros(1))
    (path,) = on_disk(tmp_path, run)
    if harm == "another run":
        path = path.rename(tmp_path / path.name)
        computes(files(tmp_path), "prefix")
        path = path.rename(on_disk(tmp_path)[0].parent / path.name)
    if harm == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "another name":
        computes(files(tmp_path), "prefix", tensor=torch.ones(1))
        (other,) = set(on_disk(tmp_path)) - {path}
        other.replace(path)
    assert computes(files(tmp_path))[0]
    assert "computed again" in caplog.text
    computed, found = computes(files(tmp_path), tensor=torch.zeros(1))
    assert not computed
    assert torch.equal(found, FEATURES)


def test_the_one_unused_for_longest_goes_first(tmp_path: Path) -> None:
    computes(files(tmp_path), "a")
    room = 2 * on_disk(tmp_path)[0].stat().st_size + 10
    held = files(tmp_path, budget=room)
    age = itertools.count(int(time.time()) - 1000)

    def use(what: str) -> bool:
        before = {path: path.stat().st_mtime_ns for path in on_disk(tmp_path)}
        computed, _ = computes(held, what)
        for path in on_disk(tmp_path):  # clocks of file systems are coarse: what was just used is a second younger
            if before.get(path) != path.stat().st_mtime_ns:
                os.utime(path, (0, next(age)))
        return computed

    for path in on_disk(tmp_path):
        os.utime(path, (0, next(age)))
    # Room for two: c drops b, since a was used after it; then b drops c.
    assert [use(what) for what in "bacab"] == [True, False, True, False, True]


def test_all_runs_share_the_budget_and_what_nobody_used_for_a_day_goes(tmp_path: Path) -> None:
    def left() -> list[str]:
        return sorted(path.parent.parent.name for path in tmp_path.rglob("*.sealed"))

    for run in ("old", "new"):
        computes(files(tmp_path, run=run))
    (old,) = on_disk(tmp_path, "old")
    room = 2 * old.stat().st_size + 10
    os.utime(old, (0, time.time() - 60))
    computes(files(tmp_path, run="third", budget=room))
    assert left() == ["new", "third"]
    (new,) = on_disk(tmp_path, "new")
    os.utime(new, (0, time.time() - 25 * 60 * 60))
    computes(files(tmp_path, run="third"), "prefix")
    assert left() == ["third", "third"]


@pytest.mark.parametrize("budget", [0, 100])
def test_what_is_larger_than_the_budget_is_not_kept(tmp_path: Path, budget: int) -> None:
    assert computes(files(tmp_path, budget=budget))[0]
    assert computes(files(tmp_path, budget=budget))[0]
    assert not (tmp_path / "run" / FOLDER).exists()


@pytest.mark.parametrize(("budget", "left"), [(0, 0), (500, 1)])
def test_a_budget_that_was_lowered_holds_for_what_is_there(tmp_path: Path, budget: int, left: int) -> None:
    for what in ("a", "b"):
        computes(files(tmp_path), what)
        assert 250 < on_disk(tmp_path)[0].stat().st_size < 500
    computes(files(tmp_path, budget=budget), tensor=torch.zeros(1000))  # 4,000 bytes do not fit
    assert len(on_disk(tmp_path)) == left


def test_what_a_killed_process_left_counts_and_goes_too(tmp_path: Path) -> None:
    computes(files(tmp_path))
    rest = on_disk(tmp_path)[0].with_name(".0a1b.sealed.x_y9z")
    rest.write_bytes(bytes(100))
    os.utime(rest, (0, time.time() - 60))
    computes(files(tmp_path, budget=BUDGET), "b")
    assert rest.exists()
    room = 3 * max(path.stat().st_size for path in on_disk(tmp_path)) + 10
    computes(files(tmp_path, budget=room), "c")
    assert not rest.exists()
    assert len(on_disk(tmp_path)) == 3


def test_a_disk_that_cannot_be_written_costs_time_and_not_the_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FOLDER).write_text("in the way")
    computed, given = computes(files(tmp_path))
    assert computed
    assert torch.equal(given, FEATURES)
    assert "features cannot be cached" in caplog.text


def test_features_of_all_runs_can_be_discarded(tmp_path: Path) -> None:
    for run in ("one", "two"):
        computes(files(tmp_path, run=run))
        (tmp_path / run / "memory.safetensors").touch()
    discard_features(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["memory.safetensors"] * 2


def test_features_are_discarded_while_a_step_keeps_others(tmp_path: Path) -> None:
    computes(files(tmp_path))
    (path,) = on_disk(tmp_path)
    stop = threading.Event()

    def keep_others() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            path.with_name(f"{number}.sealed").touch()

    step = threading.Thread(target=keep_others)
    step.start()
    try:
        while not path.with_name("99.sealed").exists():
            time.sleep(0)
        discard_features(tmp_path)
    finally:
        stop.set()
        step.join()
    assert not path.exists()
