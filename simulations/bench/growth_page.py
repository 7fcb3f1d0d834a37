"""The page of `dynammo-sim bench growth`: log-log plots, a slope for each line, and the numbers under them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rich.filesize import decimal

from server.report.page import page_environment
from server.report.plots import MUTED, RULE, drawing
from simulations.bench.exponents import Growth, exponent
from simulations.bench.growth import AXES, QUANTITIES
from simulations.comparisons.plots import COLOURS, MARKERS

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "a round": ("seconds", "memory"),
        "what travels": ("up", "down", "messages"),
        "on disks": ("checkpoint", "exemplars"),
        "deployed": ("network", "heads"),
    }
)
"""The plots of an axis, and the quantities in each."""

Answers = Sequence[Mapping[str, Any]]
"""Rows of `dynammo_core.scoring.cost.cost_table`."""

TEMPLATE = """{% extends "page" %}
{% block title %}Growth{% endblock %}
{% block style %}
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1rem; }
{% endblock %}
{% block body %}
<header>
  <p class="kicker">Federated class-incremental learning · growth</p>
  <h1>What grows with what</h1>
  <p>Real runs of a small network, each in a process of its own. A quantity grows as a power of what is varied: the
  exponent is the slope of its line, by least squares over all points and between the last two. Where a constant part
  hides the growth at first, the second is the larger one. Rounds are those of the last task.</p>
</header>
<main>
{% for axis in axes %}
<h2>{{ axis.name | capitalize }}</h2>
<p>{{ axis.words | capitalize }}. Lines show multiples of the first point; dashed: in proportion.</p>
<div class="plots">
{% for words, svg in axis.plots.items() %}
<figure><div class="plot">{{ svg | safe }}</div><figcaption>{{ words | capitalize }}</figcaption></figure>
{% endfor %}
</div>
<div class="scroll"><table>
  <thead><tr><th>Quantity</th>{% for point in axis.points %}<th class="n">{{ "{:,}".format(point) }}</th>{% endfor %}
  <th class="n">exponent</th><th class="n">last two</th></tr></thead>
  <tbody>
  {% for row in axis.rows %}
  <tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td class="n">{{ cell }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
{% endfor %}
{% if answers %}
<h2>An answer, by the number of tasks</h2>
<p>{{ network }}, one image, one thread; the best of many, taken in turns. Beside it, methods that grow.</p>
<div class="plots">
{% for words, svg in answer_plots.items() %}
<figure><div class="plot">{{ svg | safe }}</div><figcaption>{{ words }}</figcaption></figure>
{% endfor %}
</div>
<div class="scroll"><table>
  <thead><tr>{% for title in answer_columns %}<th class="n">{{ title }}</th>{% endfor %}</tr></thead>
  <tbody>
  {% for row in answers %}
  <tr>{% for cell in row %}<td class="n">{{ cell }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
{% endif %}
</main>
<footer>Made by <code>{{ command }}</code>; code {{ code }}. Numbers: growth.json.</footer>
{% endblock %}
"""


def growth_page(
    found: Mapping[str, tuple[Sequence[int], Mapping[str, Growth]]],
    answers: Answers,
    *,
    network: str,
    command: str,
    code: str,
) -> str:
    """The page: the same numbers give the same text.

    Args:
        found: by axis, the points and the growth of each quantity.
        answers: what an answer costs, by method and number of tasks; may be empty.
        network: the one that answers.
        command: that made the page.
        code: hash of the code.
    """
    axes = [
        {
            "name": name,
            "words": AXES[name].words,
            "points": points,
            "plots": _plots(name, points, growth),
            "rows": rows(points, growth),
        }
        for name, (points, growth) in found.items()
    ]
    return (
        page_environment()
        .from_string(TEMPLATE)
        .render(
            axes=axes,
            answers=answer_rows(answers),
            answer_columns=ANSWER_COLUMNS,
            answer_plots=_answer_plots(answers),
            network=network,
            command=command,
            code=code,
        )
    )


def rows(points: Sequence[int], growth: Mapping[str, Growth]) -> list[list[str]]:
    """For people, a row for each quantity that there is: its words, its values, both exponents.

    Seconds are multiples of those at the first point, as bare ones say more about the machine.
    """
    table = []
    for name, one in growth.items():
        if not any(one.values):
            continue
        shown = [f"× {v / one.values[0]:.2f}" if name == "seconds" else decimal(round(v)) for v in one.values]
        table.append([QUANTITIES[name], *shown, slope(one.exponent), slope(one.last)])
    return table


def slope(value: float | None) -> str:
    """An exponent for people."""
    return "" if value is None else f"{value + 0.0:.2f}"


ANSWER_COLUMNS = ("method", "tasks", "million MACs", "million parameters", "ms", "/ first")


def answer_rows(answers: Answers) -> list[list[str]]:
    """For people, a row for each method and number of tasks, under `ANSWER_COLUMNS`."""
    table, first = [], dict[str, float]()
    for row in sorted(answers, key=lambda row: (list(_methods(answers)).index(row["method"]), row["tasks"])):
        base = first.setdefault(row["method"], row["latency_ms"])
        counts = (f"{row['macs'] / 1e6:.2f}", f"{row['parameters'] / 1e6:.2f}", f"{row['latency_ms']:.2f}")
        table.append([row["method"], str(row["tasks"]), *counts, f"{row['latency_ms'] / base:.2f}"])
    return table


def _methods(answers: Answers) -> dict[str, None]:
    return dict.fromkeys(row["method"] for row in answers)


def _plots(axis: str, points: Sequence[int], growth: Mapping[str, Growth]) -> dict[str, str]:
    plots = {}
    for words, names in GROUPS.items():
        lines = {name: growth[name] for name in names if growth[name].exponent is not None}
        if lines and len(points) > 1:
            plots[words] = _log_log(f"{axis}-{words}", axis, points, {name: one.values for name, one in lines.items()})
    return plots


def _answer_plots(answers: Answers) -> dict[str, str]:
    plots = {}
    for key, words in (("latency_ms", "Milliseconds"), ("macs", "Multiply-accumulates"), ("parameters", "Parameters")):
        by_method = {name: [row for row in answers if row["method"] == name] for name in _methods(answers)}
        lines = {name: [float(row[key]) for row in own] for name, own in by_method.items()}
        tasks = sorted({row["tasks"] for row in answers})
        if len(tasks) > 1:
            plots[words] = _log_log(f"answer-{key}", "tasks", tasks, lines)
    return plots


def _log_log(name: str, axis: str, points: Sequence[int], lines: Mapping[str, Sequence[float]]) -> str:
    """Multiples of the first point, both axes logarithmic, and the exponent of each line in its legend."""
    slopes = {line: slope(exponent(points, values)) for line, values in lines.items()}
    told = ", ".join(f"{line} {value}" for line, value in slopes.items())
    with drawing(name.replace(" ", "-"), f"Log-log plot by {axis}; exponents: {told}.", 4.6, 3.2) as drawn:
        axes, first = drawn.axes, points[0]
        axes.plot(points, [x / first for x in points], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        highest, lowest = points[-1] / first, 1.0
        for (line, values), colour, marker in zip(lines.items(), COLOURS, MARKERS, strict=False):
            ratios = [value / values[0] for value in values]
            highest, lowest = max(highest, *ratios), min(lowest, *ratios)
            axes.plot(points, ratios, color=colour, marker=marker, markersize=5, label=f"{line}: {slopes[line]}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(points, [f"{point:,}" for point in points])
        ticks = [10.0**power for power in range(-6, 9) if lowest / 10 < 10.0**power < highest * 10]
        axes.set_yticks(ticks, [f"{tick:,g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_yticks([], minor=True)
        axes.set(xlabel=axis, ylabel="multiple of the first", ylim=(0.7 * lowest, 1.5 * highest))
        axes.grid(color=RULE, linewidth=0.5)
        drawn.figure.legend(loc="outside upper left", ncols=3, fontsize=8)
    return drawn.svg
