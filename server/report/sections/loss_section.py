"""Fill the report's section on training: the loss after each round, stage by stage and task by task."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np

from server.report.plots import BLUE, MUTED, RED, RULE, drawing
from server.run_directory.run_files import Json, RunFiles

COLOURS = (BLUE, RED, "#2f7d4f", "#8a5a9e")
TEMPLATE = r"""
{% if losses %}
<h2>Loss, round after round</h2>
{{ figure(losses, "Mean training loss of a round’s last epoch, over the images of all sites that answered. A line is "
  ~ "one stage of one task; losses of different stages are on different scales. Lines that still fall would gain from "
  ~ "more rounds." ~ (" A stage named “check” gives the loss on images held out of training." if kept else "")) }}
{% if kept %}
<p>Of each stage that keeps its best round, the next one starts with: {{ kept | join("; ") }}.</p>
{% endif %}
{% endif %}
"""
"""A template that is used with the page's own macros."""


def loss_plot(run: RunFiles) -> str:
    """Return a plot of the loss of each training round; empty if nothing was trained, or no site told."""
    found: dict[tuple[int, str], list[tuple[int, float]]] = defaultdict(list)
    starts: dict[int, int] = {}
    rounds = 0
    for step in run.steps:
        loss = _loss(step)
        if loss is not None:
            rounds += 1
            starts.setdefault(step["task"], rounds)
            found[step["task"], step["stage"]].append((rounds, loss))
    if not rounds:
        return ""
    stages = list(dict.fromkeys(stage for _, stage in found))
    ends = "; ".join(f"task {task + 1} {stage} {line[-1][1]:.3g}" for (task, stage), line in found.items())
    label = f"Curves of the training loss by round. At the end of each stage: {ends}."
    with drawing("loss", label, 8.6, 2.8) as drawn:
        axes = drawn.axes
        for (task, stage), line in found.items():
            place, values = zip(*line, strict=True)
            name = stage if task == min(own for own, other in found if other == stage) else None
            colour = COLOURS[stages.index(stage) % len(COLOURS)]
            axes.plot(place, values, color=colour, marker="o", markersize=3, linewidth=1.5, label=name)
        for start in [*starts.values()][1:]:
            axes.axvline(start - 0.5, color=MUTED, linewidth=0.8)
        edges = [*starts.values(), rounds + 1]
        middles = [(start + end - 1) / 2 for start, end in pairwise(edges)]
        axes.set_xticks(middles, [f"task {task + 1}" for task in starts])
        axes.set(xlabel="rounds, by task", ylabel="loss", ylim=(0, None), xlim=(0.5, rounds + 0.5))
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        drawn.figure.legend(loc="outside upper left", ncols=len(stages), fontsize=8)
    return drawn.svg


def kept_rounds(run: RunFiles) -> list[str]:
    """Return which round each stage ended with that keeps its best one, in words."""
    return [
        f"task {event['task'] + 1}, {event['stage']}: round {event['kept'] + 1} of {event['round'] + 1} done, "
        f"loss {event['loss']:.3g} on images held out"
        for event in run.of_kind("round_kept")
    ]


def _loss(step: Json) -> float | None:
    """Return a step's loss over all images that were trained on; None for a step without training."""
    told = [step["total"]] if "total" in step else [{**site, **site.get("metrics", {})} for site in step["sites"]]
    pairs = [(own["loss"], own["samples"]) for own in told if own.get("loss") is not None and own.get("samples")]
    losses, samples = zip(*pairs, strict=True) if pairs else ((), ())
    return float(np.average(losses, weights=samples)) if pairs else None
