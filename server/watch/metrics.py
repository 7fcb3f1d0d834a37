"""Give the numbers of a consortium's runs in Prometheus' text format, at `/metrics` of the status page's port.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from server.watch.lookout import Overview

Labels = Mapping[str, str]
Samples = Sequence[tuple[Labels, float | None]]


def metrics(overview: Overview, now: float) -> str:
    """Return the metrics; what is not known, and an attempt that was replaced, has no line. `now` in unix seconds."""
    lines: list[str] = []
    for name, kind, words, samples in _families(overview, now):
        known = [f"{name}{_braced(labels)} {value:.15g}" for labels, value in samples if value is not None]
        lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}", *known] if known else []
    return "\n".join([*lines, ""])


def _families(overview: Overview, now: float) -> Iterator[tuple[str, str, str, Samples]]:
    """Yield the name of each metric, its type, what it means, and its samples."""
    # An attempt that failed and was started anew would alarm for ever.
    runs = [({"run": run.directory.name}, run) for run in overview.current]
    sites = [({**label, "site": site.name}, site) for label, run in runs for site in run.sites]
    yield "dynammo_disk_free_bytes", "gauge", "Free bytes on the disk of the runs.", [({}, overview.free_bytes)]
    yield "dynammo_superlink_up", "gauge", "Whether the SuperLink answered.", [({}, float(not overview.silence))]
    yield "dynammo_run_state", "gauge", "1 for the state of a run.", [({**ls, "state": r.state}, 1) for ls, r in runs]
    yield "dynammo_run_steps", "gauge", "Steps of a run.", [(ls, len(r.progress.start["plan"])) for ls, r in runs]
    yield "dynammo_run_steps_finished", "gauge", "Finished steps.", [(ls, r.progress.finished) for ls, r in runs]
    yield "dynammo_run_accuracy_percent", "gauge", "Accuracy after the last task.", [(ls, r.accuracy) for ls, r in runs]
    for kind, tested in (("run", runs), ("site", sites)):
        words = f"Mean class recall of a {kind} after the last task."
        yield f"dynammo_{kind}_mean_class_recall_percent", "gauge", words, [(ls, one.recall) for ls, one in tested]
    yield (
        *("dynammo_run_held_back", "gauge", "Whether the gate holds the newest model back."),
        [(labels, float(bool(run.progress.held))) for labels, run in runs],
    )
    heard = [(labels, None if run.heard is None else now - run.heard) for labels, run in runs]
    yield "dynammo_run_silent_seconds", "gauge", "Seconds since a run's last event.", heard
    yield "dynammo_site_failures_total", "counter", "Failures of a site.", [(ls, site.failures) for ls, site in sites]
    working = [(labels, None if site.since is None else now - site.since) for labels, site in sites]
    yield "dynammo_site_working_seconds", "gauge", "Seconds since a site that works was asked.", working


def _braced(labels: Labels) -> str:
    """Return labels as `{run="digits",site="mercy"}`, with what ends a value or a line escaped."""
    escaped = {
        name: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for name, value in labels.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}" if labels else ""
