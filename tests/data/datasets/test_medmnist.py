"""Small files in the published layout; their names, hashes' places and classes are those of the package medmnist."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets import DATASETS
from dynammo_core.data.datasets.medmnist import published_sets
from dynammo_core.data.index.opening import open_dataset
from dynammo_core.data.loading import load_samples
from dynammo_core.data.samples import Dataset
from dynammo_core.support.errors import ConfigError, DataError

Publish = Callable[..., None]


def load(root: Path, *sets: str) -> Dataset:
    return DATASETS["medmnist"](DataSettings(dataset="medmnist", root=str(root), sets=sets or None))


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Write a file as MedMNIST's are and have the package's table name its hash.

    Image i of a part shows the grey level `first + i`, and its class is i modulo the set's classes.
    """
    from medmnist import INFO

    def write(flag: str, *, size: int = 28, train: int = 20, test: int = 10, first: int = 0) -> None:
        suffix = "" if size == 28 else f"_{size}"
        colour = (3,) if INFO[flag]["n_channels"] == 3 else ()
        arrays = {}
        for part, count in (("train", train), ("val", 3), ("test", test)):
            grey = np.arange(first, first + count, dtype=np.uint8).reshape(-1, *[1] * (2 + len(colour)))
            arrays[f"{part}_images"] = np.broadcast_to(grey, (count, size, size, *colour))
            arrays[f"{part}_labels"] = (np.arange(count, dtype=np.uint8) % len(INFO[flag]["label"]))[:, None]
        path = tmp_path / f"{flag}{suffix}.npz"
        np.savez_compressed(path, **arrays)
        monkeypatch.setitem(INFO[flag], f"MD5{suffix}", hashlib.md5(path.read_bytes()).hexdigest())

    return write


def test_one_set_has_its_classes_and_its_published_split(tmp_path: Path, publish: Publish) -> None:
    publish("pathmnist", first=7)
    dataset = load(tmp_path, "pathmnist")
    assert len(dataset.class_names) == 9
    assert dataset.class_names[:3] == ("pathmnist/adipose", "pathmnist/background", "pathmnist/debris")
    assert dataset.train.labels.tolist() == [i % 9 for i in range(20)]
    assert dataset.test.labels.tolist() == [i % 9 for i in range(10)]
    samples = load_samples(dataset.test, [4, 0], 28)
    assert samples.images.shape == (2, 3, 28, 28)
    assert samples.images[:, 0, 0, 0].tolist() == [11, 7]
    assert samples.record_ids == ("pathmnist/test/000004", "pathmnist/test/000000")


def test_sets_in_a_row_keep_their_order_their_images_and_their_colours(tmp_path: Path, publish: Publish) -> None:
    publish("breastmnist", train=4, test=2, first=100)
    publish("bloodmnist", train=8, test=8)
    dataset = load(tmp_path, "breastmnist", "bloodmnist")
    assert [name.split("/")[0] for name in dataset.class_names] == ["breastmnist"] * 2 + ["bloodmnist"] * 8
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, *range(2, 10)]
    samples = load_samples(dataset.train, [3, 4, 11], 28)
    assert samples.images[:, :, 0, 0].tolist() == [[103] * 3, [0] * 3, [7] * 3]  # a grey image beside colours is RGB
    assert samples.labels.tolist() == [1, 2, 9]
    assert load_samples(dataset.train, [1], 28).images.shape == (1, 1, 28, 28)
    assert len(dataset.train.source) == 12


def test_larger_images_have_files_of_their_own(tmp_path: Path, publish: Publish) -> None:
    publish("breastmnist", size=64, first=50)
    publish("octmnist", first=9)
    dataset = load(tmp_path, "breastmnist_64", "octmnist")
    assert dataset.class_names[0] == "breastmnist/malignant"
    assert [dataset.train.source.read(index).shape for index in (0, 20)] == [(64, 64), (28, 28)]
    assert load_samples(dataset.train, [0, 20], 32).images[:, 0, 5, 5].tolist() == [50, 9]


def test_the_rest_of_the_road_takes_it_like_any_other(tmp_path: Path, publish: Publish) -> None:
    publish("breastmnist", train=20)
    settings = DataSettings(
        dataset="medmnist", root=str(tmp_path), sets=("breastmnist",), train_per_class=3, validation_per_class=2
    )
    dataset = open_dataset(settings, 1)
    assert np.bincount(dataset.train.labels).tolist() == [3, 3]
    assert np.bincount(dataset.test.labels).tolist() == [2, 2]
    assert all("/train/" in record for record in dataset.test.record_ids)


def test_every_set_that_can_serve_is_known_in_four_sizes_with_classes_of_its_own() -> None:
    published = published_sets()
    flags = {name for name in published if "_" not in name}
    # twelve 2D sets, of which chestmnist's images have several labels
    assert len(flags) == 11
    assert "chestmnist" not in flags
    assert set(published) == {f"{flag}{suffix}" for flag in flags for suffix in ("", "_64", "_128", "_224")}
    names = [name for flag in flags for name in published[flag].class_names]
    assert len(set(names)) == len(names)
    assert len({part.md5 for part in published.values()}) == len(published)
    assert published["organamnist_224"].url.endswith("organamnist_224.npz?download=1")


def test_files_that_are_missing_are_named_with_their_address(tmp_path: Path, publish: Publish) -> None:
    publish("breastmnist")
    with pytest.raises(DataError) as caught:
        load(tmp_path, "breastmnist", "octmnist_128")
    message = str(caught.value)
    assert f"{tmp_path / 'octmnist_128.npz'} is not there" in message
    assert "ROOT/breastmnist.npz from https://zenodo.org" in message
    assert "ROOT/octmnist_128.npz from https://zenodo.org" in message


def test_a_file_of_other_content_is_refused(tmp_path: Path, publish: Publish) -> None:
    publish("breastmnist")
    path = tmp_path / "breastmnist.npz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"breastmnist\.npz is not MedMNIST's file or is damaged: its MD5 is [0-9a-f]{32}"
    ):
        load(tmp_path, "breastmnist")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ((), r"data\.sets is \[\]\. Accepted: at least one set.*bloodmnist"),
        (("pathmnst",), r"unknown set 'pathmnst' \(did you mean 'pathmnist'\?\)"),
        (("chestmnist",), "unknown set 'chestmnist'"),
        (("organmnist3d",), "unknown set 'organmnist3d'"),
        (("octmnist", "octmnist_64"), r"data\.sets is \['octmnist', 'octmnist_64'\]\. Accepted: .*each in one size"),
    ],
)
def test_sets_that_cannot_serve_are_refused(tmp_path: Path, sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, *sets)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(DataError, match=r"needs the package medmnist.*pip install '\.\[medmnist\]'"):
        load(tmp_path, "pathmnist")
