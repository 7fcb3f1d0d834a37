"""What a site holds of the tensors that it was sent, on its disk and by their content, so that none is sent twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dynammo_core.memory.store import make_private
from dynammo_core.support.errors import DynammoError, MissingTensorsError, ProtocolError
from dynammo_core.support.files import write_atomically

FILE = "received.safetensors"
logger = logging.getLogger("dynammo.tensor_store")


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of type, shape and values, as 64 hexadecimal digits."""
    digest = hashlib.sha256(f"{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).numpy().data)
    return digest.hexdigest()


class TensorStore:
    """One file of tensors by hash, replaced as a whole. Of each name it keeps what was last sent under it, no more.

    It holds nothing that could not be had again: a file that is lost or damaged is one that lacks everything, and one
    that cannot be written costs bytes, not the step.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def complete(self, hashes: Mapping[str, str], received: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors that an instruction names: those that came with it, and those held since earlier steps.

        Args:
            hashes: of every tensor, by name.
            received: the tensors that came.

        Raises:
            MissingTensorsError: some came neither now nor before.
            ProtocolError: a tensor is not the one that its hash names.
        """
        for name, tensor in received.items():
            if tensor_hash(tensor) != hashes.get(name):
                raise ProtocolError(f"the tensor {name!r} is not the one that the instruction names")
        known = {hashes[name]: tensor for name, tensor in received.items()}
        known |= self._read(set(hashes.values()) - set(known))
        if missing := [name for name, wanted in hashes.items() if wanted not in known]:
            raise MissingTensorsError(
                f"{len(missing)} tensors were not sent and are not in {self.path}, such as {missing[0]!r}",
                remedy="Nothing is to be done: the server sends all of them",
            )
        return {name: known[wanted] for name, wanted in hashes.items()}

    def keep(self, hashes: Mapping[str, str], received: Mapping[str, Tensor]) -> None:
        """Hold the tensors of an instruction that was carried out, each in the place of what had its name before."""
        before = self._index()
        if before.items() >= hashes.items():
            return
        known = {hashes[name]: tensor.contiguous() for name, tensor in received.items()}
        index = {**before, **hashes}
        known |= self._read(set(index.values()) - set(known))
        index = {name: held for name, held in index.items() if held in known}
        content = {held: known[held] for held in sorted(set(index.values()))}
        try:
            make_private(self.path.parent)
            write_atomically(self.path, save(content, metadata={"index": json.dumps(index)}), mode=0o600)
        except DynammoError as error:
            logger.warning("the weights received are not kept: %s", error)

    def _index(self) -> dict[str, str]:
        """The hash last sent under each name; none where there is no file, or a damaged one."""
        try:
            with safe_open(self.path, framework="np") as file:
                index = json.loads(file.metadata()["index"])
            return {str(name): str(known) for name, known in index.items()}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError):
            return {}

    def _read(self, wanted: Iterable[str]) -> dict[str, Tensor]:
        """Those of the tensors that are held, each of them whole."""
        found: dict[str, Tensor] = {}
        try:
            # "pt" would open the file twice, and another site's process may have replaced it in between.
            with safe_open(self.path, framework="np") as file:
                for known in sorted(set(wanted) & set(file.keys())):
                    tensor = torch.from_numpy(file.get_tensor(known))
                    if tensor_hash(tensor) != known:
                        self.path.unlink(missing_ok=True)  # or what is sent anew would be thought to be in it
                        return {}
                    found[known] = tensor
        except (OSError, SafetensorError) as error:
            logger.debug("no tensors in %s: %s", self.path, error)
        return found
