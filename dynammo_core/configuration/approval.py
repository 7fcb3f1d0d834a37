"""What a hospital is asked to approve: an experiment without the operator's paths, in one version of the code."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from dynammo_core.configuration.config import Config, resolve
from dynammo_core.configuration.settings import FOLDER, WEIGHTS_BY_NAME
from dynammo_core.support.errors import ProtocolError


@lru_cache(maxsize=4)
def config_from_json(text: str) -> Config[Any]:
    """Validate the configuration that a server sends as JSON; the same text gives the same object in a process.

    Raises:
        ProtocolError: the text is not JSON; ConfigError: it is not a configuration.
    """
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the experiment is not valid JSON ({type(error).__name__}: {error})") from error
    return resolve(plain, "the server's configuration", {})


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
