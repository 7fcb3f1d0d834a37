"""Save and load all that a run needs to continue, in one file that is replaced after every round."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dynammo_core.code_identity import code_hash
from dynammo_core.configuration.config import Config
from dynammo_core.models.description import weights_sha256
from dynammo_core.models.names import under
from dynammo_core.support.errors import CheckpointError
from dynammo_core.support.files import write_atomically
from server.run_directory.directory import LATEST
from server.run_directory.lineage import forbidden_changes
from server.run_directory.progress import Identity, Progress, unreadable


def identity_of(config: Config[Any]) -> Identity:
    """Return the identity of a run of this configuration with the code and the weights that are here."""
    networks = (config.backbone, *config.backbone.changes)
    return Identity(config.canonical_json(), code_hash(config), ",".join(map(weights_sha256, networks)))


class CheckpointStore:
    """Save and load the checkpoint of one run directory.

    Attributes:
        of_other_code: whether the one that was loaded had been saved under other code.
    """

    of_other_code = False

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.path = folder / LATEST
        self._identity = identity

    def save(self, progress: Progress, weights: dict[str, Tensor], archive: dict[str, Tensor]) -> None:
        """Replace the checkpoint; the one before stays whole if this fails.

        Raises:
            CheckpointError: it cannot be written.
        """
        tensors = {f"model/{name}": tensor.cpu().contiguous() for name, tensor in weights.items()}
        tensors |= {f"archive/{name}": tensor.cpu().contiguous() for name, tensor in archive.items()}
        notes = {"identity": json.dumps(vars(self._identity)), "progress": json.dumps(vars(progress))}
        write_atomically(self.path, save(tensors, metadata=notes | {"sha256": _digest(notes, tensors)}))

    def load(self, *, accept_new_code: bool = False) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]]:
        """Return the progress, the model's tensors and the archive as last saved.

        Args:
            accept_new_code: accept a checkpoint of other code; the progress then records it.

        Raises:
            CheckpointError: the checkpoint is missing or corrupt, or was made by another configuration or code.
        """
        if not self.path.is_file():
            raise CheckpointError(
                f"the checkpoint {self.path} does not exist",
                accepted="the directory of a run that has finished at least one round",
                remedy="Start a new run, without --resume",
            )
        try:
            with safe_open(self.path, framework="pt") as file:
                notes = dict(file.metadata())
                digest = notes.pop("sha256")
                identity = Identity(**json.loads(notes["identity"]))
                progress = Progress(**json.loads(notes["progress"]))
                # In memory of their own: some products round differently where numbers do not begin at 16 bytes.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
            if digest != _digest(notes, tensors):
                raise ValueError("its content does not match its checksum")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise unreadable(self.path, error) from error
        self._check(identity, accept_new_code)
        self.of_other_code = identity.code_hash != self._identity.code_hash
        if self.of_other_code:
            hashes = {"then": identity.code_hash, "now": self._identity.code_hash}
            progress.code_changes.append({"step": progress.next_step, **hashes})
        return progress, under(tensors, "model/"), under(tensors, "archive/")

    def _check(self, found: Identity, accept_new_code: bool) -> None:
        differences = forbidden_changes(found.config, self._identity.config)
        ours, theirs = (each.backbone_sha256.split(",") for each in (self._identity, found))
        if ours[: len(theirs)] != theirs:  # an extension may add a network
            differences.append("the backbone's weights")
        remedy = "Continue with those, or start a new run, without --resume"
        if found.code_hash != self._identity.code_hash and not accept_new_code:
            if not differences:
                remedy = "Continue with the old code; or, if every site has the new code, resume with --accept-new-code"
            differences.append(f"the code (then {found.code_hash[:12]}, now {self._identity.code_hash[:12]})")
        if differences:
            raise CheckpointError(
                f"the checkpoint {self.path} was made by another experiment: {'; '.join(differences)}",
                accepted="the configuration, code and weights that the run was started with",
                remedy=remedy,
            )


def _digest(notes: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of everything in a checkpoint: safetensors itself sees only damage to its header."""
    digest = hashlib.sha256(json.dumps(dict(notes), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
