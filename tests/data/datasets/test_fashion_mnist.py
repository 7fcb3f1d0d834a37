"""A small data set in Fashion-MNIST's four files stands for the published one; the download comes from this machine."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets import DATASETS, fashion_mnist
from dynammo_core.data.samples import Dataset
from dynammo_core.support.errors import DataError

PUBLISHED = dict(fashion_mnist.FILES)
SHAPES = {
    "train-images-idx3-ubyte": (30, 28, 28),
    "train-labels-idx1-ubyte": (30,),
    "t10k-images-idx3-ubyte": (10, 28, 28),
    "t10k-labels-idx1-ubyte": (10,),
}


def idx(values: np.ndarray) -> bytes:
    """The IDX format: two zeros, 8 for unsigned bytes, the number of dimensions, big-endian sizes, values."""
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def contents() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    labels = {shape: np.arange(shape[0], dtype=np.uint8) % 10 for shape in SHAPES.values() if len(shape) == 1}
    images = {shape: rng.integers(0, 256, shape, dtype=np.uint8) for shape in SHAPES.values() if len(shape) == 3}
    return {name: idx({**labels, **images}[shape]) for name, shape in SHAPES.items()}


def lay_out(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents().items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
    return folder


@pytest.fixture(autouse=True)
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect the small files, and nothing on this machine but what a test puts there."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents().items()}
    monkeypatch.setattr(fashion_mnist, "FILES", {name: (shape, hashes[name]) for name, shape in SHAPES.items()})
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # the discard port
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DYNAMMO_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that torchvision downloads from, in place of the publisher's."""
    folder = lay_out(tmp_path / "served")
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True).start()
        cls = torchvision.datasets.FashionMNIST
        sums = [(f"{name}.gz", hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest()) for name in SHAPES]
        monkeypatch.setattr(cls, "mirrors", [f"http://127.0.0.1:{http_server.server_port}/"])
        monkeypatch.setattr(cls, "resources", sums)
        yield folder
        http_server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def load(root: Path | None = None) -> Dataset:
    return DATASETS["fashion_mnist"](DataSettings(dataset="fashion_mnist", root=None if root is None else str(root)))


def check(dataset: Dataset) -> None:
    assert dataset.class_names[0] == "T-shirt/top" and dataset.class_names[9] == "Ankle boot"
    assert dataset.train.labels.tolist() == [i % 10 for i in range(30)]
    assert dataset.test.labels.tolist() == list(range(10))
    # image i follows the header of 16 bytes and i images of 784
    start = 16 + 3 * 784
    expected = np.frombuffer(contents()["t10k-images-idx3-ubyte"][start : start + 784], dtype=np.uint8).reshape(28, 28)
    assert (dataset.test.source.read(3) == expected).all()
    assert dataset.test.record_ids[3] == "test/00003"


def test_the_names_of_the_classes_are_torchvisions() -> None:
    assert list(fashion_mnist.CLASSES) == torchvision.datasets.FashionMNIST.classes


@pytest.mark.parametrize("where", ["root", "root/FashionMNIST/raw", "debian"])
def test_the_files_are_found(tmp_path: Path, where: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    lay_out(tmp_path / where)
    check(load(root))


def test_the_variable_names_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNAMMO_DATA", str(tmp_path / "shared"))
    lay_out(tmp_path / "shared" / "fashion_mnist")
    check(load())


def test_unpacked_files_serve_too(tmp_path: Path) -> None:
    for name, content in contents().items():
        (tmp_path / name).write_bytes(content)
    check(load(tmp_path))


def test_they_are_downloaded_where_they_are_missing_and_only_once(server: Path, tmp_path: Path) -> None:
    check(load())
    home = tmp_path / "home" / ".cache" / "dynammo" / "fashion_mnist"
    assert sorted(path.name for path in home.iterdir()) == sorted(f"{name}.gz" for name in SHAPES)
    for file in server.iterdir():
        file.unlink()
    check(load())


def test_they_are_downloaded_into_the_root_that_is_given(server: Path, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    check(load(root))
    assert (root / "train-images-idx3-ubyte.gz").is_file()


def test_a_damaged_download_leaves_nothing(server: Path, tmp_path: Path) -> None:
    file = server / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-1])
    root = tmp_path / "mine"
    root.mkdir()
    with pytest.raises(DataError, match="downloading it failed"):
        load(root)
    assert list(root.iterdir()) == []


def test_without_files_and_network_the_remedy_is_told() -> None:
    with pytest.raises(DataError) as caught:
        load()
    message = str(caught.value)
    assert "downloading it failed" in message
    assert "apt-get install dataset-fashion-mnist" in message
    assert "github.com/zalandoresearch/fashion-mnist" in message
    assert all(f"{name}.gz" in message for name in SHAPES)


def test_a_root_that_is_not_there_is_not_papered_over(tmp_path: Path) -> None:
    lay_out(tmp_path / "debian")
    with pytest.raises(DataError, match=r"typo is not there.*four files"):
        load(tmp_path / "typo")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: gzip.compress(raw)[:-20], "end-of-stream"),
        (lambda raw: b"<html>not found</html>", "Not a gzipped file"),
        (lambda raw: gzip.compress(b"\1" + raw[1:]), "its header is 0100"),
        (lambda raw: gzip.compress(idx(np.zeros((11, 28, 28), dtype=np.uint8))), "its header is"),
        (lambda raw: gzip.compress(raw[:-1]), "it holds 7839 values, and its header says 7840"),
        (lambda raw: gzip.compress(raw[:-1] + bytes([raw[-1] ^ 1])), "SHA-256"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: object, message: str) -> None:
    assert callable(damage)
    file = lay_out(tmp_path) / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(damage(contents()["t10k-images-idx3-ubyte"]))
    with pytest.raises(DataError, match=rf"t10k-images-idx3-ubyte\.gz .*{message}"):
        load(tmp_path)


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_the_published_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "FILES", PUBLISHED)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", Path("/usr/share/datasets/fashion-mnist"))
    dataset = load()
    assert np.bincount(dataset.train.labels).tolist() == [6000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    # the first training image is an ankle boot, the second a T-shirt
    assert dataset.train.labels[:2].tolist() == [9, 0]
