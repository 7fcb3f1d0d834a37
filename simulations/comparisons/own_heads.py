"""What sites' own heads give beside the common ones, over the seeds of a row: for a terminal, a page and as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from dynammo_core.plan import ALONE, PERSONAL
from dynammo_core.support.csv_text import csv_table
from dynammo_core.support.files import write_atomically
from server.run.own_heads import COMMON
from simulations.comparisons.compare import Group, Json
from simulations.comparisons.table import Spread

HEADS = {COMMON: "common", PERSONAL: "its own", ALONE: "alone"}
MEAN = "mean of sites"
"""Of the sites for which each head that answers at any site is known: a site that would have none alone has no part."""


@dataclass(frozen=True)
class OwnHeads:
    """The mean class recall of a site's test images after the last task by each of its heads, in percent."""

    setting: str
    row: str
    site: str
    common: Spread
    personal: Spread
    alone: Spread


def own_heads(groups: Sequence[Group]) -> list[OwnHeads]:
    """Compare the heads for each row whose runs tested any: a line for each site, then their mean."""
    return [line for group in groups for line in _of_group(group)]


def _of_group(group: Group) -> Iterator[OwnHeads]:
    runs: list[dict[str, Json]] = []
    for result in group.results:
        if tested := result.summary.get("own_heads"):
            recalls = {row["site"]: {head: row[head]["mean_class_recall"] for head in HEADS} for row in tested}
            shown = [head for head in HEADS if any(row[head] is not None for row in recalls.values())]
            known = [row for row in recalls.values() if all(row[head] is not None for head in shown)]
            runs.append({**recalls, MEAN: {head: Spread.of(row[head] for row in known).mean for head in HEADS}})
    for site in runs[0] if runs else ():
        spreads = {head: Spread.of(run[site][head] for run in runs if site in run) for head in HEADS}
        yield OwnHeads(group.setting, group.row, site, **spreads)


def own_heads_table(every: Sequence[OwnHeads]) -> Table:
    """Return the lines for a terminal of 80 columns."""
    title = "mean class recall by whose heads answer, percent (mean ± deviation over seeds)"
    table = Table("row", "site", *HEADS.values(), box=SIMPLE, padding=0, show_edge=False, title=title)
    table.title_justify = "left"
    for line in every:
        name = ": ".join(filter(None, (line.setting, line.row)))
        table.add_row(escape(name), escape(line.site), *(str(getattr(line, head)) for head in HEADS))
    return table


def write_own_heads(every: Sequence[OwnHeads], file: Path) -> None:
    """Write the lines as CSV, whole or not at all: one for each site and head."""
    rows = [
        {**{"setting": line.setting, "row": line.row, "site": line.site, "head": head}, **vars(getattr(line, head))}
        for line in every
        for head in HEADS
    ]
    write_atomically(file, csv_table(("setting", "row", "site", "head", "mean", "deviation"), rows).encode())
