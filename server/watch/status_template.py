"""The pages of `dynammo-server status`, as Jinja templates: a Python file, because Flower bundles no HTML."""

SCRIPT = """
setInterval(async () => {
  const lost = document.getElementById("lost"), stops = () => [...document.querySelectorAll("main a, main [tabindex]")];
  try {
    const answer = await fetch(location.href, { signal: AbortSignal.timeout(20000) });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const focused = stops().indexOf(document.activeElement);
    document.querySelector("main").replaceWith(page.querySelector("main") ?? "");
    stops()[focused]?.focus({ preventScroll: true });
    lost.hidden = true;
  } catch {
    lost.hidden = false;
  }
}, 3000);
"""
"""Refreshes the page and leaves the keyboard where it is; if nobody answers, a banner says that it is out of date."""

BASE = (
    """{% extends "page" %}
{% block policy %}<noscript><meta http-equiv="refresh" content="3"></noscript>{% endblock %}
{% block title %}{{ title }} · dynammo-server status{% endblock %}
{% block style %}
.status.bad { background: var(--bad-wash); color: var(--red); }
.status.good { background: var(--good-wash); color: var(--good); }
progress { display: block; width: 100%; height: .6rem; accent-color: var(--blue); }
td .status { padding: .2rem .5rem; }
td small { display: block; color: var(--muted); overflow-wrap: anywhere; }
.late { color: var(--open); }
{% endblock %}
{% block body %}
<div id="lost" class="banner" role="alert" hidden>
  <p><strong>This page is out of date:</strong> the command that serves it no longer answers.</p>
</div>
<main>
<header>
  <p class="kicker">{% block kicker %}Federated class-incremental learning · status{% endblock %}</p>
  <h1>{{ title }}{% block badge %}{% endblock %}</h1>
  {% block intro %}{% endblock %}
</header>
{% for warning in warnings %}
<div class="banner"><p>{{ warning }}</p></div>
{% endfor %}
{% block content %}{% endblock %}
<footer>As of {{ now | clock("%Y-%m-%d %H:%M:%S") }}. The page refreshes itself every three seconds;
  <a href="/status.json">status.json</a> holds the same for programs.</footer>
</main>
<script>"""
    + SCRIPT
    + """</script>
{% endblock %}
"""
)

PARTS = """{% macro badge(state) %}
{% set kinds = {"running": "", "completed": "good", "failed": "bad", "dead": "bad", "unreadable": "bad"} %}
<span class="status {{ kinds.get(state, "open") }}">{{ state }}</span>
{%- endmacro %}
{% macro fact(title, value, note="") %}
<div><dt>{{ title }}</dt><dd>{{ value }}{% if note %}<small>{{ note }}</small>{% endif %}</dd></div>
{% endmacro %}
"""

RUNS = """{% extends "base" %}
{% from "parts" import badge %}
{% block content %}
{% if runs %}
<div class="scroll" tabindex="0"><table>
  <thead><tr><th>Run</th><th>State</th><th>Task</th><th class="n">Accuracy, %</th>
    <th class="n">Mean class recall, %</th><th>Started</th><th>Last event</th></tr></thead>
  <tbody>
  {% for run in runs %}
  <tr>
    <th scope="row"><a href="/run/{{ run.directory.name | urlencode }}">{{ run.directory.name }}</a></th>
    <td>{{ badge(run.state) }}{% if run.note %}<small>{{ run.note }}</small>{% endif %}</td>
    <td>{{ run.task }}</td>
    <td class="n">{{ run.accuracy | number }}</td>
    <td class="n">{{ run.recall | number }}</td>
    <td>{{ run.started | clock }}</td>
    <td>{{ run.heard | ago(now) }}</td>
  </tr>
  {% endfor %}
  </tbody>
</table></div>
{% else %}
<p>There are no runs yet.</p>
{% endif %}
{% endblock %}
"""

RUN = """{% extends "base" %}
{% from "parts" import badge, fact %}
{% set progress = run.progress %}
{% set step, start = progress.step, progress.start %}
{% set steps = start.plan | length %}
{% block kicker %}<a href="/">All runs</a>{% endblock %}
{% block badge %} {{ badge(run.state) }}{% endblock %}
{% block intro %}
{% if start.get("method") %}
<p>The method <strong>{{ start.method }}</strong> on <strong>{{ start.dataset }}</strong>.</p>
{% endif %}
{% endblock %}
{% block content %}
{% if run.note %}<div class="banner"><p>The run is {{ run.state }}: {{ run.note }}</p></div>{% endif %}
{% if progress.held %}
<div class="banner">
  <p>At the gate, {{ progress.held }}. Release it with: <code>{{ run.release_command }}</code></p>
</div>
{% endif %}
{% if progress.waiting and run.goes_on %}
<div class="banner" role="status"><p>Waiting for {{ progress.labels(progress.waiting) }}.</p></div>
{% endif %}
<dl class="facts">
  {{ fact("Task", run.task, start.tasks[step.task] | join(", ") if step else "") }}
  {{ fact("Stage", step.stage, "round " ~ (step.round + 1) ~ " of " ~ step.rounds) if step else fact("Stage", "–") }}
  {{ fact("Sites answered", progress.answered ~ " of " ~ progress.asked if progress.asked else "–", "in this round") }}
  {% for words, value in (("Accuracy", run.accuracy), ("Mean class recall", run.recall)) %}
  {{ fact(words, "–" if value is none else (value | number) ~ " %", "after the last task") }}
  {% endfor %}
  {{ fact("Started", run.started | clock) }}
  {{ fact("Last event", run.heard | ago(now)) }}
  {% if left %}{{ fact("Time left", "about " ~ (left | duration)) }}{% endif %}
</dl>
<p>{{ progress.finished }} of {{ steps }} steps are done.
  <progress value="{{ progress.finished }}" max="{{ steps or 1 }}" aria-label="Steps done"></progress></p>
{% if run.sites %}
<h2>Sites</h2>
<div class="scroll" tabindex="0"><table>
  <thead><tr><th>Site</th><th>State</th><th>Last answer</th><th class="n">Took, s</th>
    <th class="n">Images per second</th><th class="n">Accuracy, %</th>
    <th class="n">Mean class recall, %</th><th class="n">Abstained</th><th class="n">Failures</th>
    <th>Last failure</th></tr></thead>
  <tbody>
  {% for site in run.sites %}
  <tr>
    <th scope="row">{{ site.name }}</th>
    <td class="{{ {"failed": "bad", "waited for": "late", "not connected": "late"}.get(site.state, "") }}">
      {{- site.state }}
      {%- if site.since and run.goes_on %}<small>for {{ site.since | lasting(now) }}</small>{% endif %}</td>
    <td>{{ site.answered | ago(now) }}</td>
    <td class="n">{{ site.seconds | number }}</td>
    <td class="n">{{ site.speed | number }}</td>
    <td class="n">{{ site.accuracy | number }}</td>
    <td class="n">{{ site.recall | number }}</td>
    <td class="n">{{ site.abstained }}</td>
    <td class="n">{{ site.failures }}</td>
    <td class="bad">{{ site.error }}{% if site.ask %}<small>{{ site.ask }}</small>{% endif %}</td>
  </tr>
  {% endfor %}
  </tbody>
</table></div>
{% endif %}
{% if progress.accuracies %}
<h2>Accuracy after each task</h2>
<div class="scroll" tabindex="0"><table>
  <thead><tr><th>Task</th><th>Classes</th><th class="n">Accuracy on all classes so far, %</th>
    <th class="n">Mean class recall, %</th></tr></thead>
  <tbody>
  {% for task, accuracy in progress.accuracies | dictsort %}
  <tr><th scope="row">{{ task + 1 }}</th><td>{{ start.tasks[task] | join(", ") }}</td>
    <td class="n">{{ accuracy | number }}</td><td class="n">{{ progress.recalls[task] | number }}</td></tr>
  {% endfor %}
  </tbody>
</table></div>
{% endif %}
{% if progress.failures %}
<h2>Failures</h2>
<p>{{ progress.failures | length }} in all; the latest first.</p>
<ul>
  {% for words in progress.failures[:-21:-1] %}
  <li>{{ words }}</li>
  {% endfor %}
</ul>
{% endif %}
{% endblock %}
"""

NOTHING = """{% extends "base" %}
{% block content %}<p>There is no run of that name. <a href="/">All runs</a></p>{% endblock %}
"""

TEMPLATES = {"base": BASE, "parts": PARTS, "runs": RUNS, "run": RUN, "nothing": NOTHING}
"""Templates by name; each page takes `title`, `now`, `warnings`, and `runs`, or `run` and `left`, its seconds left."""
