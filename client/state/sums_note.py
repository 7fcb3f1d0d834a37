"""Note privately which of a site's images are in the sums that a server keeps."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from dynammo_core.data.samples import Samples
from dynammo_core.memory.private_files import locked_folder
from dynammo_core.memory.sealed_file import SealedFile
from dynammo_core.support.errors import MemoryStoreError

NOTE_FILE = "sums.sealed"
BATCH = 128
Contributions = Mapping[int, Sequence["Summed"]]
"""The images of each contribution; those below 0 took theirs out again."""
Known = frozenset["Image"]
"""Images of one class whose sum a server can know."""


@dataclass(frozen=True, order=True)
class Image:
    """An image as it was summed: record and pixels tell it from others, whoever is said to be its patient later."""

    record_id: str
    digest: str
    patient: str = field(compare=False)


class Summed(NamedTuple):
    """An image with the label that it was summed with: only the very same may be subtracted."""

    image: Image
    label: int


class SumsNote:
    """The note of one site in one run.

    Only the server knows which answers reached it, and it may lie. So this note holds what each answer consisted of,
    and counts every one as known to the server.
    """

    def __init__(self, folder: Path, *, run: str, site: str, key: bytes | None = None) -> None:
        self.path = folder / NOTE_FILE
        self._site, self._key = site, key
        self._file = SealedFile(self.path, {"run": run, "site": site, "content": "sums"}, key)

    def note(self, contribution: int, samples: Samples) -> None:
        """Write down what a contribution consists of, before it is sent; if asked again, replace what was noted.

        What a correction took out when it was asked for first stays noted: it may have left.

        Args:
            contribution: its number, `Step.contribution`.
            samples: its images; a contribution without images is dropped.

        Raises:
            MemoryStoreError: the note cannot be read or written.
        """
        with locked_folder(self.path.parent):
            noted = dict(self.load())
            before = noted.pop(contribution, ())
            images = describe(samples) if len(samples) else []
            if contribution < 0:
                images += (Counter(before) - Counter(images)).elements()
            if images:
                noted[contribution] = images
            self._write(noted)

    def inside(self, taken: Iterable[int]) -> Counter[Summed]:
        """Return the images, with their numbers, in sums that consist of these contributions.

        Raises:
            MemoryStoreError: the note does not know one of them, or cannot be read.
        """
        noted = self.load()
        if unknown := sorted(set(taken) - set(noted)):
            raise MemoryStoreError(
                f"the note {self.path} does not know what this site contributed in {unknown}",
                remedy="Restore it from a backup: without it no record can be removed from the sums of this run",
            )
        return _sum(noted, taken)

    def holds(self, taken: Iterable[int], samples: Samples) -> list[bool]:
        """Tell which of these images are in sums that consist of contributions; one that is not noted brought nothing.

        Raises:
            MemoryStoreError: the note cannot be read.
        """
        noted, found = self.load(), []
        inside = _sum(noted, [number for number in taken if number in noted])
        for each in describe(samples) if len(samples) else ():
            found.append(inside[each] > 0)
            inside[each] -= 1
        return found

    def sent(self) -> Counter[Summed]:
        """Return the images that are in the sums if all that was sent arrived; each is in them once."""
        noted = self.load()
        total = Counter[Summed]()
        for number in noted:
            if number >= 0:
                total |= Counter(noted[number])  # a sum over features before and after shows it too, and is not kept
        return total - taken_out(noted, [number for number in noted if number < 0])

    def adopt(self, run: str) -> None:
        """Write down what another run of this site consisted of, whose answers this one takes over.

        Raises:
            MemoryStoreError: a note cannot be read or written.
        """
        if noted := self._of_run(run).load():
            self._write(noted)

    def known(self) -> set[Known]:
        """Return the sets of images, per class, whose sums a server can know from this and all other runs of this site.

        These are what each contribution consisted of, and what was left of it after each correction.

        Raises:
            MemoryStoreError: a note cannot be read.
        """
        runs = self.path.parent.parent
        others = [path.parent.name for path in runs.glob(f"*/{NOTE_FILE}") if path != self.path]
        notes = [self, *map(self._of_run, others)]
        return {known for note in notes for known in _known(note.load())}

    def _of_run(self, run: str) -> SumsNote:
        return SumsNote(self.path.parent.parent / run, run=run, site=self._site, key=self._key)

    def load(self) -> Contributions:
        """Return all that is noted; an empty mapping before the first sum.

        Raises:
            MemoryStoreError: the note is damaged, sealed with another key, or another site's.
        """
        if not self.path.exists():
            return {}
        try:
            plain = json.loads(self._file.read())
            return {int(number): [_summed(*fields) for fields in images] for number, images in plain.items()}
        except (MemoryStoreError, ValueError, TypeError, AttributeError) as error:
            raise MemoryStoreError(
                f"the note of what the sums contain cannot be used: {error}",
                remedy="Restore it from a backup: without it no record can be removed from the sums of this run",
            ) from error

    def _write(self, noted: Contributions) -> None:
        plain = {number: list(map(_fields, images)) for number, images in noted.items()}
        self._file.write(json.dumps(plain).encode())


def taken_out(noted: Contributions, corrections: Iterable[int]) -> Counter[Summed]:
    """Return the images that corrections took out together; a correction that was lost is repeated by the next."""
    total: Counter[Summed] = Counter()
    for number in corrections:
        total |= Counter(noted[number])
    return total


def _known(noted: Contributions) -> Iterator[Known]:
    corrections = sorted((number for number in noted if number < 0), reverse=True)
    for number, images in noted.items():
        for label in {summed.label for summed in images if number >= 0}:
            for last in range(len(corrections) + 1):
                gone = taken_out(noted, corrections[:last])
                yield frozenset(summed.image for summed in images if summed.label == label and summed not in gone)


def describe(samples: Samples) -> list[Summed]:
    """Return each image as it is summed; a grey image has the pixel hash of its copy in colour."""
    digests = (_pixel_hash(image) for batch in samples.batches(BATCH) for image in batch)
    images = map(Image, samples.record_ids, digests, samples.patient_ids)
    return [Summed(image, label) for image, label in zip(images, samples.labels.tolist(), strict=True)]


def _fields(summed: Summed) -> tuple[str | int, ...]:
    """Return an image as the note holds it; its patient is left out where the record stands for a patient."""
    image = summed.image
    known = (image.patient,) if image.patient != image.record_id else ()
    return (image.record_id, summed.label, image.digest, *known)


def _summed(record_id: str, label: int, digest: str, patient: str | None = None) -> Summed:
    return Summed(Image(record_id, digest, record_id if patient is None else patient), label)


def _pixel_hash(image: Tensor) -> str:
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return hashlib.sha256(pixels.data).hexdigest()[:32]


def _sum(noted: Contributions, numbers: Iterable[int]) -> Counter[Summed]:
    total: Counter[Summed] = Counter()
    for number in numbers:
        if number < 0:
            total.subtract(noted[number])
        else:
            total.update(noted[number])
    return +total
