"""The data sheet and the page with images, of data sets that the tests write."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.opening import open_dataset
from dynammo_core.data.samples import Dataset
from dynammo_core.data.sheet.contact_sheet import PRIVATE, THUMBNAIL, contact_sheet
from dynammo_core.data.sheet.data_sheet import ClassRow, data_sheet
from dynammo_core.data.sheet.tables import sheet_tables, warnings_in

RANDOM = np.random.default_rng(0)


def write(path: Path, height: int = 10, width: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def clinic(tmp_path: Path) -> Dataset:
    """Two classes of two patients each at two sites: an image of 16 bits, one twice, one not square, one odd column."""
    rows = ["path,label,split,patient,site,device"]
    for number in range(8):
        name = f"{number}.png"
        write(tmp_path / name, width=20 if number == 5 else 10)
        label = "melanoma <b>" if number < 4 else "naevus"
        rows.append(f"{name},{label},{'test' if number // 2 % 2 else 'train'},p{number // 2},s{number % 2},x")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes())
    tifffile.imwrite(tmp_path / "4.png", np.arange(100, dtype=np.uint16).reshape(10, 10))
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    return open_dataset(DataSettings(dataset="manifest", root=str(tmp_path)), 0)


def test_everything_is_counted(clinic: Dataset) -> None:
    told: list[tuple[int, int]] = []
    sheet = data_sheet(clinic, lambda done, total: told.append((done, total)))
    assert told == [(4, 8), (8, 8)]
    assert sheet.classes == (ClassRow("melanoma <b>", 2, 2, 2), ClassRow("naevus", 2, 2, 2))
    assert (sheet.images, sheet.files, sheet.patients, sheet.most_of_a_patient) == (8, 8, 4, 2)
    assert sheet.sites == {"s0": 4, "s1": 4}
    assert sheet.split == "the data"
    assert sheet.formats == {"PNG": 7, "TIFF": 1}
    assert sheet.bits == {"8": 7, "16": 1}
    assert sheet.modes == {"RGB": 7, "MINISBLACK": 1}
    assert sheet.sizes == {"smallest": (10, 10), "median": (10, 10), "largest": (20, 10)}
    assert (sheet.not_square, sheet.unreadable, sheet.repeated, sheet.patients_in_both) == (1, 0, 2, 0)
    assert any("device" in note for note in sheet.notes)
    words = " ".join([*warnings_in(sheet), *sheet.notes])
    assert "1 images have more than 8 bits" in words
    assert words.count("2 images have the content of another one") == 1


def test_patients_on_both_sides_are_counted(clinic: Dataset) -> None:
    """As published splits may have them: 0 and 1 show p0, which a test image now shows too."""
    test = replace(clinic.test, patients=("p0", *clinic.test.patients[1:]))
    sheet = data_sheet(replace(clinic, test=test))
    assert (sheet.patients, sheet.patients_in_both, sheet.most_of_a_patient) == (4, 1, 3)
    assert "1 patients have images for training and for the test" in warnings_in(sheet)


def test_json_names_no_file_and_no_patient(clinic: Dataset) -> None:
    text = json.dumps(data_sheet(clinic).as_fields())
    assert ".png" not in text
    assert '"p0"' not in text
    assert json.loads(text)["images"] == 8


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit(clinic: Dataset, width: int) -> None:
    output = Console(width=width, file=io.StringIO())
    for table in sheet_tables(data_sheet(clinic)):
        output.print(table)
    lines = output.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert "melanoma <b>" in "\n".join(lines)


def test_images_in_arrays_have_a_sheet_too() -> None:
    sheet = data_sheet(open_dataset(DataSettings(dataset="digits"), 0))
    assert (sheet.images, sheet.files, sheet.patients, sheet.repeated) == (1797, 0, None, 0)
    assert sheet.bits == {"8": 1797}
    assert sheet.sizes["largest"] == (8, 8)


def test_names_that_are_nearly_the_same_are_paired(tmp_path: Path) -> None:
    for name in ("melanoma", "melanom", "naevus"):
        for number in range(3):
            write(tmp_path / name / f"{number}.png")
    sheet = data_sheet(open_dataset(DataSettings(dataset="image_folder", root=str(tmp_path)), 0))
    assert sheet.near_names == (("melanoma", "melanom"),)
    assert sheet.split == "this project, by patient or content"


class _References(HTMLParser):
    """Gathers every address that a page names."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset", "poster")]
        assert tag not in ("script", "link", "iframe", "object", "base", "b")


def test_the_page_holds_its_images_and_refers_to_nothing_outside(clinic: Dataset) -> None:
    page = contact_sheet(clinic, replace(data_sheet(clinic), notes=()), "clinic & co", per_class=2)
    assert PRIVATE in page
    assert "clinic &amp; co" in page
    assert "melanoma &lt;b&gt;" in page
    references = _References()
    references.feed(page)
    assert len(references.found) == 3  # of two naevi, one has 16 bits and no window
    assert "cannot be shown" in page
    for reference in references.found:
        kind, _, data = reference.partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.size == (THUMBNAIL, THUMBNAIL)
    assert not re.search(r"url\(|@import|https?:", page)
    assert ".png" not in page
    assert ">p0<" not in page
