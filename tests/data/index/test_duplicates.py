from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.records import ImageRecord, assemble
from dynammo_core.data.samples import Dataset
from dynammo_core.support.errors import DataError

WriteImage = Callable[..., Path]
LEFT_OUT = "(data.duplicates: drop)"


def assembled(records: list[ImageRecord], duplicates: str = "refuse", **how: bool) -> Dataset:
    settings = DataSettings(dataset="manifest", duplicates=duplicates)
    return assemble(settings, records, ("a", "b"), "here", absent=True, **how)


@pytest.fixture
def records(tmp_path: Path, write_image: WriteImage) -> list[ImageRecord]:
    """Eight images of two classes, the last four in the test; each is a record of its own and nobody's."""
    return [
        ImageRecord(
            write_image(tmp_path / f"{i}.png", i),
            label="ab"[i % 2],
            record_id=f"r{i}",
            place=f"row {i + 2}",
            split="test" if i > 3 else "train",
        )
        for i in range(8)
    ]


def ids(dataset: Dataset) -> tuple[set[str], set[str]]:
    return {*dataset.train.record_ids}, {*dataset.test.record_ids}


def changed(records: list[ImageRecord], index: int, **fields: object) -> list[ImageRecord]:
    return [ImageRecord(**{**vars(one), **fields}) if i == index else one for i, one in enumerate(records)]


def test_nothing_is_said_of_data_without_duplicates(records: list[ImageRecord]) -> None:
    assert assembled(records, "drop").notes == ()
    assert ids(assembled(records)) == ({"r0", "r1", "r2", "r3"}, {"r4", "r5", "r6", "r7"})


def test_the_same_bytes_under_two_labels_all_go(records: list[ImageRecord]) -> None:
    shutil.copy(records[0].path, records[1].path)
    shutil.copy(records[0].path, records[2].path)
    with pytest.raises(DataError, match=r"has two labels, 1 in all; .*0\.png .* label 'a'.*1\.png .*'b'"):
        assembled(records)
    dataset = assembled(records, "drop")
    assert ids(dataset)[0] == {"r3"}
    assert dataset.notes == (f"left out 3 copies of images that have two labels {LEFT_OUT}",)


def test_copies_of_one_label_on_one_side_stay_and_are_counted_and_named(records: list[ImageRecord]) -> None:
    shutil.copy(records[0].path, records[2].path)
    shutil.copy(records[4].path, records[6].path)
    dataset = assembled(records)
    assert len(dataset.train.labels) == len(dataset.test.labels) == 4
    (note,) = dataset.notes
    assert note.startswith("4 images have the content of another one, and each counts")
    assert "0.png (row 2)" in note and "2.png (row 4)" in note


def test_the_same_bytes_in_training_and_test_leave_training(records: list[ImageRecord]) -> None:
    shutil.copy(records[4].path, records[0].path)
    shutil.copy(records[4].path, records[2].path)
    with pytest.raises(DataError, match=r"the same image .*in training and in the test, 1 in all.*0\.png.*4\.png"):
        assembled(records)
    dataset = assembled(records, "drop")
    assert ids(dataset) == ({"r1", "r3"}, {"r4", "r5", "r6", "r7"})
    assert dataset.notes == (f"left out 2 training images that are in the test too {LEFT_OUT}",)


def test_the_same_record_or_patient_in_training_and_test_leaves_training(records: list[ImageRecord]) -> None:
    same_record = changed(records, 1, record_id="r5")
    with pytest.raises(DataError, match=r"the same record is in training and in the test, 1 in all"):
        assembled(same_record)
    assert ids(assembled(same_record, "drop"))[0] == {"r0", "r2", "r3"}
    same_patient = changed(changed(records, 0, patient="p"), 6, patient="p")
    with pytest.raises(DataError, match=r"the same patient is in training and in the test, 1 in all.*0\.png.*6\.png"):
        assembled(same_patient)
    dataset = assembled(same_patient, "drop")
    assert ids(dataset)[0] == {"r1", "r2", "r3"}
    assert dataset.notes == (f"left out 1 training images of patients in the test {LEFT_OUT}",)


def test_a_published_split_tells_how_many_patients_it_has_on_both_sides(records: list[ImageRecord]) -> None:
    shared = changed(changed(changed(records, 0, patient="p"), 6, patient="p"), 7, patient="p")
    dataset = assembled(shared, tell_patients=True)
    assert len(dataset.train.labels) == 4
    (note,) = dataset.notes
    assert note.startswith("2 of 4 test images show a patient or lesion that is also in training")


@pytest.mark.parametrize("how", ["dots", "symbolic", "hard"])
def test_one_file_under_two_names_is_one_image(records: list[ImageRecord], how: str) -> None:
    path = records[0].path
    other = path.parent / "a" / ".." / path.name if how == "dots" else path.with_name("other.png")
    (path.parent / "a").mkdir()
    if how == "symbolic":
        other.symlink_to(path)
    if how == "hard":
        os.link(path, other)
    twice = changed(records, 2, path=other)
    if how == "hard":  # two files of the same bytes, which is no contradiction
        assert len(assembled(twice).train.labels) == 4
        return
    with pytest.raises(DataError, match=r"the same file is named again, .* 1 in all.*row 2.*row 4"):
        assembled(twice)
    assert ids(assembled(twice, "drop"))[0] == {"r0", "r1", "r3"}


def test_data_split_by_patient_in_spite_of_their_own_split(records: list[ImageRecord]) -> None:
    patients = [ImageRecord(**{**vars(one), "patient": f"p{i // 2}"}) for i, one in enumerate(records)]
    dataset = assemble(DataSettings(dataset="manifest", split="patient"), patients, ("a", "b"), "here", absent=True)
    assert dataset.drawn
    assert not {*dataset.train.patients} & {*dataset.test.patients}
    assert {*dataset.train.patients, *dataset.test.patients} == {"p0", "p1", "p2", "p3"}


def test_two_sites_may_number_their_records_alike(records: list[ImageRecord]) -> None:
    at_sites = [ImageRecord(**{**vars(one), "site": "north" if i < 4 else "south"}) for i, one in enumerate(records)]
    assert len(assembled(changed(at_sites, 1, record_id="r5")).train.labels) == 4
