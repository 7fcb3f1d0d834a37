"""Name what a hospital approves: an experiment without the operator's paths, in one version of the code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from dynammo_core.configuration.config import Config
from dynammo_core.configuration.settings import FOLDER, WEIGHTS_BY_NAME


def without_paths(config: Config[Any]) -> Config[Any]:
    """Return an experiment without paths on the server's disk, which no site reads.

    So the file that the operator mailed and the run's configuration are the same experiment.
    """
    weights = config.backbone.weights
    name = weights if weights in WEIGHTS_BY_NAME else Path(weights).name + (FOLDER if weights.endswith(FOLDER) else "")
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"root": None}),
            "backbone": config.backbone.model_copy(update={"weights": name}),
        }
    )


def experiment_hash(experiment: str) -> str:
    """Return the SHA-256 of an experiment, given as canonical JSON."""
    return hashlib.sha256(experiment.encode("utf-8", "surrogatepass")).hexdigest()


def approval_hash(experiment: str, code: str) -> str:
    """Return the SHA-256 of an experiment and the hash of the code: 64 hexadecimal digits, what a person approves."""
    return experiment_hash(f"{experiment_hash(experiment)} {code}")
