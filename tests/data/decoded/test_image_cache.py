"""Decoded images on disk: the bits of decoding anew, whatever happened to the files; sealed, within a budget."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dynammo_core.data.decoded import image_cache, packs, stored_images, storing
from dynammo_core.data.decoded.image_cache import ImageCache, Preparation, discard_images
from dynammo_core.data.decoded.stored_images import Images, StoredImages
from dynammo_core.data.images.reading import AS_DECLARED, Reading
from dynammo_core.support.errors import DataError

KEY = bytes(range(32))
SIZE = 8
PREPARED = Preparation(AS_DECLARED, SIZE, "stretch")
DAY = 24 * 60 * 60
keyed = pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
lazily = pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "read when indexed"])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four in colour and three in grey, no two alike; the last two have the same bytes."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(6):
        shape = (SIZE, SIZE, 3) if number < 4 else (SIZE, SIZE)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(paths[-1])
    twin = tmp_path / "twin.png"
    twin.write_bytes(paths[-1].read_bytes())
    return [*paths, twin]


class Decoder:
    """Decodes files, and remembers which."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.decoded = paths, list[str]()

    def __call__(self, place: int) -> Tensor:
        self.decoded.append(self.paths[place].name)
        pixels = torch.from_numpy(np.array(Image.open(self.paths[place])))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def expected(paths: list[Path]) -> Tensor:
    decode = Decoder(paths)
    images = [decode(place) for place in range(len(paths))]
    channels = max(image.shape[0] for image in images)
    return torch.stack([image.expand(channels, -1, -1) for image in images])


def cache(
    folder: Path, *, budget: int = 10**6, key: bytes | None = None, longest_unused: int | None = None
) -> ImageCache:
    """As a new process opens it."""
    return ImageCache(folder / "cache", budget, site="north", key=key, longest_unused=longest_unused)


def contents(paths: list[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def load(held: ImageCache, paths: list[Path], prepared: Preparation = PREPARED) -> tuple[list[str], Images]:
    """The names of the files that had to be decoded, and what was given."""
    decode = Decoder(paths)
    given = held.load(paths, contents(paths), prepared, decode)
    return sorted(decode.decoded), given


def on_disk(folder: Path, kind: str = ".*") -> list[Path]:
    return sorted((folder / "cache").glob(f"*/*{kind}"))


@pytest.fixture
def _read_when_indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_images, "IN_MEMORY", 0)


@keyed
@lazily
def test_cold_warm_and_damaged_give_the_same_bits(
    files: list[Path], tmp_path: Path, key: bytes | None, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_images, "IN_MEMORY", 10**6 if in_memory else 0)
    monkeypatch.setattr(packs, "PACK_BYTES", 3 * SIZE * SIZE * 3)  # two packs in colour
    truth = expected(files)
    decoded, images = load(cache(tmp_path, key=key), files)
    assert len(decoded) == 6, "equal files are decoded once"
    assert isinstance(images, Tensor) is in_memory
    assert torch.equal(images[:], truth)
    decoded, images = load(cache(tmp_path, key=key), files)
    assert decoded == []
    assert torch.equal(images[:], truth)
    order = [5, 0, 6]
    decoded, images = load(cache(tmp_path, key=key), [files[place] for place in order])
    assert decoded == []
    assert torch.equal(images[:], truth[order])
    grey = load(cache(tmp_path, key=key), files[4:])[1]
    assert torch.equal(grey[:], truth[4:, :1]), "grey images alone stay grey"
    for path in on_disk(tmp_path, packs.ROWS):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    decoded, images = load(cache(tmp_path, key=key), files)
    assert torch.equal(images[:], truth)
    for path in on_disk(tmp_path, packs.INDEX):
        path.write_bytes(path.read_bytes()[:-1])
    decoded, images = load(cache(tmp_path, key=key), files)
    assert len(decoded) == 6
    assert torch.equal(images[:], truth)


@pytest.mark.usefixtures("_read_when_indexed")
def test_images_on_disk_are_indexed_as_a_tensor_is(files: list[Path], tmp_path: Path) -> None:
    truth, (_, images) = expected(files), load(cache(tmp_path), files)
    assert isinstance(images, StoredImages)
    assert images.shape == truth.shape
    assert len(images) == len(truth)
    assert torch.equal(images[2], truth[2])
    assert torch.equal(images[1:3], truth[1:3])
    index = torch.tensor([6, 0, 0, 5])
    assert torch.equal(images[index], truth[index])
    assert torch.equal(images.chosen(index)[:], truth[index])
    pair = StoredImages.joined([images.chosen(index), torch.zeros(1, 1, SIZE, SIZE, dtype=torch.uint8)])
    assert torch.equal(pair[:], torch.cat([truth[index], torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)]))
    assert len(set(images.digests())) == 6


def test_what_counts_is_content_and_preparation(files: list[Path], tmp_path: Path) -> None:
    load(cache(tmp_path), files)
    for other in (Preparation(Reading(window="lung"), SIZE, "stretch"), Preparation(AS_DECLARED, SIZE, "pad")):
        assert len(load(cache(tmp_path), files, other)[0]) == 6
    moved = tmp_path / "elsewhere.png"
    files[2].rename(moved)
    assert load(cache(tmp_path), [moved])[0] == []


def test_a_file_that_changes_between_its_hash_and_its_decoding_is_not_stored(files: list[Path], tmp_path: Path) -> None:
    old = contents(files)
    content = files[0].read_bytes()
    files[0].write_bytes(files[1].read_bytes())
    assert torch.equal(cache(tmp_path).load(files, old, PREPARED, Decoder(files))[:], expected(files))
    files[0].write_bytes(content)
    assert torch.equal(load(cache(tmp_path), files)[1][:], expected(files))


def test_a_broken_image_is_named_and_the_others_stay_decoded(files: list[Path], tmp_path: Path) -> None:
    decode = Decoder(files)

    def fail_at_the_last(place: int) -> Tensor:
        if place == len(files) - 1:
            raise DataError("the image twin.png cannot be read")
        return decode(place)

    for _ in range(2):
        with pytest.raises(DataError, match=r"twin\.png"):
            cache(tmp_path).load(files, contents(files), PREPARED, fail_at_the_last)
    assert sorted(set(decode.decoded)) == sorted(decode.decoded)
    assert load(cache(tmp_path), files)[0] == ["twin.png"]


def test_rows_that_a_killed_process_left_do_not_count_and_go(files: list[Path], tmp_path: Path) -> None:
    load(cache(tmp_path), files)
    lost = on_disk(tmp_path, packs.INDEX)[0]
    lost.unlink()
    decoded, images = load(cache(tmp_path), files)
    assert decoded
    assert torch.equal(images[:], expected(files))
    assert not lost.with_suffix(packs.ROWS).exists()


@pytest.mark.usefixtures("_read_when_indexed")
def test_what_is_deleted_while_it_is_used_is_still_there_and_what_is_lost_is_decoded(
    files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decode = Decoder(files)
    images = cache(tmp_path).load(files, contents(files), PREPARED, decode)
    discard_images(tmp_path / "cache")
    assert on_disk(tmp_path) == []
    assert torch.equal(images[:], expected(files))
    assert len(decode.decoded) == 6
    images = cache(tmp_path).load(files, contents(files), PREPARED, decode)
    for path in on_disk(tmp_path, packs.ROWS):
        os.truncate(path, 0)
    assert torch.equal(images[:], expected(files))
    assert "images are decoded again" in caplog.text
    assert not any(path.name in caplog.text for path in files)


def test_with_a_key_nothing_on_the_disk_can_be_read(files: list[Path], tmp_path: Path) -> None:
    load(cache(tmp_path, key=KEY), files)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    for image in expected(files):
        assert image[0].numpy().tobytes()[:16] not in stored
    assert b".png" not in stored
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in on_disk(tmp_path))
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    decoded, images = load(cache(tmp_path, key=KEY[::-1]), files)
    assert len(decoded) == 6, "another key reads none of it"
    assert torch.equal(images[:], expected(files))


@keyed
def test_the_budget_holds_and_what_was_used_last_stays(
    files: list[Path], tmp_path: Path, key: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def size() -> int:
        return sum(path.stat().st_size for path in on_disk(tmp_path))

    monkeypatch.setattr(packs, "PACK_BYTES", 1)  # a pack for each image
    load(cache(tmp_path, key=key), files[:1])
    budget = 2 * size() + 3 * SIZE * SIZE + 28 + 2 * storing.INDEX_BYTES  # two, and room for the next
    for path in files[1:3]:
        load(cache(tmp_path, budget=budget, key=key), [path])
    for past, index in enumerate(on_disk(tmp_path, packs.INDEX)):
        os.utime(index, (past, past))
    load(cache(tmp_path, budget=budget, key=key), files[:1])  # used again
    load(cache(tmp_path, budget=budget, key=key), files[3:4])
    assert size() <= budget
    assert load(cache(tmp_path, budget=budget, key=key), [files[0], files[3]])[0] == []
    images = load(cache(tmp_path, budget=budget, key=key), files)[1]
    assert torch.equal(images[:], expected(files)), "more than there is room for"
    assert size() <= budget
    load(cache(tmp_path, budget=1, key=key), files[:1])
    assert size() == 0


@pytest.mark.usefixtures("_read_when_indexed")
def test_what_found_no_room_is_decoded_whenever_it_is_read(files: list[Path], tmp_path: Path) -> None:
    decode = Decoder(files)
    images = cache(tmp_path, budget=1).load(files, contents(files), PREPARED, decode)
    assert on_disk(tmp_path) == []
    assert torch.equal(images[:], expected(files))
    assert len(decode.decoded) == 6 + 7


def test_a_full_disk_costs_time_alone(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(image_cache, "SPARE", 2**62)
    for _ in range(2):
        decoded, images = load(cache(tmp_path), files)
        assert len(decoded) == 6
        assert torch.equal(images[:], expected(files))
    assert "fill their budget" in caplog.text


def test_an_unwritable_disk_costs_time_alone(files: list[Path], small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(2**21 - 2**14))
    images = load(cache(small_disk), files)[1]
    assert torch.equal(images[:], expected(files))


def test_where_no_folder_can_be_made_images_are_decoded(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    for _ in range(2):
        decoded, images = load(cache(tmp_path), files)
        assert len(decoded) == 6
        assert torch.equal(images[:], expected(files))


def test_nothing_outlives_its_image_by_more_than_a_day_of_use(files: list[Path], tmp_path: Path) -> None:
    def at_night() -> None:
        past = time.time() - DAY - 60
        for index in on_disk(tmp_path, packs.INDEX):
            os.utime(index, (past, past))

    def load_for_a_day(paths: list[Path]) -> list[str]:
        return load(cache(tmp_path, longest_unused=DAY), paths)[0]

    load_for_a_day(files)
    at_night()
    assert load_for_a_day(files) == [], "all of it was used once more"
    before = on_disk(tmp_path, packs.INDEX)
    assert load_for_a_day(files[1:]) == [], "one image is no longer there"
    at_night()
    load_for_a_day(files[1:])
    left = set(before) & set(on_disk(tmp_path, packs.INDEX))
    assert load_for_a_day(files[:1]) == ["0.png"]
    assert len(left) == 1, "the grey ones, all of which are still used"


def test_one_process_waits_for_what_another_decodes(files: list[Path], tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()
    first, second = Decoder(files), Decoder(files)

    def slowly(place: int) -> Tensor:
        begun.set()
        go_on.wait(10)
        return first(place)

    results: list[Images] = []
    threads = [
        threading.Thread(
            target=lambda decode=decode: results.append(cache(tmp_path).load(files, contents(files), PREPARED, decode))
        )
        for decode in (slowly, second)
    ]
    threads[0].start()
    begun.wait(10)
    threads[1].start()
    time.sleep(0.1)
    go_on.set()
    for thread in threads:
        thread.join()
    assert second.decoded == []
    assert all(torch.equal(images[:], expected(files)) for images in results)
