"""The operator's tables, as they are printed."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.console import Console
from rich.table import Table

from dynammo_core.support.errors import DataError
from server.run_directory.advice import BY_CODE
from server.watch.tables import classes_table, evaluation_tables


def printed(table: Table) -> list[list[str]]:
    """The words of each row, by column, and what stands above and below."""
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    lines = [line.strip() for line in console.file.getvalue().splitlines() if line.strip()]
    return [re.split(r"  +", line) for line in lines]


TOLD: dict[str, dict[str, Any]] = {
    "alpha": {"classes": {"melanoma": 300, "naevus [mole]": 10}},
    "beta": {"classes": {"Melanoma": 1, "lentigo": 100_000}},
    "gamma": {"error": "DataError"},
    "delta": {"error": "NoAnswerBeforeDeadline"},
}


def test_what_sites_can_bring_beside_what_is_learnt() -> None:
    rows = printed(classes_table(TOLD, ("melanoma", "psoriasis")))
    assert rows[:5] == [
        ["class", "registry", "images"],
        ["Melanoma", "new; did you mean 'melanoma'?", "beta 1+"],
        ["lentigo", "new", "beta 100000+"],
        ["melanoma", "known", "alpha 300+"],
        ["naevus [mole]", "new", "alpha 10+"],
    ]
    words = " ".join(word for row in rows[5:] for word in row)
    assert f"gamma (DataError): {BY_CODE[DataError.code]} delta (NoAnswerBeforeDeadline): it was too slow" in words


def test_two_names_of_two_sites_are_compared_before_anything_is_learnt() -> None:
    rows = printed(classes_table(TOLD, ()))
    notes = [row[1] for row in rows[1:5]]
    assert notes == ["new; did you mean 'melanoma'?", "new", "new; did you mean 'Melanoma'?", "new"]


def test_nobody_and_nothing() -> None:
    for told in ({}, {"alpha": {"classes": {}}}):
        assert printed(classes_table(told, ("a",))) == [["class", "registry", "images"]]


def test_an_evaluation() -> None:
    result: dict[str, Any] = {
        "after_task": 2,
        "accuracy": 87.5,
        "mean_class_recall": 80.0,
        "leading_metric": "last_accuracy",
        "worst_site_accuracy": None,
        "worst_site_mean_class_recall": 72.5,
        "calibration_error": 4.25,
        "sites": {
            "alpha": {"images": 8, "accuracy": 87.5, "mean_class_recall": 72.5},
            "beta": {"images": 0, "accuracy": None, "mean_class_recall": None},
        },
        "recall": {"naevus [mole]": 100.0, "lentigo": None},
        "failures": {"gamma": "NotConnected, code 0"},
    }
    sites, recalls = evaluation_tables(result)
    assert printed(sites) == [
        ["After task 2"],
        ["mean class"],
        ["site", "images", "accuracy", "recall"],
        ["alpha", "8", "87.5 %", "72.5 %"],
        ["beta", "0", "-", "-"],
        ["gamma: NotConnected, code 0"],
        ["all", "87.5 %", "80.0 %"],
        ["worst", "-", "72.5 %"],
        ["calibration error", "4.2 %"],
    ]
    assert printed(recalls) == [["class", "recall"], ["naevus [mole]", "100.0 %"], ["lentigo", "-"]]


def test_an_evaluation_says_for_whom_joining_pays_and_the_recall_first_where_classes_are_uneven() -> None:
    heads = {
        "common": {"mean_class_recall": 41.5},
        "personal": {"mean_class_recall": 44.0},
        "alone": {"mean_class_recall": None},
    }
    result: dict[str, Any] = {
        "after_task": 1,
        **{"accuracy": 87.5, "mean_class_recall": 80.0, "leading_metric": "mean_class_recall"},
        **{"worst_site_accuracy": 60.0, "worst_site_mean_class_recall": 72.5, "calibration_error": None},
        "sites": {"alpha": {"images": 8, "accuracy": 60.0, "mean_class_recall": 72.5}},
        "own_heads": [
            {"site": "alpha", **heads, "joining": "does not pay"},
            {"site": "beta", **heads, "joining": None},
        ],
        **{"recall": {}, "failures": {}},
    }
    sites, own, _ = map(printed, evaluation_tables(result))
    assert ["alpha", "8", "72.5 %", "60.0 %"] in sites
    assert ["worst", "72.5 %", "60.0 %"] in sites
    assert own[1:] == [
        ["site", "common", "its own", "alone", "joining"],
        ["alpha", "41.5 %", "44.0 %", "-", "does not pay"],
        ["beta", "41.5 %", "44.0 %", "-", "-"],
    ]
