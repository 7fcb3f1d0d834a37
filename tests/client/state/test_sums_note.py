"""The note of what sums contain: what it counts, what it strikes out, and whose it is."""

from __future__ import annotations

import json
import stat
from collections import Counter
from pathlib import Path

import pytest
import torch

from client.state.sums_note import SumsNote, describe
from dynammo_core.data.samples import Samples
from dynammo_core.memory.sealed_file import SealedFile
from dynammo_core.support.errors import MemoryStoreError

KEY = bytes(32)


def samples(*ids: str) -> Samples:
    images = torch.tensor([ord(name[0]) for name in ids], dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return Samples(images, torch.arange(len(ids)), ids)


def note(folder: Path, **changed: str) -> SumsNote:
    return SumsNote(folder / "run", **({"run": "run", "site": "north"} | changed))


def test_contributions_add_up_and_corrections_take_away(tmp_path: Path) -> None:
    made = note(tmp_path)
    a, b, c = describe(samples("a", "b", "c"))
    made.note(0, samples("a", "b", "c"))
    made.note(3, samples("a", "b"))
    made.note(-1, samples("a"))
    assert made.inside([0, 3]) == Counter({a: 2, b: 2, c: 1})
    assert made.inside([0, 3, -1]) == Counter({a: 1, b: 2, c: 1})
    assert made.inside([]) == Counter()


def test_an_image_that_was_compared_and_then_summed_is_in_the_sums_once(tmp_path: Path) -> None:
    made = note(tmp_path)
    a, b = describe(samples("a", "b"))
    for contribution in (2, 4):
        made.note(contribution, samples("a", "b"))
    assert made.sent() == Counter({a: 1, b: 1})
    made.note(-1, samples("a"))
    assert made.sent() == Counter({b: 1})


def test_asked_again_it_is_replaced_and_a_correction_keeps_what_may_have_left(tmp_path: Path) -> None:
    made = note(tmp_path)
    made.note(0, samples("a", "b"))
    made.note(0, samples("a"))
    made.note(2, samples("b"))
    assert made.sent() == Counter(describe(samples("a", "b"))[:1]) + Counter(describe(samples("b")))
    made.note(-1, samples("a"))
    made.note(-1, samples())
    assert set(made.load()) == {0, 2, -1}
    made.note(2, samples())
    assert set(made.load()) == {0, -1}


def test_what_it_does_not_know_cannot_be_corrected(tmp_path: Path) -> None:
    made = note(tmp_path)
    made.note(0, samples("a"))
    with pytest.raises(MemoryStoreError, match=r"does not know what this site contributed in \[-1, 2\]"):
        made.inside([0, 2, -1])


def test_a_grey_image_is_its_copy_in_colour_and_no_other(tmp_path: Path) -> None:
    grey = samples("a")
    colour = Samples(grey.images.expand(-1, 3, -1, -1), grey.labels, grey.record_ids)
    assert describe(grey) == describe(colour)
    tinted = Samples(torch.tensor([97, 97, 98], dtype=torch.uint8).reshape(1, 3, 1, 1), grey.labels, grey.record_ids)
    assert describe(grey) != describe(tinted)


def test_it_is_private_and_bound_to_run_site_and_key(tmp_path: Path) -> None:
    made = SumsNote(tmp_path / "run", run="run", site="north", key=KEY)
    made.note(0, samples("anna"))
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert b"anna" not in made.path.read_bytes()
    for other in (
        note(tmp_path),
        SumsNote(tmp_path / "run", run="run", site="south", key=KEY),
        SumsNote(tmp_path / "run", run="two", site="north", key=KEY),
        SumsNote(tmp_path / "run", run="run", site="north", key=bytes([1] * 32)),
    ):
        with pytest.raises(MemoryStoreError, match="the note of what the sums contain cannot be used"):
            other.load()


def test_it_knows_the_patients_of_what_was_summed(tmp_path: Path) -> None:
    made, plain = note(tmp_path), samples("a", "b", "c")
    made.note(0, Samples(plain.images, plain.labels, plain.record_ids, ("ann", "b", "ann")))
    (known,) = made.load().values()
    assert [image.patient for image, _ in known] == ["ann", "b", "ann"]
    # an image stays the same when its patient becomes known
    assert list(known) == describe(plain)


def test_a_note_from_before_patients_were_known_is_read(tmp_path: Path) -> None:
    made = note(tmp_path)
    file = SealedFile(made.path, {"run": "run", "site": "north", "content": "sums"}, None)
    file.write(json.dumps({"0": [["a", 1, "0f"], ["b", 0, "1e"]]}).encode())
    assert [(image.patient, label) for image, label in made.load()[0]] == [("a", 1), ("b", 0)]
    made.note(1, samples())  # and is written again as it was
    assert json.loads(file.read()) == {"0": [["a", 1, "0f"], ["b", 0, "1e"]]}
