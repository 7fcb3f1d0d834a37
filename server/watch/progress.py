"""Show a run's progress: a live panel in a terminal, or one line per finished step in a log.

It uses only the events of the run log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType

from rich import filesize
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Column, Table

from dynammo_core.scoring.leading import recall_leads
from dynammo_core.support.terminal import Terminal, cell, printable
from server.watch.run_state import MOST_NAMED, Event, RunState, abstaining, recall_led, where


class ProgressView:
    """Show a run to people while it goes on: a context manager fed by `update`.

    Args:
        console: where the run is shown; standard output by default.
        live: a panel that is drawn over and over; by default only if the console is a terminal that can do so.
        clock: unix seconds.
    """

    def __init__(
        self, console: Console | None = None, *, live: bool | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._console = console or Terminal()
        self._state = RunState()
        self._lock = threading.Lock()  # the panel is drawn by a thread of its own
        self._clock = clock
        if live is None:  # a log stays a log even if FORCE_COLOR makes rich see a terminal
            live = self._console.is_interactive and self._console.file.isatty()
        self._live = Live(console=self._console, get_renderable=self._panel, refresh_per_second=4) if live else None

    def __enter__(self) -> ProgressView:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    @property
    def begun(self) -> bool:
        """Tell whether the run has started to write its log."""
        return bool(self._state.start["plan"])

    def update(self, event: Event) -> None:
        """Show what an event of the run log changes."""
        with self._lock:
            self._state.update(event)
        if self._live:
            self._live.refresh()
        elif line := _line(event, self._state):
            # Not through rich's layout: a line of a log is not wrapped, and no character set may stop a run.
            encoding = self._console.encoding
            self._console.file.write(printable(line).encode(encoding, "replace").decode(encoding) + "\n")
            self._console.file.flush()

    def _panel(self) -> RenderableType:
        with self._lock:
            return progress_panel(self._state, self._clock())


def progress_panel(state: RunState, now: float, ending: str | None = None) -> Panel:
    """Return a panel of where a run stands; `now` in unix seconds, `ending` from the log unless given."""
    tasks, step = state.start["tasks"], state.step
    ending = state.ending if ending is None else ending
    total = len(state.start["plan"])
    rows = Table.grid(padding=(0, 2), expand=True)
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    if step:
        rows.add_row("Task", cell(f"{step['task'] + 1}/{len(tasks)}  {', '.join(tasks[step['task']])}"))
        rows.add_row("Stage", cell(f"{step['stage']}, round {step['round'] + 1}/{step['rounds']}"))
    if state.waiting and not ending:
        rows.add_row("Sites", cell(f"waiting for {state.labels(state.waiting)}", "yellow"))
    elif state.asked:
        rows.add_row("Sites", _bar(state.answered, state.asked, f"{state.answered}/{state.asked} answered"))
    else:
        rows.add_row("Sites", "nobody was asked yet in this step")
    if state.working and not ending:
        rows.add_row("Working", cell(working(state, now)))
    if state.decoding:
        rows.add_row("Images", _bar(state.decoding["done"], state.decoding["total"], state.decoding["speed"]))
    rows.add_row("Steps", _bar(state.finished, total, f"{state.finished}/{total}"))
    left = None if ending else state.seconds_left(now)
    elapsed = f"{duration(now - state.start['time'])} elapsed" if state.start["time"] else ""
    rows.add_row("Time", elapsed + (f", about {duration(left)} left" if left else ""))
    measures = {"Accuracy": state.accuracies, "Recall": state.recalls}
    for measure in reversed(measures) if state.recall_leads else measures:
        rows.add_row(measure, _after_tasks(measures[measure]))
    if state.held:
        held = cell(state.held, "yellow")
        held.no_wrap, held.overflow = False, "fold"  # which class, which site and what stays deployed, however long
        rows.add_row("Gate", held)
    rows.add_row("Abstained", cell(state.abstained or "-"))
    failed = f"{len(state.failures)}, last: {state.failures[-1]}" if state.failures else "-"
    rows.add_row("Failures", cell(failed, "red" if state.failures else ""))
    if ending:
        rows.add_row("Ended", cell(ending, "bold"))
    border = "blue" if not ending else "green" if ending == "completed" else "red"
    words = [str(state.start[key]) for key in ("name", "method") if key in state.start]
    return Panel(rows, title=cell(" - ".join(words), "bold"), border_style=border)


def final_table(summary: Event, names: Sequence[str] = ()) -> Table:
    """Return the numbers of `summary.json` as a table that fits 80 columns; `names` are those of the sites."""
    heading = f"{summary['name']}: {summary['method']} on {summary['dataset']}, {summary['tasks']} tasks"
    heading += f", {summary['sites']} sites, seed {summary['seed']}"
    table = Table("", Column(overflow="fold"), title=cell(heading, "bold"), show_header=False, title_justify="left")

    def percents(values: Iterable[float | None]) -> str:
        return ", ".join("-" if value is None else f"{value:.1f}" for value in values)

    balanced = ("average_mean_class_recall", "mean_class_recall", "worst_site_mean_class_recall")
    plain = ("average_incremental_accuracy", "last_accuracy", "worst_site_accuracy")
    uneven = recall_leads(summary)
    for key in (*(balanced + plain if uneven else plain + balanced), "forgetting", "backward_transfer"):
        if key in summary:  # the results of an earlier version lack some
            unit = "points" if key in ("forgetting", "backward_transfer") else "%"
            table.add_row(key.replace("_", " "), f"{percents([summary[key]])} {unit}")
    table.add_row("accuracy after each task", percents(summary["accuracy_after_tasks"]) + " %")
    for key, words in (
        ("calibration_error", "calibration error"),
        ("open_set_auroc", "classes to come, AUROC"),
        ("open_set_fpr95", "classes to come, FPR95"),
    ):
        values = summary.get(f"{key}_after_tasks", [])  # the results of an earlier version have none
        if any(value is not None for value in values):
            table.add_row(words, percents(values) + " %")
    by_site = {"accuracy": "site_accuracies", "mean class recall": "site_mean_class_recalls"}
    for metric in reversed(by_site) if uneven else by_site:
        sites = summary.get(by_site[metric])
        if sites is not None and len(sites) <= 2 * MOST_NAMED:
            named = (f"{name} {percents([value])}" for name, value in zip(names, sites, strict=False))
            words = (", ".join(named) or percents(sites)) + " %" if sites else "hidden in the sum"
            table.add_row(f"{metric} at each site", cell(words))
    table.add_section()
    for row in summary.get("own_heads", [])[: 2 * MOST_NAMED]:
        recalls = percents(row[head]["mean_class_recall"] for head in ("common", "personal", "alone"))
        table.add_row(
            cell(f"{row['site']}: common, own, alone"), cell(f"{recalls} %, joining: {row['joining'] or '-'}")
        )
    table.add_row("one prediction", f"{summary['macs_per_image'] / 1e6:,.1f} million multiply-accumulates")
    deployed, trainable = (summary[key] / 1e6 for key in ("deployed_parameters", "trainable_parameters"))
    table.add_row("parameters", f"{deployed:,.2f} million deployed, {trainable:,.2f} million trained")
    up, down = (filesize.decimal(summary[key]) for key in ("bytes_up", "bytes_down"))
    table.add_row("sent", f"{up} to the server, {down} to the sites")
    table.add_row("took", f"{duration(summary['seconds'])} in {summary['rounds']} rounds")
    table.add_row("status", cell(str(summary["status"])))
    return table


def _line(event: Event, state: RunState) -> str:
    """Return the log line for an event, or an empty text if the event does not deserve one."""
    tasks = state.start["tasks"]
    match event["event"]:
        case "run_started":
            line = f"{event['name']}: {event['method']} on {event['dataset']}, {event['sites']} sites, "
            line += f"{sum(map(len, tasks))} classes in {len(tasks)} tasks, {len(event['plan'])} steps"
            return line + (f", resumed after step {event['resumed_at']}" if event["resumed_at"] else "")
        case "step_finished":
            total, answered = len(state.start["plan"]), len(event["sites"])
            parts = [
                f"[{event['step'] + 1:{len(str(total))}}/{total}] {where(event)}",
                f"{answered}/{answered + len(event['failures'])} sites",
                f"{event['seconds']:.1f} s",
                filesize.decimal(event["bytes_up"] + event["bytes_down"]),
            ]
            left = state.seconds_left(event["time"])
            line = ", ".join(parts) + (f", {duration(left)} left" if left else "")
            line += f"; abstained: {state.labels(abstained)}" if (abstained := abstaining(event)) else ""
            return line + (f"; failed: {', '.join(state.failed(event['failures']))}" if event["failures"] else "")
        case "waiting":
            return f"waiting for {state.labels(event['sites'])}"
        case "asking_again":
            return f"asking again: {', '.join(state.failed(event['failures']))}"
        case "task_evaluated":
            measures = [("accuracy", "site_accuracies"), ("mean_class_recall", "site_mean_class_recalls")]
            told = ", ".join(
                f"{key.replace('_', ' ')} {percent(event[key])}{_spread(event.get(by_site, ()))}"
                for key, by_site in (reversed(measures) if recall_led(event) else measures)
                if key in event
            )
            return f"task {event['task'] + 1}/{len(tasks)} learnt, {told}"
        case "gate_judged":
            return state.held
        case "run_finished":
            summary = event["summary"]
            uneven = recall_leads(summary)
            balanced = f"mean class recall {percent(summary['mean_class_recall'])}, " if uneven else ""
            return f"run {state.ending}, {balanced}accuracy {percent(summary['last_accuracy'])} at the end"
        case "run_failed":  # whoever started it says in its error what to ask at the sites
            return f"run failed: {event['message']}"
    return ""


def working(state: RunState, now: float) -> str:
    """Return who works on the step in hand, and since when: `county 0:03:12, mercy 0:00:40`; `now` in unix seconds."""
    shown = list(state.working.items())[:MOST_NAMED]
    words = ", ".join(f"{state.label(site)} {duration(now - since)}" for site, since in shown)
    return words + (f" and {len(state.working) - MOST_NAMED} more" if len(state.working) > MOST_NAMED else "")


def _bar(done: int, total: int, words: str) -> Table:
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True, justify="right", width=16)
    row.add_row(ProgressBar(total=max(total, 1), completed=done), words)
    return row


def _spread(by_site: Iterable[float | None]) -> str:
    """Return ` (sites: 50.0 to 90.0 %)`, or an empty text if nothing is known by site."""
    known = [value for value in by_site if value is not None]
    return f" (sites: {min(known):.1f} to {max(known):.1f} %)" if known else ""


def _after_tasks(by_task: Mapping[int, float | None]) -> str:
    latest = sorted(by_task)[-MOST_NAMED:]
    if all(by_task[task] is None for task in latest):
        return "-"
    values = ", ".join(percent(by_task[task]).removesuffix(" %") for task in latest)
    tasks = f"tasks {latest[0] + 1}-{latest[-1] + 1}" if len(latest) > 1 else f"task {latest[0] + 1}"
    return f"{values} % after {tasks}"


def percent(value: float | None) -> str:
    """Return `83.1 %`, or a hyphen if there is no value."""
    return "-" if value is None else f"{value:.1f} %"


def duration(seconds: float) -> str:
    """Return a duration as `0:01:23`."""
    return str(timedelta(seconds=max(round(seconds), 0)))
