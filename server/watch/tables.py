"""Tables that the operator's commands print."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from rich.table import Column, Table

from dynammo_core.support.terminal import cell
from dynammo_core.wire.announcement import same_disease


def classes_table(told: Mapping[str, Mapping[str, Any]], registry: Collection[str]) -> Table:
    """Return a table of what sites can bring: a row per class, a column per site (`300+` images), registry notes."""
    table = Table("class", *(Column(cell(site)) for site in told), "registry")
    names = sorted({name for said in told.values() for name in said.get("classes", {})})
    for name in names:
        bands = [said.get("classes", {}).get(name) for said in told.values()]
        if name in registry:
            note = "known"
        else:
            other = same_disease(name, [*registry, *(other for other in names if other != name)])
            note = f"new; is it {other!r}?" if other else "new"
        table.add_row(cell(name), *(cell(f"{band}+" if band else "-") for band in bands), cell(note))
    for site, said in told.items():
        if "error" in said:
            table.caption = cell(f"{table.caption or ''} {site}: {said['error']}".strip())
    return table


def evaluation_tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """Return the tables of an evaluation, by site and by class."""
    sites = Table("site", "images", "accuracy", title=cell(f"After task {result['after_task']}"), title_justify="left")
    for name, row in result["sites"].items():
        sites.add_row(cell(name), str(row["images"]), _percent(row["accuracy"]))
    for name, failure in result["failures"].items():
        sites.add_row(cell(name), "-", cell(failure, "red"))
    sites.add_section()
    sites.add_row("all", "", _percent(result["accuracy"]))
    sites.add_row("worst", "", _percent(result["worst_site_accuracy"]))
    sites.add_row("calibration error", "", _percent(result["calibration_error"]))
    yield sites
    recalls = Table("class", "recall")
    for name, recall in result["recall"].items():
        recalls.add_row(cell(name), _percent(recall))
    yield recalls


def correction_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Return lines on what sites answered when asked for corrections, and what became of the model."""
    yield f"Corrected by: {', '.join(result['corrected']) or 'no site'}"
    if result["nothing_to_correct"]:
        yield f"Nothing to correct at: {', '.join(result['nothing_to_correct'])}"
    for name, failure in result["failures"].items():
        yield f"Failed: {name} ({failure}). Ask again when it is there."
    yield (
        "The model and the results are written anew; those of earlier tasks, and copies, are as they were."
        if result["model_written"]
        else "The run stands within a task: the model after it is the next that is written."
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"
