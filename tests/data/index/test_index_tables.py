from __future__ import annotations

from pathlib import Path

import pytest

from dynammo_core.data.index.tables import read_csv
from dynammo_core.support.errors import DataError


def read(tmp_path: Path, content: bytes) -> dict[str, dict[str, str]]:
    file = tmp_path / "table.csv"
    file.write_bytes(content)
    return {row.place.removesuffix(f" of {file}"): dict(row.values) for row in read_csv(file, "a table").rows}


def test_rows_have_the_numbers_of_a_spreadsheet(tmp_path: Path) -> None:
    content = b'\n a ,b\n1,"two\nlines"\n\n,,\n"3",4\n   \n5,6\n'
    # blank rows count, and a cell with a line break is in one row
    with pytest.raises(DataError, match=r"row 5 of .*table\.csv has not as many values as the header: 3, not 2"):
        read(tmp_path, content.replace(b"\n,,\n", b"\nx,,\n"))
    rows = read(tmp_path, content)
    assert rows == {
        "row 3": {"a": "1", "b": "two\nlines"},
        "row 6": {"a": "3", "b": "4"},
        "row 8": {"a": "5", "b": "6"},
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf8_is_read_with_and_without_its_mark(tmp_path: Path, encoding: str) -> None:
    assert read(tmp_path, "ä,b\n1,2\n".encode(encoding)) == {"row 2": {"ä": "1", "b": "2"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\nä,b\n".encode("utf-16"), r"it is not UTF-8 \(line 1\) but UTF-16\. .*a table.*CSV UTF-8"),
        ("path,label\na,b\n".encode("utf-16-le"), "it is UTF-16 without a byte order mark"),
        ("path,label\na,b\ncafé,x\n".encode("cp1252"), r"not UTF-8 \(line 3\) but perhaps Windows-1252"),
        (b"path;label\na;b\n", r"are separated by semicolons: its header is 'path;label'.*Save it again as CSV"),
        (b"PK\x03\x04\x14\0\x06\0", "it is an Excel workbook.*Save it again as CSV"),
        (b"path\tlabel\na\tb\n", "are separated by tabs"),
        (b"path,label,path\n", "has the column 'path' twice"),
        (b'path,label\n"a,b\n', r"cannot be read: line \d"),
    ],
)
def test_another_format_is_named_with_the_remedy(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)
