"""`dynammo-sim bench bytes`: what travels in a whole run, by method and by what is done to send less."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal
from rich.table import Table

from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.options import ConfigFile, Overrides

if TYPE_CHECKING:
    from dynammo_core.configuration.config import Config

console = Terminal()


@dataclass(frozen=True)
class Traffic:
    """Bytes of tensors that one site sends and is sent in a run, the mean over sites, and how well the run ended.

    Attributes:
        kind: what is done to send less.
        accuracy: after the last task, in percent; None where nothing was run.
    """

    kind: str
    up: float
    down: float
    accuracy: float | None

    @property
    def total(self) -> float:
        """Both ways."""
        return self.up + self.down


def bytes_table(
    config: ConfigFile,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD[,KEY=VALUE...]",
            help="Another method too, with what it shares with the configuration's. Repeatable.",
            show_default=False,
        ),
    ] = None,
    set_: Overrides = None,
) -> None:
    """How many bytes a site sends and is sent: the whole network, what the method sends, and with each compression."""
    with readable_errors():
        from dynammo_core.configuration.config import load_config

        settings = load_config(config, parse_overrides(set_ or []))
        configs = {settings.method.name: settings, **{text: with_method(settings, text) for text in beside or ()}}
        whole = whole_network(settings)
        table = Table("what travels", "up", "down", "times fewer", "last accuracy %", "points lost")
        table.add_row(*_cells(whole, whole, None), end_section=True)
        for name, own in configs.items():
            plain = None
            for row in measured(own, name):
                plain = row.accuracy if plain is None else plain
                table.add_row(*_cells(row, whole, plain))
            table.add_section()
        console.print(table)


def _cells(row: Traffic, whole: Traffic, plain: float | None) -> tuple[str, ...]:
    lost = "" if row.accuracy is None or plain is None else f"{plain - row.accuracy:+.2f}"
    accuracy = "computed" if row.accuracy is None else f"{row.accuracy:.2f}"
    up, down = (decimal(round(way)) for way in (row.up, row.down))
    return row.kind, up, down, f"{whole.total / row.total:.1f}", accuracy, lost


def with_method(config: Config[Any], text: str) -> Config[Any]:
    """The configuration with another method: `fine_tune,train.rounds=9`; what both have in common stays.

    Raises:
        ConfigError: no such method, or it has no such key.
    """
    from dynammo_core.configuration.config import resolve
    from dynammo_core.scoring.cost import method_settings

    name, *pairs = text.split(",")
    (method,) = method_settings([name], config.method)
    data = {**config.model_dump(mode="json"), "method": method.model_dump(mode="json")}
    return resolve(data, f"--beside {text}", {f"method.{key}": value for key, value in parse_overrides(pairs).items()})


def whole_network(config: Config[Any]) -> Traffic:
    """FedAvg of the whole network in float32, both ways, in as many rounds as train anything: computed.

    Of a method that never trains, in as many as bring anything up.
    """
    from dynammo_core.experiment import Experiment
    from dynammo_core.plan import Action

    experiment = Experiment(config)
    state = experiment.build_model(len(experiment.stream) - 1).state_dict()
    network = {name: tensor for name, tensor in state.items() if ".adapters." not in name}
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.values() if tensor.is_floating_point())
    rounds = sum(step.stage.action is Action.FIT for step in experiment.steps)
    rounds = rounds or sum(bool(step.stage.up) for step in experiment.steps)
    return Traffic("the whole network", rounds * size, rounds * size, None)


def measured(config: Config[Any], name: str) -> Iterator[Traffic]:
    """The rows of one method, called `name`; each compression is a run in this process."""
    from dynammo_core.configuration.config import resolve
    from dynammo_core.wire.compression import CODECS
    from server.watch.progress import ProgressView
    from simulations.engines.engines import run_local

    data = config.model_dump(mode="json")
    for compression in CODECS:
        own = resolve(data, "the benchmark", {"federation.compression": compression})
        with tempfile.TemporaryDirectory(prefix="dynammo-bytes-") as folder, ProgressView() as view:
            run = run_local(own, Path(folder), None, view.update)
            lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
            summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        steps = [event for event in map(json.loads, lines) if event["event"] == "step_finished"]
        sites, accuracy = config.federation.sites, float(summary["last_accuracy"])
        up, down, held = (sum(step[key] for step in steps) / sites for key in ("bytes_up", "bytes_down", "bytes_held"))
        if compression == "none":
            yield Traffic(f"what {name} sends", up, down + held, accuracy)
            yield Traffic("once per change", up, down, accuracy)
        else:
            yield Traffic(compression, up, down, accuracy)
