"""`dynammo-sim bench engines`: one federated job by our engines, by Flower alone and by others' simulators."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer
from rich.table import Table

from dynammo_core.support.errors import ConfigError, RunError, unknown_name
from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.bench.memory_watch import peak_memory
from simulations.options import ConfigFile, Overrides

console = Terminal()
MODULE = "simulations.bench.engines.job"
ROWS: Mapping[str, str] = MappingProxyType(
    {
        "loop": "plain loop, no federation",
        "local": "ours, local",
        "flower": "ours, flwr run",
        "plain-flower": "plain Flower app, flwr run",
        "pfl": "pfl",
    }
)
"""The engines by name, in words."""


def engines(
    config: ConfigFile,
    only: Annotated[
        list[str] | None, typer.Option(help="Measure only this engine. Repeatable.", show_default="all")
    ] = None,
    environment: Annotated[
        Path | None,
        typer.Option(
            help="Folder for an environment of its own, into which pfl is installed; without it pfl is left out."
        ),
    ] = None,
    set_: Overrides = None,
) -> None:
    """Measure rounds a second and peak memory of one federated job by several engines, beside a plain loop.

    The job is FedAvg of the configuration's network: the first training stage of its method, the same images, sites,
    rounds and batches for every engine. Each works in a process of its own; the first round, which warms up, does not
    count.
    """
    with readable_errors():
        from dynammo_core.configuration.config import load_config

        chosen = only or list(ROWS)
        if unknown := sorted(set(chosen) - set(ROWS)):
            raise ConfigError(f"--only: {unknown_name('engine', unknown[0], ROWS)}", accepted=", ".join(ROWS))
        settings = load_config(config, parse_overrides(set_ or []))
        table = Table("engine", "seconds a round", "rounds/s", "times the loop", "peak memory")
        reference = 0.0
        with tempfile.TemporaryDirectory(prefix="dynammo-engines-") as place:
            file = Path(place) / "job.yaml"
            file.write_text(settings.to_yaml(), encoding="utf-8")
            for name in chosen:
                python = sys.executable if name != "pfl" else pfl_python(environment)
                if python is None:
                    table.add_row(ROWS[name], "", "", "", "")
                    continue
                try:
                    with peak_memory() as peak:
                        seconds = seconds_of(name, file, python)
                except RunError as error:
                    table.add_row(ROWS[name], "", "", "", "")
                    console.say(str(error))
                    continue
                reference = seconds if name == "loop" else reference
                ratio = f"{seconds / reference:.2f}" if reference else ""
                table.add_row(ROWS[name], f"{seconds:.2f}", f"{1 / seconds:.3f}", ratio, f"{peak.bytes / 1e9:.2f} GB")
        console.print(table)


def seconds_of(engine: str, config: Path, python: str) -> float:
    """Do the job by one engine in a process of its own; return the median seconds of a round but the first.

    Raises:
        RunError: the engine cannot do the job.
    """
    out = config.with_suffix(".json")
    checkout = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [python, "-m", MODULE, engine, str(config), str(out)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunError(f"{ROWS[engine]} failed: {(done.stderr.strip() or 'without a word').splitlines()[-1]}")
    rounds: list[float] = json.loads(out.read_text(encoding="utf-8"))
    return statistics.median(rounds[1:] or rounds)


def pfl_python(environment: Path | None) -> str | None:
    """Return the Python of an environment with pfl, made in a folder if it is not there; None if it cannot be.

    It shares this environment's packages, PyTorch among them, so that the engines differ and nothing else does.
    """
    if environment is None:
        console.say("pfl is left out: name a folder for its environment by --environment.")
        return None
    python = environment.resolve() / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        own = Path(sysconfig.get_path("purelib", vars={"base": str(environment.resolve())}))
        (own / "shared.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    installed = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "pfl"], capture_output=True, text=True, check=False
    )
    if installed.returncode:
        console.say(f"pfl does not install here: {installed.stderr.strip().splitlines()[-1]}")
        return None
    return str(python)
