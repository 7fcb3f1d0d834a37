"""The model card says what the run's files say, and is not made where they contradict each other."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import Finished

from dynammo_core.deployed.model_files import ModelFiles
from dynammo_core.methods import METHODS
from dynammo_core.support.errors import RunError
from server.report.model_card import model_card


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Path:
    """The files of a finished run, to be changed."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "events.jsonl", "summary.json", "model.json", "model.safetensors"):
        shutil.copy(finished("dynammo").path / name, folder / name)
    shutil.copy(finished("dynammo").path / "confusion_matrix.csv", folder / "confusion_matrix.csv")
    return folder


def card_of(run: Path) -> str:
    facts = ModelFiles.read(run).facts
    return model_card(run, facts, file="lung.onnx", format_name="onnx", sha256="ab" * 32)


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def cells(card: str, heading: str) -> list[list[str]]:
    """The rows of the last table of a section, without its header."""
    part = card.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = part.split("|---|")[-1]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table.splitlines()
        if line.startswith("|") and not line.startswith("|---") and not line.endswith("---|")
    ]


def test_recalls_are_counted_from_the_confusion_matrix(run: Path) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    with (run / "confusion_matrix.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["after_task"] == "2":
                counts[row["true"], row["predicted"]] += int(row["count"])
    found = cells(card_of(run), "How well it answers")
    assert [row[:2] for row in found] == [["0", "1"], ["1", "1"], ["2", "2"], ["3", "2"]]
    for name, _, recall, images, mistake in found:
        assert images == "10"  # test images a class
        assert float(recall) == pytest.approx(100 * counts[name, name] / 10)
        wrong = {other: counts[name, other] for other in "0123" if other != name and counts[name, other]}
        if wrong:
            other, number = mistake.rstrip(")").split(" (")
            assert wrong[other] == int(number) == max(wrong.values())
        else:
            assert mistake == ""


def test_numbers_hashes_and_classes_are_those_of_the_files(run: Path) -> None:
    card = card_of(run)
    summary, facts = (json.loads((run / name).read_text()) for name in ("summary.json", "model.json"))
    for name, key in (
        ("Accuracy", "last_accuracy"),
        ("Mean class recall", "mean_class_recall"),
        ("Worst site's accuracy", "worst_site_accuracy"),
        ("Worst site's mean class recall", "worst_site_mean_class_recall"),
        ("Average incremental accuracy", "average_incremental_accuracy"),
    ):
        assert f"| {name} | {summary[key]:.1f} |\n" in card
    for name, key in (("Accuracy", "site_accuracies"), ("Mean class recall", "site_mean_class_recalls")):
        assert f"| {name} at site 1 | {summary[key][1]:.1f} |\n" in card
    for digest in ("config_hash", "code_hash", "tensors_sha256"):
        assert f"`{facts['lineage'][digest]}`" in card
    assert "ab" * 32 in card
    assert cells(card, "Classes") == [["1", "0, 1"], ["2", "2, 3"]]
    assert "not learnt: 4, 5, 6, 7, 8, 9." in card
    assert "2 of 2 tasks |" in card
    assert "The recall of these classes rests on fewer than 30 test images: 0, 1, 2, 3." in card
    assert 'lowest probability of "others"' in card
    assert card.endswith(" |\n")


def test_methods_without_others_say_so(finished: Finished) -> None:
    for method, words in (("replay", "maximum softmax probability"), ("streaming_ridge", "largest regressed label")):
        card = card_of(finished(method).path)
        assert f"- `open_set_score` is {METHODS[method].decision.open_set_score}.\n" in card
        assert words in card
        assert "others" not in card.split("## How to read its answers")[1].split("##")[0]


def test_the_card_says_below_which_score_an_image_is_like_nothing_learnt(run: Path) -> None:
    edit(run / "model.json", lambda facts: facts.update(open_set_threshold=0.998))
    measured = {"calibration_error_after_tasks": [9.0, 12.34], "open_set_fpr95_after_tasks": [30.26, None]}
    edit(run / "summary.json", lambda summary: summary.update(measured))
    card = " ".join(card_of(run).split())
    assert "95 % score 0.998 or more: read a lower score" in card
    assert "After task 1, such a threshold missed 30.3 % of the images of classes still to be learnt." in card
    assert "are 12.3 points apart" in card


def test_the_card_of_a_run_of_an_earlier_version_says_that_nobody_measured(run: Path) -> None:
    edit(run / "model.json", lambda facts: facts.pop("open_set_threshold"))
    edit(run / "summary.json", lambda summary: summary.pop("calibration_error_after_tasks"))
    edit(run / "summary.json", lambda summary: summary.pop("open_set_fpr95_after_tasks"))
    card = " ".join(card_of(run).split())
    assert "this run did not measure one" in card
    assert "did not measure how well they are calibrated" in card


def test_the_card_says_where_sites_tested_with_statistics_of_their_own(run: Path) -> None:
    assert "statistics" not in card_of(run)
    own = {"kind": "trained", "tested_sha256": "cd" * 32}
    edit(run / "model.json", lambda facts: facts.update(own_statistics=own))
    card = card_of(run)
    assert "| Batch-norm statistics | shared by all sites; each tested the model with its own (`trained`) |\n" in card
    assert "**Measured with other statistics than those in this file.**" in card
    assert len(cells(card, "How well it answers")) == 4  # the table of recalls still is one


def test_a_run_that_goes_on_says_so(run: Path) -> None:
    edit(run / "summary.json", lambda summary: summary.update(status="running", tasks=5))
    assert "2 of 5 tasks; the run is **running** |" in card_of(run)


def test_what_was_not_measured_is_not_made_up(run: Path) -> None:
    edit(run / "summary.json", lambda summary: summary.update(worst_site_accuracy=None))
    (run / "confusion_matrix.csv").write_text("site,after_task,true,predicted,count\n")
    card = card_of(run)
    assert "| Worst site's accuracy | not measured |" in card
    assert [row[2:] for row in cells(card, "How well it answers")] == [["not measured", "0", ""]] * 4


def test_names_are_text_and_no_markdown(run: Path) -> None:
    def rename(facts: dict[str, Any]) -> None:
        facts["class_names"][0] = facts["tasks"][0][0] = "a|b <i>\nx"

    edit(run / "model.json", rename)
    card = card_of(run)
    assert cells(card, "Classes")[0] == ["1", r"a\|b \<i\> x, 1"]
    assert "<i>" not in card


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda summary: summary.update(config_hash="f" * 64), "belongs to configuration ffff"),
        (lambda summary: summary["accuracy_after_tasks"].pop(), "after 1 tasks, the model to .* after 2"),
        (lambda summary: summary.pop("bytes_up"), "do not fit together .*bytes_up"),
        (lambda summary: summary.clear(), "belongs to configuration None"),
    ],
    ids=["another run", "another task", "lacking", "empty"],
)
def test_files_that_contradict_each_other(run: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    edit(run / "summary.json", change)
    with pytest.raises(RunError, match=said):
        card_of(run)


def test_promise_about_training_images_stands_on_the_card(run: Path) -> None:
    rows = dict(cells(card_of(run), "What is promised about training images"))
    assert rows == {
        "Differential privacy": "none: weights may reveal training images",
        "The server sees": "each site's answers",
    }
