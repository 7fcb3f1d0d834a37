"""`predict` of the researcher and of a site: a deployed model's answers about images, on this machine alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from client.consent.settings import SiteSettings, load_site
from client.state.run_folders import runs_folder
from dynammo_core.support.csv_text import csv_lines
from dynammo_core.support.errors import ConfigError, DataError
from dynammo_core.support.files import utf8, write_atomically
from dynammo_core.support.terminal import Terminal, cell, listing, printable, readable_errors

if TYPE_CHECKING:
    from dynammo_core.data.index.image_files import PassedOver
    from dynammo_core.deployed.model_files import ModelFiles
    from dynammo_core.deployed.predictor import OwnHead, Predictor

NOT_AS_TESTED = (
    "The sites tested this model with batch-norm statistics of their own, and these answers come from the common ones: "
    "what the run measured does not hold for them. Add --site SITE.YAML of a site that took part"
)

MOST_UNBROKEN = 30
"""Longest word of a class name that a narrow table does not break; paths are broken before."""


@dataclass(frozen=True)
class Finding:
    """What the model says about one image file, or why it says nothing.

    Attributes:
        file: the image.
        ranked: the answer, then the other classes by falling probability: names and probabilities. Where the heads of
            several tasks contradict each other, the answer need not be the most probable one.
        open_set_score: near 1 for a class that was learnt, near 0 for an image like nothing learnt.
        error: why the file cannot be read; empty where there is an answer.
    """

    file: Path
    ranked: tuple[tuple[str, float], ...] = ()
    open_set_score: float = 0.0
    error: str = ""


def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A run directory, its model.safetensors, or an exported .safetensors or .onnx.",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Image files, and folders to search for them.", show_default=False),
    ],
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Classes to name for each image.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images at a time.")] = 64,
    site: Annotated[
        Path | None,
        typer.Option(
            metavar="SITE.YAML",
            help="This site's settings, for a model that it tested with statistics or a head of its own.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the answers to a file too.", show_default=False)
    ] = None,
) -> None:
    """Class, probability and open-set score of images; exit code 1 when one of them cannot be read.

    The open-set score is near 1 for a disease that the model has learnt, and near 0 for an image like nothing it has
    learnt: the class is then no answer. A score is marked that is below what 95 % of the sites' test images of learnt
    diseases reach.
    """
    with readable_errors():
        from dynammo_core.data.index.image_files import PassedOver

        predictor, own = open_model(model, load_site(site) if site is not None else None, device)
        passed_over = PassedOver()
        files = find_images(images, passed_over)
        batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
        errors = Terminal(stderr=True)
        shown = track(batches, "Asking the model", console=errors, transient=True, disable=not errors.is_terminal)
        findings = [finding for batch in shown for finding in ask(predictor, batch)]
        if csv_file is not None:
            write_atomically(csv_file, as_csv(findings, top).encode())
        if as_json:
            typer.echo(json.dumps(as_plain_data(predictor, findings, top, own), indent=2))
        elif any(not finding.error for finding in findings):
            Terminal().print(as_table(findings, top, predictor.facts.open_set_threshold))
        for note in passed_over.notes():
            errors.say(note)
        for warning in warnings_about(predictor, own):
            errors.print(f"[bold yellow]warning[/] {escape(warning)}", soft_wrap=True, highlight=False)
        unreadable = [finding for finding in findings if finding.error]
        for finding in unreadable:
            text = f"[bold red]unreadable[/] {escape(printable(finding.error))}"
            errors.print(text, soft_wrap=True, highlight=False)
        if unreadable:
            raise typer.Exit(1)


def open_model(path: Path, settings: SiteSettings | None, device: str) -> tuple[Predictor, str | None]:
    """Open a run directory or a model's file; also return the site as which it answers, if any.

    Raises:
        WeightsError: a file is missing, damaged or foreign.
        ConfigError: this machine lacks the device or ONNX Runtime, or an ONNX file is to take a site's statistics.
        MemoryStoreError: as `as_tested`.
    """
    from dynammo_core.deployed.model_files import ModelFiles
    from dynammo_core.deployed.onnx_file import onnx_predictor
    from dynammo_core.deployed.predictor import Predictor

    if path.suffix.lower() == ".onnx":
        predictor = onnx_predictor(path, device)
        if settings is not None and (predictor.facts.own_statistics or predictor.facts.own_heads_sha256):
            what = f"--site: the statistics or the head of {settings.site} cannot be put into {path}"
            raise ConfigError(what, accepted="a run directory or a safetensors file")
        return predictor, None
    files = ModelFiles.read(path)
    if settings is None or not (files.facts.own_statistics or files.facts.own_heads_sha256):
        return Predictor.of_files(files, device), None
    tested, head = as_tested(files, settings)
    return Predictor.of_files(tested, device, head), settings.site


def as_tested(files: ModelFiles, settings: SiteSettings) -> tuple[ModelFiles, OwnHead | None]:
    """Return a model with the statistics with which a site tested it, and the head that the site made for itself.

    Raises:
        MemoryStoreError: the site keeps none for this very model, or cannot read them.
        ConfigError: the key of its memory cannot be read.
    """
    from client.state.statistics_file import HEAD, HELD, TESTED, own_tensors_for_model
    from dynammo_core.deployed.predictor import OwnHead
    from dynammo_core.memory.encryption import load_key

    memory, facts = settings.memory, files.facts

    kept = partial(
        own_tensors_for_model,
        runs_folder(memory.folder),
        task=facts.lineage.after_task - 1,
        site=settings.site,
        key=load_key(memory.key) if memory.key else None,
    )
    if facts.own_statistics is not None:
        statistics = kept(model=facts.own_statistics.tested_sha256, content=TESTED)
        files = replace(files, tensors={**files.tensors, **statistics})
    head = kept(model=facts.own_heads_sha256, content=HEAD) if facts.own_heads_sha256 is not None else {}
    held = head.pop(HELD, None)
    return files, OwnHead(head, held) if held is not None else None


def warnings_about(predictor: Predictor, own: str | None) -> list[str]:
    """What is to be known of all answers; `own` is the site whose own statistics or head are in the model."""
    from importlib.metadata import version

    from dynammo_core.models import BACKBONES

    facts = predictor.facts
    found = [NOT_AS_TESTED] if facts.own_statistics and own is None else []
    if predictor.held and (lacking := [name for name in predictor.classes if name not in predictor.held]):
        found.append(
            f"{own} has a head of its own, made without images of {', '.join(lacking)}: where the heads of all sites "
            "see one of these, they answer"
        )
    made, here = facts.versions.get("timm"), version("timm")
    if BACKBONES.is_open(facts.backbone) and made not in (None, here):
        found.append(
            f"The network {facts.backbone} was trained as timm {made} builds it, and timm {here} answers here, which "
            f"may build it otherwise: what the run measured may not hold. Install timm=={made}"
        )
    return found


def find_images(places: Sequence[Path], passed_over: PassedOver | None = None) -> list[Path]:
    """List the files among `places`, and the image files in the folders among them, each once, in that order.

    Args:
        places: files and folders.
        passed_over: is told what was found in the folders and not taken.

    Raises:
        DataError: a folder holds no image, or cannot be read.
    """
    from dynammo_core.data.images.formats import EXTENSIONS
    from dynammo_core.data.index.image_files import image_files

    found: dict[Path, None] = {}
    for place in places:
        files = image_files(place, passed_over) if place.is_dir() else [place]
        if not files:
            raise DataError(f"the folder {place} holds no images", accepted=f"files named {', '.join(EXTENSIONS)}")
        found.update(dict.fromkeys(files))
    return list(found)


def ask(predictor: Predictor, files: Sequence[Path]) -> list[Finding]:
    """What the model says about each of some files, in their order; those that can be read are one batch."""
    import torch

    pixels: dict[Path, torch.Tensor] = {}
    findings: dict[Path, Finding] = {}
    for file in files:
        try:
            pixels[file] = predictor.read([file])
        except DataError as error:
            findings[file] = Finding(file, error=str(error))
    if pixels:
        answers = predictor.predict(torch.cat(list(pixels.values())), batch_size=len(pixels))
        rows = (answers.labels.tolist(), answers.probabilities.tolist(), answers.open_set_scores.tolist())
        for file, label, probabilities, score in zip(pixels, *rows, strict=True):
            order = sorted(range(len(probabilities)), key=lambda index: (index != label, -probabilities[index]))
            findings[file] = Finding(file, tuple((predictor.classes[i], probabilities[i]) for i in order), score)
    return [findings[file] for file in files]


def as_plain_data(
    predictor: Predictor, findings: Sequence[Finding], top: int, own: str | None = None
) -> dict[str, Any]:
    """The findings and the model that made them, for JSON; `own` as for `warnings_about`."""
    facts = predictor.facts
    return {
        "model": {
            "method": facts.method["name"],
            "classes": list(predictor.classes),
            "open_set_threshold": facts.open_set_threshold,
            "lineage": facts.lineage.model_dump(),
            "statistics_of": own if facts.own_statistics else None,
            "head_of": own if facts.own_heads_sha256 else None,
        },
        "warnings": warnings_about(predictor, own),
        "images": [
            {
                "file": utf8(finding.file),
                "class": finding.ranked[0][0],
                "probability": finding.ranked[0][1],
                "open_set_score": finding.open_set_score,
                "top": [{"class": name, "probability": value} for name, value in finding.ranked[:top]],
            }
            for finding in findings
            if not finding.error
        ],
        "unreadable": [
            {"file": utf8(finding.file), "error": utf8(finding.error)} for finding in findings if finding.error
        ],
    }


def as_csv(findings: Sequence[Finding], top: int) -> str:
    """A row for every file, in their order; one that cannot be read has an error and nothing else."""
    shown = min(top, max((len(finding.ranked) for finding in findings), default=1)) or 1
    more = [f"{column}_{place}" for place in range(2, shown + 1) for column in ("class", "probability")]
    rows: list[list[object]] = [["file", "class", "probability", "open_set_score", *more, "error"]]
    for finding in findings:
        if finding.error:
            rows.append([utf8(finding.file), *[""] * (3 + len(more)), utf8(finding.error)])
            continue
        (name, probability), *others = finding.ranked[:shown]
        cells = [value for pair in others for value in pair]
        rows.append([utf8(finding.file), name, probability, finding.open_set_score, *cells, ""])
    return csv_lines(rows)


def as_table(findings: Sequence[Finding], top: int, threshold: float | None = None) -> Table:
    """The answers for people; files that cannot be read are left out, since they are named elsewhere."""
    columns = ("file", "class", "probability", "open-set\nscore", *(["then"] if top > 1 else []))
    table = listing(*columns, fold=("file", "class", "then"), right=columns[2:4])
    table.caption_justify = "left"
    if threshold is not None:
        table.caption = f"* perhaps no learnt class: 95 % of test images of these score {threshold:.6g} or more"
    words = [word for finding in findings if not finding.error for word in finding.ranked[0][0].split()]
    table.columns[1].min_width = min(MOST_UNBROKEN, max(map(len, words), default=0))
    for finding in findings:
        if not finding.error:
            (name, probability), *others = finding.ranked[:top]
            then = [", ".join(f"{other} {value:.3f}" for other, value in others)] if top > 1 else []
            unlike = "" if threshold is None or finding.open_set_score >= threshold else " *"
            cells = [utf8(finding.file), name, f"{probability:.3f}", f"{finding.open_set_score:.3f}{unlike}", *then]
            table.add_row(*map(cell, cells))
    return table
