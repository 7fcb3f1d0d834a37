"""Small images in ISIC 2019's published layout stand for the 25,331 real ones, which are not there to be tested on."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets import DATASETS, skin8
from dynammo_core.data.samples import Dataset
from dynammo_core.support.errors import DataError

WriteImage = Callable[..., Path]

# the published columns, in their order, and the number of images that ISIC 2019 has of each: 25,331 in all
COUNTS = {"MEL": 4522, "NV": 12875, "BCC": 3323, "AK": 867, "BKL": 2624, "DF": 239, "VASC": 253, "SCC": 628}
HEADER = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
ORDER = ("BKL", "MEL", "DF", "NV", "SCC", "BCC", "AK", "VASC")
TRUTH = "ISIC_2019_Training_GroundTruth.csv"
EACH = 12


def row(name: str, label: str) -> str:
    return ",".join([name, *("1.0" if label == column else "0.0" for column in (*COUNTS, "UNK"))])


def images() -> dict[str, str]:
    """Twelve images of each class, in no order of classes; one has the suffix of those that ISIC made smaller."""
    names = {f"ISIC_{i:07d}": label for i, label in enumerate([*COUNTS] * EACH)}
    return {f"{name}_downsampled" if i == 3 else name: label for i, (name, label) in enumerate(names.items())}


@pytest.fixture
def root(tmp_path: Path, write_image: WriteImage) -> Path:
    for seed, name in enumerate(images()):
        write_image(tmp_path / "ISIC_2019_Training_Input" / f"{name}.jpg", seed, mode="RGB")
    (tmp_path / "ISIC_2019_Training_Input" / "ATTRIBUTION.txt").write_text("CC BY-NC 4.0")
    (tmp_path / TRUTH).write_text("\n".join([HEADER, *(row(*item) for item in images().items())]) + "\n")
    return tmp_path


def load(root: Path) -> Dataset:
    return DATASETS["skin8"](DataSettings(dataset="skin8", root=str(root)))


def write_metadata(root: Path, lesions: dict[str, str]) -> None:
    lines = [f"{name},55.0,anterior torso,{lesions.get(name, '')},female" for name in images()]
    header = "image,age_approx,anatom_site_general,lesion_id,sex"
    (root / "ISIC_2019_Training_Metadata.csv").write_text("\n".join([header, *lines]) + "\n")


def test_the_official_layout_is_split_five_to_one_within_each_class(root: Path) -> None:
    dataset = load(root)
    assert dataset.class_names == ORDER
    assert np.bincount(dataset.train.labels).tolist() == [10] * 8  # 12 - floor(12 / 6)
    assert np.bincount(dataset.test.labels).tolist() == [2] * 8
    for split in (dataset.train, dataset.test):
        assert [images()[name] for name in split.record_ids] == [ORDER[label] for label in split.labels]
    assert {*dataset.train.record_ids, *dataset.test.record_ids} == {*images()}
    assert dataset.test.source.read(0).shape == (8, 8, 3)
    assert dataset.train.sites is None


def test_the_split_does_not_depend_on_the_order_of_the_table(root: Path) -> None:
    before = load(root)
    lines = (root / TRUTH).read_text().splitlines()
    (root / TRUTH).write_text("\n".join([lines[0], *reversed(lines[1:])]))
    assert load(root).test.record_ids == before.test.record_ids


def protocol(sizes: tuple[int, ...]) -> tuple[list[str], list[str], list[str | None]]:
    """The classes of all of ISIC 2019, its lesions of so many images in turn, and the split of them."""
    labels, groups = [], []
    for label, count in COUNTS.items():
        ends = np.cumsum(np.resize(sizes, count))
        labels += [label] * count
        groups += [f"{label} {lesion}" for lesion in np.searchsorted(ends, np.arange(count), side="right")]
    return labels, groups, [*skin8.protocol_split(labels, groups)]


@pytest.mark.parametrize("sizes", [(1,), (1, 2, 1, 4)])
def test_the_numbers_are_the_protocols(sizes: tuple[int, ...]) -> None:
    labels, groups, parts = protocol(sizes)
    counts = Counter(zip(parts, labels, strict=True))
    # method: 3,555 for training, 524 of each of six classes, 200 and 211 of the rare ones; 705 for the test, 104 and
    # 39 = 239 - 200 and 42 = 253 - 211
    assert [counts["train", label] for label in ORDER] == [524, 524, 200, 524, 524, 524, 524, 211]
    assert [counts["test", label] for label in ORDER] == [104, 104, 39, 104, 104, 104, 104, 42]
    assert parts.count("train") == 3555 and parts.count("test") == 705
    sides = {(group, part) for group, part in zip(groups, parts, strict=True)}
    assert len(sides) == len({*groups}), "no lesion in two parts"


def test_images_are_drawn_and_not_taken_from_the_front() -> None:
    labels, _, parts = protocol((1,))
    drawn = [i for i, part in enumerate(parts) if labels[i] == "NV" and part]
    first, last = labels.index("NV"), labels.index("NV") + COUNTS["NV"] - 1
    # 628 of 12,875: the chance that all of them lie in the first or in the last half is 2 ** -628
    assert min(drawn) < (first + last) / 2 < max(drawn)
    tests = [i for i in drawn if parts[i] == "test"]
    assert min(tests) < (first + last) / 2 < max(tests)


def test_a_lesion_stays_on_one_side(root: Path) -> None:
    members = {label: [name for name, own in images().items() if own == label] for label in COUNTS}
    # six lesions of two images each: the two test images of a class are one lesion's
    lesions = {name: f"BCN_{label}{i // 2}" for label, names in members.items() for i, name in enumerate(names)}
    write_metadata(root, lesions)
    dataset = load(root)
    assert np.bincount(dataset.test.labels).tolist() == [2] * 8
    by_lesion = Counter(lesions[name] for name in dataset.test.record_ids)
    assert [*by_lesion.values()] == [2] * 8
    assert not {*by_lesion} & {lesions[name] for name in dataset.train.record_ids}


def test_images_without_a_lesion_are_not_one_lesion(root: Path) -> None:
    write_metadata(root, {})
    with_table = load(root)
    (root / "ISIC_2019_Training_Metadata.csv").unlink()
    assert load(root).test.record_ids == with_table.test.record_ids
    assert np.bincount(with_table.test.labels).tolist() == [2] * 8


def test_copies_of_an_image_stay_on_one_side(root: Path) -> None:
    names = [name for name, label in images().items() if label == "DF"]
    folder = root / "ISIC_2019_Training_Input"
    for one, other in zip(names[::2], names[1::2], strict=True):
        shutil.copy(folder / f"{one}.jpg", folder / f"{other}.jpg")
    dataset = load(root)  # two in one split and ten in the other, else `assemble` refuses it
    chosen = [name for name in dataset.test.record_ids if name in names]
    assert len(chosen) == 2 and names.index(chosen[0]) // 2 == names.index(chosen[1]) // 2


def write_lists(root: Path, train: list[str], test: list[str]) -> None:
    for part, names in (("train", train), ("test", test)):
        lines = [f"Data/{images()[name]}/{name}.jpg {ORDER.index(images()[name])}" for name in names]
        (root / f"skin8_{part}_500.txt").write_text("\n".join(lines) + "\n\n")


def test_the_authors_lists_are_the_split(root: Path) -> None:
    names = [*images()]
    write_lists(root, names[40:60], names[8:16])
    dataset = load(root)
    assert dataset.train.record_ids == tuple(names[40:60])
    assert dataset.test.record_ids == tuple(names[8:16])
    # images come in the order of the columns, MEL first, and are numbered in that of the lists
    assert dataset.test.labels.tolist() == [1, 3, 5, 6, 0, 2, 7, 4]


def test_one_list_alone_is_refused(root: Path) -> None:
    write_lists(root, [*images()][:40], [*images()][40:])
    (root / "skin8_test_500.txt").unlink()
    with pytest.raises(DataError, match=r"skin8_test_500\.txt cannot be read.*both lists.*CL_Pytorch"):
        load(root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Data/MEL/ISIC_0000000.jpg 0", "line 2 of .*test_500.txt gives .*the class 0, and row 2 of .* says MEL"),
        ("Data/MEL/ISIC_0000000.jpg one", "the class one, .*Accepted: 0 for BKL, 1 for MEL"),
        ("Data/MEL/ISIC_9999999.jpg 1", "line 2 of .* names no image of ISIC_2019_Training_GroundTruth.csv"),
        ("ISIC_0000000.jpg", "line 2 of .*'ISIC_0000000.jpg', names no image"),
        ("Data/MEL/ISIC_0000008.jpg 1", "line 2 of .* again, after line 1 of .*test_500.txt"),
        ("Data/MEL/ISIC_0000040.jpg 1", "line 2 of .* again, after line 1 of .*train_500.txt"),
    ],
)
def test_a_bad_line_of_a_list_is_named(root: Path, line: str, message: str) -> None:
    names = [*images()]
    write_lists(root, names[40:60], names[8:16])
    file = root / "skin8_test_500.txt"
    first, _, *others = file.read_text().splitlines()
    file.write_text("\n".join([first, line, *others]))
    with pytest.raises(DataError, match=message):
        load(root)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (row("ISIC_0000001", "NV"), row("ISIC_0000001", "UNK"), "row 3 of .*ISIC_0000001 none of the eight classes"),
        ("ISIC_0000001,0.0,1.0", "ISIC_0000001,1.0,1.0", "row 3 of .* or not one alone"),
        ("ISIC_0000001,0.0,1.0", "ISIC_0000001,0.0,yes", "row 3 of .*Accepted: 1.0 in one of the columns MEL, NV"),
        (row("ISIC_0000001", "NV"), "ISIC_0000001,0.0,1.0", "row 3 of .* not as many values"),
        (row("ISIC_0000001", "NV"), row("ISIC_0000001", "NV") + ",7", "row 3 of .* not as many values"),
        ("ISIC_0000001", "ISIC_0000000", "row 3 of .* names the image ISIC_0000000 again, after row 2"),
        ("ISIC_0000001", "ISIC_7777777", r"ISIC_7777777\.jpg \(row 3 of .*\) cannot be opened"),
        ("image,MEL,NV", "image,MEL,NEV", "no column 'NV'; it has image, MEL, NEV, BCC"),
        (HEADER, HEADER.replace(",", ";"), "GroundTruth.csv are separated by semicolons"),
    ],
)
def test_a_bad_table_is_refused(root: Path, old: str, new: str, message: str) -> None:
    text = (root / TRUTH).read_text()
    assert old in text
    (root / TRUTH).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        load(root)


def test_a_table_that_is_no_text_is_refused(root: Path) -> None:
    (root / TRUTH).write_bytes(b"\xff\xfeimage")
    with pytest.raises(DataError, match=r"GroundTruth\.csv cannot be read.*UTF-8 CSV with the columns image, MEL"):
        load(root)


@pytest.mark.parametrize("lacking", ["", "ISIC_2019_Training_Input", TRUTH])
def test_what_is_missing_is_named_with_its_source_and_layout(root: Path, lacking: str) -> None:
    shutil.move(root / lacking, root.parent / "away")
    with pytest.raises(DataError) as caught:
        load(root)
    message = str(caught.value)
    assert message.startswith(f"{root / lacking} is not there")
    for told in (
        "ROOT/ISIC_2019_Training_Input/<image>.jpg and ROOT/ISIC_2019_Training_GroundTruth.csv",
        "https://challenge.isic-archive.com/data/#2019",
        "ROOT/skin8_train_500.txt",
        "https://github.com/GiantJun/CL_Pytorch",
    ):
        assert told in message
    shutil.move(root.parent / "away", root / lacking)


def test_a_class_with_too_few_images_for_a_test_is_named(root: Path) -> None:
    lines = (root / TRUTH).read_text().splitlines()
    five = [line for line in lines if line in {row(name, "SCC") for name in images()}][:5]
    (root / TRUTH).write_text("\n".join(line for line in lines if not line.endswith("1.0,0.0") or line in five))
    with pytest.raises(DataError, match="the class 'SCC' has 5 training and 0 test images"):
        load(root)


def test_a_split_by_lesion_is_drawn_in_spite_of_the_lists(root: Path) -> None:
    names = [*images()]
    # each lesion has one image in either list
    write_lists(root, names[48:], names[:48])
    write_metadata(root, {name: f"L{i % 48}" for i, name in enumerate(names)})
    published = load(root)
    assert published.notes[0].startswith("48 of 48 test images show a patient or lesion that is also in training")
    drawn = DATASETS["skin8"](DataSettings(dataset="skin8", root=str(root), split="patient"))
    assert drawn.drawn and not published.drawn
    assert not {*drawn.train.patients} & {*drawn.test.patients}
    assert np.bincount(drawn.test.labels).tolist() == [2] * 8
