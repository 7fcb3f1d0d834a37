"""Describe the start of a run for its event log: the experiment, its plan, and the machine and packages that run it."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dynammo_core import __version__
from dynammo_core.code_identity import code_hash
from dynammo_core.configuration.approval import approval_hash, without_paths
from dynammo_core.configuration.config import Config
from dynammo_core.data.sites.site_partition import patients_by_class
from dynammo_core.experiment import Experiment
from dynammo_core.support.processes import usable_cores
from server.run_directory.progress import Progress

RECORDED_VERSIONS = ("flwr", "torch", "torchvision", "timm")
PROCESSOR = re.compile(r"^model name\s*:\s*(.+)$", re.MULTILINE)
"""What Linux says of a processor in `/proc/cpuinfo`."""


def start_fields(experiment: Experiment, progress: Progress) -> dict[str, Any]:
    """Return what the event `run_started` says.

    Args:
        experiment: the experiment.
        progress: the run's progress, from which it starts.

    Raises:
        DataError: the images of a simulation cannot be opened.
    """
    config, names = experiment.config, experiment.class_names
    return {
        "name": config.name,
        "method": config.method.name,
        "dataset": config.data.dataset,
        "config_hash": config.content_hash,
        "code_hash": code_hash(config),
        "sites": config.federation.sites,
        "site_names": [experiment.site_label(site) for site in range(config.federation.sites)],
        "approval": approval_of(config) if config.federation.site_names else None,
        "run": progress.run,
        "tasks": [[names[label] for label in task] for task in experiment.stream.tasks],
        "plan": [step.as_fields() for step in experiment.steps],
        "resumed_at": progress.next_step,
        "data_notes": experiment.data_notes,
        "patients": _patients(experiment),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **package_versions()},
    }


def package_versions() -> dict[str, str]:
    """Return the versions of this project and of the packages that decide its figures."""
    return {"dynammo": __version__} | {package: version(package) for package in RECORDED_VERSIONS}


def machine() -> Mapping[str, str | int]:
    """Return the operating system, the processor and its usable cores, and the GPU; never the machine's name."""
    processor = platform.machine()
    with suppress(OSError):
        named = PROCESSOR.search(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
        processor = named[1] if named else processor
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    system = f"{platform.system()} {platform.release()}"
    return {"system": system, "processor": processor, "cores": usable_cores(), "gpu": gpu}


def _patients(experiment: Experiment) -> list[list[int]] | None:
    """Return a simulation's patients by site and class, classes as they are learnt; None where nothing tells."""
    if experiment.config.federation.site_names or not experiment.dataset.train.patients:
        return None
    labels = [label for task in experiment.stream.tasks for label in task]
    counts = patients_by_class(experiment.dataset, experiment.partition, experiment.classes)
    return [[int(own[label]) for label in labels] for own in counts]


def approval_of(config: Config[Any]) -> str:
    """Return the hash that people at the sites see and approve."""
    return approval_hash(without_paths(config).canonical_json(), code_hash(config))
