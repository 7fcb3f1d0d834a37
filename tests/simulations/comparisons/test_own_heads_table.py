"""Heads of sites' own in a comparison: means over seeds by site, and of the sites, wherever figures are shown."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_runs import Finished, make_pages_small, small_config

from server.run_directory.run_files import RunFiles
from simulations.comparisons.compare import METRICS, Group, Result
from simulations.comparisons.costs import tables
from simulations.comparisons.own_heads import own_heads
from simulations.comparisons.page import write_page

RECALLS = {1: {"alpha": (40.0, 50.0, None), "beta": (20.0, 40.0, 30.0)}, 2: {"alpha": (44.0, 50.0, None)}}
"""By seed and site: of the common heads, of its own, alone. With seed 2 one site could not be compared."""


def rows_of(seed: int) -> list[dict[str, Any]]:
    sites = {**dict.fromkeys(RECALLS[1], (None, None, None)), **RECALLS[seed]}
    heads = ("common", "personal", "alone")
    return [
        {"site": site, **{head: {"mean_class_recall": by[place]} for place, head in enumerate(heads)}}
        for site, by in sites.items()
    ]


@pytest.fixture
def groups(finished: Finished) -> list[Group]:
    """A row whose sites have heads of their own, and one without."""
    path = finished("dynammo").path
    plain = Result(1, path, RunFiles.read(path).summary)
    own = tuple(replace(plain, seed=seed, summary={**plain.summary, "own_heads": rows_of(seed)}) for seed in RECALLS)
    method = small_config().method
    return [Group("", "own heads", method, own), Group("", "plain", method, (plain,))]


def test_seeds_are_averaged_by_site_and_sites_by_seed(groups: list[Group]) -> None:
    alpha, beta, mean = own_heads(groups)
    assert [line.site for line in (alpha, beta, mean)] == ["alpha", "beta", "mean of sites"]
    assert [str(spread) for spread in (alpha.common, alpha.personal, alpha.alone)] == ["42.0 ± 2.8", "50.0 ± 0.0", "-"]
    assert [str(spread) for spread in (beta.common, beta.personal, beta.alone)] == ["20.0", "40.0", "30.0"]
    # With seed 1 of the one site alone whose three heads are known, or columns would tell of other sites.
    assert [str(spread) for spread in (mean.common, mean.personal, mean.alone)] == ["32.0 ± 17.0", "45.0 ± 7.1", "30.0"]


def test_terminal_page_and_csv_show_them_and_nothing_where_there_are_none(
    groups: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pages_small(monkeypatch)
    shown = io.StringIO()
    Console(width=80, file=shown).print(*tables(groups, METRICS["accuracy"], "small"))
    assert "own heads alpha 42.0 ± 2.8 50.0 ± 0.0 -" in [
        " ".join(line.split()) for line in shown.getvalue().splitlines()
    ]
    assert len(tables(groups[1:], METRICS["accuracy"], "small")) == 2
    pages = []
    for name, some in (("own", groups), ("plain", groups[1:])):
        page = write_page(
            tmp_path / name, title="small", command="compare", groups=some, metric=METRICS["accuracy"], missing=[]
        )
        pages.append("Heads of sites’ own" in page.read_text(encoding="utf-8"))
    assert pages == [True, False]
    rows = list(csv.DictReader((tmp_path / "own" / "tables" / "own_heads.csv").open(encoding="utf-8", newline="")))
    assert len(rows) == 9
    assert rows[1] == {
        **{"setting": "", "row": "own heads", "site": "alpha", "head": "personal"},
        **{"mean": "50.0", "deviation": "0.0"},
    }
    assert not (tmp_path / "plain" / "tables" / "own_heads.csv").exists()
