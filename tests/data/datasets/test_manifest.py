from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets import DATASETS
from dynammo_core.data.loading import load_samples
from dynammo_core.data.samples import Dataset
from dynammo_core.support.errors import DataError

WriteImage = Callable[..., Path]


def load(root: Path, classes: tuple[str, ...] | None = None) -> Dataset:
    return DATASETS["manifest"](DataSettings(dataset="manifest", root=str(root), classes=classes))


@pytest.fixture
def manifest(tmp_path: Path, write_image: WriteImage) -> Callable[[str], Path]:
    """Write the text as a manifest beside images 0.png .. 9.png."""
    for i in range(10):
        write_image(tmp_path / "images" / f"{i}.png", i)

    def write(text: str) -> Path:
        file = tmp_path / "manifest.csv"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def test_all_columns_arrive(manifest: Callable[[str], Path]) -> None:
    file = manifest(
        "\ufeffpath,label,site,split,record_id\n"
        "images/0.png,flu,north,train,A-1\n"
        'images/1.png,"cold, common",south,train,A-2\n'
        "images/2.png,flu,south,test,A-3\n"
        'images/3.png,"cold, common",north,test,A-4\n'
    )
    dataset = load(file)
    assert dataset.class_names == ("cold, common", "flu")
    assert dataset.train.labels.tolist() == [1, 0]
    assert dataset.train.sites == ("north", "south")
    assert dataset.test.sites == ("south", "north")
    assert dataset.test.record_ids == ("A-3", "A-4")
    assert load(file.parent).test.record_ids == ("A-3", "A-4"), "a folder stands for its manifest.csv"


def test_without_a_split_column_images_are_split(manifest: Callable[[str], Path]) -> None:
    dataset = load(manifest("path,label\n" + "".join(f"images/{i}.png,{'ab'[i % 2]}\n" for i in range(10))))
    assert {*dataset.train.labels.tolist()} == {*dataset.test.labels.tolist()} == {0, 1}
    assert {*dataset.train.record_ids, *dataset.test.record_ids} == {f"images/{i}.png" for i in range(10)}
    assert dataset.train.sites is None


def test_a_broken_image_is_named_with_its_row(manifest: Callable[[str], Path]) -> None:
    file = manifest("path,label,split\nimages/0.png,a,train\nimages/1.png,a,train\nimages/2.png,a,test\n")
    broken = file.parent / "images" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"images/1\.png \(row 3 of .*manifest\.csv\) cannot be read"):
        load_samples(load(file).train, [0, 1], 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nimages/77.png,a\n", r"77\.png \(row 2 of .*\) cannot be opened"),
        ("path,label\nimages/0.png,a\nimages/1.png\n", "row 3 of .* not as many values"),
        ("path,label\nimages/0.png,a,b\n", "row 2 of .* not as many values"),
        ("path,label\nimages/0.png,\n", "row 2 of .* no value for 'label'"),
        ("path,label,split\nimages/0.png,a,val\n", "row 2 of .* split 'val'.*Accepted: train, test"),
        ("path,label\nimages/0.png,a\nimages/0.png,b\n", "two labels, 1 in all.* .row 2 of .* 'a'.* .row 3 of .* 'b'"),
        ("path,label\nimages/0.png,a\nimages/1.png,a\nimages/../images/0.png,a\n", "named again.*row 2 .*row 4 "),
        ("path,label,splt\nimages/0.png,a,train\n", "a column 'splt' .did you mean 'split'"),
        ("path,label,label\nimages/0.png,a,b\n", "the column 'label' twice"),
        ("path;label\nimages/0.png;a\n", "separated by semicolons: its header is 'path;label'.*CSV UTF-8"),
        ("path\nimages/0.png\n", "no column 'label'"),
        ("path,label\n", "names no images"),
        ("", "no column 'path'"),
        ('path,label\n"images/0.png,a\n', "cannot be read"),
        ("path,label,split\nimages/0.png,a,train\n", "the class 'a' has 1 training and 0 test images"),
    ],
)
def test_a_bad_manifest_is_refused(manifest: Callable[[str], Path], text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(manifest(text))


def test_a_path_of_windows_is_refused_with_the_one_that_is_meant(manifest: Callable[[str], Path]) -> None:
    file = manifest("path,label,split\nimages\\0.png,a,train\nimages/2.png,a,test\n")
    with pytest.raises(DataError, match=r"row 2 of .* has the path .*Accepted: images/0.png. Write / in place of"):
        load(file)
    (file.parent / "images\\0.png").write_bytes((file.parent / "images" / "0.png").read_bytes())
    assert load(file).train.record_ids == ("images\\0.png",), "elsewhere \\ is a letter of a name"


def test_labels_are_checked_against_the_registry(manifest: Callable[[str], Path]) -> None:
    file = manifest("path,label\n" + "".join(f"images/{i}.png,{'flu' if i < 9 else 'flue'}\n" for i in range(10)))
    with pytest.raises(DataError, match=r"'flue' of .*9\.png \(row 11 of .*not in the registry.*did you mean 'flu'"):
        load(file, classes=("flu", "cold"))


def test_no_manifest_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.csv is not there.*columns path, label and, optionally, split"):
        load(tmp_path)


def test_a_manifest_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(DataError, match=r"m\.csv cannot be read.*UTF-8"):
        load(file)


def test_patients_arrive_and_stay_on_one_side(manifest: Callable[[str], Path]) -> None:
    rows = "".join(f"images/{i}.png,{'ab'[i % 2]},patient {i // 4}\n" for i in range(10))
    dataset = load(manifest(f"path,label,patient\n{rows}"))
    assert dataset.drawn
    assert not {*dataset.train.patients} & {*dataset.test.patients}
    assert {*dataset.train.patients, *dataset.test.patients} == {"patient 0", "patient 1", "patient 2"}


def test_columns_of_a_clinical_export_are_named_and_not_read(manifest: Callable[[str], Path]) -> None:
    rows = "".join(f"{30 + i},images/{i}.png,a,lungs,\n" for i in range(5))
    dataset = load(manifest(f"patient_age,path,label,remarks on the case,\n{rows}"))
    (note,) = dataset.notes
    assert note.endswith("manifest.csv that are not read: patient_age, remarks on the case, one without a name")
    assert dataset.train.patients == ()


@pytest.mark.parametrize(
    ("column", "meant"),
    [
        ("pateint", "patient"),
        ("Patient", "patient"),
        ("patient_id", "patient"),
        ("Patient No.", "patient"),
        ("slpit", "split"),
        ("stie", "site"),
    ],
)
def test_a_column_that_looks_misspelt_is_refused(manifest: Callable[[str], Path], column: str, meant: str) -> None:
    with pytest.raises(DataError, match=rf"a column '{column}' \(did you mean '{meant}'\?\).*Rename it to '{meant}'"):
        load(manifest(f"path,label,{column}\nimages/0.png,a,x\n"))


@pytest.mark.parametrize("column", ["set", "subset of the study"])
def test_a_split_by_another_name_is_not_passed_over(manifest: Callable[[str], Path], column: str) -> None:
    rows = [f"images/{i}.png,a,{'Test' if i < 2 else 'training'}\n" for i in range(6)]
    with pytest.raises(DataError, match=rf"column '{column}' of .* says what is for training.*Rename it to split"):
        load(manifest(f"path,label,{column}\n{''.join(rows)}"))
    rows[0] = "images/0.png,a,contrast test\n"
    assert load(manifest(f"path,label,{column}\n{''.join(rows)}")).drawn


@pytest.mark.parametrize(
    ("column", "values"), [("patient", ("p1", "P1")), ("patient", ("7", "007")), ("site", ("a b", "A  b"))]
)
def test_a_patient_or_site_that_is_spelt_in_two_ways_is_refused(
    manifest: Callable[[str], Path], column: str, values: tuple[str, str]
) -> None:
    rows = "".join(f"images/{i}.png,a,{values[i % 2]}\n" for i in range(4))
    said = rf"the {column} of .*0\.png \(row 2 .* and the {column} of .*1\.png \(row 3 .* differ in nothing but case"
    with pytest.raises(DataError, match=said) as caught:
        load(manifest(f"path,label,{column}\n{rows}"))
    assert not set(values) & set(str(caught.value).split())


def test_a_column_like_a_known_one_beside_it_is_another(manifest: Callable[[str], Path]) -> None:
    rows = "".join(f"images/{i}.png,a,p{i},Jane {i}\n" for i in range(4))
    assert load(manifest(f"path,label,patient,patients\n{rows}")).train.patients


@pytest.mark.parametrize("missing", ["nan", "NA", "#N/A", "null", " "])
@pytest.mark.parametrize("column", ["patient", "site", "record_id"])
def test_a_missing_value_is_no_value(manifest: Callable[[str], Path], column: str, missing: str) -> None:
    with pytest.raises(DataError, match=rf"row 3 of .* has no value for '{column}'"):
        load(manifest(f"path,label,{column}\nimages/0.png,a,x\nimages/1.png,a,{missing}\n"))


def test_labels_that_are_missing_or_spelt_in_two_ways_are_refused(manifest: Callable[[str], Path]) -> None:
    with pytest.raises(DataError, match=r"1 images in .* have the label 'nan'"):
        load(manifest("path,label\nimages/0.png,flu\nimages/1.png,nan\n"))
    with pytest.raises(DataError, match=r"'Flu' \(1 images\) and 'flu' \(1 images\)"):
        load(manifest("path,label\nimages/0.png,flu\nimages/1.png,Flu\n"))


def test_rows_are_right_after_blank_lines_and_quoted_line_breaks(manifest: Callable[[str], Path]) -> None:
    text = 'path,label,record_id\n\nimages/0.png,a,"one\ntwo"\n\nimages/77.png,a,x\n'
    with pytest.raises(DataError, match=r"77\.png \(row 5 of "):
        load(manifest(text))
