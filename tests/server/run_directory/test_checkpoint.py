"""Checkpoints: what comes back is what went in, bit for bit; anything else is refused in words."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from small_runs import small_config
from torch import Tensor

from dynammo_core.support.errors import CheckpointError
from server.run_directory.checkpoint import CheckpointStore
from server.run_directory.progress import Identity, Progress

CONFIG = small_config()
IDENTITY = Identity(CONFIG.canonical_json(), "c" * 64, "random")
PROGRESS = Progress(7, 123, 456, 0.1 + 0.2, [[[1, 0, 0, 2]], [[0, 1, 2, 3]]])
WEIGHTS = {
    "extractor.adapters.0.alpha": torch.tensor(0.1),
    "heads.task0.weight": torch.arange(6, dtype=torch.float32).view(2, 3).t(),  # not contiguous
    "odd": torch.tensor([-0.0, torch.inf, -torch.inf, torch.nan, 1e-45, 1 / 3]),
    "whole": torch.tensor([2**40, -1]),
    "none": torch.empty(0, 4),
}
ARCHIVE = {"set0.0.alpha": torch.tensor(0.2), "odd": torch.tensor([1.0]), "model/odd": torch.tensor([2.0])}


def store(folder: Path, identity: Identity = IDENTITY) -> CheckpointStore:
    return CheckpointStore(folder, identity)


def saved(folder: Path) -> Path:
    checkpoints = store(folder)
    checkpoints.save(PROGRESS, WEIGHTS, ARCHIVE)
    return checkpoints.path


def refused(folder: Path, identity: Identity = IDENTITY) -> str:
    with pytest.raises(CheckpointError) as caught:
        store(folder, identity).load()
    message = str(caught.value)
    assert str(folder / "latest.safetensors") in message
    assert "\n" not in message
    return message


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].contiguous().numpy().tobytes() == other[name].contiguous().numpy().tobytes()
        for name in one
    )


def test_what_comes_back_is_what_went_in(tmp_path: Path) -> None:
    saved(tmp_path)
    progress, weights, archive = store(tmp_path).load()
    assert progress == PROGRESS
    assert same_bits(weights, WEIGHTS)
    assert same_bits(archive, ARCHIVE)


def test_what_comes_back_is_multiplied_to_the_same_bits(tmp_path: Path) -> None:
    """In a file numbers begin anywhere, and some processors round a product by where its factors begin."""
    drawn = {f"{rows}": torch.randn(rows, 121, dtype=torch.float64) for rows in range(1, 9)}
    store(tmp_path).save(PROGRESS, {}, drawn)
    _, _, loaded = store(tmp_path).load()
    assert loaded.keys() == drawn.keys()
    assert [name for name, tensor in loaded.items() if tensor.data_ptr() % 64] == []


def test_the_last_save_counts_and_nothing_else_is_there(tmp_path: Path) -> None:
    saved(tmp_path)
    store(tmp_path).save(Progress(8), {}, {})
    assert store(tmp_path).load() == (Progress(8), {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["latest.safetensors"]


def test_none_there(tmp_path: Path) -> None:
    message = refused(tmp_path / "nowhere")
    assert "latest.safetensors does not exist" in message
    assert "without --resume" in message


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("whole"))


@given(st.floats(0, 1, exclude_max=True))
def test_cut_off_anywhere_it_is_refused(whole: Path, share: float) -> None:
    content = whole.read_bytes()
    refuse_content(whole, content[: int(share * len(content))])


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_with_any_byte_changed_it_is_refused(whole: Path, share: float, flip: int) -> None:
    content = bytearray(whole.read_bytes())
    content[int(share * len(content))] ^= flip
    refuse_content(whole, bytes(content))


def refuse_content(whole: Path, content: bytes) -> None:
    folder = whole.parent / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / whole.name).write_bytes(content)
    message = refused(folder)
    assert "cannot be read" in message
    assert "backup" in message


def test_with_any_bit_of_the_weights_changed_it_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = path.read_bytes()
    first = 8 + int.from_bytes(content[:8], "little")  # the header's length stands before it, in eight bytes
    assert len(content) - first > 50
    for position in range(first, len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert "checksum" in refused(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", save({"a": torch.ones(2)}), save({}, metadata={"identity": "[]", "progress": "{}"})],
    ids=["empty", "text", "weights alone", "other notes"],
)
def test_another_file_in_its_place_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "latest.safetensors").write_bytes(content)
    assert "cannot be read" in refused(tmp_path)


def test_longer_than_it_was_it_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")
    assert "cannot be read" in refused(tmp_path)


def test_a_changed_config_is_refused_by_key_with_both_values(tmp_path: Path) -> None:
    saved(tmp_path)
    overrides = {"federation.sites": 9, "method.adapt.learning_rate": 0.5, "tasks.sizes": "[3, 1]"}
    now = replace(IDENTITY, config=small_config(overrides=overrides).canonical_json())
    message = refused(tmp_path, now)
    differences = message.split("another experiment: ")[1].split(". Accepted")[0]
    assert differences.split("; ") == [
        "federation.sites (then 3, now 9)",
        "method.adapt.learning_rate (then 0.02, now 0.5)",
        "tasks.sizes (then [2, 2], now [3, 1])",
    ]


def test_another_methods_checkpoint_names_what_only_one_of_them_has(tmp_path: Path) -> None:
    saved(tmp_path)
    message = refused(tmp_path, replace(IDENTITY, config=small_config("replay").canonical_json()))
    assert "method.name (then 'dynammo', now 'replay')" in message
    assert "method.merge (then 'mean', now None)" in message


def test_changed_code_or_weights_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    message = refused(tmp_path, replace(IDENTITY, code_hash="d" * 64))
    assert f"the code (then {'c' * 12}, now {'d' * 12})" in message
    assert "the backbone's weights" not in message
    message = refused(tmp_path, replace(IDENTITY, backbone_sha256="0" * 64))
    assert "the backbone's weights" in message
    assert "the code (" not in message


def test_new_code_is_accepted_where_that_is_said_and_nothing_else_with_it(tmp_path: Path) -> None:
    saved(tmp_path)
    newer = replace(IDENTITY, code_hash="d" * 64)
    progress, *_ = CheckpointStore(tmp_path, newer).load(accept_new_code=True)
    assert progress.code_changes == [{"step": progress.next_step, "then": IDENTITY.code_hash, "now": "d" * 64}]
    assert CheckpointStore(tmp_path, IDENTITY).load(accept_new_code=True)[0].code_changes == []
    with pytest.raises(CheckpointError, match="the backbone's weights") as caught:
        CheckpointStore(tmp_path, replace(newer, backbone_sha256="0" * 64)).load(accept_new_code=True)
    assert "the code (" not in str(caught.value)


def test_a_key_that_the_older_code_did_not_know_has_its_default(tmp_path: Path) -> None:
    older = json.loads(IDENTITY.config)
    del older["federation"]["compression"]
    CheckpointStore(tmp_path, replace(IDENTITY, config=json.dumps(older))).save(Progress(), {}, {})
    CheckpointStore(tmp_path, IDENTITY).load()
    other = small_config(overrides={"federation.compression": "int8"}).canonical_json()
    assert "federation.compression (then 'none', now 'int8')" in refused(tmp_path, replace(IDENTITY, config=other))


def fail_to_sync(_: int) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def still_the_old_one(folder: Path, write: Callable[[], None]) -> None:
    with pytest.raises(CheckpointError) as caught:
        write()
    message = str(caught.value)
    assert f"cannot write {folder / 'latest.safetensors'}: No space left on device" in message
    assert "Free disk space" in message
    assert "what was written before is whole" in message
    assert [path.name for path in folder.iterdir()] == ["latest.safetensors"]
    progress, weights, _ = store(folder).load()
    assert progress == PROGRESS
    assert same_bits(weights, WEIGHTS)


def test_a_full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    monkeypatch.setattr(os, "fsync", fail_to_sync)
    still_the_old_one(tmp_path, lambda: store(tmp_path).save(Progress(8), WEIGHTS, ARCHIVE))


def test_a_real_full_disk_leaves_the_old_one(small_disk: Path) -> None:
    saved(small_disk)
    big = {"heads.task0.weight": torch.zeros(600_000)}  # 2.4 MB on a disk of 2 MB
    still_the_old_one(small_disk, lambda: store(small_disk).save(Progress(8), big, {}))


def test_a_run_goes_on_with_the_weights_of_each_network_that_it_had(tmp_path: Path) -> None:
    two = [Identity("{}", "c", ",".join(hashes)) for hashes in (("one", "two"), ("one", "other"), ("one",))]
    CheckpointStore(tmp_path, two[2]).save(Progress(1), {}, {})
    CheckpointStore(tmp_path, two[0]).load()  # a network comes with an extension
    CheckpointStore(tmp_path, two[0]).save(Progress(1), {}, {})
    for changed in (two[1], two[2], Identity("{}", "c", "other,two")):
        with pytest.raises(CheckpointError, match="the backbone's weights"):
            CheckpointStore(tmp_path, changed).load()
