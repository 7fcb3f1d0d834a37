"""What a hospital's folder may look like: what is taken, what is passed over and told, and what is refused."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets import DATASETS
from dynammo_core.data.index.opening import open_own
from dynammo_core.data.samples import Dataset
from dynammo_core.support.errors import DataError

WriteClasses = Callable[..., Path]
WriteImage = Callable[..., Path]


def load(root: Path, **settings: object) -> Dataset:
    return DATASETS["image_folder"](DataSettings(dataset="image_folder", root=str(root), **settings))


def counts(dataset: Dataset) -> tuple[Counter[str], Counter[str]]:
    train, test = (
        Counter(dataset.class_names[label] for label in part.labels.tolist()) for part in (dataset.train, dataset.test)
    )
    return train, test


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("TRAIN", "test"), ("Training", "Testing")])
def test_the_two_parts_may_be_spelt_in_any_usual_way(
    tmp_path: Path, write_classes: WriteClasses, train: str, test: str
) -> None:
    write_classes(tmp_path / train, {"flu": 3, "cold": 2})
    write_classes(tmp_path / test, {"flu": 1, "cold": 2}, first_seed=100)
    dataset = load(tmp_path)
    assert counts(dataset) == (Counter(flu=3, cold=2), Counter(flu=1, cold=2))
    assert dataset.notes == () and not dataset.drawn


@pytest.mark.parametrize("name", ["val", "Valid", "validation"])
def test_validation_takes_no_part_and_is_counted(tmp_path: Path, write_classes: WriteClasses, name: str) -> None:
    write_classes(tmp_path / "train", {"a": 2})
    write_classes(tmp_path / "test", {"a": 2}, first_seed=10)
    write_classes(tmp_path / name, {"a": 5}, first_seed=20)
    assert load(tmp_path).notes == (f"passed over: {name}/ (5 images), which is neither train nor test",)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(DataError, match=rf"train has no test/ beside it.*Rename {name}/ to test/"):
        load(tmp_path)


def test_what_is_passed_over_is_counted_and_named(
    tmp_path: Path, write_classes: WriteClasses, write_image: WriteImage
) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    for place in (".ipynb_checkpoints/0.png", "a/.ipynb_checkpoints/0.png", "__MACOSX/a/0.png", "a/._0.png"):
        write_image(tmp_path / place, 50)
    write_image(tmp_path / "lost.png", 51)
    for name in ("a/x.svs", "a/y.SVS", "b/z.txt", "b/README"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "lost class").symlink_to(tmp_path / "nowhere")
    (tmp_path / "nevus.zip").write_text("no folder")
    (tmp_path / "empty").mkdir()
    dataset = load(tmp_path, classes=("a", "b", "empty"))
    assert sum(counts(dataset), Counter()) == Counter(a=4, b=4)
    passed_over, empty = dataset.notes
    assert empty == "class folders without images: empty"
    for words in (
        "files of other kinds: 2 .svs, 1 .txt, 1 .zip, 1 without an extension",
        "hidden or of the system: ._0.png, .ipynb_checkpoints, .ipynb_checkpoints, __MACOSX",
        f"links to nothing: {tmp_path}/a/gone.png, {tmp_path}/lost class",
        "images in no class folder: lost.png",
    ):
        assert words in passed_over


def test_links_to_files_and_folders_are_followed_and_none_twice(
    tmp_path: Path, write_classes: WriteClasses, write_image: WriteImage
) -> None:
    archive = write_classes(tmp_path / "archive", {"scans": 3})
    write_classes(tmp_path / "root", {"a": 2, "b": 3}, first_seed=10)
    (tmp_path / "root" / "a" / "linked").symlink_to(archive / "scans")
    (tmp_path / "root" / "b" / "loop").symlink_to(tmp_path / "root" / "b")
    (tmp_path / "root" / "c").symlink_to(write_classes(tmp_path / "elsewhere", {"c": 2}, first_seed=20) / "c")
    dataset = load(tmp_path / "root")
    assert sum(counts(dataset), Counter()) == Counter(a=5, b=3, c=2)
    (note,) = dataset.notes
    assert note.endswith(f"folders that were searched before under another name: {tmp_path}/root/b/loop")


@pytest.mark.parametrize("wanted", ["refuse", "drop"])
def test_a_file_in_two_places_by_a_link_is_one_image(tmp_path: Path, write_classes: WriteClasses, wanted: str) -> None:
    write_classes(tmp_path, {"a": 4})
    (tmp_path / "a" / "again.png").symlink_to(tmp_path / "a" / "000.png")
    if wanted == "refuse":
        with pytest.raises(DataError, match=r"named again, by another path or by a link, 1 in all.*duplicates: drop"):
            load(tmp_path)
        return
    dataset = load(tmp_path, duplicates="drop")
    assert sum(counts(dataset), Counter()) == Counter(a=4)
    assert dataset.notes == ("left out 1 second names of the same file (data.duplicates: drop)",)


# --- roots that are not what they seem


def test_a_root_one_level_too_high_is_refused(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path / "set" / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "set" / "test", {"a": 2, "b": 2}, first_seed=10)
    with pytest.raises(DataError, match=rf"would be a class, and holds test/ and train/.*data\.root to {tmp_path}/set"):
        load(tmp_path)
    for part in ("train", "test"):
        (tmp_path / "set" / part).rename(tmp_path / "set" / f"folder {part}")
    with pytest.raises(DataError, match=rf"set is the only class folder, and holds folders.*root to {tmp_path}/set"):
        load(tmp_path)
    with pytest.raises(DataError, match="is the only class folder"):
        open_own(DataSettings(dataset="image_folder", root=str(tmp_path), classes=("a", "b")), 0)


@pytest.mark.parametrize(
    "names", [("train_images", "test_images"), ("Trainingsdaten", "Testdaten"), ("imgTrain", "imgTest")]
)
def test_parts_by_other_names_are_no_classes(tmp_path: Path, write_classes: WriteClasses, names: tuple[str]) -> None:
    write_classes(tmp_path, dict.fromkeys((*names, "other"), 4))
    with pytest.raises(
        DataError, match=rf"{names[0]} and .*{names[1]} would be classes.*Rename them to train and test"
    ):
        load(tmp_path)
    assert len(load(tmp_path, classes=(*names, "other")).class_names) == 3, "a person may say so"


def test_class_names_that_only_sound_like_parts_are_classes(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path, {"strain": 4, "testis": 4, "intestine": 4})
    assert load(tmp_path).class_names == ("intestine", "strain", "testis")


def test_the_folders_of_hospitals_are_no_classes(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path / "berlin", {"melanoma": 3, "nevus": 3, "bcc": 3})
    write_classes(tmp_path / "paris", {"melanoma": 3, "nevus": 3}, first_seed=20)
    said = r"berlin, paris in .* would be classes, and all hold melanoma, nevus.*data\.root to .*berlin"
    with pytest.raises(DataError, match=said):
        load(tmp_path)
    with pytest.raises(DataError, match=said):
        open_own(DataSettings(dataset="image_folder", root=str(tmp_path), classes=("melanoma", "nevus")), 0)
    assert load(tmp_path, classes=("berlin", "paris")).class_names == ("berlin", "paris")


def test_patients_folders_of_a_single_class_are_no_classes(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path / "melanoma", {"patient 1": 2, "patient 2": 2})
    assert sum(counts(load(tmp_path, classes=("melanoma", "nevus"))), Counter()) == Counter(melanoma=4)


def test_a_root_one_level_too_low_is_refused(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path / "Training", {"a": 4, "b": 4})
    write_classes(tmp_path / "Testing", {"a": 4, "b": 4}, first_seed=10)
    with pytest.raises(DataError, match=rf"Training has Testing/ beside it.*data\.root to {tmp_path}\."):
        load(tmp_path / "Training")
    with pytest.raises(DataError, match="holds no class folders, and 4 images, as a class folder does"):
        load(tmp_path / "Training" / "a")


def test_classes_beside_the_parts_and_a_part_twice_are_refused(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path / "train", {"a": 2})
    write_classes(tmp_path / "test", {"a": 2}, first_seed=10)
    write_classes(tmp_path, {"melanoma": 2}, first_seed=20)
    with pytest.raises(DataError, match=r"melanoma lies beside train/ and test/, and is neither.*Take it away"):
        load(tmp_path)
    (tmp_path / "melanoma").rename(tmp_path / "Train")
    with pytest.raises(DataError, match=r"Train and .*train are both for train.*Join the two"):
        load(tmp_path)


# --- names


@pytest.mark.parametrize("place", ["a/caf\udce9.png", "kn\udcf6tchen/0.png"])
def test_a_name_that_is_no_utf8_is_refused_before_anything_is_learnt(
    tmp_path: Path, write_classes: WriteClasses, place: str
) -> None:
    write_classes(tmp_path, {"a": 3})
    target = tmp_path / place
    target.parent.mkdir(exist_ok=True)
    shutil.copy(tmp_path / "a" / "000.png", os.fsencode(target))
    with pytest.raises(DataError, match=r"the name '.*\\x.*' is not UTF-8.*Rename it") as caught:
        load(tmp_path)
    assert str(caught.value).isascii()


def test_folders_that_spell_one_class_in_two_ways_are_refused(tmp_path: Path, write_classes: WriteClasses) -> None:
    write_classes(tmp_path / "train", {"Nevus": 3})
    write_classes(tmp_path / "test", {"nevus": 2}, first_seed=10)
    with pytest.raises(DataError, match=r"'Nevus' \(3 images\) and 'nevus' \(2 images\)"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"'Nevus' \(3 images\) and 'nevus' \(2 images\)"):
        open_own(DataSettings(dataset="image_folder", root=str(tmp_path)), 0)


def test_a_class_that_differs_from_the_registry_in_case_stops_a_site(
    tmp_path: Path, write_classes: WriteClasses
) -> None:
    write_classes(tmp_path, {"Nevus": 3})
    with pytest.raises(DataError, match=r"'nevus' \(0 images\) and 'Nevus' \(3 images\)"):
        open_own(DataSettings(dataset="image_folder", root=str(tmp_path), classes=("nevus", "melanoma")), 0)
