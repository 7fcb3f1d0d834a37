"""The data-flow sheet: what leaves a site, when, why and to whom, from the plan and the protocol that enforce it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich import filesize
from torch import Tensor

from dynammo_core.best_round import Check
from dynammo_core.code_identity import code_hash
from dynammo_core.configuration.config import Config, load_config
from dynammo_core.experiment import Experiment
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import Action, Stage
from dynammo_core.wire.compression import CODECS, pack
from dynammo_core.wire.protocol import SUMMED, Phase, names_up, numbers_of, tensor_bytes
from dynammo_core.wire.secure_aggregation.encoding import Encoding
from dynammo_core.wire.secure_aggregation.phases import PHASE_UP, phase_shape
from server.report.markdown import markdown
from server.run_directory.advice import site_label
from server.run_directory.run_files import RunFiles

WHY: Mapping[Action, str] = MappingProxyType(
    {
        Action.FIT: "what the site has trained, to be averaged with the other sites' results",
        Action.SUMMARISE: "statistics of the site's images, to be summed or pooled with the other sites' statistics",
        Action.REMEMBER: "how many exemplars the site keeps; the exemplars stay there",
        Action.EVALUATE: "how well the model performs on the site's test images",
        Action.FORGET: "statistics of the withdrawn images, to be subtracted",
    }
)

CHECKED = "the mean loss of a round's weights on images that the site holds out of training, to choose a round"

TEMPLATE = """\
# Data flow: {{ name | cell }}

Generated from the plan of the experiment and from the protocol. Every message is checked against that protocol twice:
at the site before it leaves, and again at the server. Both refuse what is not in the tables.

| | |
|---|---|
| Experiment | `{{ config_hash }}` |
| Code | `{{ code }}` |
| Method | `{{ method }}`, {{ tasks | length }} tasks |
| From | {{ sites | map("cell") | join(", ") }} |
| To | the operator's server, and nobody else; the sites never talk to each other |

## What leaves each site

| Task | Stage | Times | Why | Tensors (number, type, size) | Numbers |
|---|---|---|---|---|---|
{% for row in rows %}
| {{ row.task }} | {{ row.stage }} | {{ row.rounds }} | {{ row.why }} | {{ row.up }} | {{ row.numbers }} |
{% endfor %}

{% if secure %}
Under secure aggregation the tensors and counts of a stage leave only in `secure.masked`, under masks that cancel in
the sum over sites. The server learns nothing but that sum.

{% endif %}
Each site sends at most {{ up | size }} of tensors in all. In addition:

- after a failure, its error code and the name of the error's class, never its text;
- when the operator asks, the names of the site's classes, each with an approximate number of images.
{% if beside %}
- after records were withdrawn, when the operator asks, {{ beside.why }}: {{ beside.up }}; {{ beside.numbers }}.
{% endif %}

The tasks: {% for names in tasks %}{{ loop.index }}. {{ names | map("cell") | join(", ") }}{{ "; " if not loop.last }}
{%- endfor %}.

## What comes to each site

| Task | Stage | Times | Tensors (number, type, size) |
|---|---|---|---|
{% for row in rows %}
| {{ row.task }} | {{ row.stage }} | {{ row.rounds }} | {{ row.down }} |
{% endfor %}

Tensors that the site already holds from an earlier step are not sent again. In addition come the hash of each tensor,
the experiment's configuration, the hash of the code, the name of the run, and the number of the step
{%- if beside %}; when records are to be removed from sums, which of the site's answers these contain{% endif %}.
{% if personal.own_round %}

With `method.personal` each site trains the heads for one more round on its own images after each task. What it gets
stays there; the counts of its answers on test images leave.
{% endif %}
{% if personal.own_heads %}

With `method.personal` the sums over all sites' images come to each site, which solves a classifier of its own from them
and from its own images; neither that nor its own sums leave. Of two sites each can subtract its own sums and see the
other's; of more, all but one together can. What a class's sums tell is that of one site if no other has the class.
{% endif %}
{% if secure %}
The exchanges of secure aggregation also bring all sites' signed public keys and what they encrypted for this site.
{% endif %}

## What never leaves

Images, exemplars, features of an image, predictions for an image, record ids, file names, paths, logs, and the texts
of errors. Sums and weights can reveal something about the images behind them: see the security page.
{% if left %}

## What left in this run

| Site | Answers | Without tensors | Failures | Tensors sent | Tensors received |
|---|---|---|---|---|---|
{% for row in left %}
| {{ row.site | cell }} | {{ row.answers }} | {{ row.abstained }} | {{ row.failures }} | {{ row.up | size }} | {{
  row.down | size }} |
{% endfor %}
{% endif %}
"""


def data_flow(source: Path) -> str:
    """Return the sheet, as Markdown, for an experiment's YAML file, or for a run directory with what left in that run.

    Raises:
        ConfigError: the configuration cannot be read.
        RunError: the run's files cannot be read.
    """
    run = RunFiles.read(source) if source.is_dir() else None
    config: Config[Any] = load_config(source / "config.yaml" if run else source)
    experiment = Experiment(config)
    names = experiment.class_names
    last = len(experiment.stream) - 1
    beside = experiment.correction_stage(last)
    rows = [row for task in range(last + 1) for row in _rows(experiment, task, experiment.method.all_stages(task))]
    contents = {
        "name": config.name,
        "config_hash": config.content_hash,
        "code": (run.started.get("code_hash") if run else None) or code_hash(config),
        "method": config.method.name,
        "sites": [config.federation.site_label(site) for site in range(config.federation.sites)],
        "tasks": [[names[label] for label in task] for task in experiment.stream.tasks],
        "rows": rows,
        "personal": experiment.method.evaluation(),
        "secure": config.federation.secure_aggregation,
        "beside": next(_rows(experiment, last, [beside])) if beside and experiment.keeps_plain_sums else None,
        "up": sum(int(row["bytes"]) * int(row["rounds"]) for row in rows),
        "left": _left(run) if run else [],
    }
    return markdown().from_string(TEMPLATE).render(contents)


def _rows(experiment: Experiment, task: int, stages: Iterable[Stage]) -> Iterator[dict[str, Any]]:
    model, codec = experiment.build_model(task), CODECS[experiment.config.federation.compression]
    secure = experiment.config.federation.secure_aggregation
    for stage in stages:
        hidden = secure and stage.action in SUMMED
        plain = _tensors(model, names_up(model, stage))
        up = _exchanges(experiment, model, stage) if hidden else pack(codec, plain, {})
        numbers = {"seconds"} if secure else numbers_of(stage, experiment.protects_images)
        yield {
            "task": task + 1,
            "stage": stage.name,
            "rounds": stage.rounds,
            "why": CHECKED if isinstance(stage, Check) else WHY[stage.action],
            "up": _groups(up),
            "down": _groups(pack(codec.downwards, _down(model, stage), {})),
            "numbers": ", ".join(f"`{name}`" for name in sorted(numbers)),
            "bytes": tensor_bytes(up),
        }


def _exchanges(experiment: Experiment, model: IncrementalModel, stage: Stage) -> dict[str, Tensor]:
    """Return what a site sends in the exchanges of secure aggregation if all sites take part."""
    federation = experiment.config.federation
    sites = len(federation.taking_part(testing=stage.action is Action.EVALUATE))
    length = len(Encoding(stage, model, experiment.classes, federation.sites))
    shapes = {PHASE_UP[phase]: phase_shape(phase, sites, length) for phase in Phase}
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, (dtype, shape) in shapes.items()}


def _down(model: IncrementalModel, stage: Stage) -> dict[str, Tensor]:
    """Return what goes down, except an earlier model's tensors from the archive, which have this model's shapes."""
    return _tensors(model, matching(travelling_names(model), stage.down))


def _tensors(model: IncrementalModel, names: Iterable[str]) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: state[name] for name in names}


def _groups(tensors: Mapping[str, Tensor]) -> str:
    """Return tensors grouped by the first two parts of their names: `extractor.adapters` (40 float32, 1.2 MB)."""
    groups: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key = (".".join(name.split(".")[:2]), str(tensor.dtype).removeprefix("torch."))
        groups.setdefault(key, {})[name] = tensor
    return (
        "; ".join(
            f"`{group}` ({len(tensors)} {kind}, {filesize.decimal(tensor_bytes(tensors))})"
            for (group, kind), tensors in groups.items()
        )
        or "none"
    )


def _left(run: RunFiles) -> list[dict[str, Any]]:
    """Return what each site sent and received, over the finished steps."""
    names = run.started.get("site_names", [])
    sums: dict[int, Counter[str]] = defaultdict(Counter)
    for step in run.steps:
        for answer in step["sites"]:
            sums[answer["site"]].update(
                answers=1, abstained=bool(answer["abstained"]), up=answer["bytes_up"], down=answer["bytes_down"]
            )
        for failure in step["failures"]:
            sums[failure["site"]].update(failures=1)
    keys = ("answers", "abstained", "failures", "up", "down")
    labels = {site: site_label(names, site) for site in sorted(sums)}
    return [{"site": label, **{key: sums[site][key] for key in keys}} for site, label in labels.items()]
