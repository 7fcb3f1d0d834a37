"""`dynammo-sim bench gpu`: what a card gives, in one file and one table."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.options import ConfigFile, Overrides

if TYPE_CHECKING:
    import torch

    from dynammo_core.configuration.config import Config
    from simulations.bench.gpu.rates import Rate

console = Terminal()
SIDES = {"cuda": 8192, "cpu": 256}
"""Side of the matrices whose product shows how fast a kind of device can be."""


def gpu(
    config: ConfigFile,
    batches: Annotated[str, typer.Option(help="Images per batch, separated by commas.")] = "32,64,128,256,512",
    precisions: Annotated[str, typer.Option(help="Values of compute.precision, separated by commas.")] = "float32,bf16",
    out: Annotated[Path, typer.Option(help="Gets gpu.json.")] = Path("runs/gpu"),
    tests: Annotated[Path | None, typer.Option(help="Run the tests marked `cuda` in this folder as well.")] = None,
    set_: Overrides = None,
) -> None:
    """Measure a GPU: images a second of each stage beside a bare loop and beside the card's rate of matrix products.

    The bare loop finds its inputs on the device, as the network takes them; a site's step also varies and normalises
    images, loads its weights and checks its answer. The rate of matrix products is that of the faster type, bf16 on a
    GPU.

    Without a GPU nothing is measured and the exit code is 0, unless `--set compute.device=cpu` asks for the CPU, whose
    seconds are those of the processor.
    """
    with readable_errors():
        import torch

        from dynammo_core.configuration.config import load_config
        from dynammo_core.experiment import Experiment
        from dynammo_core.support.devices import find_device

        overrides = {**parse_overrides(set_ or []), "federation.sites": 1}
        settings = load_config(config, overrides)
        device = find_device(settings.compute.device, "compute.device")
        if device.type == "cpu" and settings.compute.device == "auto":
            console.print("PyTorch finds no GPU here, so there is nothing to measure.", highlight=False)
            return
        Experiment(settings).use_torch()
        found = describe(device)
        if tests is not None:
            found["tests"] = tests_on_gpu(tests)
        limits = matrix_rates(device)
        found["matrix_teraflops"] = limits
        rates, latency = [], {}
        for precision in precisions.split(","):
            one = load_config(config, {**overrides, "compute.precision": precision})
            rates += measured(one, [int(batch) for batch in batches.split(",")])
            latency[precision] = _latency(one)
        found |= {"milliseconds_of_one_image": latency, "rates": [asdict(rate) for rate in rates]}
        if device.type == "cuda":
            found["peak_gigabytes"] = torch.cuda.max_memory_allocated(device) / 1e9
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        console.print(_table(rates, max(limits.values())))
        for name in ("device", "doctor", "tests", "matrix_teraflops", "milliseconds_of_one_image", "peak_gigabytes"):
            if name in found:
                console.print(f"{name}: {found[name]}", highlight=False, soft_wrap=True)
        raise typer.Exit(1 if found.get("tests", {}).get("exit code") else 0)


def describe(device: torch.device) -> dict[str, Any]:
    """Return the names and versions of device and libraries, and what `doctor` says of the GPU."""
    import torch

    from client.consent.settings import SiteSettings
    from client.doctor.checks import gpu as check

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    findings = check(SiteSettings.model_construct(device=str(device)))
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    return {"device": name, **versions, "doctor": [f"{one.state}: {one.sentence}" for one in findings]}


def tests_on_gpu(folder: Path) -> dict[str, Any]:
    """Run the tests of a folder that are marked `cuda`; return pytest's exit code and its last line."""
    files = [str(path) for path in sorted(folder.rglob("test_*.py")) if "mark.cuda" in path.read_text(encoding="utf-8")]
    words = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *files]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        console.print(done.stdout, highlight=False, markup=False)
    return {"exit code": done.returncode, "said": lines[-1] if lines else done.stderr.strip()[-200:]}


def matrix_rates(device: torch.device) -> dict[str, float]:
    """Return the 10^12 operations a second of matrix products on a device, by type."""
    import torch

    from simulations.bench.gpu.rates import matrix_teraflops

    kinds = {"float32": torch.float32, "bf16": torch.bfloat16}
    return {name: matrix_teraflops(device, kind, SIDES[device.type]) for name, kind in kinds.items()}


def measured(config: Config[Any], batches: list[int]) -> list[Rate]:
    """Return the speeds of all stages, with the numbers of images per batch that the device has memory for."""
    from dynammo_core.support.devices import find_device, shortage_explained
    from dynammo_core.support.errors import DeviceMemoryError
    from simulations.bench.gpu.rates import EVALUATE, stage_rates

    found: list[Rate] = []
    for batch in batches:
        try:
            with shortage_explained(find_device(config.compute.device)):
                found += stage_rates(config, batch)
        except DeviceMemoryError as error:
            console.print(f"{batch} images per batch: {error}", highlight=False, markup=False)
    last = {rate.stage: rate for rate in found if rate.stage == EVALUATE}  # its batches have a size of their own
    return [*(rate for rate in found if rate.stage != EVALUATE), *last.values()]


def _latency(config: Config[Any]) -> float:
    from simulations.bench.gpu.rates import milliseconds_of_one

    return milliseconds_of_one(config)


def _table(rates: list[Rate], limit: float) -> Table:
    table = Table("stage", "precision", "batch", "images/s", "bare loop", "ratio", "of the matrix rate")
    for rate in rates:
        numbers = (f"{rate.ours:.0f}", f"{rate.bare:.0f}", f"{rate.ours / rate.bare:.2f}")
        table.add_row(rate.stage, rate.precision, str(rate.batch), *numbers, f"{rate.teraflops / limit:.1%}")
    return table
