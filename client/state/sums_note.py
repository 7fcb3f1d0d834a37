"""Note privately which of a site's images are in the sums that a server keeps."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dynammo_core.data.samples import Samples
from dynammo_core.memory.private_files import locked_folder
from dynammo_core.memory.sealed_file import SealedFile
from dynammo_core.support.errors import MemoryStoreError

NOTE_FILE = "sums.sealed"
Contributions = Mapping[int, Sequence["Summed"]]
"""The images of each contribution; those below 0 took theirs out again."""
Known = frozenset[tuple[str, str]]
"""Images of one class, by record and digest, whose sum a server can know."""


class Summed(NamedTuple):
    """An image as it was summed: only the very same one may be subtracted."""

    record_id: str
    label: int
    digest: str


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
            self._file.write(json.dumps(noted).encode())

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

    def sent(self) -> Counter[Summed]:
        """Return the images that are in the sums if all that was sent arrived."""
        noted = self.load()
        total = _sum(noted, [number for number in noted if number >= 0])
        return total - taken_out(noted, [number for number in noted if number < 0])

    def adopt(self, run: str) -> None:
        """Write down what another run of this site consisted of, whose answers this one takes over.

        Raises:
            MemoryStoreError: a note cannot be read or written.
        """
        if noted := self._of_run(run).load():
            self._file.write(json.dumps(noted).encode())

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
            return {int(number): [Summed(*image) for image in images] for number, images in plain.items()}
        except (MemoryStoreError, ValueError, TypeError, AttributeError) as error:
            raise MemoryStoreError(
                f"the note of what the sums contain cannot be used: {error}",
                remedy="Restore it from a backup: without it no record can be removed from the sums of this run",
            ) from error


def taken_out(noted: Contributions, corrections: Iterable[int]) -> Counter[Summed]:
    """Return the images that corrections took out together; a correction that was lost is repeated by the next."""
    total: Counter[Summed] = Counter()
    for number in corrections:
        total |= Counter(noted[number])
    return total


def _known(noted: Contributions) -> Iterator[Known]:
    corrections = sorted((number for number in noted if number < 0), reverse=True)
    for number, images in noted.items():
        for label in {image.label for image in images if number >= 0}:
            for last in range(len(corrections) + 1):
                gone = taken_out(noted, corrections[:last])
                yield frozenset(
                    (image.record_id, image.digest) for image in images if image.label == label and image not in gone
                )


def describe(samples: Samples) -> list[Summed]:
    """Return record, label and pixel hash of each image; a grey image has the hash of its copy in colour."""
    pixels = samples.images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    digests = (hashlib.sha256(image.tobytes()).hexdigest()[:32] for image in pixels)
    return [Summed(*fields) for fields in zip(samples.record_ids, samples.labels.tolist(), digests, strict=True)]


def _sum(noted: Contributions, numbers: Iterable[int]) -> Counter[Summed]:
    total: Counter[Summed] = Counter()
    for number in numbers:
        if number < 0:
            total.subtract(noted[number])
        else:
            total.update(noted[number])
    return +total
