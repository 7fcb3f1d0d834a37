"""Write one self-contained page about a run, made only from the files in its run directory.

An unfinished run gets a page too, from the files that it has so far.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from rich.filesize import decimal

from dynammo_core.scoring import metrics
from dynammo_core.scoring.leading import recall_leads
from dynammo_core.support.errors import RunError
from dynammo_core.support.files import write_atomically
from server.report import plots
from server.report.page import number, page_environment
from server.report.report_template import TEMPLATE
from server.report.sections.card_notes import card_notes
from server.report.sections.clinical_section import clinical_section
from server.report.sections.images_section import images_section
from server.report.sections.loss_section import kept_rounds, loss_plot
from server.report.sections.privacy_rows import privacy_rows
from server.report.sections.provenance_section import provenance_section
from server.report.sections.reliability_section import reliability_section
from server.run_directory.advice import failure_words, site_label
from server.run_directory.run_files import Json, RunFiles

MOST_SITES = 30  # rows of a figure or table about sites; if there are more, those that need a look are shown


def write_report(run_directory: Path) -> Path:
    """Write `report.html` from the files of a run directory; the same files give the same bytes.

    Returns:
        The path of the page.

    Raises:
        RunError: there is no run in the directory, or its files cannot be read or contradict each other.
        CheckpointError: the page cannot be written; an older one stays as it is.
    """
    run = RunFiles.read(run_directory)
    try:
        page = page_environment().from_string(TEMPLATE).render(_contents(run))
    except (jinja2.UndefinedError, KeyError, IndexError, TypeError, ValueError) as error:
        what = f"The files of the run in {run_directory} do not fit together ({type(error).__name__}: {error})"
        raise RunError(what, remedy="Use the version of this project that made the run") from error
    path = run_directory / "report.html"
    write_atomically(path, page.encode())
    return path


def _contents(run: RunFiles) -> Json:
    """Return everything that the template shows."""
    numbers = run.summary or _numbers_so_far(run)
    last = next((e for e in reversed(run.events) if e["event"] in {"run_started", "run_failed", "run_finished"}), {})
    return {
        "run": run,
        "numbers": numbers,
        "uneven": recall_leads(numbers),
        "name": numbers.get("name") or run.started.get("name") or run.config.get("name") or "unnamed run",
        "finished": run.summary.get("status", "running") != "running",
        "failure": failure_words(run.started, last) if last.get("event") == "run_failed" else "",
        "resumes": max(len(run.of_kind("run_started")) - 1, 0),
        "learning": _learning(run, numbers),
        "clinical": clinical_section(run),
        "notes": defaultdict(str, card_notes(run)),
        "images": images_section(run),
        "losses": loss_plot(run),
        "kept": kept_rounds(run),
        "provenance": provenance_section(run),
        "confusions": _confusions(run),
        "reliability": reliability_section(run.reliability),
        "sites_seen": _sites(run, numbers),
        "participation": _participation(run),
        "stages": _stages(run),
        "privacy": privacy_rows(run),
        "settings": _settings(run.config),
    }


def _numbers_so_far(run: RunFiles) -> Json:
    """Return what can be said before the first summary, which comes with the first finished task."""
    so_far: Json = {"accuracy_after_tasks": [event["accuracy"] for event in run.evaluations]}
    if run.evaluations:
        so_far["last_accuracy"] = run.evaluations[-1]["accuracy"]
        so_far["site_accuracies"] = run.evaluations[-1].get("site_accuracies", [])
    return so_far | {key: run.started[key] for key in ("method", "dataset", "sites") if key in run.started}


def _leading(numbers: Json) -> tuple[str, str, str, str]:
    """Return the measure to read first in words, and its keys: after the last task, after each, and by site."""
    if recall_leads(numbers):
        keys = ("mean_class_recall", "mean_class_recall_after_tasks", "site_mean_class_recalls")
        return ("mean class recall", *keys)
    return "accuracy", "last_accuracy", "accuracy_after_tasks", "site_accuracies"


def _learning(run: RunFiles, numbers: Json) -> Json:
    """Return the curve of the measure to read first, the accuracy matrix, and the classes of each task."""
    measure, _, after_tasks, by_site = _leading(numbers)
    curve = _floats(numbers.get(after_tasks, []))
    accuracies = _floats(numbers.get("accuracy_after_tasks", []))
    sites = {event["task"]: _floats(event.get(by_site, [])) for event in run.evaluations}
    spread = [sites.get(task, np.array([])) for task in range(len(curve))]
    contents: Json = {"curve": "", "measure": measure, "matrix": "", "rows": []}
    if len(curve):
        values = ", ".join(f"{number(value)} after task {task}" for task, value in enumerate(curve, start=1))
        contents["curve"] = plots.accuracy_curve(
            curve,
            np.array([np.fmin.reduce(values, initial=np.nan) for values in spread]),
            np.array([np.fmax.reduce(values, initial=np.nan) for values in spread]),
            _chance(run.task_names, len(curve)),
            max(len(run.task_names), len(curve)),
            measure,
            f"Curve of the {measure} over all classes learnt so far, in percent: {values}.",
        )
    matrix = np.empty((0, 0))
    if run.confusion is not None:
        matrix = metrics.accuracy_matrix(run.confusion, run.tasks)
        values = ", ".join(f"task {task} {number(value)}" for task, value in enumerate(matrix[-1], start=1))
        contents["matrix"] = plots.accuracy_heatmap(
            matrix, f"Heatmap of the accuracy on each task after each task, in percent. After the last one: {values}."
        )
    for task, names in enumerate(run.task_names):
        known = task < len(matrix)
        contents["rows"].append(
            {
                "classes": ", ".join(names),
                "first": matrix[task, task] if known else None,
                "now": matrix[-1, task] if known else None,
                "all": accuracies[task] if task < len(accuracies) else None,
                "images": run.confusion[task, 0].sum() if known and run.confusion is not None else None,
            }
        )
    return contents


def _chance(task_names: list[list[str]], tasks: int) -> NDArray[np.float64]:
    """Return the accuracy of guessing evenly among all classes learnt so far, after each task, in percent."""
    classes = np.cumsum([len(names) for names in task_names[:tasks]])
    return 100 / classes if len(classes) == tasks else np.full(tasks, np.nan)


def _confusions(run: RunFiles) -> Json:
    """Return the confusion matrix after the last finished task, and its most frequent mistakes."""
    if run.confusion is None:
        return {"plot": "", "worst": [], "after": 0}
    after = len(run.confusion)
    names = [name for task in run.task_names[:after] for name in task]
    counts = run.confusion[-1, 0, : len(names), : len(names)]
    mistakes = counts * ~np.eye(len(names), dtype=bool)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:5]
    worst = [
        {"true": names[i], "predicted": names[j], "count": mistakes[i, j], "total": counts[i].sum()}
        for i, j in zip(*np.unravel_index(order, counts.shape), strict=True)
        if mistakes[i, j]
    ]
    listed = "; ".join(
        f"{row['true']} taken for {row['predicted']} in {row['count']} of {row['total']}" for row in worst
    )
    label = f"Confusion matrix of {len(names)} classes after task {after}. Most frequent mistakes: {listed or 'none'}."
    return {
        "plot": plots.confusion_heatmap(counts, names, [len(task) for task in run.task_names[:after]], label),
        "worst": worst,
        "after": after,
        "wide": 12 < len(names) <= plots.MOST_NUMBERED,
    }


def _sites(run: RunFiles, numbers: Json) -> Json:
    """Return bars of each site's accuracy, or mean class recall where classes are uneven, with the worst one marked."""
    measure, last, _, by_site = _leading(numbers)
    values = _floats(numbers.get(by_site, []))
    if not len(values) or np.isnan(values).all():
        return {"plot": "", "worst": "", "shown": 0, "all": len(values)}
    worst = int(np.nanargmin(values))
    shown = np.arange(len(values)) if len(values) <= MOST_SITES else np.argsort(values, kind="stable")[:MOST_SITES]
    names = [site_label(run.started.get("site_names", ()), site) for site in range(len(values))]
    shares = ", ".join(f"{names[k]} " + ("none" if np.isnan(values[k]) else f"{values[k]:.1f}") for k in shown)
    plot = plots.site_bars(
        [names[k] for k in shown],
        values[shown],
        float(numbers[last]),
        int(np.flatnonzero(shown == worst)[0]),
        measure,
        f"Bars of the {measure} at each site, in percent: {shares}. The worst is {names[worst]}.",
    )
    return {"plot": plot, "measure": measure, "worst": names[worst], "shown": len(shown), "all": len(values)}


def _participation(run: RunFiles) -> Json:
    """Return a figure of which site answered, abstained or failed in which step, and a text that describes it."""
    seen = {entry["site"] for step in run.steps for entry in [*step["sites"], *step["failures"]]}
    everyone = sorted(seen)
    names = {site: site_label(run.started.get("site_names", ()), site) for site in everyone}
    row_of = {site: row for row, site in enumerate(everyone)}
    states = np.zeros((len(everyone), len(run.steps)), np.int64)
    abstained: dict[Any, Counter[str]] = defaultdict(Counter)
    failed: dict[Any, Counter[str]] = defaultdict(Counter)
    for column, step in enumerate(run.steps):
        where = f"task {step['task'] + 1} {step['stage']}"
        for entry in step["sites"]:
            states[row_of[entry["site"]], column] = 2 if entry.get("abstained") else 1
            abstained[entry["site"]].update([where] if entry.get("abstained") else [])
        for entry in step["failures"]:
            states[row_of[entry["site"]], column] = 3
            failed[entry["site"]][f"{where} round {step['round'] + 1}: {entry['error']} (code {entry['code']})"] += 1
    troubled = np.argsort(-(states > 1).sum(axis=1), kind="stable")[:MOST_SITES]
    shown = np.sort(troubled)
    words = [
        {
            "site": names[everyone[k]],
            "abstained": _listed(abstained[everyone[k]]),
            "failed": _listed(failed[everyone[k]]),
        }
        for k in shown
        if (states[k] > 1).any()
    ]
    label = f"Grid of {len(shown)} sites by {len(run.steps)} steps, with {(states == 2).sum()} abstentions and "
    label += f"{(states == 3).sum()} failures; the table below it says where."
    groups = [f"task {step['task'] + 1}" for step in run.steps]
    plot = plots.participation_grid(states[shown], [names[everyone[k]] for k in shown], groups, label) if seen else ""
    return {"plot": plot, "words": words, "shown": len(shown), "all": len(everyone)}


def _stages(run: RunFiles) -> Json:
    """Return steps, bytes and seconds per stage, over all tasks, rounds and sites."""
    totals: dict[str, Counter[str]] = {stage: Counter() for stage in _in_order(run.steps)}
    for step in run.steps:
        amounts = {key: step[key] for key in ("bytes_up", "bytes_down", "seconds")}
        totals[step["stage"]].update({"steps": 1, **amounts})
    if not totals:
        return {"plot": "", "rows": {}}
    up, down = (np.array([row[key] / 1e6 for row in totals.values()]) for key in ("bytes_up", "bytes_down"))
    size = decimal
    traffic = "; ".join(
        f"{name} {size(row['bytes_up'])} up, {size(row['bytes_down'])} down" for name, row in totals.items()
    )
    return {"plot": plots.traffic_bars(list(totals), up, down, f"Bars of data by stage: {traffic}."), "rows": totals}


def _in_order(steps: Iterable[Json]) -> list[str]:
    """Return all stages in the order in which a task does them; one that the first task lacks stands where it joins."""
    order: list[str] = []
    last: tuple[int, str] | None = None
    for step in steps:
        if step["stage"] not in order:
            order.insert(order.index(last[1]) + 1 if last and last[0] == step["task"] else 0, step["stage"])
        last = step["task"], step["stage"]
    return order


def _settings(config: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return settings by section, with inner keys joined by dots."""

    def leaves(value: Any, key: str) -> Iterable[tuple[str, str]]:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                yield from leaves(inner, f"{key}.{name}" if key else str(name))
        else:
            yield key, "–" if value is None else str(value)

    general = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    sections = {str(key): list(leaves(value, "")) for key, value in config.items() if isinstance(value, Mapping)}
    return {"experiment": list(leaves(general, "")), **sections} if config else {}


def _listed(places: Counter[str]) -> str:
    words = [place + (f" ({times} rounds)" if times > 1 else "") for place, times in places.items()]
    return "; ".join(words[:6]) + (f"; and {len(words) - 6} more" if len(words) > 6 else "")


def _floats(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
