"""What the files of a run say is what was written there, whatever the classes are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.run_directory.directory import RunDirectory
from server.run_directory.run_files import RunFiles


@pytest.mark.parametrize(
    "name", ["a\nb", "a\u2028b", "a\x85b", 'a, "b"'], ids=["line feed", "line separator", "next line", "quotes"]
)
def test_a_class_keeps_its_name(name: str, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.log("run_started", tasks=[[name, "c"]])
    counts = {"site": 0, "after_task": 1, "true": name, "predicted": "c", "count": 3}
    directory.write_csv("confusion_matrix.csv", list(counts), [counts])
    confusion = RunFiles.read(tmp_path).confusion
    assert confusion is not None
    assert confusion.tolist() == [[[[0, 3], [0, 0]]]]
