"""`export` of the researcher and of the operator: write a run's model as one file, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynammo_core.support.errors import ConfigError
from dynammo_core.support.files import write_atomically
from dynammo_core.support.terminal import Terminal, readable_errors


def export(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run directory.", show_default=False)],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.", show_default=False)],
    asked: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="safetensors, torchscript, or onnx (pip install '.\\[onnx]').",
            show_default="what the name of the file says",
        ),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the model card here.", show_default="beside the model, as .md"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Export the model of a run as one file, checked against the original, with a model card beside it.

    TorchScript and ONNX take batches of RGB images of the model's size, and return label, probabilities and open-set
    score. Their metadata say how.
    """
    with readable_errors():
        from dynammo_core.deployed.model_files import ModelFiles
        from server.report.export import TOLERANCE, check_format, export_model, format_of
        from server.report.model_card import model_card

        card = card or output.with_suffix(".md")
        if card == output:
            raise ConfigError(
                f"the model and its card would both be written to {output}", accepted="two different files"
            )
        format_name = format_of(output, asked)
        check_format(format_name)
        there = [str(path) for path in (output, card) if path.exists()]
        if there and not force:
            raise ConfigError(f"already there: {' and '.join(there)}", remedy="Name another file, or add --force")
        files = ModelFiles.read(run_directory)

        def describe(sha256: str) -> str:
            return model_card(run_directory, files.facts, file=output.name, format_name=format_name, sha256=sha256)

        describe("")  # a run that cannot be described leaves no model without a card
        exported = export_model(files, format_name, output)
        write_atomically(card, describe(exported.sha256).encode())
        Terminal(emoji=False).print(
            f"Model: {output} ({format_name}, {output.stat().st_size / 1e6:.1f} MB)\n"
            f"SHA-256: {exported.sha256}\n"
            f"Largest difference from PyTorch on random images: {exported.difference:.2g} ({TOLERANCE:g} is accepted)\n"
            f"Card: {card}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
