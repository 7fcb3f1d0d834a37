"""Fill the report's section on who holds what: training and test images, and patients, by class and site."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from server.report.sections.clinical_section import MOST_SITES
from server.run_directory.run_files import Json, RunFiles

DARKEST = 0.35
"""Opacity of the shade behind the largest number, on which text can still be read."""
TEMPLATE = r"""
{% if images.rows %}
<h2>Images by class and site</h2>
<p>Training + test images of each class, from the counts that come with each answer
{%- if images.noised %}; those of training images are noised{% endif %}.
{%- if images.patients %} In brackets: the patients whom they show, which only a simulation knows.
{%- else %} How many patients they show is not known here.{% endif %}</p>
<div class="scroll" tabindex="0"><table>
  <thead><tr><th>Class</th><th class="n">task</th>
  {%- for name in images.columns %}<th class="n">{{ name }}</th>{% endfor %}</tr></thead>
  <tbody>
  {% for row in images.rows %}
  <tr><th scope="row">{{ row.name }}</th><td class="n">{{ row.task }}</td>
  {%- for words, shade in row.cells %}
  <td class="n"{% if shade %} style="background: rgb(31 99 148 / {{ shade }})"{% endif %}>{{ words }}</td>
  {%- endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
{% endif %}
"""
"""A template that is used with the page's own filters."""


def images_section(run: RunFiles) -> Json:
    """Return what the template shows: a column per site and one for all; of many sites how the images lie among them.

    A run of an earlier version told no training images: only the test images are shown.
    """
    train, test = run.training_images, {}
    if run.confusion_by_site is not None:
        names, counts = run.confusion_by_site
        test = dict(zip(names, counts[-1].sum(axis=-1), strict=True))
    patients = {str(site): row for site, row in enumerate(run.started.get("patients") or ())}
    everyone = {*train, *test} or {"all"}
    if "all" not in everyone:
        everyone |= {str(site) for site in range(run.started.get("sites", 0))}
    sites = sorted(everyone, key=lambda site: (len(site), site))
    classes = [(name, task) for task, names in enumerate(run.task_names, start=1) for name in names]
    nothing = [0] * len(classes)
    told = [[train.get(site, nothing), test.get(site, nothing), patients.get(site, nothing)] for site in sites]
    held = np.array(told, np.int64).reshape(len(sites), 3, len(classes))
    most = held[:, 0].max(initial=1)
    rows = [
        {"name": name, "task": task, "cells": _cells(held[:, :, place], most)}
        for place, (name, task) in enumerate(classes)
        if held[:, :, place].any()
    ]
    if len(rows) > 1:  # a patient may have images of several classes
        rows.append({"name": "all classes", "task": "", "cells": _cells(held.sum(axis=2) * (1, 1, 0), np.inf)})
    return {
        "columns": _columns([run.site_name(site) for site in sites]),
        "patients": bool(patients),
        "noised": run.config.get("privacy", {}).get("mechanism") == "example",
        "rows": rows,
    }


def _columns(sites: list[str]) -> list[str]:
    if len(sites) == 1:
        return sites
    return ["sites", "training images at each", "all sites"] if len(sites) > MOST_SITES else [*sites, "all sites"]


def _cells(held: NDArray[np.int64], most: float) -> list[tuple[str, float]]:
    """Return words and shade of each cell of a row, given [K, 3] training images, test images and patients."""
    together = (_words(*held.sum(axis=0).tolist()), 0.0)
    if len(held) > MOST_SITES:
        train = held[held[:, :2].any(axis=1), 0]
        return [(f"{len(train):,}", 0.0), (f"{train.min():,} to {train.max():,}", 0.0), together]
    cells = [(_words(*own.tolist()), round(float(DARKEST * own[0] / most), 3)) for own in held]
    return cells if len(cells) == 1 else [*cells, together]


def _words(train: int, test: int, patients: int) -> str:
    if not train and not test:
        return "–"
    return f"{train:,} + {test:,}" + (f" ({patients:,})" if patients else "")
