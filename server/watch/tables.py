"""Make the tables that the operator's commands print."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from dynammo_core.scoring.leading import recall_leads
from dynammo_core.support.terminal import cell, listing
from dynammo_core.wire.announcement import same_disease
from server.run_directory.advice import what_to_ask_of


def classes_table(announced: Mapping[str, Mapping[str, Any]], registry: Collection[str]) -> Table:
    """Return a table of the sites' classes: a row per class, registry notes, and which site has how many images.

    Sites stand in one column, so that it does not matter how many there are: `mercy 300+, county 10+`.
    """
    table = listing("class", "registry", "images", fold=("class", "registry", "images"))
    names = sorted({name for answer in announced.values() for name in answer.get("classes", {})})
    for name in names:
        bands = {site: answer.get("classes", {}).get(name) for site, answer in announced.items()}
        if name in registry:
            note = "known"
        else:
            other = same_disease(name, [*registry, *(other for other in names if other != name)])
            note = f"new; did you mean {other!r}?" if other else "new"
        images = ", ".join(f"{site} {band}+" for site, band in bands.items() if band)
        table.add_row(cell(name), cell(note), cell(images))
    return _with_failed(table, announced)


def statistics_tables(told: Mapping[str, Mapping[str, Any]]) -> Iterator[Table]:
    """Return the tables of the sites' statistics: by class, then by size and by brightness; `-` means not given."""
    heads = ("images to\ntrain on", "their\npatients", "images to\ntest on", "their\npatients")
    table = listing("site", "class", *heads, fold=("site", "class"))
    for site, answer in told.items():
        for name, counts in answer.get("classes", {}).items():
            table.add_row(cell(site), cell(name), *(str(count or "-") for count in counts.values()))
    yield _with_failed(table, told)
    titles = {"sides": "Images by their shorter side, pixels", "greys": "Images by their mean value, 0 to 255"}
    answers = {site: answer for site, answer in told.items() if "error" not in answer}
    for name, title in titles.items() if answers else ():
        edges = next(iter(answers.values()))[name]
        histogram = listing("site", *(f"{edge}+" for edge in edges), title=title)
        for site, answer in answers.items():
            histogram.add_row(cell(site), *(str(count or "-") for count in answer[name].values()))
        yield histogram


def evaluation_tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """Return the tables of an evaluation, by site and by class, and of sites' own heads if there are any.

    The mean class recall stands before the accuracy where classes are uneven.
    """
    metrics = ["accuracy", "mean_class_recall"]
    if recall_leads(result):
        metrics.reverse()
    heads = (metric.replace("mean_class_", "mean class\n") for metric in metrics)
    sites = listing("site", "images", *heads, title=f"After task {result['after_task']}")
    for name, row in result["sites"].items():
        sites.add_row(cell(name), str(row["images"]), *(_percent(row[metric]) for metric in metrics))
    for name, failure in result["failures"].items():
        sites.add_row(cell(f"{name}: {failure}", "red"))
    sites.add_section()
    sites.add_row("all", "", *(_percent(result[metric]) for metric in metrics))
    sites.add_row("worst", "", *(_percent(result[f"worst_site_{metric}"]) for metric in metrics))
    sites.add_row("calibration error", "", _percent(result["calibration_error"]))
    yield sites
    if "own_heads" in result:
        yield _own_heads_table(result["own_heads"])
    recalls = listing("class", "recall")
    for name, recall in result["recall"].items():
        recalls.add_row(cell(name), _percent(recall))
    yield recalls


def _own_heads_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Return, for each site, the mean class recall of the common classifier, of its own, and of the one of it alone."""
    heads = ("common", "personal", "alone")
    table = listing("site", "common", "its own", "alone", "joining", title="Mean class recall by whose classifier")
    for row in rows:
        recalls = (_percent(row[head]["mean_class_recall"]) for head in heads)
        table.add_row(cell(row["site"]), *recalls, row["joining"] or "-")
    return table


def correction_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Return lines that say which sites corrected their sums, and what happened to the model."""
    yield f"Corrected by: {', '.join(result['corrected']) or 'no site'}"
    if result["nothing_to_correct"]:
        yield f"Nothing to correct at: {', '.join(result['nothing_to_correct'])}"
    for name, failure in result["failures"].items():
        yield f"Failed: {name} ({failure}). Ask again when it is connected."
    yield (
        "The current model and results were replaced; those of earlier tasks, and copies, have not changed."
        if result["model_written"]
        else "The run is in the middle of a task: the next model will be written when the task ends."
    )


def _with_failed(table: Table, told: Mapping[str, Mapping[str, Any]]) -> Table:
    """Add a line for each site that did not answer, with what to ask there; where none did, they stand alone."""
    failures = ((site, str(answer["error"])) for site, answer in told.items() if "error" in answer)
    lines = [cell(f"{site} ({error}): {what_to_ask_of(error)}") for site, error in failures]
    if lines:
        table.caption = Text("\n", justify="left").join(lines)
        table.show_header = table.row_count > 0
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"
