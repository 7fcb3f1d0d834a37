"""The store on a site's disk of the tensors that it was sent, by their hashes, so that no tensor is sent twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dynammo_core.memory.private_files import make_private
from dynammo_core.memory.sealed_file import SealedFile
from dynammo_core.support.errors import DynammoError, MemoryStoreError, MissingTensorsError
from dynammo_core.support.files import write_atomically
from dynammo_core.wire.arrays import read

FILE = "received.safetensors"
LARGEST_SHARED = 10**6
"""Bytes of an array beyond which it is decoded for each site anew."""
logger = logging.getLogger("dynammo.tensor_store")


def tensor_hash(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and values, as 64 hexadecimal digits."""
    digest = hashlib.sha256(f"{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).numpy().data)
    return digest.hexdigest()


def decoded(data: bytes) -> tuple[Tensor, str]:
    """Return the tensor in an array's bytes and its hash, worked out once for the small ones that many sites get."""
    return _kept(data) if len(data) <= LARGEST_SHARED else _kept.__wrapped__(data)


@lru_cache(maxsize=256)
def _kept(data: bytes) -> tuple[Tensor, str]:
    tensor = torch.from_numpy(read(data).copy())
    return tensor, tensor_hash(tensor)


@lru_cache(maxsize=4)
def _index_of(path: Path, file: int, changed: int) -> Mapping[str, str]:
    """Return the index in one state of a file, which is always replaced as a whole: as a rule many sites read it."""
    with safe_open(path, framework="np") as opened:
        index = json.loads(opened.metadata()["index"])
    return {str(name): str(known) for name, known in index.items()}


def _index_in(content: bytes | bytearray) -> Mapping[str, str]:
    """Return the index in the content of a file."""
    length = int.from_bytes(content[:8], "little")  # of the header, which safetensors reads from files alone
    return dict(json.loads(json.loads(bytes(content[8 : 8 + length]))["__metadata__"]["index"]))


class TensorStore:
    """One file of tensors by hash, replaced as a whole; for each name it keeps only what was last sent under it.

    It holds nothing that cannot be sent again: a lost or damaged file counts as empty, and a file that cannot be
    written costs bytes, not the step.

    Args:
        folder: where the file lies.
        owner: whose file it is, such as run and site, if it is encrypted.
        key: encrypts it, since sums over other sites' images can be in it; None for a plain file.
    """

    def __init__(self, folder: Path, owner: Mapping[str, str] = MappingProxyType({}), key: bytes | None = None) -> None:
        self.path = folder / FILE
        self._sealed = None if key is None else SealedFile(self.path, owner, key)

    def complete(self, hashes: Mapping[str, str], received: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all tensors that an instruction names: those that came with it, and those held since earlier steps.

        Args:
            hashes: hash of every tensor, by name.
            received: the tensors that came, each with its hash.

        Raises:
            MissingTensorsError: some tensors neither came now nor are held.
        """
        known = {hashes[name]: tensor for name, tensor in received.items()}
        known |= self._read(set(hashes.values()) - set(known))
        if missing := [name for name, wanted in hashes.items() if wanted not in known]:
            raise MissingTensorsError(
                f"{len(missing)} tensors were not sent and are not in {self.path}, such as {missing[0]!r}",
                remedy="You need to do nothing: the server will send all of them",
            )
        return {name: known[wanted] for name, wanted in hashes.items()}

    def keep(self, hashes: Mapping[str, str], received: Mapping[str, Tensor]) -> None:
        """Store the tensors of an instruction that was carried out, each in place of the last one of its name."""
        before = self._index()
        if before.items() >= hashes.items():
            return
        known = {hashes[name]: tensor.contiguous() for name, tensor in received.items()}
        index = {**before, **hashes}
        known |= self._read(set(index.values()) - set(known))
        index = {name: digest for name, digest in index.items() if digest in known}
        content = {digest: known[digest] for digest in sorted(set(index.values()))}
        try:
            written = save(content, metadata={"index": json.dumps(index)})
            make_private(self.path.parent)
            write_atomically(self.path, self._sealed.sealed(written) if self._sealed else written, mode=0o600)
        except DynammoError as error:
            logger.warning("the received weights could not be saved: %s", error)

    def _index(self) -> Mapping[str, str]:
        """Return the hash last sent under each name; empty if the file is missing or damaged."""
        try:
            if self._sealed:
                return _index_in(self._sealed.read())
            found = self.path.stat()
            return _index_of(self.path, found.st_ino, found.st_mtime_ns)
        except (OSError, MemoryStoreError, SafetensorError, KeyError, TypeError, ValueError, AttributeError):
            return {}

    def _read(self, requested: Collection[str]) -> dict[str, Tensor]:
        """Read those of the wanted tensors that are held and intact; without any the file is not even opened."""
        found: dict[str, Tensor] = {}
        if not requested:
            return found
        try:
            if self._sealed:  # a tag over the whole file speaks for its tensors
                held = self._sealed.read_tensors()
                return {known: held[known] for known in sorted(set(requested) & held.keys())}
            # "pt" would open the file twice, and another site's process may have replaced it in between.
            with safe_open(self.path, framework="np") as file:
                for known in sorted(set(requested) & set(file.keys())):
                    tensor = torch.from_numpy(file.get_tensor(known))
                    if tensor_hash(tensor) != known:
                        self.path.unlink(missing_ok=True)  # or what is sent anew would be thought to be in it
                        return {}
                    found[known] = tensor
        except (OSError, MemoryStoreError, SafetensorError) as error:
            logger.debug("cannot read tensors from %s: %s", self.path, error)
        return found
