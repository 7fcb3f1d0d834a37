from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dynammo_core.data import loading
from dynammo_core.data.decoded.image_cache import ImageCache
from dynammo_core.data.loading import load_samples
from dynammo_core.data.samples import Samples, Split
from dynammo_core.data.sources import ArraySource, FileSource, select


def in_memory(images: np.ndarray) -> Split:
    return Split(ArraySource(images), np.arange(len(images)) % 3, tuple(str(i) for i in range(len(images))))


class OneByOne:
    """The same images behind the plain protocol, without the fast path."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> np.ndarray:
        return self.images[index]


@pytest.mark.parametrize("shape", [(7, 28, 20), (7, 28, 20, 3)])
@pytest.mark.parametrize("size", [16, 28, 40])
def test_the_fast_path_equals_reading_one_by_one(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], size: int
) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    fast = in_memory(images)
    slow = Split(OneByOne(images), fast.labels, fast.record_ids)
    order = [6, 0, 3, 3, 5]
    expected = load_samples(slow, order, size)
    monkeypatch.setattr(loading, "CHUNK", 2)
    actual = load_samples(fast, np.array(order), size)
    assert torch.equal(actual.images, expected.images)
    assert actual.images.shape == (5, shape[3] if len(shape) == 4 else 1, size, size)
    assert actual.labels.tolist() == [0, 0, 0, 0, 2]  # 6, 0, 3, 3, 5 modulo 3
    assert actual.record_ids == ("6", "0", "3", "3", "5")


@pytest.mark.parametrize("size", [12, 50])
def test_resizing_is_bilinear_to_within_rounding(size: int) -> None:
    images = np.random.default_rng(1).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    exact = F.interpolate(
        torch.from_numpy(images)[:, None].double(), (size, size), mode="bilinear", antialias=size < 28
    )
    actual = load_samples(in_memory(images), range(4), size).images
    # torch's byte kernel rounds after each of its two passes, half a grey level each, and its weights are fixed-point
    assert (actual.double() - exact).abs().max() < 1.1


def test_shrinking_is_antialiased() -> None:
    # every fourth column is white. A quarter of the size: antialiased, all pixels are about 255 / 4; without, each is
    # the mean of the two middle columns of its four, which are black
    image = np.zeros((1, 64, 64), dtype=np.uint8)
    image[:, :, ::4] = 255
    shrunk = load_samples(in_memory(image), [0], 16).images.float()
    assert (shrunk[..., 1:-1] - 255 / 4).abs().max() < 10


def test_files_of_all_sizes_and_colours_become_one_tensor(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    paths = (
        write_image(tmp_path / "grey.png", 0, size=(8, 8)),
        write_image(tmp_path / "rgb.png", 1, size=(30, 9), mode="RGB"),
        write_image(tmp_path / "wide.png", 2, size=(30, 10)),
    )
    split = Split(FileSource(paths, ("",) * 3), np.array([0, 1, 2]), ("g", "r", "w"))
    samples = load_samples(split, [2, 1, 0], 8)
    assert samples.images.shape == (3, 3, 8, 8)
    grey = samples.images[2]
    assert torch.equal(grey[0], torch.from_numpy(split.source.read(0)))
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    assert torch.equal(samples.images[1], load_samples(split, [1], 8).images[0])
    assert load_samples(split, [0, 2], 8).images.shape == (2, 1, 8, 8), "grey images alone stay grey"


def test_a_selection_is_read_through() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    whole = in_memory(images)
    part = select(select(whole, np.array([8, 4, 2, 0])), np.array([2, 1]))
    assert torch.equal(load_samples(part, [1, 0], 8).images, load_samples(whole, [4, 2], 8).images)


def test_loading_does_not_alias_the_data_set() -> None:
    images = np.zeros((2, 8, 8), dtype=np.uint8)
    split = in_memory(images)
    samples = load_samples(split, [0, 1], 8)
    samples.images.fill_(9)
    samples.labels.fill_(9)
    assert images.max() == 0 and split.labels.max() == 1


def test_no_indices_give_no_samples() -> None:
    assert len(load_samples(in_memory(np.zeros((2, 8, 8), dtype=np.uint8)), [], 8)) == len(Samples.empty())


def resized_in_groups(images: list[np.ndarray], size: int) -> torch.Tensor:
    """All at once, those of one shape in one batch: another way to the same bits."""
    tensors = [torch.from_numpy(image[None]) for image in images]
    tensors = [tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2) for tensor in tensors]
    resized = torch.empty(len(images), max(tensor.shape[1] for tensor in tensors), size, size, dtype=torch.uint8)
    for shape in {tensor.shape for tensor in tensors}:
        places = [place for place, tensor in enumerate(tensors) if tensor.shape == shape]
        batch = torch.cat([tensors[place] for place in places])
        if shape[-2:] != (size, size):
            batch = F.interpolate(batch, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        resized[places] = batch.expand(-1, resized.shape[1], -1, -1)
    return resized


@pytest.mark.parametrize("mixed", [False, True], ids=["one size", "mixed sizes"])
@pytest.mark.parametrize("colours", [(), (3,)], ids=["grey", "colour"])
def test_resizing_one_by_one_on_all_cores_changes_no_bit(
    tmp_path: Path, mixed: bool, colours: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    shapes = [(61, 47), (16, 16), (9, 130), (1, 1), (200, 3)] if mixed else [(61, 47)]
    images = [rng.integers(0, 256, (*shape, *colours), dtype=np.uint8) for shape in shapes for _ in range(5)]
    images += [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    order = rng.permutation(len(images)).tolist()
    paths = tuple(tmp_path / f"{place}.png" for place in range(len(images)))
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    contents = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    labels = np.zeros(len(paths), dtype=np.int64)
    split = Split(FileSource(paths, ("",) * len(paths)), labels, tuple(map(str, paths)), contents=contents)
    for size in (16, 47):
        expected = resized_in_groups([images[place] for place in order], size)
        for cores in (1, 7):
            monkeypatch.setattr("os.sched_getaffinity", lambda process, cores=cores: set(range(cores)))
            assert torch.equal(load_samples(split, order, size).images[:], expected)
            assert load_samples(split, order, size).images[:].is_contiguous()
        cache = ImageCache(tmp_path / "cache", 10**7, site="north")
        for _ in range(2):
            assert torch.equal(load_samples(split, order, size, cache=cache).images[:], expected)
        assert len(list((tmp_path / "cache").rglob("*.index"))) > 0
