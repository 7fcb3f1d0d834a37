"""Turn the events of a run into points of curves: losses and traffic by step, tests by task, each by site."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Event = Mapping[str, Any]
ALL = "all sites"
OF_A_SITE = ("loss", "epsilon", "memory_bytes")
NO_RESULTS = ("seed", "tasks", "sites")
"""Numbers of the summary that the configuration sets."""


def points_of(event: Event, label: Callable[[int], str]) -> tuple[int, dict[str, float]]:
    """Return at which step or task an event stands, and its values by the name of their curves.

    Args:
        event: an event of the run's log; most kinds have no values.
        label: returns the name of a site for people.
    """
    match event["event"]:
        case "step_finished":
            return event["step"] + 1, dict(_known(_of_step(event, label)))
        case "task_evaluated":
            return event["task"] + 1, dict(_known(_of_test(event, label)))
        case "run_finished":
            summary = event["summary"]
            return summary["tasks"], dict(_known(_results(summary)))
    return 0, {}


def _of_step(event: Event, label: Callable[[int], str]) -> Iterator[tuple[str, Any]]:
    yield from ((f"{name}/{ALL}", event[name]) for name in ("seconds", "bytes_up", "bytes_down"))
    stage, total = event["stage"], event.get("total", {})
    weighed = [(site["metrics"]["loss"], site["samples"]) for site in event["sites"] if "loss" in site["metrics"]]
    samples = sum(count or 0 for _, count in weighed)
    mean = sum(loss * count for loss, count in weighed) / samples if samples else None
    yield f"loss {stage}/{ALL}", total.get("loss", mean)
    for site in event["sites"]:
        for name in OF_A_SITE:
            yield f"{name} {stage}/{label(site['site'])}", site["metrics"].get(name)


def _of_test(event: Event, label: Callable[[int], str]) -> Iterator[tuple[str, Any]]:
    yield f"accuracy/{ALL}", event["accuracy"]
    yield f"mean_class_recall/{ALL}", event.get("mean_class_recall")
    for name, by_site in (("accuracy", "site_accuracies"), ("mean_class_recall", "site_mean_class_recalls")):
        yield from ((f"{name}/{label(site)}", value) for site, value in enumerate(event.get(by_site, ())))


def _results(summary: Event) -> Iterator[tuple[str, Any]]:
    yield from ((f"result/{name}", value) for name, value in summary.items() if name not in NO_RESULTS)


def _known(values: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, float]]:
    """Leave out what is no number, as of a site without test images."""
    yield from ((name, float(value)) for name, value in values if isinstance(value, int | float))
