"""Every table that people read in a terminal: as wide as it, with long names, and no word broken but names."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, RenderableType
from status_runs import START, first_task

from client.commands.audit import run_table
from client.commands.predict import Finding, as_table
from server.consortium.sites import RegisteredSite
from server.consortium.sites_command import sites_table
from server.watch.lookout import Overview
from server.watch.progress import final_table
from server.watch.status import RunStatus
from server.watch.status_command import run_view, runs_table
from server.watch.tables import classes_table, evaluation_tables, statistics_tables
from simulations.backbone_command import costs_table

HOSPITALS = ("mercy", "the-general-hospital-of-the-county-of-the-lakes-and-mountains-4")
CLASSES = ("naevus", "squamous cell carcinoma, in situ, of the lower leg", "x" * 90)
SUMMARY = {
    **{"name": "skin " * 12, "method": "dynammo", "dataset": "manifest", "tasks": 9, "sites": 2, "seed": 1},
    **dict.fromkeys(("average_incremental_accuracy", "last_accuracy", "worst_site_accuracy", "forgetting"), 83.125),
    **{"accuracy_after_tasks": [100.0] * 40, "site_accuracies": [91.6, 100.0], "seconds": 1e6, "rounds": 10**6},
    **dict.fromkeys(("macs_per_image", "deployed_parameters", "trainable_parameters", "bytes_up", "bytes_down"), 1e12),
    "status": "completed",
}


def tables() -> Iterator[tuple[RenderableType, tuple[str, ...]]]:
    """Each table with words that may not be broken."""
    log = first_task()
    log[0]["site_names"] = [*HOSPITALS, "third"]
    run = RunStatus(Path("/runs") / ("skin-" * 18), log)
    yield run_view(run, START + 62), ("mercy", "answered", "waited for", "0:00:32", "90.0 %")
    yield runs_table(Overview([run]), START + 62), ("unfinished", "71.2 %", "0:00:30 ago")
    site = RegisteredSite(1, "SHA256:x", "2026-01-31")
    since = "2026-11-28 21:50:43Z"
    yield sites_table(dict.fromkeys(HOSPITALS, (site, "registered", since))), ("registered", since, "2026-01-31")
    announced = {name: {"classes": dict.fromkeys(CLASSES, 100_000)} for name in HOSPITALS}
    yield classes_table(announced, CLASSES[:1]), ("carcinoma,", "known", "100000+", "mercy")
    counts = ("train_images", "train_patients", "test_images", "test_patients")
    bins = {str(edge): 100_000 for edge in (1, 64, 128, 256, 512, 1024, 2048, 4096)}
    by_class = dict.fromkeys(CLASSES, dict.fromkeys(counts, 100_000))
    told = {name: {"classes": by_class, "sides": bins, "greys": bins} for name in HOSPITALS}
    first, *histograms = statistics_tables({**told, "away": {"error": "PolicyError"}})
    yield first, ("carcinoma,", "100000", "(PolicyError):")
    for histogram in histograms:
        yield histogram, ("4096+", "100000")
    tested = {"images": 100_000, "accuracy": 87.5, "mean_class_recall": None}
    result = {
        **{"after_task": 2, "accuracy": 87.5, "mean_class_recall": 80.0, "calibration_error": 4.0},
        **{"worst_site_accuracy": None, "worst_site_mean_class_recall": 72.5, "leading_metric": "last_accuracy"},
        "own_heads": [
            {"site": name, **dict.fromkeys(("common", "personal", "alone"), tested), "joining": "no difference"}
            for name in HOSPITALS
        ],
        **{"sites": dict.fromkeys(HOSPITALS, tested), "recall": dict.fromkeys(CLASSES, 100.0)},
        "failures": {HOSPITALS[1]: "NoAnswerBeforeDeadline, code 0"},
    }
    own = ("its own", "no difference")
    yield from zip(evaluation_tables(result), (("100000", "87.5 %"), own, ("100.0 %", "carcinoma,")), strict=True)
    last = HOSPITALS[1][-4:]
    yield final_table(SUMMARY, HOSPITALS), ("average incremental accuracy", "mercy 91.6,", f"{last} 100.0", "completed")
    groups = {"weights": {"count": 100_000}}
    entry = {"task": 11, "stage": "recalibrate", "exchange": "masked", "abstained": False, "tensors": groups}
    entry |= {"bytes": 1_234_567_890, "norm": 1.23456e-05, "class_counts": [1_000_000], "numbers": {}}
    audited = ("recalibrate", "1.2 GB", "1.23e-05", "1000000", "tained")
    yield run_table(f"{'skin-' * 18}1", [entry]), audited
    finding = Finding(Path("/srv/images") / ("a" * 200), tuple((name, 0.5) for name in CLASSES[1:]), 0.999)
    yield as_table([finding], 1, 0.9999999), ("squamous", "carcinoma,", "0.500", "0.999 *")
    costs = {"backbone": "timm/vit_small_patch14_reg4_dinov2.lvd142m", "adapters": "bottleneck", "parameters": 10**9}
    costs |= {"gmac": "1.23e+03", "adapter_parameters": 78_400, "round_mb": "0.314", "sums_mb": "14.8"}
    yield costs_table([costs]), ("lvd142m", "bottleneck", "parameters", "1.23e+03", "0.0784", "14.8")


def test_tables_fit_and_break_no_words() -> None:
    for width in (80, 120):
        for table, words in tables():
            console = Console(file=io.StringIO(), width=width)
            console.print(table)
            assert isinstance(console.file, io.StringIO)
            text = console.file.getvalue()
            assert max(map(len, text.splitlines())) <= width, text
            for unbroken in words:
                assert unbroken in text, f"{unbroken!r} at {width} columns:\n{text}"


def test_where_no_site_answers_no_heads_stand_above_nothing() -> None:
    away = {"away": {"error": "PolicyError"}}
    for table in (*statistics_tables(away), classes_table(away, CLASSES)):
        console = Console(file=io.StringIO(), width=80)
        console.print(table)
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        assert "away (PolicyError)" in text and "class" not in text, text
