"""A small data set in CIFAR-100's three files stands for the published one; the download comes from this machine."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR100

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets import DATASETS, cifar100
from dynammo_core.data.samples import Dataset
from dynammo_core.support.errors import DataError

PUBLISHED = CIFAR100.url
FOLDER = "cifar-100-python"
NAMES = ["apple", "bear", "chair"]
TRAIN, TEST = [2, 0, 1, 0, 2], [1, 0, 2]


def rows(count: int, seed: int) -> np.ndarray:
    """Images as CIFAR holds them: a row of 1,024 red, 1,024 green and 1,024 blue values, each in rows of 32."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def contents() -> dict[str, bytes]:
    """The pickles of the published archive, with the keys that the loader needs and one that it does not."""
    parts = {
        "train": {"data": rows(5, 0), "fine_labels": TRAIN, "coarse_labels": [9] * 5},
        "test": {"data": rows(3, 1), "fine_labels": TEST, "coarse_labels": [9] * 3},
        "meta": {"fine_label_names": NAMES, "coarse_label_names": ["thing"]},
    }
    return {name: pickle.dumps(part, protocol=2) for name, part in parts.items()}


def lay_out(root: Path) -> Path:
    (root / FOLDER).mkdir(parents=True)
    for name, content in contents().items():
        (root / FOLDER / name).write_bytes(content)
    return root


@pytest.fixture(autouse=True)
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect the small files, and nothing on this machine but what a test puts there."""
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents().items()}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
    monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:9/{CIFAR100.filename}")  # the discard port
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DYNAMMO_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The archive, in a folder that torchvision downloads from in place of the publisher's."""
    archive = tmp_path / "served" / CIFAR100.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in contents().items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    handler = functools.partial(_Quiet, directory=str(archive.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{http_server.server_port}/{CIFAR100.filename}")
        monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
        yield archive
        http_server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def load(root: Path | None = None) -> Dataset:
    return DATASETS["cifar100"](DataSettings(dataset="cifar100", root=None if root is None else str(root)))


def check(dataset: Dataset) -> None:
    assert dataset.class_names == tuple(NAMES)
    assert dataset.train.labels.tolist() == TRAIN
    assert dataset.test.labels.tolist() == TEST
    assert dataset.test.record_ids == ("test/00000", "test/00001", "test/00002")
    image = dataset.test.source.read(1)
    assert image.shape == (32, 32, 3)
    # row 2, column 3 is value 2 * 32 + 3 = 67 of each colour
    assert image[2, 3].tolist() == rows(3, 1)[1, [67, 1024 + 67, 2048 + 67]].tolist()


def test_the_source_and_the_folder_are_torchvisions() -> None:
    assert (PUBLISHED, CIFAR100.base_folder) == (cifar100.SOURCE, cifar100.FOLDER)


@pytest.mark.parametrize("given", ["root", f"root/{FOLDER}"])
def test_the_files_are_found(tmp_path: Path, given: str) -> None:
    lay_out(tmp_path / "root")
    check(load(tmp_path / given))


def test_the_variable_names_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNAMMO_DATA", str(tmp_path / "shared"))
    lay_out(tmp_path / "shared" / "cifar100")
    check(load())


def test_they_are_downloaded_where_they_are_missing_and_only_once(server: Path, tmp_path: Path) -> None:
    check(load())
    home = tmp_path / "home" / ".cache" / "dynammo" / "cifar100"
    assert sorted(path.relative_to(home).as_posix() for path in home.rglob("*")) == [
        FOLDER,
        *(f"{FOLDER}/{name}" for name in ("meta", "test", "train")),
    ]
    server.unlink()
    check(load())


def test_a_folder_that_lacks_a_file_is_completed(server: Path, tmp_path: Path) -> None:
    (lay_out(tmp_path / "mine") / FOLDER / "meta").unlink()
    check(load(tmp_path / "mine"))


def test_a_damaged_download_leaves_nothing(server: Path, tmp_path: Path) -> None:
    server.write_bytes(server.read_bytes()[:-1])
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
    assert "Fetch https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz" in message
    assert "ROOT/cifar-100-python/ with the files train, test, meta" in message


def test_a_root_that_is_not_there_is_not_papered_over(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"typo is not there.*with the files train, test, meta"):
        load(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_damaged_file_is_refused_before_it_is_unpickled(tmp_path: Path, name: str) -> None:
    file = lay_out(tmp_path) / FOLDER / name
    file.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    with pytest.raises(DataError, match=rf"{FOLDER} is damaged or not CIFAR-100.*Delete the folder"):
        load(tmp_path)
    assert not (tmp_path / "owned").exists()
