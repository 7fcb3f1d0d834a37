"""What travels in a whole run, by method and by what is done to send less."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from dynammo_core.configuration.config import Config, resolve
from dynammo_core.experiment import Experiment
from dynammo_core.plan import Fit
from dynammo_core.scoring.cost import method_settings
from dynammo_core.support.terminal import parse_overrides
from dynammo_core.wire.compression import CODECS
from server.run_directory.run_files import RunFiles
from simulations.comparisons.compare import Cell, Json
from simulations.measurements.figures import Columns, decimals

WHOLE = "the whole network"
KEY = "federation.compression"


def plan(config: Config[Any], beside: Sequence[str]) -> list[Cell]:
    """Return a run with each compression, of the configuration's method and of the others that `with_method` reads.

    Raises:
        ConfigError: a method, or a key of it, is unknown.
    """
    configs = {config.method.name: config, **{text: with_method(config, text) for text in beside}}
    return [
        Cell(name, compression, own.seed, resolve(own.model_dump(mode="json"), name, {KEY: compression}))
        for name, own in configs.items()
        for compression in CODECS
    ]


def with_method(config: Config[Any], text: str) -> Config[Any]:
    """Return the configuration with another method: `fine_tune,train.rounds=9`; what both have in common stays.

    Raises:
        ConfigError: the method, or a key of it, is unknown.
    """
    name, *pairs = text.split(",")
    (method,) = method_settings([name], config.method)
    data = {**config.model_dump(mode="json"), "method": method.model_dump(mode="json")}
    return resolve(data, f"--beside {text}", {f"method.{key}": value for key, value in parse_overrides(pairs).items()})


def whole_network(config: Config[Any]) -> int:
    """Compute the bytes each way of FedAvg of the whole network, in float32, in as many rounds as train anything.

    For a method that never trains, they are those in which anything comes up.
    """
    experiment = Experiment(config)
    state = experiment.build_model(len(experiment.stream) - 1).state_dict()
    network = {name: tensor for name, tensor in state.items() if ".adapters." not in name}
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.values() if tensor.is_floating_point())
    rounds = sum(isinstance(step.stage, Fit) for step in experiment.steps)
    rounds = rounds or sum(bool(step.stage.up) for step in experiment.steps)
    return int(rounds * size)


def rows(cells: Sequence[Cell], runs: Path, whole: int) -> list[Json]:
    """Return bytes of tensors that one site sends and is sent in a finished run, and how well the run ended.

    `up` and `down` are means over the sites, `times_fewer` is the part of both that the whole network takes in `whole`
    bytes each way. `accuracy` is the last one, in percent, and `lost` what of it compression took, in points; both are
    None where nothing was run.
    """
    table = [_row("", WHOLE, whole, whole, whole, None, None)]
    uncompressed: dict[str, float] = {}
    for cell in cells:
        if (summary := cell.summary(runs)) is None:
            continue
        accuracy, steps = float(summary["last_accuracy"]), RunFiles.read(cell.directory(runs)).steps
        lost = uncompressed.setdefault(cell.setting, accuracy) - accuracy
        up, down, held = (
            sum(step[key] for step in steps) / cell.config.federation.sites
            for key in ("bytes_up", "bytes_down", "bytes_held")
        )
        if cell.row == "none":
            table.append(_row(cell.setting, f"what {cell.setting} sends", up, down + held, whole, accuracy, lost))
        kind = "once per change" if cell.row == "none" else cell.row
        table.append(_row(cell.setting, kind, up, down, whole, accuracy, lost))
    return table


def _row(
    method: str, kind: str, up: float, down: float, whole: int, accuracy: float | None, lost: float | None
) -> Json:
    times_fewer = 2 * whole / (up + down)
    figures = {"up": up, "down": down, "times_fewer": times_fewer, "accuracy": accuracy, "lost": lost}
    return {"method": method, "kind": kind, **figures}


COLUMNS: Columns = {
    "what travels": lambda row: row["kind"],
    "up": lambda row: decimal(round(row["up"])),
    "down": lambda row: decimal(round(row["down"])),
    "times fewer": lambda row: decimals(row["times_fewer"]),
    "last accuracy %": lambda row: decimals(row["accuracy"], 2) or "computed",
    "points lost": lambda row: "" if row["lost"] is None else f"{row['lost']:+.2f}",
}
