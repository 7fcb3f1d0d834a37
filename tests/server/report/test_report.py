"""The report of a small run whose numbers are known by hand, finished, cut off and broken."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dynammo_core.scoring import metrics
from dynammo_core.scoring.reliability import COLUMNS, Reliability, table_rows
from dynammo_core.support.errors import CheckpointError, RunError
from server.report.report import write_report

TASKS = [[0, 1], [2]]
NAMES = ["naevus", '<script>alert("x")</script> & $a_1$', "melanoma"]
STAGES = ("adapt", "evaluate")
PLAN = [{"task": task, "stage": stage, "round": 0, "rounds": 1} for task in range(2) for stage in STAGES]
TRAINED = {0: [(0, [20, 10, 0], 2.0), (1, [0, 10, 0], 1.0)], 1: [(0, [4, 2, 5], 0.5)]}
PATIENTS = [[7, 3, 2], [0, 4, 1], [0, 0, 0]]
MACHINE = {"system": "Linux 6", "processor": "<fast> CPU", "cores": 2, "gpu": "none"}
VOID = {"meta", "br", "link", "img", "input", "hr"}


def counts() -> metrics.Counts:
    """Task 1: 9/10 at site 0, 5/10 at site 1. Task 2: 12/15 and 6/15. Site 2 has no test images.

    After task 1: 14/20 = 70; after task 2: 18/30 = 60, with site 0 at 80 and site 1, the worst, at 40.
    """
    confusion = np.zeros((2, 3, 3, 3), np.int64)
    confusion[0, 0, 0, [0, 1]] = 9, 1
    confusion[0, 1, 1, [1, 0]] = 5, 5
    confusion[1, 0, 0, [0, 1]] = 8, 2
    confusion[1, 1, 1, [1, 2]] = 3, 7
    confusion[1, 0, 2, [2, 0]] = 4, 1
    confusion[1, 1, 2, [2, 1]] = 3, 2
    return confusion


def events() -> list[dict[str, Any]]:
    """Site 2 abstains from both adapt steps, site 1 fails in the second; 3 MB go up and 5 MB down in each step.

    Site 0 trains on 30 images of task 1 with a loss of 2 site 1 on 10 with 1: mean 1.75. Then 5 new ones with 0.5.
    """
    tasks = [[NAMES[label] for label in task] for task in TASKS]
    log: list[dict[str, Any]] = [
        {"event": "run_started", "name": "skin", "sites": 3, "tasks": tasks, "plan": PLAN, "resumed_at": 0}
        | {"data_notes": ["passed over: <4> of them"], "time": 1_700_000_000.0, "patients": PATIENTS}
        | {"machine": MACHINE, "versions": {"python": "3.11.2", "torch": "2.9"}}
    ]
    for index, step in enumerate(PLAN):
        adapting = step["stage"] == "adapt"
        failing = adapting and step["task"] == 1
        sites = [
            {"site": site, "abstained": adapting and site == 2} for site in range(3) if not (failing and site == 1)
        ]
        for site, counts, loss in TRAINED[step["task"]] if adapting else ():
            own = {"samples": sum(counts), "class_counts": counts, "metrics": {"loss": loss}}
            sites = [entry | own if entry["site"] == site else entry for entry in sites]
        failures = [{"site": 1, "code": 106, "error": "MemoryStoreError"}] if failing else []
        traffic = {"seconds": 2.0, "bytes_up": 3_000_000, "bytes_down": 5_000_000}
        log.append({"event": "step_finished", "step": index, **step, **traffic, "sites": sites, "failures": failures})
        if not adapting:
            accuracy, by_site = ((70.0, [90.0, 50.0, None]), (60.0, [80.0, 40.0, None]))[index // 2]
            log.append(
                {"event": "task_evaluated", "task": index // 2, "accuracy": accuracy, "site_accuracies": by_site}
            )
    return log


SUMMARY = {
    "name": "skin",
    "method": "dynammo",
    "dataset": "moles",
    "seed": 1,
    "tasks": 2,
    "sites": 3,
    "average_incremental_accuracy": 65.0,
    "last_accuracy": 60.0,
    "forgetting": 15.0,
    "backward_transfer": -15.0,
    "mean_class_recall": 61.25,
    "worst_site_accuracy": 40.0,
    "accuracy_after_tasks": [70.0, 60.0],
    "site_accuracies": [80.0, 40.0, None],
    "macs_per_image": 48_200_000,
    "deployed_parameters": 5_010_000,
    "trainable_parameters": 1_630_000,
    "bytes_up": 12_000_000,
    "bytes_down": 20_000_000,
    "rounds": 4,
    "seconds": 83.0,
    "status": "completed",
    "config_hash": "c0ffee",
    "code_hash": "c0de",
    "backbone": "small_cnn",
    "privacy": {
        "mechanism": "noised sums",
        "neighbours": "one image more or less",
        "accountant": "losses",
        "delta": 1e-5,
        "budget": 8.0,
        "noise_multiplier": 1.5,
        "epsilon": 7.654,
        "epsilon_by_site": [7.654, 2.0, 3.0],
    },
}


def make_run(directory: Path) -> Path:
    """Fill a finished run's directory."""
    config = {"name": "skin", "data": {"dataset": "moles", "root": None}, "method": {"adapt": {"epochs": 7}}}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    (directory / "summary.json").write_text(json.dumps(SUMMARY))
    (directory / "model.json").write_text(json.dumps({"tasks": [[NAMES[label] for label in task] for task in TASKS]}))
    write_events(directory, events())
    with (directory / "confusion_matrix.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["site", "after_task", "true", "predicted", "count"])
        writer.writeheader()
        writer.writerows(metrics.confusion_rows(counts(), TASKS, NAMES))
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of the finished run."""
    return Page(write_report(make_run(tmp_path_factory.mktemp("run"))))


def write_events(directory: Path, log: Iterable[dict[str, Any]]) -> None:
    (directory / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in log))


class Page(HTMLParser):
    """A page as a browser sees it: balanced tags, attributes, the text of the body and the labels of its figures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.labels: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "svg":
            self.labels.append(dict(attrs)["aria-label"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "svg" not in self.open:
            self.words.append(data)


def test_page_needs_nothing_but_itself(finished: Page) -> None:
    page = finished
    assert not page.tags & {"script", "link", "iframe", "object"}
    for name, value in page.attributes:
        if name in {"href", "xlink:href", "src"}:
            assert value.startswith(("#", "data:image/png;base64,"))
        elif not name.startswith("xmlns"):
            assert "//" not in value
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 0


def test_same_files_give_the_same_page(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert sorted(path.name for path in run.iterdir() if "report" in path.name) == ["report.html"]


def test_numbers_of_a_finished_run(finished: Page) -> None:
    for words in (
        "skin completed",
        "3 sites learn 3 classes in 2 tasks",
        "Accuracy at the end 60.0 %",
        "Average accuracy 65.0 %",
        # 18 of 30, by Wilson's formula; 11 of 20 images of task 1's classes, 7 of 10 of task 2's.
        "95 % interval 42.3–75.4, of 30 test images",
        "Guessing evenly would be right for 33.3 %, always naming the most frequent class for 33.3 %",
        "naevus 10 80.0 (49.0–94.3)",
        "site 0 15 80.0 (54.8–93.0) 80.0 site 1 15 40.0 (19.8–64.3)",
        "Forgetting 15.0 points",
        "Worst site 40.0 %",
        "Mean class recall 61.2 %",
        "Backward transfer −15.0 points",
        # Task 1 when learnt 14/20, at the end (8 + 3)/20; task 2 7/10.
        "70.0 55.0 70.0 20 2 melanoma 70.0 70.0 60.0 30",
        "The lowest is site 1",
        "48.2 million",
        "Sent to the server 12.0 MB",
        "Time 0:01:23",
        "Epsilon, spent 7.65 of 8, at the site that spent most Delta 1e-05 Of one image more or less",
        # Two steps a stage, 3 MB up, 5 MB down and 2 s each.
        "adapt 2 6.0 MB 10.0 MB 0:00:04 evaluate 2 6.0 MB 10.0 MB 0:00:04",
        "adapt.epochs 7",
        "c0ffee",
    ):
        assert words in finished.text, words
    assert "not finished" not in finished.text


def test_images_stand_by_class_and_site(finished: Page) -> None:
    """The counts of the first task, of task 2 only what grew: its other 4 and 2 come from memories."""
    row = "naevus 1 20 + 10 (7) – – 20 + 10 (7)"
    assert f"Class task site 0 site 1 site 2 all sites {row} {NAMES[1]} 1 10 + 0 (3) 10 + 10 (4) – 20 + 10 (7)" in (
        finished.text
    )
    assert "melanoma 2 5 + 5 (2) 0 + 5 (1) – 5 + 10 (3) all classes 35 + 15 10 + 15 – 45 + 30" in finished.text


def test_of_many_sites_the_images_are_summed_up(run: Path) -> None:
    log = events()
    for site in range(3, 20):
        log[1]["sites"].append({"site": site, "samples": site, "abstained": False, "class_counts": [site, 0, 0]})
    write_events(run, log)
    text = Page(write_report(run)).text
    assert "naevus 1 18 3 to 20 207 + 10" in text  # 20 and 3 + 4 + ... + 19
    assert "melanoma 2 2 0 to 5 5 + 10" in text


def test_each_accuracy_has_its_test_images_and_interval(finished: Page) -> None:
    """Wilson: 18 of 30 is 42.3 to 75.4, 14 of 20 is 48.1 to 85.5; the mean of both ends 45.2 to 80.4."""
    for words in (
        "without knowing the task. 95 % interval 42.3–75.4, of 30 test images. Guessing evenly: 33.3 %.",
        "mean of those tests. 95 % interval 45.2–80.4 at the widest, of 20 to 30 test images.",
        "does worst. At site 1: 95 % interval 19.8–64.3, of 15 test images.",  # 6 of 15
    ):
        assert words in finished.text, words
    assert "of 30 test images of 3 classes" in finished.text


def test_the_page_tells_the_loss_of_each_round(finished: Page) -> None:
    assert "At the end of each stage: task 1 adapt 1.75; task 2 adapt 0.5." in finished.labels[2]


def test_the_page_tells_when_where_and_how_the_run_was_made(finished: Page) -> None:
    for words in (
        "Started 2023-11-14 22:13 UTC Finished not yet",
        "<fast> CPU, 2 cores, no GPU, Linux 6",
        "python 3.11.2, torch 2.9",
        "To make it again dynammo-sim run config.yaml",
    ):
        assert words in finished.text, words


def test_the_page_tells_how_far_to_trust_an_answer(run: Path, finished: Page) -> None:
    assert "How far to trust" not in finished.text  # the files of an earlier version
    # After task 1: 20 answers of 0.9, 14 right: |14 - 18| / 20 = 20 points; 5 images of task 2 score lower, 5 higher.
    # After task 2: 30 answers of 0.6, 18 right, and nothing is to come. Log odds of 0.9: 2.197, of 0.6: 0.405.
    first = Reliability.counted(np.full(20, 0.9), np.arange(20) < 14, np.full(20, 0.9), np.array([0.5, 0.99] * 5))
    second = Reliability.counted(np.full(30, 0.6), np.arange(30) < 18, np.full(30, 0.6), np.empty(0))
    for name, columns in COLUMNS.items():
        with (run / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["after_task", "bin", *columns])
            writer.writeheader()
            writer.writerows(table_rows(name, {0: first, 1: second}))
    page = Page(write_report(run))
    assert "threshold 1 20 20.0 10 50.0 50.0 0.880797 2 30 0.0 0 – – 0.562177" in page.text
    assert "Accuracy by confidence, in percent. The calibration error is 0.0." in page.labels
    assert (
        "ROC curves of learnt classes against those to come. Their areas in percent: 50.0 after task 1." in page.labels
    )
    (run / "open_set.csv").write_text("after_task,bin,learnt,to_come\n1,999,3,4\n")
    with pytest.raises(RunError, match=r"open_set\.csv"):
        write_report(run)


def test_what_is_to_be_known_of_the_data_is_told(finished: Page) -> None:
    assert "The data passed over: <4> of them" in finished.text


def test_figures_say_aloud_what_they_show(finished: Page) -> None:
    curve, matrix, _, confusion, sites, participation, traffic = finished.labels
    assert "70.0 after task 1, 60.0 after task 2" in curve
    assert "task 1 55.0, task 2 70.0" in matrix
    assert f"mistakes: {NAMES[1]} taken for melanoma in 7 of 10; naevus taken for {NAMES[1]} in 2 of 10;" in confusion
    assert "site 0 80.0, site 1 40.0, site 2 none. The worst is site 1" in sites
    assert "2 abstentions and 1 failures" in participation
    assert "adapt 6.0 MB up, 10.0 MB down" in traffic


def test_abstentions_and_failures_are_told_by_site(finished: Page) -> None:
    text = finished.text
    assert "site 1 – task 2 adapt round 1: MemoryStoreError (code 106)" in text
    assert "site 2 task 1 adapt; task 2 adapt –" in text


def test_class_names_are_text_never_markup(finished: Page) -> None:
    assert "script" not in finished.tags
    assert NAMES[1] in finished.text


def test_step_done_twice_counts_once(run: Path) -> None:
    log = events()
    again = [{**log[0], "resumed_at": 3}, *log[-2:]]
    write_events(run, [*log, *again])
    text = Page(write_report(run)).text
    assert "evaluate 2 6.0 MB" in text
    assert "resumed 1 time" in text


def test_run_cut_off_before_its_first_summary(run: Path) -> None:
    for name in ("summary.json", "model.json", "confusion_matrix.csv"):
        (run / name).unlink()
    write_events(run, [*events()[:4], {"event": "run_failed", "message": "site <9> is down"}])
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "step_fin')
    page = Page(write_report(run))
    assert "This run has not finished. 2 of 4 steps and 1 of 2 tasks are done." in page.text
    assert "site <9> is down" in page.text
    assert "1 unreadable line of events.jsonl" in page.text
    assert "Accuracy so far 70.0 %" in page.text
    assert "70.0 after task 1." in page.labels[0]


def test_run_with_a_summary_so_far(run: Path) -> None:
    (run / "summary.json").write_text(json.dumps(SUMMARY | {"status": "running"}))
    page = Page(write_report(run))
    assert "This run has not finished." in page.text
    assert "Accuracy so far 60.0 %" in page.text
    assert "Sent to the server 12.0 MB" in page.text


@pytest.mark.parametrize("kept", ["config.yaml", "events.jsonl"])
def test_run_that_has_just_begun(run: Path, kept: str) -> None:
    write_events(run, events()[:1])
    for path in run.iterdir():
        if path.name != kept:
            path.unlink()
    page = Page(write_report(run))
    assert "This run has not finished." in page.text
    assert page.labels == []


def test_of_many_sites_those_that_need_a_look_are_shown(run: Path) -> None:
    by_site = [90.0 - site / 2 for site in range(50)]  # the last 30 are the lowest, site 49 at 65.5 the worst
    (run / "summary.json").write_text(json.dumps(SUMMARY | {"sites": 50, "site_accuracies": by_site}))
    log = events()
    for step in log:
        if step["event"] == "step_finished":
            step["sites"] += [{"site": site, "abstained": False} for site in range(3, 50)]
    write_events(run, log)
    page = Page(write_report(run))
    assert "The lowest is site 49. Shown are the 30 lowest of 50 sites." in page.text
    assert "Shown are 30 of 50 sites" in page.text
    assert "site 2 task 1 adapt; task 2 adapt" in page.text
    assert "site 19 80.5" not in page.labels[4]
    assert "site 20 80.0" in page.labels[4]


def test_where_classes_are_uneven_the_mean_recall_stands_first_and_the_page_says_why(run: Path, finished: Page) -> None:
    uneven = {"leading_metric": "mean_class_recall", "class_imbalance": 12.5, "worst_site_mean_class_recall": 33.3}
    uneven |= {"site_mean_class_recalls": [72.5, 33.3, None], "mean_class_recall_after_tasks": [65.5, 61.25]}
    (run / "summary.json").write_text(json.dumps(SUMMARY | uneven))
    page = Page(write_report(run))
    text = page.text
    order = ("Mean class recall 61.2", "Worst site’s recall 33.3", "Accuracy at the end 60.0")
    places = [text.index(card) for card in order]
    assert places == sorted(places)
    assert text.count("Mean class recall 61.2") == 1
    assert "has 12.5 times the test images of the rarest" in text
    assert any(label.startswith("Bars of the mean class recall at each site") for label in page.labels)
    (curve,) = (label for label in page.labels if label.startswith("Curve of the mean class recall over all classes"))
    assert "65.5 after task 1, 61.2 after task 2" in curve
    assert "Mean class recall on all classes learnt so far." in text
    assert "Mean class recall of the one shared model at each site" in text
    assert finished.text.index("Accuracy at the end") < finished.text.index("Mean class recall")
    assert "Read the mean class recall first" not in finished.text


def test_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run directory.*Accepted: .*config\.yaml"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", '{"method": ', r"summary\.json"),
        ("summary.json", "[1]", r"summary\.json holds a list"),
        ("summary.json", '{"macs_per_image": 1}', "do not fit together .*deployed_parameters"),
        ("config.yaml", "a: [", r"config\.yaml"),
        ("config.yaml", b"\xff\xfe\x00", r"config\.yaml"),
        ("confusion_matrix.csv", "site,after_task,true,predicted,count\n0,1,cat,naevus,3\n", "do not fit .*'cat'"),
        ("events.jsonl", '{"event": "step_finished"}\n', "do not fit together .*'step'"),
    ],
)
def test_broken_file_is_named_and_the_old_page_stays(run: Path, name: str, content: str | bytes, message: str) -> None:
    (run / "report.html").write_text("the page of yesterday")
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=message):
        write_report(run)
    assert (run / "report.html").read_text() == "the page of yesterday"


def test_page_that_cannot_be_written_is_an_error_to_act_on(run: Path) -> None:
    (run / "report.html").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*report\.html"):
        write_report(run)


def test_stages_stand_in_their_order_where_the_first_task_lacks_one(run: Path) -> None:
    log = events()
    late = {"event": "step_finished", "step": 2, "task": 1, "stage": "open", "round": 0, "seconds": 1.0}
    for event in log:
        if event["event"] == "step_finished" and event["step"] >= 2:
            event["step"] += 2
    log += [late | {"bytes_up": 1, "bytes_down": 1, "sites": [], "failures": []}]
    log += [late | {"step": 5, "stage": "recalibrate", "bytes_up": 1, "bytes_down": 1, "sites": [], "failures": []}]
    for event in log:  # the last task: open, adapt, recalibrate, evaluate
        if event["event"] == "step_finished" and event["stage"] == "evaluate" and event["task"] == 1:
            event["step"] = 6
    write_events(run, log)
    text = Page(write_report(run)).text
    places = [text.index(f"{stage} {steps} ") for stage, steps in (("open", 1), ("adapt", 2), ("recalibrate", 1))]
    assert places == sorted(places)
    assert places[-1] < text.index("evaluate 2 ")
