"""The page of an audit: what the attacks found, in words that a data-protection officer can check."""

from __future__ import annotations

from collections.abc import Sequence

from server.report.page import page_environment
from simulations.attacks.audit import Audit, Measurement

TEMPLATE = """{% extends "page" %}
{% block title %}{{ audits[0].run.path.name }} · privacy audit{% endblock %}
{% block style %}
figure img { max-width: 100%; height: auto; }
{% endblock %}
{% block body %}
<header>
  <p class="kicker">Federated class-incremental learning · privacy audit</p>
  <h1>{{ audits[0].run.path.name }}{% if audits | length > 1 %}, compared{% endif %}</h1>
  <p>Attacks on the deployed model and on what sites send. A value no better than guessing means that this attack found
  nothing, not that no attack could.</p>
</header>
<main>
<h2>What was found</h2>
<p>In brackets, 95 % bootstrap intervals; records: members against others, or images behind the
message.</p>
<div class="scroll" tabindex="0"><table>
  <thead><tr><th>Attack</th><th>Target</th><th class="n">Records</th><th>Measure</th><th class="n">Guessing</th>
  {% for audit in audits %}<th class="n">{{ audit.run.path.name }}</th>{% endfor %}</tr></thead>
  <tbody>
  {% for row in rows %}
  <tr><th scope="row">{{ row.attack }}</th><td>{{ row.target }}</td><td class="n">{{ row.records }}</td>
    <td>{{ row.measure }}{% for note in row.notes %}<br><small>{{ note }}</small>{% endfor %}</td>
    <td class="n">{{ row.guess }}</td>{% for found in row.found %}<td class="n">{{ found }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
{% for audit in audits %}{% for name, why in audit.skipped.items() %}
<p>{{ audit.run.path.name }}: no {{ name }} attack, {{ why }}.</p>
{% endfor %}{% endfor %}

<h2>What the figures mean</h2>
<p>AUC: the probability that a training image ranks before a test image of the same classes; guessing gives 0.5.
TPR at 1 % FPR: the share of training images that are recognised when at most one test image in a hundred is mistaken
for one; guessing recognises one in a hundred. Likeness: the peak signal-to-noise ratio to the nearest true image, in
decibels; the guess is the mean of the class's test images, where the search starts. Cosine: 1 is the feature itself;
the guess is how near other images of the class come.</p>
<p>The control ranks images by shadow models that saw none of them. Where it is better than guessing, the images
themselves differ, as exemplars that were chosen for being typical do. The loss threshold then succeeds for that reason;
the likelihood ratio removes the difference.</p>

{% if pictures %}
<h2>What the attacker saw</h2>
<p>Each column is one image. Where a row “found” does not show what the row “nearest true image” shows, the search has
failed. These are images of the simulation's data set: keep the page where those may be.</p>
{% for name, picture in pictures %}
<figure>
  <img src="{{ picture.inline }}" alt="{{ picture.caption }}">
  <figcaption>{{ name }}: {{ picture.caption }}</figcaption>
</figure>
{% endfor %}
{% endif %}
</main>
<footer>Made by <code>{{ command }}</code>. Numbers: privacy_audit.json. Configurations:
{% for audit in audits %}{{ audit.run.path.name }} {{ audit.run.config_hash }}{{ ", " if not loop.last else "." }}
{% endfor %}
Sources: Yeom et al. 2018 (loss threshold), Carlini et al. 2022 (likelihood ratio), Geiping et al. 2020
(inversion).</footer>
{% endblock %}
"""


def page(audits: Sequence[Audit], rows: Sequence[Measurement], command: str) -> str:
    """Return the page about audits of one or several runs; the same findings give the same text."""
    pictures = [
        (audit.run.path.name, picture)
        for audit in audits
        for outcome in audit.outcomes.values()
        for picture in outcome.pictures
    ]
    return page_environment().from_string(TEMPLATE).render(audits=audits, rows=rows, pictures=pictures, command=command)
