"""The page of a comparison, as a Jinja template in the style of the page of a run."""

TEMPLATE = r"""{% extends "page" %}
{% macro figure(name, caption) %}
<figure>
  <div class="plot" tabindex="0">{{ svg[name] | safe }}</div>
  <figcaption>{{ caption }} <span>(plots/{{ name }}.svg, .png)</span></figcaption>
</figure>
{% endmacro %}
{% macro made(rows, file) %}
<p class="made">Made by <code>{{ command }}</code>{% if file %}; numbers in tables/{{ file }}{% endif %}. Configuration{{ "s" if rows | length > 1 }}, by seed:
{% for row, runs in rows %}{{ row ~ ": " if rows | length > 1 }}{% for seed, hash in runs %}{{ seed }} → {{ hash }}{{ ", " if not loop.last }}{% endfor %}{{ "; " if not loop.last else "." }}
{% endfor %}</p>
{% endmacro %}
{% macro heading(setting) %}{% if setting.name %}<h3>{{ setting.name }}</h3>{% endif %}{% endmacro %}
{% block title %}{{ title }} · comparison{% endblock %}
{% block style %}
.made { color: var(--muted); font-size: .8rem; overflow-wrap: anywhere; margin: .35rem 0 1rem; }
.made code { font-size: .95em; }
.few { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 29rem), 1fr)); gap: 1rem 2rem; align-items: start; }
@media print { .few { grid-template-columns: 1fr 1fr; } }
{% endblock %}
{% block body %}
<header>
  <p class="kicker">Federated class-incremental learning · comparison</p>
  <h1>{{ title }} {% if missing %}<span class="status open">{{ missing | length }} {{ "run" if missing | length == 1 else "runs" }} missing</span>{% else %}<span class="status">complete</span>{% endif %}</h1>
  <p>{{ finished }} finished runs. The measure is the {{ metric.words }}, in percent, on the test images of all classes met so far, with no hint at the task.</p>
</header>
<main>
{% if missing %}
<div class="banner" role="status">
  <p><strong>Not all runs have finished.</strong> The page shows those that have. Missing: {{ missing[:12] | join("; ") }}{% if missing | length > 12 %}; and {{ missing | length - 12 }} more{% endif %}.</p>
</div>
{% endif %}

<h2>Average and last</h2>
<p>Average: mean over tasks of the {{ metric.words }} after each task. Last: after the last task. Forgetting is measured on the accuracy, in points. Mean ± sample standard deviation over the seeds; Δ is the difference from the first row, paired by seed. ECE, the expected calibration error in points: how far the probability of an answer and how often it is right are apart, after the last task. AUROC, how often an image of a learnt class has a higher open-set score than one of a future class, and FPR95, how many images of future classes reach the score that 95 % of those of learnt classes reach: means over the tasks after which more classes follow. A cell is empty where a run did not measure it. Seeds: how many, and each with a link to the report of its run. Test images: behind the figures after the last task; a site that does not answer a test takes its own out.</p>
{% for setting in settings %}
{{ heading(setting) }}
<div class="scroll" tabindex="0"><table>
  <thead><tr><th>Method</th><th class="n">seeds</th><th class="n">test images</th><th class="n">average, %</th><th class="n">last, %</th><th class="n">forgetting, points</th><th class="n">Δ average, points</th><th class="n">Δ last, points</th><th class="n">ECE, points</th><th class="n">AUROC, %</th><th class="n">FPR95, %</th></tr></thead>
  <tbody>
  {% for line, reports in setting.lines %}
  <tr><th scope="row">{{ line.row }}</th><td class="n">{{ line.seeds | length }}{% if reports %}: {% for seed, address in reports %}{% if address %}<a href="{{ address }}" aria-label="report of {{ line.row }}, seed {{ seed }}">{{ seed }}</a>{% else %}{{ seed }}{% endif %}{{ ", " if not loop.last }}{% endfor %}{% endif %}</td><td class="n">{{ line.tested }}</td>{% for value in line.spreads.values() %}<td class="n">{{ value | spread }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
{% if setting.lines | length > 1 %}
<p class="made">Is Δ last more than chance? {% if setting.tests %}Paired over seeds, by an exact test that flips signs: {% for test in setting.tests %}{{ test.row }} p = {{ "%.3g" | format(test.p) }} ({{ test.seeds }} seeds, which cannot give less than {{ "%.2g" | format(test.least) }}){{ "; " if not loop.last else "." }} {% endfor %}Nothing corrects for the number of rows. {% else %}No row has {{ fewest_pairs }} seeds in common with the first one; with fewer, an exact paired test cannot tell. {% endif %}Seeds vary the training and the split, not the data set.</p>
{% endif %}
{{ made(setting.made, "table.csv, tables/runs.csv") }}
{% endfor %}

{% if finished and sweep %}
<h2>Over {{ sweep.along }} and {{ sweep.across }}</h2>
<p>One figure per method, with a line for each value of {{ sweep.across }}: the {{ metric.words }} after the last task, mean over its seeds, in a band of one standard deviation.</p>
{% for name in swept %}
<h3>{{ swept_rows[loop.index0].name }}</h3>
{{ figure(name, "Along " ~ sweep.along ~ ".") }}
{{ made(swept_rows[loop.index0].made, "table.csv, tables/runs.csv") }}
{% endfor %}
{% elif finished %}
<h2>After each task</h2>
<p>One line per method: the mean over its seeds, in a band of one standard deviation.</p>
{% for setting in settings if setting.made %}
{{ heading(setting) }}
{{ figure(setting.curve, metric.words | capitalize ~ " over all classes learnt so far. More classes make a harder test, so a gentle fall is expected.") }}
{{ made(setting.made, "curves.csv") }}
{% endfor %}

<h2>Which classes are confused</h2>
<p>After the last task, over all sites, first seed of each method. A row shows the test images of one true class, in percent of that row; lines separate the tasks.</p>
{% for setting in settings if setting.made %}
{{ heading(setting) }}
<div class="few">
{% for confusion in setting.confusions %}
<div>
<h3>{{ confusion.row }}</h3>
{{ figure(confusion.name, "Seed " ~ confusion.seed ~ ".") }}
{{ made(confusion.made, "confusion.csv") }}
</div>
{% endfor %}
</div>
{% endfor %}
{% endif %}

{% if finished %}
<h2>Accuracy against cost</h2>
<p>The {{ metric.words }} after the last task beside what the runs measured, means over the seeds: billions of multiply-accumulates of one prediction (GMAC), parameters of the deployed model, bytes of all sites in all rounds, and seconds of all steps by the clock, in which runs at the same time disturb each other. In a figure the best is at the top left.</p>
{% for setting in settings if setting.costs %}
{{ heading(setting) }}
<div class="scroll" tabindex="0"><table>
  <thead><tr><th>Method</th><th class="n">last, %</th><th class="n">GMAC</th><th class="n">parameters</th><th class="n">up</th><th class="n">down</th><th class="n">seconds</th></tr></thead>
  <tbody>
  {% for row in setting.costs %}
  <tr><th scope="row">{{ row.row }}</th><td class="n">{{ row.last | spread }}</td><td class="n">{{ row.macs | gigamacs }}</td><td class="n">{{ row.parameters | millions }}</td>{% for total in (row.bytes_up, row.bytes_down) %}<td class="n">{{ total | round | int | size }}</td>{% endfor %}<td class="n">{{ "%.1f" | format(row.seconds) }}</td></tr>
  {% endfor %}
  </tbody>
</table></div>
{% if against_cost.get(setting.name) %}
<div class="few">
{% for name in against_cost[setting.name] %}<div>{{ figure(name, "Bars: one standard deviation over seeds.") }}</div>{% endfor %}
</div>
{% endif %}
{{ made(setting.made, "accuracy_and_cost.csv") }}
{% endfor %}
{% endif %}

{% if settings | selectattr("own_heads") | list %}
<h2>Heads of sites’ own</h2>
<p>Mean class recall in percent on each site’s own test images after the last task: by the common heads, by the site’s own, and by those that it would have alone, where that is known.</p>
{% for setting in settings if setting.own_heads %}
{{ heading(setting) }}
<div class="scroll" tabindex="0"><table>
  <thead><tr><th>Method</th><th>Site</th><th class="n">common</th><th class="n">its own</th><th class="n">alone</th></tr></thead>
  <tbody>
  {% for line in setting.own_heads %}
  <tr><th scope="row">{{ line.row }}</th><td>{{ line.site }}</td>{% for spread in (line.common, line.personal, line.alone) %}<td class="n">{{ spread | spread }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
{{ made(setting.made, "own_heads.csv") }}
{% endfor %}
{% endif %}

{% if cost %}
<h2>What a prediction costs as tasks come</h2>
<p>Billions of multiply-accumulates (GMAC; published “GFLOPS” count one of them as one operation) and millions of parameters of the deployed model after T tasks, each with as many classes as the first one of the runs, for the networks, image sizes and settings that were run.</p>
{% for backbone, rows in cost.items() %}
<h3>{{ backbone }}</h3>
<div class="scroll" tabindex="0"><table>
  <thead><tr><th>Method</th>{% for tasks in cost_tasks %}<th class="n">GMAC, T = {{ tasks }}</th>{% endfor %}{% for tasks in cost_tasks %}<th class="n">parameters, T = {{ tasks }}</th>{% endfor %}</tr></thead>
  <tbody>
  {% for row, own in rows.items() %}
  <tr><th scope="row">{{ row }}</th>{% for cell in own %}<td class="n">{{ cell.macs | gigamacs }}</td>{% endfor %}{% for cell in own %}<td class="n">{{ cell.parameters | millions }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
{% endfor %}
<p class="made">Made by <code>{{ command }}</code>; numbers in tables/cost.csv. Counted by torch.utils.flop_counter on untrained networks, so it depends on no seed and no run, only on the method’s settings and on code {{ code[:12] }}.</p>
{% endif %}

{% if finished %}
<h2>What went over the network</h2>
<p>Bytes of tensors in all rounds, means over the seeds. Up: sent to the server; down: sent to the sites. Images never travel.</p>
{% for setting in settings if setting.traffic %}
{{ heading(setting) }}
<div class="scroll" tabindex="0"><table>
  <thead><tr><th>Method</th><th class="n">sites</th><th class="n">up, total</th><th class="n">down, total</th><th class="n">up per task</th><th class="n">down per task</th><th class="n">up per site</th><th class="n">down per site</th></tr></thead>
  <tbody>
  {% for row in setting.traffic %}
  <tr><th scope="row">{{ row.row }}</th><td class="n">{{ row.sites }}</td>{% for total in (row.up, row.down, row.up / row.tasks, row.down / row.tasks, row.up / row.sites, row.down / row.sites) %}<td class="n">{{ total | round | int | size }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
<div class="scroll" tabindex="0"><table>
  <caption>In each task: up / down</caption>
  <thead><tr><th>Method</th>{% for task in range(1, setting.traffic | map(attribute="tasks") | max + 1) %}<th class="n">task {{ task }}</th>{% endfor %}</tr></thead>
  <tbody>
  {% for row in setting.traffic %}
  <tr><th scope="row">{{ row.row }}</th>{% for up, down in row.by_task %}<td class="n">{{ up | size }} / {{ down | size }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody>
</table></div>
{{ made(setting.made, "bytes.csv, by task and site") }}
{% endfor %}
{% endif %}
</main>
<footer>
  Runs by code {{ codes | join(", ") or "–" }}; page by code {{ code[:12] }}. Full hashes are in tables/runs.csv.
  Average accuracy: Rebuffi et al. 2017. Mean class recall: Brodersen et al. 2010. Forgetting: Chaudhry et al. 2018. ECE: Guo et al. 2017. AUROC: Hendrycks and Gimpel 2017. FPR95: Liang et al. 2018. Colours: Okabe and Ito 2008.
</footer>
{% endblock %}
"""
