"""Fill the report's clinical section: the model's worth by class and site, with test images and intervals."""

from __future__ import annotations

import numpy as np

from dynammo_core.scoring.clinical import Share, class_measures, share
from dynammo_core.scoring.metrics import mean_class_recall
from server.report.page import number
from server.run_directory.run_files import Json, RunFiles

MOST_SITES = 12  # beside or below one another; of more, only their sum is shown
MEASURES = ("sensitivity", "specificity", "precision", "f1")

TEMPLATE = r"""
{% if clinical.classes %}
<h2>Class by class, site by site</h2>
<p>After task {{ clinical.after }}, on {{ clinical.images }} test images, one class against all others, in percent with
95 % intervals (Wilson 1927). Guessing evenly would be right for {{ clinical.chance | number }} %, always naming the
most frequent class for {{ clinical.majority | number }} %. The intervals take images to be independent: where a patient
has several, they are too narrow. Areas under ROC curves by class are not shown: they need scores, and only counts of
answers leave a site.</p>
<div class="scroll" tabindex="0"><table>
  <caption>Sensitivity: of images of the class, those recognised. Specificity: of other images, those not taken for it.
  Precision: of images taken for it, those that are of it; it changes with how frequent the class is</caption>
  <thead><tr><th>Class</th><th class="n">test images</th><th class="n">sensitivity</th><th class="n">specificity</th>
  <th class="n">precision</th><th class="n">F1</th></tr></thead>
  <tbody>
  {% for row in clinical.classes %}
  <tr><th scope="row">{{ row.name }}</th><td class="n">{{ row.images }}</td>
  {% for value in row.shares %}<td class="n">{{ value }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
<div class="scroll" tabindex="0"><table>
  <caption>Balanced accuracy is the mean sensitivity over the classes of which a site has test images</caption>
  <thead><tr><th>Site</th><th class="n">test images</th><th class="n">accuracy</th>
  <th class="n">balanced accuracy</th></tr></thead>
  <tbody>
  {% for row in clinical.sites %}
  <tr><th scope="row">{{ row.name }}</th><td class="n">{{ row.images }}</td><td class="n">{{ row.accuracy }}</td>
  <td class="n">{{ row.balanced | number }}</td></tr>
  {% endfor %}
  </tbody>
</table></div>
{% endif %}
"""
"""A template that is used with the page's own filters."""


def clinical_section(run: RunFiles) -> Json:
    """Return what the template shows of the counts after the last finished task."""
    if run.confusion_by_site is None:
        return {"classes": []}
    sites, after_tasks = run.confusion_by_site
    after = len(after_tasks)
    names = [name for task in run.task_names[:after] for name in task]
    counts = after_tasks[-1, :, : len(names), : len(names)]
    pooled = counts.sum(axis=0)
    measures = class_measures(pooled)
    columns = [run.site_name(site) for site in sites] if len(sites) <= MOST_SITES else []
    rows = [*zip(columns, counts, strict=False)] + ([("all sites", pooled)] if len(columns) != 1 else [])
    shares = [_texts(getattr(measures, name)) for name in MEASURES]
    return {
        "after": after,
        "images": int(pooled.sum()),
        "chance": 100 / len(names),
        "majority": 100 * measures.images.max() / max(pooled.sum(), 1),
        "classes": [
            {
                "name": name,
                "images": int(measures.images[label]),
                "shares": [texts[label] for texts in shares],
            }
            for label, name in enumerate(names)
        ],
        "sites": [
            {
                "name": name,
                "images": int(table.sum()),
                "accuracy": _texts(share([np.trace(table)], [table.sum()]))[0],
                "balanced": mean_class_recall(table[None, None], [list(range(len(names)))]),
            }
            for name, table in rows
        ],
    }


def _texts(shares: Share) -> list[str]:
    return [
        "–" if np.isnan(value) else f"{number(value)} ({number(low)}–{number(high)})"
        for value, low, high in zip(shares.value, shares.low, shares.high, strict=True)
    ]
