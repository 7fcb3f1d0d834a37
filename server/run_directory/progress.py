"""Say how far a run has come and what it belongs to, as its checkpoint notes beside the tensors: without PyTorch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from dynammo_core.support.errors import CheckpointError
from server.run_directory.directory import LATEST


@dataclass
class Progress:
    """How far a run has come, and what it has counted so far.

    Attributes:
        next_step: index of the step to do next.
        bytes_up: bytes of tensors that sites have sent.
        bytes_down: bytes of tensors that the server has sent.
        seconds: time spent on finished steps.
        confusion: [task][site][C * C] test counts after each finished task.
        epsilon: epsilon that each site reports as spent, under example-level privacy.
        run: unique name of the run, by which sites find its memory; it stays when a run resumes.
        code_changes: step, old and new code hash, for each time the run continued under other code.
        taken: the contributions of each site, by its number, that the archive's sums contain.
        corrections: number of corrections of these sums so far.
        reliability: the tables of `Reliability` after each finished task, by its number, over all sites, without tasks
            that were finished under a version that did not count them.
        own_heads: [site][C * C] test counts after the last finished task, by the heads that sites solve for themselves.
    """

    next_step: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    confusion: list[list[list[int]]] = field(default_factory=list)
    run: str = ""
    epsilon: dict[str, float] = field(default_factory=dict)
    code_changes: list[dict[str, int | str]] = field(default_factory=list)
    taken: dict[str, list[int]] = field(default_factory=dict)
    corrections: int = 0
    reliability: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    own_heads: dict[str, list[list[int]]] = field(default_factory=dict)

    def grow(self, sites: int, classes: int) -> None:
        """Extend the counts to sites and classes that joined, with zeros for earlier tasks."""
        for by_site in (*self.confusion, *self.own_heads.values()):
            by_site += [[] for _ in range(sites - len(by_site))]
            for site, counts in enumerate(by_site):
                before = math.isqrt(len(counts))
                rows = np.zeros((classes, classes), dtype=np.int64)
                rows[:before, :before] = np.array(counts, dtype=np.int64).reshape(before, before)
                by_site[site] = rows.flatten().tolist()


@dataclass(frozen=True)
class Identity:
    """What must stay the same for a run to continue.

    Attributes:
        config: the configuration, as canonical JSON.
        code_hash: hash of the code.
        backbone_sha256: of the weights of each network, in the order in which they learn, with commas between.
    """

    config: str
    code_hash: str
    backbone_sha256: str


def saved_state(folder: Path) -> tuple[Identity, Progress]:
    """Return what the checkpoint in a folder belongs to and how far it has come, without its tensors.

    Raises:
        CheckpointError: the checkpoint is missing or corrupt.
    """
    try:
        with safe_open(folder / LATEST, framework="numpy") as file:
            notes = file.metadata()
        return Identity(**json.loads(notes["identity"])), Progress(**json.loads(notes["progress"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise unreadable(folder / LATEST, error) from error


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """Return the error about a checkpoint that cannot be read."""
    return CheckpointError(
        f"the checkpoint {path} cannot be read ({type(error).__name__}: {error})",
        remedy="Restore it from a backup, or start a new run, without --resume",
    )
