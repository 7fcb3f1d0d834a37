"""The page of a run, as a Jinja template: a Python file, because Flower bundles no HTML."""

from __future__ import annotations

from server.report.sections.clinical_section import TEMPLATE as CLINICAL
from server.report.sections.images_section import TEMPLATE as IMAGES
from server.report.sections.loss_section import TEMPLATE as LOSS
from server.report.sections.provenance_section import TEMPLATE as PROVENANCE
from server.report.sections.reliability_section import TEMPLATE as RELIABILITY

TEMPLATE = (
    r"""{% extends "page" %}
{% macro figure(svg, caption) %}
<figure>
  <div class="plot" tabindex="0">{{ svg | safe }}</div>
  <figcaption>{{ caption }}</figcaption>
</figure>
{% endmacro %}
{% macro fact(title, value, note="") %}
<div><dt>{{ title }}</dt><dd>{{ value }}{% if note %}<small>{{ note }}</small>{% endif %}</dd></div>
{% endmacro %}
{% set headlines = [
  ("last_accuracy", "Accuracy at the end" if finished else "Accuracy so far", "%",
   "The share of test images of all learnt classes that are recognised, without knowing the task."),
  ("average_incremental_accuracy", "Average accuracy", "%",
   "After each task the model is tested on every class so far; this is the mean of those tests."),
  ("forgetting", "Forgetting", "points",
   "How far earlier tasks have fallen from their best accuracy; at 0, nothing was forgotten."),
  ("worst_site_accuracy", "Worst site", "%",
   "The accuracy at the site where the shared model does worst."),
  ("mean_class_recall", "Mean class recall", "%",
   "The accuracy if every class counts equally, so that a rare disease weighs as much as a common one."),
  ("worst_site_mean_class_recall", "Worst site’s recall", "%",
   "The mean recall over its own classes at the site where that is lowest."),
  ("backward_transfer", "Backward transfer", "points",
   "How learning later tasks changed earlier ones: below 0 they lost accuracy, above 0 they gained."),
] %}
{% set class_count = run.tasks | sum(start=[]) | length %}
{% block title %}{{ name }} · run report{% endblock %}
{% block body %}
<header>
  <p class="kicker">Federated class-incremental learning · run report</p>
  <h1>{{ name }} {% if finished %}<span class="status">{{ numbers.status | default("finished") }}</span>{% else %}<span class="status open">unfinished</span>{% endif %}</h1>
  <p>
    {%- set sites = numbers.sites | default(0) -%}
    The method <strong>{{ numbers.method | default("of this run") }}</strong>
    {{- " on the data set " if numbers.get("dataset") }}<strong>{{ numbers.dataset | default("") }}</strong>:
    {{ sites or "an unknown number of" }} {{ "site" if sites == 1 else "sites" }}
    {{ "learns" if sites == 1 else "learn" }} {{ class_count or "an unknown number of" }} classes in
    {{ run.tasks | length or "several" }} {{ "task" if run.tasks | length == 1 else "tasks" }}, one task after the other{{ ", without sharing an image" if sites != 1 }}.
  </p>
</header>
<main>
{% if not finished %}
<div class="banner" role="status">
  <p><strong>This run has not finished.</strong>
  {% if run.started.get("plan") %}{{ run.steps | length }} of {{ run.started.plan | length }} steps and {{ run.evaluations | length }} of {{ run.tasks | length }} tasks are done.{% endif %}
  The page shows what its files hold so far.</p>
  {% if failure %}<p>It stopped with this message: {{ failure }}</p>{% endif %}
</div>
{% endif %}
{% if run.lost_lines %}
<div class="banner"><p>{{ run.lost_lines }} unreadable {{ "line" if run.lost_lines == 1 else "lines" }} of events.jsonl could not be shown; an interruption can truncate a line.</p></div>
{% endif %}

{% if uneven %}
<p><strong>Read the mean class recall first.</strong> The classes are uneven: the most frequent one has {{ numbers.class_imbalance | number }} times the test images of the rarest, so that the accuracy speaks mostly of frequent classes.</p>
{% endif %}
<dl class="cards">
{% set balanced = headlines | selectattr(0, "in", ("mean_class_recall", "worst_site_mean_class_recall")) | list %}
{% for key, title, unit, meaning in (balanced if uneven else []) + (headlines | reject("in", balanced if uneven else []) | list) if numbers[key] is defined and numbers[key] | number != "–" %}
  <div{% if key == "worst_site_accuracy" %} class="worst"{% endif %}><dt>{{ title }}</dt>
    <dd><span class="value">{{ numbers[key] | number }} <span class="unit">{{ unit }}</span></span><small>{{ meaning }}{% if notes[key] %} {{ notes[key] }}{% endif %}{% if key == "last_accuracy" and clinical.classes %} Guessing evenly: {{ clinical.chance | number }} %.{% endif %}</small></dd></div>
{% endfor %}
</dl>

"""
    + IMAGES
    + r"""
{% if learning.rows %}
<h2>Learning, task after task</h2>
<p>Each task brings new classes. Tests always cover all classes so far, without knowing the task.</p>
{% if learning.curve or learning.matrix %}
<div class="pair">
{% if learning.curve %}{{ figure(learning.curve, learning.measure | capitalize ~ " on all classes learnt so far. More classes make a harder test, so a gentle fall is expected; a steep one is forgetting.") }}{% endif %}
{% if learning.matrix %}{{ figure(learning.matrix, "Read a column downwards: how well one task’s classes are still recognised while later tasks are learnt. A column that stays dark was not forgotten.") }}{% endif %}
</div>
{% endif %}
<div class="scroll" tabindex="0"><table>
  <caption>The tasks and their classes; accuracies in percent</caption>
  <thead><tr><th>Task</th><th>Classes</th><th class="n">when<br>learnt</th><th class="n">{{ "at the end" if finished else "now" }}</th><th class="n">all classes<br>after it</th><th class="n">test images<br>behind that</th></tr></thead>
  <tbody>
  {% for row in learning.rows %}
  <tr><th scope="row">{{ loop.index }}</th><td>{{ row.classes }}</td><td class="n">{{ row.first | number }}</td><td class="n">{{ row.now | number }}</td><td class="n">{{ row.all | number }}</td><td class="n">{{ row.images if row.images is not none else "–" }}</td></tr>
  {% endfor %}
  </tbody>
</table></div>
{% endif %}

"""
    + LOSS
    + r"""
{% if confusions.plot %}
<h2>What is mistaken for what</h2>
<p>The confusion matrix after task {{ confusions.after }}, over all sites.</p>
<div{% if not confusions.wide %} class="pair"{% endif %}>
{{ figure(confusions.plot, "Each row holds the test images of one true class, in percent of that row; the diagonal is what was recognised. Lines separate the tasks. Empty cells are below half a percent.") }}
{% if confusions.worst %}
<div class="scroll" tabindex="0"><table>
  <caption>The most frequent mistakes</caption>
  <thead><tr><th>True class</th><th>taken for</th><th class="n">images</th><th class="n">of that class</th></tr></thead>
  <tbody>
  {% for row in confusions.worst %}
  <tr><td>{{ row.true }}</td><td>{{ row.predicted }}</td><td class="n">{{ row.count }}</td><td class="n">{{ row.total }}</td></tr>
  {% endfor %}
  </tbody>
</table></div>
{% endif %}
</div>
{% endif %}

"""
    + CLINICAL
    + RELIABILITY
    + r"""
{% if sites_seen.plot or participation.plot or numbers.get("own_heads") %}
<h2>The sites</h2>
<p>An average can hide a site that is served badly, so each site is tested on its own images.</p>
{% if sites_seen.plot %}
{{ figure(sites_seen.plot, sites_seen.measure | capitalize ~ " of the one shared model at each site" ~ (" at the end" if finished else " so far") ~ ". The lowest is " ~ sites_seen.worst ~ "." ~ (" Shown are the " ~ sites_seen.shown ~ " lowest of " ~ sites_seen.all ~ " sites." if sites_seen.shown < sites_seen.all else "")) }}
{% endif %}
{% if numbers.get("own_heads") %}
{% set losing = numbers.own_heads | selectattr("joining", "equalto", "does not pay") | map(attribute="site") | list %}
{% set told = numbers.own_heads | selectattr("joining") | list %}
<h3>{{ "Whether joining pays" if told else "Heads of sites’ own" }}</h3>
<p>{% if not told %}What a site would have alone this method does not tell.{% elif losing %}<strong>Joining does not pay for {{ losing | join(", ") }}</strong>: its own images alone give it a better classifier, by more than chance.{% else %}No site would do better alone by more than chance.{% endif %}</p>
<div class="scroll" tabindex="0"><table>
  <caption>Mean class recall (accuracy) in percent on each site’s own test images: by the common classifier, by the site’s own one, and by the one it would have alone</caption>
  <thead><tr><th>Site</th><th class="n">common</th><th class="n">its own</th><th class="n">alone</th><th>joining</th></tr></thead>
  <tbody>
  {% for row in numbers.own_heads %}
  <tr><th scope="row">{{ row.site }}</th>{% for head in ("common", "personal", "alone") %}<td class="n">{{ row[head].mean_class_recall | number }} ({{ row[head].accuracy | number }})</td>{% endfor %}<td{% if row.joining == "does not pay" %} class="bad"{% endif %}>{{ row.joining or "–" }}</td></tr>
  {% endfor %}
  </tbody>
</table></div>
{% endif %}
{% if participation.plot %}
<h3>Who took part</h3>
{{ figure(participation.plot, "One column per step. A site abstains from a step for which it has no images or too few; a failed site did not answer, and the step went on without it." ~ (" Shown are " ~ participation.shown ~ " of " ~ participation.all ~ " sites, those that abstained or failed most." if participation.shown < participation.all else "")) }}
{% if participation.words %}
<div class="scroll" tabindex="0"><table>
  <caption>Abstentions and failures</caption>
  <thead><tr><th>Site</th><th>abstained from</th><th>failed in</th></tr></thead>
  <tbody>
  {% for row in participation.words %}
  <tr><th scope="row">{{ row.site }}</th><td>{{ row.abstained or "–" }}</td><td{% if row.failed %} class="bad"{% endif %}>{{ row.failed or "–" }}</td></tr>
  {% endfor %}
  </tbody>
</table></div>
{% else %}
<p>Every site answered every step.</p>
{% endif %}
{% endif %}
{% endif %}

{% set costed = numbers.macs_per_image is defined %}
{% if stages.plot or costed %}
<h2>What it cost</h2>
<p>Network traffic, time, and what the deployed model needs. Images never travel.</p>
{% if costed %}
<dl class="facts">
  {{ fact("One prediction takes", numbers.macs_per_image | millions, "multiply-accumulate operations per image") }}
  {{ fact("Size of the deployed model", numbers.deployed_parameters | millions, "parameters") }}
  {{ fact("Trained in a task", numbers.trainable_parameters | millions, "parameters") }}
  {{ fact("Sent to the server", numbers.bytes_up | size, "by all sites together") }}
  {{ fact("Sent to the sites", numbers.bytes_down | size, "to all sites together") }}
  {{ fact("Time", numbers.seconds | duration, "in " ~ numbers.rounds ~ " rounds" ~ (", resumed " ~ resumes ~ (" time" if resumes == 1 else " times") if resumes else "")) }}
</dl>
{% endif %}
{% if stages.plot %}
<div class="pair">
{{ figure(stages.plot, "Data by stage, over all tasks, rounds and sites.") }}
<div class="scroll" tabindex="0"><table>
  <caption>By stage</caption>
  <thead><tr><th>Stage</th><th class="n">steps</th><th class="n">up</th><th class="n">down</th><th class="n">time</th></tr></thead>
  <tbody>
  {% for stage, row in stages.rows.items() %}
  <tr><th scope="row">{{ stage }}</th><td class="n">{{ row.steps }}</td><td class="n">{{ row.bytes_up | size }}</td><td class="n">{{ row.bytes_down | size }}</td><td class="n">{{ row.seconds | duration }}</td></tr>
  {% endfor %}
  </tbody>
</table></div>
</div>
{% endif %}
{% endif %}

{% if privacy %}
<h2>What it promises</h2>
<p>Images never leave their site. Beyond that, these guarantees hold against anyone who reads the weights.</p>
<dl class="facts">
{% for title, value in privacy %}
  {{ fact(title, value) }}
{% endfor %}
</dl>
{% endif %}

{% if run.started.get("data_notes") %}
<h2>The data</h2>
{% for note in run.started.data_notes %}
<p>{{ note }}</p>
{% endfor %}
{% endif %}

"""
    + PROVENANCE
    + r"""
{% if settings %}
<h2>Settings</h2>
<p>All settings of this run, as resolved in config.yaml.</p>
<div class="settings">
{% for section, rows in settings.items() %}
<section><h3>{{ section }}</h3>
<table><tbody>
{% for key, value in rows %}
<tr><th scope="row">{{ key }}</th><td>{{ value }}</td></tr>
{% endfor %}
</tbody></table></section>
{% endfor %}
</div>
{% endif %}
</main>
<footer>
  Configuration {{ numbers.get("config_hash") or run.started.get("config_hash") or "unknown" }}, code {{ numbers.get("code_hash") or run.started.get("code_hash") or "unknown" }}{% if numbers.get("backbone") %}, backbone {{ numbers.backbone }}{% endif %}.
  Accuracy, average accuracy: Rebuffi et al. 2017. Forgetting: Chaudhry et al. 2018. Backward transfer: Lopez-Paz &amp; Ranzato 2017. Calibration error: Guo et al. 2017.
  The data behind this page is in the same directory: summary.json, accuracy_matrix.csv, confusion_matrix.csv, calibration.csv, open_set.csv, events.jsonl.
</footer>
{% endblock %}
"""
)
