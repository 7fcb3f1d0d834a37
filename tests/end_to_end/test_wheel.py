"""The wheel in an environment that knows no checkout: its commands, both engines, and a method of another package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import pytest
from plugins import install
from small_runs import Outcome

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    **{"backbone.name": "small_cnn", "backbone.weights": "random", "data.image_size": 16, "data.train_per_class": 20},
    **{"data.test_per_class": 10, "tasks.sizes": "[2, 2]", "federation.sites": 2},
    **{"method.train.rounds": 1, "method.train.epochs": 1},
}
SCRIPT = "#!{python}\nimport sys\nfrom {module} import {attribute}\nsys.exit({attribute}())\n"


@dataclass
class Installed:
    """An environment with the wheel, and an empty folder to work in."""

    bin: Path
    packages: Path
    folder: Path

    def __call__(self, *words: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FLWR_"))}
        command = [str(self.bin / words[0]), *words[1:]]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the wheel and install it beside the packages that it requires, which are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv")
    made = Installed(folder / "venv" / "bin", next(folder.glob("venv/lib/*/site-packages")), folder / "empty")
    made.folder.mkdir()
    python, here = made.bin / "python", [path for path in sys.path if path.endswith("site-packages")]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    (made.packages / "required.pth").write_text("\n".join(here))
    for point in distribution("flwr").entry_points:  # pip writes these where it installs Flower
        text = SCRIPT.format(python=python, module=point.module, attribute=point.attr)
        (made.bin / point.name).write_text(text)
        (made.bin / point.name).chmod(0o755)
    return made


@pytest.mark.slow
def test_nothing_of_the_checkout_is_used(installed: Installed) -> None:
    script = "import client, dynammo_core, server, simulations as s; print(*(m.__file__ for m in (client, server, s)))"
    assert all(Path(file).is_relative_to(installed.packages) for file in installed("python", "-c", script).split())
    for package in ("client", "dynammo_core", "server", "simulations"):
        assert (installed.packages / package / "py.typed").exists()
    assert "Run, check and measure" in installed("dynammo-sim", "--help")
    assert "site" in installed("dynammo-site", "--help") and "server" in installed("dynammo-server", "--help").lower()


@pytest.mark.slow
def test_both_engines_run_the_shipped_experiment_with_a_method_from_another_package(installed: Installed) -> None:
    install(installed.packages)
    installed("dynammo-sim", "configs", "experiments")
    assert "ok" in installed("dynammo-sim", "validate", "experiments/digits.yaml", "experiments/compare/digits.yaml")
    overrides = [f"--set={key}={value}" for key, value in {**SMALL, "method.name": "half_replay"}.items()]
    outcomes, summaries = [], []
    for engine in ("local", "flower"):
        installed("dynammo-sim", "run", "experiments/digits.yaml", "--engine", engine, "--runs", engine, *overrides)
        (directory,) = (installed.folder / engine).iterdir()
        assert (directory / "report.html").exists()
        outcomes.append(Outcome.of(directory))
        summaries.append(json.loads((directory / "summary.json").read_text()))
        assert (directory / "checkpoints" / "latest.safetensors").exists()
    assert outcomes[0] == outcomes[1]
    assert summaries[0]["bytes_down"] == summaries[1]["bytes_down"]
    assert summaries[0]["method"] == "half_replay"


@pytest.mark.slow
def test_flower_builds_a_bundle_of_format_1_from_the_wheel(installed: Installed) -> None:
    script = """
from pathlib import Path
from flwr.cli.build import build_fab_from_files
from flwr.cli.utils import collect_files
from server.consortium.flower_app import APP_DIRECTORY, staged_app
bundle, about = build_fab_from_files(collect_files(staged_app(APP_DIRECTORY, Path("app"))))
from client.service.foreign_app import difference
print(about.fab_format_version, about.flwr_version_min, about.flwr_version_target, difference(bundle))
"""
    assert installed("python", "-c", script).split() == ["1", "1.41", "1.42.0", "None"]
