"""What a site keeps of its images from run to run: the hashes of their files, and which of them were ever trained on.

What was trained on, remembered or summed is never tested on again, whatever happens to the folder or the manifest. The
ledger knows images and patients by salted hashes, as the ledger of withdrawn records does.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.consent.settings import SiteMemory
from dynammo_core.data.index.contents import HashCache
from dynammo_core.data.index.sides import keep_apart
from dynammo_core.data.samples import Dataset, Split
from dynammo_core.data.sources import chain, select
from dynammo_core.memory.encryption import load_key
from dynammo_core.memory.private_files import locked_folder
from dynammo_core.memory.sealed_file import SealedFile, read_header
from dynammo_core.support.errors import DataError, MemoryStoreError

LEDGER_FILE = "trained.sealed"
INDEX_FOLDER = "index"


class Trained(NamedTuple):
    """An image that was trained on, by the hashes of its record, its content and its patient (empty if unknown)."""

    record: str
    content: str
    patient: str


@dataclass
class _Ledger:
    salt: str
    images: set[Trained] = field(default_factory=set)

    def hash(self, text: str) -> str:
        return hashlib.blake2b(
            text.encode("utf-8", "surrogatepass"), key=self.salt.encode(), digest_size=16
        ).hexdigest()

    def describe(self, split: Split, places: Iterable[int]) -> list[Trained]:
        """Return what is entered of images, by their places in a split."""
        return [
            Trained(
                self.hash(split.record_ids[place]),
                self.hash(split.contents[place]),
                self.hash(split.patients[place]) if split.patients else "",
            )
            for place in places
        ]

    def flags(self, split: Split) -> NDArray[np.bool_]:
        """Return, for each image of a split, whether it or another of its patient was trained on."""
        contents = {image.content for image in self.images}
        patients = {image.patient for image in self.images} - {""}
        described = self.describe(split, range(len(split.labels)))
        return np.array([i.content in contents or i.patient in patients for i in described], dtype=np.bool_)


class TrainedImages:
    """The ledger, in a site's memory folder, of all images that any run here has trained on, remembered or summed.

    Args:
        folder: the site's memory folder.
        site: name of the site.
        key: encrypts the ledger; None for a plain file with a checksum.
    """

    def __init__(self, folder: Path, *, site: str, key: bytes | None = None) -> None:
        self.path = folder / LEDGER_FILE
        self._site, self._key = site, key

    @classmethod
    def of_site(cls, memory: SiteMemory, site: str) -> TrainedImages:
        """Return the ledger of a site by its settings.

        Raises:
            ConfigError: the key cannot be read.
        """
        return cls(memory.folder, site=site, key=load_key(memory.key) if memory.key else None)

    def enter(self, split: Split, record_ids: Collection[str]) -> None:
        """Enter images of these records, before they are used.

        Raises:
            MemoryStoreError: the ledger is damaged or sealed with another key; CheckpointError: it cannot be written.
        """
        if not split.contents:
            return
        wanted = set(record_ids)
        places = [place for place, record in enumerate(split.record_ids) if record in wanted]
        with locked_folder(self.path.parent):
            ledger = self._read() or _Ledger(os.urandom(16).hex())
            if new := set(ledger.describe(split, places)) - ledger.images:
                ledger.images |= new
                self._write(ledger)

    def forget(self, record_ids: Sequence[str]) -> None:
        """Take withdrawn records out: they are neither trained nor tested on again.

        Raises:
            MemoryStoreError: as `enter`; CheckpointError: it cannot be written.
        """
        with locked_folder(self.path.parent):
            ledger = self._read()
            if ledger is None:
                return
            gone = set(map(ledger.hash, record_ids))
            ledger.images = {image for image in ledger.images if image.record not in gone}
            self._write(ledger)

    def settled(self, dataset: Dataset) -> Dataset:
        """Return a data set none of whose test images, nor another of the same patient, was ever trained on here.

        If this project drew the split, such images go to training, and a class left without a test gives images that
        were never trained on, if it has some.

        Raises:
            DataError: the data's own split says to test on images that were trained on.
            MemoryStoreError: the ledger is damaged or sealed with another key.
        """
        ledger = self._read() if dataset.test.contents else None
        if ledger is None or not (in_test := ledger.flags(dataset.test)).any():
            return dataset
        if not dataset.drawn:
            first = dataset.test.record_ids[int(in_test.argmax())]
            raise DataError(
                f"{int(in_test.sum())} test images, or others of their patients, were trained on here before; the "
                f"first is {first!r}",
                accepted="test images that no run of this site has trained on, remembered or summed",
                remedy="Give them the split train, or take them out of the data: a test on what was learnt says "
                "nothing",
            )
        return _kept_apart(dataset, ledger.flags(dataset.train).tobytes() + in_test.tobytes())

    def _read(self) -> _Ledger | None:
        if not self.path.exists():
            return None
        try:
            # A site that has named a key since then goes on with what it knew: who could put a plain file there could
            # as well take the sealed one away.
            key = self._key if read_header(self.path).key is not None else None
            plain = self._file(key).read_as("ledger", lambda content: dict(json.loads(bytes(content))))
            assert plain is not None
            return _Ledger(str(plain["salt"]), {Trained(*image) for image in plain["images"]})
        except (MemoryStoreError, KeyError, TypeError) as error:
            raise MemoryStoreError(
                f"the ledger of images that were trained on is refused: {error}",
                remedy="Restore it from a backup, or the key. Without it this site would test on what it has learnt: "
                "delete it only if the data say themselves which images are for the test",
            ) from error

    def _write(self, ledger: _Ledger) -> None:
        content = {"salt": ledger.salt, "images": sorted(ledger.images)}
        self._file(self._key).write(json.dumps(content).encode())

    def _file(self, key: bytes | None) -> SealedFile:
        return SealedFile(self.path, {"site": self._site, "content": "trained"}, key)


def hash_cache(memory: SiteMemory) -> HashCache:
    """Return where a site keeps the hashes of its image files.

    Raises:
        ConfigError: the key of its memory cannot be read.
    """
    return HashCache(memory.folder / INDEX_FOLDER, load_key(memory.key) if memory.key else None)


@lru_cache(maxsize=4)
def _kept_apart(dataset: Dataset, trained: bytes) -> Dataset:
    """Move images between the splits; the same object for the same data, so that what was decoded of them is kept."""
    both = chain(dataset.train, dataset.test)
    test = np.arange(len(both.labels)) >= len(dataset.train.labels)
    kept = keep_apart(both.labels, both.groups, test, np.frombuffer(trained, dtype=np.bool_))
    return replace(dataset, train=select(both, np.flatnonzero(~kept)), test=select(both, np.flatnonzero(kept)))
