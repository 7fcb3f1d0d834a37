"""Small images and a table in FLamby's published layout stand for the 23,247 real ones, which are not there to test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets import DATASETS
from dynammo_core.data.samples import Dataset
from dynammo_core.data.sites.site_partition import partition_sites
from dynammo_core.support.errors import DataError

WriteImage = Callable[..., Path]

HEADER = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK,target,center,fold,fold2"
CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
CENTRES = ("BCN", "HAM_vidir_molemax", "HAM_vidir_modern", "HAM_rosendahl", "MSK", "HAM_vienna_dias")
RAW, PREPROCESSED = "ISIC_2019_Training_Input", "ISIC_2019_Training_Input_preprocessed"


def row(name: str, target: int, centre: int, fold: str) -> str:
    one_hot = ["1.0" if target == i else "0.0" for i in range(9)]
    return ",".join([name, *one_hot, str(target), str(centre), fold, f"{fold}_{centre}"])


def rows() -> list[tuple[str, int, int, str]]:
    """Forty-eight images with the eight classes and the six centres in turn; two rounds of classes are for the test."""
    return [(f"ISIC_{70 + i:07d}", i % 8, i % 6, "test" if i < 16 else "train") for i in range(48)]


@pytest.fixture
def root(tmp_path: Path, write_image: WriteImage) -> Path:
    for seed, (name, *_) in enumerate(rows()):
        write_image(tmp_path / RAW / f"{name}.jpg", seed, mode="RGB")
    (tmp_path / "train_test_split").write_text("\n".join([HEADER, *(row(*values) for values in rows())]) + "\n")
    return tmp_path


def load(root: Path) -> Dataset:
    return DATASETS["fed_isic2019"](DataSettings(dataset="fed_isic2019", root=str(root)))


def test_the_published_split_and_centres_are_taken(root: Path) -> None:
    dataset = load(root)
    assert dataset.class_names == CLASSES
    for fold, split in (("train", dataset.train), ("test", dataset.test)):
        expected = [values for values in rows() if values[3] == fold]
        assert list(split.record_ids) == [name for name, *_ in expected]
        assert split.labels.tolist() == [target for _, target, *_ in expected]
        assert split.sites == tuple(CENTRES[centre] for _, _, centre, _ in expected)


def test_each_centre_is_a_site(root: Path) -> None:
    dataset = load(root)
    sites = partition_sites(dataset, FederationSettings(sites=6, partition="natural"), seed=1)
    # 32 training images, of centre (16 + j) % 6 for j = 0..31: the first two of these, 4 and 5, have a sixth image;
    # sites stand in the order of their names, BCN = 0, rosendahl = 3, molemax = 1, modern = 2, vienna = 5, MSK = 4
    assert [len(part) for part in sites.train] == [5, 5, 5, 5, 6, 6]
    for part in sites.train:
        assert len({(dataset.train.sites or ())[i] for i in part.tolist()}) == 1


def test_fold2_deals_the_images_and_not_fold(root: Path) -> None:
    file = root / "train_test_split"
    file.write_text(file.read_text().replace(",train,", ",test,").replace(",fold,", ",other,"))
    assert len(load(root).train.labels) == 32


def test_preprocessed_images_come_before_the_published_ones(root: Path, write_image: WriteImage) -> None:
    for seed, (name, *_) in enumerate(rows()):
        write_image(root / PREPROCESSED / f"{name}.jpg", seed, size=(16, 12), mode="RGB")
    assert load(root).train.source.read(0).shape == (12, 16, 3)
    (root / RAW).rename(root / "elsewhere")
    assert Counter(load(root).test.sites or ()) == Counter(CENTRES[i % 6] for i in range(16))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ",target,center,",
            ",target,centre,",
            "no column 'center'; it has image, MEL, .*, target, centre, fold, fold2",
        ),
        (
            ",0,0,test,test_0",
            ",8,0,test,test_0",
            r"row 2 of .*train_test_split has target '8', center '0', fold2 'test_0'",
        ),
        (",0,0,test,test_0", ",0,6,test,test_6", "row 2 of .* center '6'.*center 0..5"),
        (",0,0,test,test_0", ",0,0,test,test_1", "row 2 of .* fold2 'test_1'.*the number of the center"),
        (",0,0,test,test_0", ",0,0,val,val_0", "row 2 of .* fold2 'val_0'.*train_ or test_"),
        (",0,0,test,test_0", ",0,-1,test,test_-1", "row 2 of .* center '-1'"),
        ("ISIC_0000071", "ISIC_0000070", "row 3 of .* names the image ISIC_0000070 again"),
        ("ISIC_0000071", "ISIC_9999999", r"ISIC_9999999\.jpg \(row 3 of .*\) cannot be opened"),
    ],
)
def test_a_table_that_is_not_flambys_is_refused(root: Path, old: str, new: str, message: str) -> None:
    file = root / "train_test_split"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        load(root)


def test_a_class_that_no_centre_tests_is_named(root: Path) -> None:
    kept = [row(*values) for values in rows() if values[1] != 7 or values[3] == "train"]
    (root / "train_test_split").write_text("\n".join([HEADER, *kept]))
    with pytest.raises(DataError, match="the class 'SCC' has 4 training and 0 test images"):
        load(root)


@pytest.mark.parametrize("lacking", [RAW, "train_test_split"])
def test_what_is_missing_is_named_with_its_source_and_layout(root: Path, lacking: str) -> None:
    (root / lacking).rename(root / "away")
    with pytest.raises(DataError) as caught:
        load(root)
    message = str(caught.value)
    assert message.startswith(f"{root / lacking} is not there")
    for told in (
        "ROOT/train_test_split",
        "https://github.com/owkin/FLamby/blob/main/flamby/datasets/fed_isic2019/dataset_creation_scripts",
        f"ROOT/{PREPROCESSED}/<image>.jpg",
        f"ROOT/{RAW}/<image>.jpg, from https://challenge.isic-archive.com/data/#2019",
    ):
        assert told in message


def with_metadata(root: Path, lesions: dict[str, str]) -> None:
    lines = [f"{name},55,torso,{lesions.get(name, '')},female" for name, *_ in rows()]
    (root / "ISIC_2019_Training_Metadata.csv").write_text(
        "\n".join(["image,age_approx,anatom_site_general,lesion_id,gender", *lines])
    )


def test_the_published_split_is_run_with_what_it_has_twice_and_says_so(root: Path) -> None:
    """Image 0 is for the test, and images 16 and 24, of its class, are for training."""
    names = [name for name, *_ in rows()]
    with_metadata(root, {names[0]: "L1", names[24]: "L1", names[16]: "L2", names[1]: "L3", names[17]: "L3"})
    (root / RAW / f"{names[16]}.jpg").write_bytes((root / RAW / f"{names[0]}.jpg").read_bytes())
    with pytest.raises(DataError, match=r"in training and in the test, 1 in all.*data\.duplicates: drop"):
        load(root)
    settings = DataSettings(dataset="fed_isic2019", root=str(root), duplicates="drop")
    dataset = DATASETS["fed_isic2019"](settings)
    assert {*names} - {*dataset.train.record_ids, *dataset.test.record_ids} == {names[16]}
    dropped, told = dataset.notes
    assert dropped.startswith("left out 1 training images that are in the test too")
    assert told.startswith("2 of 16 test images show a patient or lesion that is also in training")


def test_lesions_can_be_split_beside_the_published_split(root: Path) -> None:
    names = [name for name, *_ in rows()]
    with_metadata(root, {name: f"L{i % 24}" for i, name in enumerate(names)})
    dataset = DATASETS["fed_isic2019"](DataSettings(dataset="fed_isic2019", root=str(root), split="patient"))
    assert dataset.drawn and dataset.notes == ()
    assert not {*dataset.train.patients} & {*dataset.test.patients}
    assert {*dataset.train.patients, *dataset.test.patients} == {f"L{i}" for i in range(24)}
