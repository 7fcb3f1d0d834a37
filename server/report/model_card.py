"""The model card: one Markdown page beside an exported model, made only from the files of its run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2

from dynammo_core.deployed.model_files import ModelFacts
from dynammo_core.support.errors import RunError
from server.report.markdown import markdown
from server.report.sections.privacy_rows import privacy_rows
from server.run_directory.advice import held_words, site_label
from server.run_directory.run_files import Json, RunFiles

TEMPLATE = """\
# Model card: {{ summary.name | cell }}

An image classifier, trained task by task at {{ summary.sites }} sites, whose images never left them.
The command that exported the model generated this page from the files of the run.

| | |
|---|---|
| File | `{{ file }}` ({{ format }}) |
| SHA-256 of the file | `{{ sha256 }}` |
| Input | {{ facts.image_size }}x{{ facts.image_size }} pixels, RGB; normalisation `{{ facts.normalisation }}`{{
  "" if format == "safetensors" else ", done inside the file" }} |
| Preparation | fit `{{ facts.fit }}`, window `{{ facts.window }}`, frame {{ facts.frame or "none" }} |
| Method | `{{ facts.method.name }}` on `{{ facts.backbone }}`{{
  ", which resizes its input to %s pixels" % facts.network_size if facts.network_size else "" }} |
| Data | {{ summary.dataset | cell }} |
| Learnt | {{ facts.tasks | length }} of {{ summary.tasks }} tasks{{
  "" if summary.status == "completed" else "; the run is **" ~ summary.status ~ "**" }} |
| Multiply-accumulates for one image | {{ "{:,}".format(summary.macs_per_image) }} |
| Parameters | {{ "{:,}".format(summary.deployed_parameters) }} |
{% if facts.own_heads_sha256 %}
| Heads of sites | each keeps a head of its own; this is the common one |
{% endif %}
{% if facts.own_statistics %}
| Batch-norm statistics | shared by all sites; each tested the model with its own (`{{ facts.own_statistics.kind }}`) |
{% endif %}

## Classes

| Task | Classes |
|---|---|
{% for names in facts.tasks %}
| {{ loop.index }} | {{ names | map("cell") | join(", ") }} |
{% endfor %}
{% if unlearnt %}

Named in the registry, but not learnt: {{ unlearnt | map("cell") | join(", ") }}. The model assigns an image of one of
these to another class.
{% endif %}

## How well it answers

In percent, on the sites' own test images of all classes above, without knowing the task.

| | |
|---|---|
| Accuracy | {{ summary.last_accuracy | percent }} |
| Mean class recall | {{ summary.mean_class_recall | percent }} |
| Worst site's mean class recall | {{ summary.get("worst_site_mean_class_recall") | percent }} |
| Worst site's accuracy | {{ summary.worst_site_accuracy | percent }} |
{% for name, accuracy, recall in sites %}
| Accuracy at {{ name | cell }} | {{ accuracy | percent }} |
| Mean class recall at {{ name | cell }} | {{ recall | percent }} |
{% else %}
| Accuracy and mean class recall at each site | hidden in the sum |
{% endfor %}
| Accuracy after each task | {{ summary.accuracy_after_tasks | map("percent") | join(", ") }} |
| Average incremental accuracy | {{ summary.average_incremental_accuracy | percent }} |
| Forgetting, in points | {{ summary.forgetting | percent }} |

{% if facts.own_statistics %}
**Measured with other statistics than those in this file.** Each site replaced them by batch-norm statistics of its own
images, which stay there. At a site that took part, `dynammo-site predict --site SITE.YAML` does the same, with the
model as safetensors. Other software uses the statistics in this file. Nothing on this page was measured with them,
including the threshold of the open-set score below.

{% endif %}
| Class | Task | Recall | Test images | Most often mistaken for |
|---|---|---|---|---|
{% for row in recalls %}
| {{ row.name | cell }} | {{ row.task }} | {{ row.recall | percent }} | {{ row.images }} | {{ row.mistake | cell }} |
{% endfor %}

## How to read its answers

- `label` is the answer, an index into the classes in the order above. `probabilities` holds one per class: compare
  them, do not read them as the chance of a disease.
{% if error is not none %}
  On the sites' test images, confidence and accuracy are {{ error | percent }} points apart on average (expected
  calibration error).
{% else %}
  This run did not measure how well they are calibrated.
{% endif %}
{% if others %}
- Each task has one head, with a row for everything else ("others"). The head with the lowest probability of "others"
  gives the answer; a class's probability is that of its own task's head. Heads judge independently, so
  probabilities need not sum to 1, and the answer need not have the largest.
{% endif %}
- `open_set_score` is {{ facts.open_set_words }}.
- The open-set score is near 1 for a class that was learnt and near 0 for an image like nothing learnt.
{% if facts.open_set_threshold is not none %}
  Of the sites' test images of the classes above, 95 % score {{ "%.6g" | format(facts.open_set_threshold) }} or more:
  read a lower score as "I have not seen this".
{% if passed %}
  After task {{ passed.task }}, such a threshold missed {{ passed.share | percent }} % of the images of classes still to
  be learnt.
{% endif %}
  Check the threshold on images of the place where the model is used.
{% else %}
  Choose its threshold on images of the place where the model is used; this run did not measure one.
{% endif %}

## Data flow

- Images stayed at their sites. Over {{ summary.rounds }} rounds, {{ summary.bytes_up | size }} of weights or sums of
  features, counts and losses went to the server, and {{ summary.bytes_down | size }} to the sites.
- This page is computed from each site's counts per class; nothing in it describes a single image or record.

{% if privacy %}

## What is promised about training images

| | |
|---|---|
{% for title, value in privacy %}
| {{ title }} | {{ value | cell }} |
{% endfor %}
{% endif %}

## Limits

- Research software: not a medical device, without approval or clinical study. A person decides.
- Measured on the test images of the {{ summary.sites }} sites that took part, with seed {{ summary.seed }}:
  results at another hospital, scanner or population may differ. The worst site above shows how far they do here.
{% if few %}
- The recall of these classes rests on fewer than {{ few_images }} test images: {{ few | map("cell") | join(", ") }}.
{% endif %}
- It always names one of its classes, whatever the image.
- Weights can reveal something about the images that they were trained on.

## Lineage

| | |
|---|---|
| Configuration | `{{ facts.lineage.config_hash }}` |
| Code | `{{ facts.lineage.code_hash }}` |
| Backbone's weights | `{{ facts.lineage.backbone_sha256 }}` |
| Licence of these weights | {{ facts.backbone_licence | cell }} |
| Tensors | `{{ facts.lineage.tensors_sha256 or "not recorded" }}` |
| Made after | task {{ facts.lineage.after_task }} of {{ summary.tasks }} |
{% for time, decision in decisions %}
| Gate, {{ time }} | {{ decision | cell }} |
{% endfor %}
| Versions | {% for name, version in facts.versions.items() -%}
  {{ name }} {{ version }}{{ " |" if loop.last else ", " }}
  {%- endfor %}

"""

FEW_IMAGES = 30
"""With fewer test images than this, the standard error of a recall of 80 % exceeds 7 points."""


def model_card(run_directory: Path, facts: ModelFacts, *, file: str, format_name: str, sha256: str) -> str:
    """Return the model card, as Markdown, of a run's model that was exported to `file` with the hash `sha256`.

    Raises:
        RunError: the run's files cannot be read, lack something, or do not belong to the run that the model comes from.
    """
    run = RunFiles.read(run_directory).after_task(run_directory, facts.lineage.after_task)
    measured = (run.summary.get("config_hash"), len(run.summary.get("accuracy_after_tasks", ())))
    if measured != (facts.lineage.config_hash, facts.lineage.after_task):
        raise RunError(
            f"summary.json in {run_directory} belongs to configuration {measured[0]} after {measured[1]} tasks, the "
            f"model to {facts.lineage.config_hash} after {facts.lineage.after_task}",
            remedy="Restore both files from the same run, or continue the run with --resume",
        )
    recalls = _recalls(run, facts)
    learnt = {name for names in facts.tasks for name in names}
    contents: Json = {
        "facts": facts,
        "summary": run.summary,
        "sites": [
            (site_label(run.started.get("site_names", ()), site), *measured)
            for site, measured in enumerate(
                zip_longest(run.summary["site_accuracies"], run.summary.get("site_mean_class_recalls", ()))
            )
        ],
        "recalls": recalls,
        "few": [row["name"] for row in recalls if row["images"] < FEW_IMAGES],
        "few_images": FEW_IMAGES,
        "error": next(reversed(run.summary.get("calibration_error_after_tasks", [])), None),
        "passed": _passed(run.summary),
        "unlearnt": [name for name in facts.class_names if name not in learnt],
        "others": any(-1 in rows for rows in facts.heads.values()),
        "privacy": privacy_rows(run),
        "decisions": _decisions(run),
        **{"file": file, "format": format_name, "sha256": sha256},
    }
    try:
        return markdown(percent=_percent).from_string(TEMPLATE).render(contents)
    except (jinja2.UndefinedError, TypeError) as error:
        raise RunError(
            f"The files of the run in {run_directory} do not fit together ({type(error).__name__}: {error})",
            remedy="Export with the version of this project that made the run",
        ) from error


def _decisions(run: RunFiles) -> list[tuple[str, str]]:
    """Return when which model was held back, released or rolled back to, and by whom."""
    names, rows = run.started.get("site_names", ()), []
    for event in run.events:
        match event["event"]:
            case "gate_judged":
                words = (
                    held_words(event, names) if event["broken"] else f"the model after task {event['task'] + 1} passed"
                )
            case "released" | "rolled_back":
                who = event.get("by", "an operator")
                verb = "released" if event["event"] == "released" else "went back to"
                words = f"{who} {verb} the model after task {event['task'] + 1}"
            case _:
                continue
        rows.append((f"{datetime.fromtimestamp(event['time'], UTC):%Y-%m-%d %H:%M} UTC", words))
    return rows


def _passed(summary: Json) -> Json | None:
    """Return the last task after which classes were still to come, and the share of their images not noticed."""
    shares = enumerate(summary.get("open_set_fpr95_after_tasks", ()), start=1)
    return next(({"task": task, "share": share} for task, share in reversed([*shares]) if share is not None), None)


def _recalls(run: RunFiles, facts: ModelFacts) -> list[dict[str, Any]]:
    """Return a row per learnt class: its task, recall in percent over all sites, test images, and commonest mistake."""
    counts: Counter[tuple[str, str]] = Counter()
    for row in run.confusions:
        if int(row["after_task"]) == facts.lineage.after_task:
            counts[row["true"], row["predicted"]] += int(row["count"])
    return [
        {"name": name, "task": task, **_recall(name, counts)}
        for task, names in enumerate(facts.tasks, start=1)
        for name in names
    ]


def _recall(name: str, counts: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    answers = {predicted: count for (true, predicted), count in counts.items() if true == name}
    images = sum(answers.values())
    recall = 100 * answers.pop(name, 0) / images if images else None
    mistake = max(answers, key=lambda other: (answers[other], other), default="")
    return {"recall": recall, "images": images, "mistake": mistake and f"{mistake} ({answers[mistake]})"}


def _percent(value: float | None) -> str:
    return "not measured" if value is None or math.isnan(value) else f"{value:.1f}"
