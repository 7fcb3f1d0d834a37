"""Sum up a data set: classes, images, patients, sites, the form of the files, and what a person should look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain as chained
from pathlib import Path
from typing import Any

import numpy as np

from dynammo_core.data.images.properties import ImageProperties, read_properties
from dynammo_core.data.samples import Dataset, Split
from dynammo_core.data.sources import ArraySource, FileSource, array_keys, resolve_selection
from dynammo_core.support.errors import DataError
from dynammo_core.support.processes import usable_cores
from dynammo_core.wire.announcement import same_disease

CHUNK = 500
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class ClassRow:
    """One class: its images and patients in both parts together; patients are None if the data do not say."""

    name: str
    train: int
    test: int
    patients: int | None


@dataclass(frozen=True)
class DataSheet:
    """What a data set holds; it names no image and no patient, except for the files in its notes.

    Attributes:
        classes: a row per class, in the order of the class names.
        patients: number of patients; None if the data do not say.
        patients_in_both: number of patients with images for training and for the test.
        most_of_a_patient: largest number of images of one patient.
        sites: images of each site; empty if the data do not say.
        split: who chose the test images.
        files: number of image files whose header was read; 0 for images in arrays.
        unreadable: number of files whose header cannot be read.
        formats: files of each format.
        bits: images of each number of bits per channel.
        modes: images of each kind of channels, in the words of the format's reader, such as RGB or MONOCHROME2.
        sizes: smallest, median and largest width and height.
        not_square: images whose sides differ.
        several_frames: files with several frames or pages.
        turned: files that their EXIF orientation turns.
        burnt_in: DICOM files that declare that their pixels show who the patient is.
        repeated: images whose content occurs elsewhere in the data set.
        near_names: pairs of class names that may mean the same.
        notes: what was said when the data were opened, such as the files passed over.
    """

    classes: tuple[ClassRow, ...]
    patients: int | None
    patients_in_both: int
    most_of_a_patient: int | None
    sites: dict[str, int]
    split: str
    files: int
    unreadable: int
    formats: dict[str, int]
    bits: dict[str, int]
    modes: dict[str, int]
    sizes: dict[str, tuple[int, int]]
    not_square: int
    several_frames: int
    turned: int
    burnt_in: int
    repeated: int
    near_names: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @property
    def images(self) -> int:
        """Return the number of images."""
        return sum(row.train + row.test for row in self.classes)

    def as_fields(self) -> dict[str, Any]:
        """Return the fields for JSON, which others may see: all but the notes, as these name files."""
        return {"images": self.images, **{name: value for name, value in asdict(self).items() if name != "notes"}}


def data_sheet(dataset: Dataset, advance: Advance = lambda done, total: None) -> DataSheet:
    """Read the headers of all image files, on several threads, and sum up the data set.

    Args:
        dataset: the images, by index.
        advance: is told how many files of how many are done.
    """
    parts = (dataset.train, dataset.test)
    headers = _headers(parts, advance)
    known = [header for header in headers if header is not None]
    patients = [set(part.patients) for part in parts]
    per_patient = Counter(chained.from_iterable(part.patients for part in parts))
    return DataSheet(
        classes=_classes(dataset),
        patients=len(per_patient) if per_patient else None,
        patients_in_both=len(patients[0] & patients[1]),
        most_of_a_patient=max(per_patient.values(), default=None),
        sites=dict(sorted(Counter(chained.from_iterable(part.sites or () for part in parts)).items())),
        split="this project, by patient or content" if dataset.drawn else "the data",
        files=sum(len(part.labels) for part in parts if _is_files(part)),
        unreadable=len(headers) - len(known),
        formats=_counted(header.format for header in known),
        bits=_counted(header.bits for header in known),
        modes=_counted(header.mode for header in known),
        sizes=_sizes(known),
        not_square=sum(header.width != header.height for header in known),
        several_frames=sum(header.frames > 1 for header in known),
        turned=sum(header.orientation != 1 for header in known),
        burnt_in=sum(header.burnt_in is True for header in known),
        repeated=_repeated(parts),
        near_names=_near_names(dataset.class_names),
        notes=dataset.notes,
    )


def _classes(dataset: Dataset) -> tuple[ClassRow, ...]:
    parts = (dataset.train, dataset.test)
    train, test = (np.bincount(part.labels, minlength=len(dataset.class_names)).tolist() for part in parts)
    patients: list[set[str]] = [set() for _ in dataset.class_names]
    for part in parts:
        for label, patient in zip(part.labels.tolist(), part.patients, strict=False):
            patients[label].add(patient)
    counts = [len(own) for own in patients] if any(part.patients for part in parts) else [None] * len(patients)
    return tuple(map(ClassRow, dataset.class_names, train, test, counts))


def _headers(parts: Sequence[Split], advance: Advance) -> list[ImageProperties | None]:
    """Return the header of each image, in the order of the parts."""
    headers: list[ImageProperties | None] = []
    total = sum(len(part.labels) for part in parts)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for part in parts:
            source, held = resolve_selection(part.source, np.arange(len(part.labels)))
            if isinstance(source, FileSource):
                for start in range(0, len(held), CHUNK):
                    paths = [source.paths[index] for index in held[start : start + CHUNK].tolist()]
                    headers += pool.map(_read, paths)
                    advance(len(headers), total)
            elif isinstance(source, ArraySource):
                height, width = source.images.shape[1:3]
                mode = "L" if source.images.ndim == 3 else "RGB"
                headers += [ImageProperties("array", width, height, 8, mode)] * len(held)
    return headers


def _read(path: Path) -> ImageProperties | None:
    try:
        return read_properties(path)
    except DataError:  # decoding says what is wrong, and names the file
        return None


def _is_files(part: Split) -> bool:
    return isinstance(resolve_selection(part.source, np.arange(0))[0], FileSource)


def _counted(values: Any) -> dict[str, int]:
    """Count values, the most frequent first."""
    return {str(value): count for value, count in Counter(values).most_common()}


def _sizes(headers: Sequence[ImageProperties]) -> dict[str, tuple[int, int]]:
    if not headers:
        return {}
    by_area = sorted(headers, key=lambda header: (header.width * header.height, header.width))
    chosen = {"smallest": by_area[0], "median": by_area[len(by_area) // 2], "largest": by_area[-1]}
    return {name: (header.width, header.height) for name, header in chosen.items()}


def _repeated(parts: Sequence[Split]) -> int:
    """Count the images whose content another image has, too."""
    contents: Counter[str] = Counter()
    for part in parts:
        source, held = resolve_selection(part.source, np.arange(len(part.labels)))
        contents.update(array_keys(source.images[held]) if isinstance(source, ArraySource) else part.contents)
    return sum(count for count in contents.values() if count > 1)


def _near_names(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs = ((name, same_disease(name, names[:index])) for index, name in enumerate(names))
    return tuple((name, other) for name, other in pairs if other)
