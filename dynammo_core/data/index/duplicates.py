"""Images that stand in the data more than once: under two labels, in training and test, or as one file named twice."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dynammo_core.data.images.decoding import named
from dynammo_core.support.errors import DataError

if TYPE_CHECKING:
    from dynammo_core.data.index.records import ImageRecord


@dataclass(frozen=True)
class Duplicates:
    """Images to leave out, by index, with the sentences that say so."""

    left_out: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


def repeated_files(
    records: Sequence[ImageRecord], contents: Sequence[str], wanted: Literal["refuse", "drop"]
) -> Duplicates:
    """Find files that are named twice, by another path or by a link, and equal files under two labels.

    Of a file named twice under one label one is kept; of equal files under two labels none is.

    Raises:
        DataError: there are some, and they are to be refused.
    """
    copies = [members for members in _by(range(len(records)), contents.__getitem__) if len(members) > 1]
    unclear = [members for members in copies if len({records[index].label for index in members}) > 1]
    pairs = [
        (members[0], next(index for index in members if records[index].label != records[members[0]].label))
        for members in unclear
    ]
    what = "the same image (by its bytes) has two labels"
    _refuse(records, pairs, what, "all copies of such images", wanted, _labelled)
    wrong = {index for members in unclear for index in members}
    clear = [index for members in copies for index in members if index not in wrong]
    again = [(same[0], index) for same in _by(clear, lambda i: records[i].path.resolve()) for index in same[1:]]
    what = "the same file is named again, by another path or by a link"
    _refuse(records, again, what, "the second of both", wanted)
    notes = _notes((len(wrong), "copies of images that have two labels"), (len(again), "second names of the same file"))
    return Duplicates(frozenset(wrong | {index for _, index in again}), notes)


def note_copies(records: Sequence[ImageRecord], contents: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence that counts the images with the content of another one, and names two; none if there are none.

    They may be one case that was saved twice, or two, and weigh as many images.
    """
    same = [members for members in _by(range(len(records)), contents.__getitem__) if len(members) > 1]
    if not same:
        return ()
    first, second = (_where(records[index]) for index in same[0][:2])
    count = sum(map(len, same))
    return (f"{count} images have the content of another one, and each counts: the first are {first} and {second}",)


def leaks(
    records: Sequence[ImageRecord],
    contents: Sequence[str],
    test: Sequence[bool],
    wanted: Literal["refuse", "drop"],
    *,
    tell_patients: bool,
) -> Duplicates:
    """Find images in training that are also in the test, or show a record or patient that is.

    Args:
        records: the images.
        contents: the SHA-256 of each file.
        test: whether each is a test image.
        wanted: refuse them, or drop the training images and keep the test.
        tell_patients: whether patients on both sides are only counted, as in a published split that has them.

    Raises:
        DataError: there are some, and they are to be refused.
    """
    left_out: set[int] = set()
    notes: list[str] = []
    for what, dropped_kind, key in (
        ("the same image (by its bytes)", "that are in the test too", lambda index: contents[index]),
        ("the same record", "of records in the test", lambda index: (records[index].site, records[index].record_id)),
        ("the same patient", "of patients in the test", lambda index: records[index].patient),
    ):
        both = _on_both_sides([i for i in range(len(records)) if i not in left_out], key, test)
        if tell_patients and what == "the same patient":
            notes += _told(both, test)
            continue
        pairs = [(next(i for i in members if not test[i]), next(i for i in members if test[i])) for members in both]
        _refuse(records, pairs, f"{what} is in training and in the test", "the training images", wanted)
        dropped = {index for members in both for index in members if not test[index]}
        left_out |= dropped
        notes += _notes((len(dropped), f"training images {dropped_kind}"))
    return Duplicates(frozenset(left_out), tuple(notes))


def _told(both: Sequence[Sequence[int]], test: Sequence[bool]) -> tuple[str, ...]:
    count = sum(test[index] for members in both for index in members)
    total = sum(test)
    if not count:
        return ()
    return (
        f"{count} of {total} test images show a patient or lesion that is also in training: the published split is by "
        "image, and flatters; data.split: patient splits by patient or lesion",
    )


def _on_both_sides(indices: Iterable[int], key: Callable[[int], Hashable], test: Sequence[bool]) -> list[list[int]]:
    known = (index for index in indices if key(index) is not None)
    return [members for members in _by(known, key) if len({test[index] for index in members}) > 1]


def _by(indices: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Return the indices that share a key, in the order in which the keys first appear."""
    found: dict[Hashable, list[int]] = {}
    for index in indices:
        found.setdefault(key(index), []).append(index)
    return list(found.values())


def _refuse(
    records: Sequence[ImageRecord],
    pairs: Sequence[tuple[int, int]],
    what: str,
    left_out: str,
    wanted: Literal["refuse", "drop"],
    words: Callable[[ImageRecord], str] | None = None,
) -> None:
    if pairs and wanted == "refuse":
        one, other = ((words or _where)(records[index]) for index in pairs[0])
        raise DataError(
            f"{what}, {len(pairs)} in all; the first is {one}, which is also {other}",
            remedy=f"Take out what is wrong, or set data.duplicates: drop, which leaves out {left_out}; if one number "
            "means two people or records, at two sites, write the site before it",
        )


def _notes(*counted: tuple[int, str]) -> tuple[str, ...]:
    return tuple(f"left out {count} {what} (data.duplicates: drop)" for count, what in counted if count)


def _where(record: ImageRecord) -> str:
    return named(record.path, record.place)


def _labelled(record: ImageRecord) -> str:
    return f"{_where(record)} with the label {record.label!r}"
