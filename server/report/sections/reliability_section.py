"""Fill the report's section on confidence: its calibration, and whether it falls for classes never learnt."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dynammo_core.scoring.reliability import CONFIDENCE_BINS, MEASURES, Reliability, known_threshold, receiver_curve
from server.report.plots import BLUE, MUTED, PALE, RULE, drawing
from server.run_directory.run_files import Json

TEMPLATE = r"""
{% if reliability.rows %}
<h2>How far to trust an answer</h2>
<p>Is the model right as often as it is confident, and does it notice a class that it never learnt?</p>
<div class="pair">
{{ figure(reliability.diagram, "Answers after the last task by confidence: of those given with 80 % confidence, "
  ~ "80 % should be right. Bars below the dashed line were overconfident; pale bars hold few images.") }}
{% if reliability.curves %}
{{ figure(reliability.curves, "As the threshold on the open-set score falls, more images of learnt classes pass "
  ~ "(upwards), and more of classes still to come (to the right). A curve in the upper left corner tells them apart, "
  ~ "one on the dashed line guesses. The numbers are tasks.") }}
{% endif %}
</div>
<div class="scroll" tabindex="0"><table>
  <caption>After each task, over all sites. Calibration error: points between confidence and accuracy. AUROC: how often
  an image of a learnt class has a higher open-set score than one of a class to come. FPR95: the share of images of
  classes to come above the threshold that 95 % of the images of learnt classes reach</caption>
  <thead><tr>
    <th>Task</th><th class="n">test images</th><th class="n">calibration<br>error, points</th>
    <th class="n">images of<br>classes to come</th><th class="n">AUROC, %</th><th class="n">FPR95, %</th>
    <th class="n">threshold</th>
  </tr></thead>
  <tbody>
  {% for row in reliability.rows %}
  <tr>
    <th scope="row">{{ row.task }}</th><td class="n">{{ row.images }}</td>
    <td class="n">{{ row.calibration_error | number }}</td><td class="n">{{ row.to_come }}</td>
    <td class="n">{{ row.open_set_auroc | number }}</td><td class="n">{{ row.open_set_fpr95 | number }}</td>
    <td class="n">{{ "%.6g" | format(row.threshold) }}</td>
  </tr>
  {% endfor %}
  </tbody>
</table></div>
{% endif %}
"""
"""A template that is used with the page's own macros and filters."""


def reliability_section(after_tasks: Mapping[int, Reliability]) -> Json:
    """Return what the template shows of the tables after each task, counted from 0."""
    tested = {task: tables for task, tables in sorted(after_tasks.items()) if tables.images}
    if not tested:
        return {"rows": [], "diagram": "", "curves": ""}
    rows = [
        {
            "task": task + 1,
            "images": tables.images,
            "to_come": tables.to_come,
            "threshold": known_threshold(tables),
            **{name: measure(tables) for name, measure in MEASURES.items()},
        }
        for task, tables in tested.items()
    ]
    error = f"Accuracy by confidence, in percent. The calibration error is {rows[-1]['calibration_error']:.1f}."
    areas = ", ".join(f"{row['open_set_auroc']:.1f} after task {row['task']}" for row in rows if row["to_come"])
    words = f"ROC curves of learnt classes against those to come. Their areas in percent: {areas}."
    with_scores = {task: tables for task, tables in tested.items() if tables.to_come}
    return {
        "rows": rows,
        "diagram": reliability_diagram(tested[max(tested)], error),
        "curves": open_set_curves(with_scores, words) if with_scores else "",
    }


def reliability_diagram(tables: Reliability, label: str) -> str:
    """Return a plot of accuracy in each bin of confidence (Guo et al., arXiv 1706.04599, figure 1)."""
    images, right, _ = tables.calibration
    with drawing("reliability", label, 4.9, 3.4) as drawn:
        axes, width = drawn.axes, 100 / CONFIDENCE_BINS
        for place in np.flatnonzero(images).tolist():
            shade = 0.25 + 0.75 * images[place] / images.max()
            height = 100 * right[place] / images[place]
            axes.bar((place + 0.5) * width, height, width=0.92 * width, color=BLUE, alpha=shade)
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set(xlabel="confidence, %", ylabel="answered right, %", xlim=(0, 100), ylim=(0, 102))
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
    return drawn.svg


def open_set_curves(after_tasks: Mapping[int, Reliability], label: str) -> str:
    """Return a plot of the ROC curve after each task, with the last one strongest."""
    with drawing("open_set", label, 4.9, 3.4) as drawn:
        axes = drawn.axes
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for task, tables in after_tasks.items():
            others, learnt = receiver_curve(tables)
            last = task == max(after_tasks)
            axes.plot(100 * others, 100 * learnt, color=BLUE if last else PALE, linewidth=2 if last else 1.2)
            middle = int(np.searchsorted(others, 0.1 + 0.3 * task / len(after_tasks)))
            axes.annotate(str(task + 1), (100 * others[middle], 100 * learnt[middle]), fontsize=8)
        axes.set(
            xlabel="false positive rate: classes to come, %",
            ylabel="true positive rate: learnt classes, %",
            xlim=(0, 100),
            ylim=(0, 102),
        )
        axes.grid(color=RULE, linewidth=0.6)
    return drawn.svg
