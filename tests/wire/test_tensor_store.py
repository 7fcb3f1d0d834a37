"""Tensors that a site holds: right or asked for again, never wrong, and no more of them than have names."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from dynammo_core.support.errors import MissingTensorsError
from dynammo_core.wire.tensor_store import FILE, TensorStore, tensor_hash

A, B, C = (torch.arange(6.0).reshape(2, 3) + shift for shift in (0, 10, 20))


def hashes(**tensors: Tensor) -> dict[str, str]:
    return {name: tensor_hash(tensor) for name, tensor in tensors.items()}


def store_with(folder: Path, **tensors: Tensor) -> TensorStore:
    store = TensorStore(folder)
    store.keep(hashes(**tensors), tensors)
    return store


def held(store: TensorStore) -> set[str]:
    with safe_open(store.path, framework="pt") as file:
        return set(file.keys())


def test_equal_content_has_equal_hashes_and_nothing_else_has() -> None:
    alike = [A, A.clone(), A.t().contiguous().t()]
    assert len({tensor_hash(tensor) for tensor in alike}) == 1
    other = [A, A.reshape(3, 2), A.reshape(6), A.double(), A.half(), A.int(), -A, torch.tensor(0.0), torch.empty(0)]
    assert len({tensor_hash(tensor) for tensor in other}) == len(other)


def test_what_was_kept_need_not_come_again(tmp_path: Path) -> None:
    store_with(tmp_path, a=A, b=B)
    whole = TensorStore(tmp_path).complete(hashes(a=A, b=B, c=C), {"c": C})
    assert list(whole) == ["a", "b", "c"]
    assert all(torch.equal(whole[name], tensor) for name, tensor in {"a": A, "b": B, "c": C}.items())


def test_a_tensor_is_found_under_whatever_name_it_came(tmp_path: Path) -> None:
    """What was the model is the teacher of the next task."""
    store = store_with(tmp_path, model=A)
    assert torch.equal(store.complete(hashes(model=B, teacher=A), {"model": B})["teacher"], A)


def test_of_each_name_the_last_tensor_is_held(tmp_path: Path) -> None:
    store = store_with(tmp_path, a=A, b=B)
    store.keep(hashes(a=C), {"a": C})  # of `b` nothing was said: it stays
    assert held(store) == {tensor_hash(B), tensor_hash(C)}
    with pytest.raises(MissingTensorsError, match=r"1 tensors were not sent .* such as 'a'"):
        store.complete(hashes(a=A, b=B), {})
    store.keep(hashes(b=C), {"b": C})
    assert held(store) == {tensor_hash(C)}


def test_nothing_is_written_where_nothing_is_new(tmp_path: Path) -> None:
    store = store_with(tmp_path, a=A, b=B)
    before = store.path.stat()
    store.keep(hashes(a=A), {"a": A})
    assert (store.path.stat().st_ino, store.path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    store = store_with(tmp_path / "memory" / "run", a=A)
    assert [oct(place.stat().st_mode & 0o777) for place in (store.path, *store.path.parents[:2])] == [
        "0o600",
        "0o700",
        "0o700",
    ]


@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "text", "flipped"])
def test_a_damaged_file_is_asked_for_again(tmp_path: Path, damage: str) -> None:
    store = store_with(tmp_path, a=A, b=B)
    content = bytearray(store.path.read_bytes())
    content[-5] ^= 1  # in the second tensor
    damaged = {"cut": bytes(content[:-8]), "empty": b"", "text": b"patient-4711", "flipped": bytes(content)}
    store.path.unlink() if damage == "gone" else store.path.write_bytes(damaged[damage])
    with pytest.raises(MissingTensorsError):
        store.complete(hashes(a=A, b=B), {})
    everything = store.complete(hashes(a=A, b=B), {"a": A, "b": B})
    store.keep(hashes(a=A, b=B), everything)
    assert torch.equal(TensorStore(tmp_path).complete(hashes(a=A, b=B), {})["b"], B)


def test_with_a_key_nobody_else_reads_what_came(tmp_path: Path) -> None:
    """Sums over the images of other sites can be among it."""
    owner, key = {"run": "r", "site": "alpha"}, b"k" * 32
    TensorStore(tmp_path).keep(hashes(a=B), {"a": B})  # a plain file of an earlier version is replaced
    store = TensorStore(tmp_path, owner, key)
    store.keep(hashes(a=A), {"a": A})
    store.keep(hashes(b=B), {"b": B})
    content = store.path.read_bytes()
    assert not any(tensor.numpy().tobytes() in content for tensor in (A, B))
    again = TensorStore(tmp_path, owner, key).complete(hashes(a=A, b=B), {})
    assert all(torch.equal(again[name], tensor) for name, tensor in (("a", A), ("b", B)))
    for other in (TensorStore(tmp_path), TensorStore(tmp_path, owner, b"x" * 32)):
        with pytest.raises(MissingTensorsError):
            other.complete(hashes(a=A), {})


def test_a_file_that_cannot_be_written_costs_bytes_and_not_the_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    store_with(tmp_path / "file", a=A)
    assert "the received weights could not be saved" in caplog.text
    store = TensorStore(tmp_path)
    store.path.mkdir()
    store.keep(hashes(a=A), {"a": A})
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert (tmp_path / FILE).is_dir()


def test_sites_of_a_simulation_read_while_others_replace_the_file(tmp_path: Path) -> None:
    """All simulated sites share one store, each process opens it: what is read is one file, whole, old or new."""
    writer = "import sys, torch; from pathlib import Path; from dynammo_core.wire.tensor_store import *\n" + (
        "store, tensors = TensorStore(Path(sys.argv[1])), {'a': torch.arange(6.0).reshape(2, 3)}\n"
        "while True:\n"
        "    for size in (1, 4096):\n"
        "        tensors['b'] = torch.rand(size)\n"
        "        store.keep({name: tensor_hash(tensor) for name, tensor in tensors.items()}, tensors)\n"
    )
    store = store_with(tmp_path, a=A)
    with subprocess.Popen([sys.executable, "-c", writer, tmp_path], cwd=Path(__file__).parents[2]) as process:
        try:
            first, last = store.path.stat().st_mtime_ns, time.monotonic() + 60
            while store.path.stat().st_mtime_ns == first:
                assert time.monotonic() < last
                time.sleep(0.01)
            for _ in range(100):
                assert torch.equal(store.complete(hashes(a=A), {})["a"], A)
                store.keep(hashes(a=A), {})
        finally:
            process.kill()
