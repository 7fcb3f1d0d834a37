"""From the indices of images to pixels of one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynammo_core.data.decoded.all_cores import in_order
from dynammo_core.data.decoded.image_cache import ImageCache, Preparation
from dynammo_core.data.decoded.stored_images import Images
from dynammo_core.data.images.fitting import fit_square
from dynammo_core.data.images.reading import Fit
from dynammo_core.data.samples import ImageSource, Samples, Split
from dynammo_core.data.sources import ArraySource, FileSource, resolve_selection

CHUNK = 512
"""Images of an array that are resized at a time."""


def load_samples(
    split: Split,
    indices: Sequence[int] | NDArray[np.int64],
    image_size: int,
    fit: Fit = "stretch",
    *,
    cache: ImageCache | None = None,
) -> Samples:
    """Decode and resize images: N samples in the order of `indices`, Tensor[N, C, S, S] uint8 with S = `image_size`.

    C is 1 if all of them are grey, else 3. Files are decoded on all cores, one at a time on each. With a cache they are
    decoded once, and what is too large for memory is read from there whenever it is used.

    Args:
        split: the images that may be chosen.
        indices: N of them.
        image_size: side S of the result, in pixels.
        fit: how an image that is not square becomes one (see `fit_square`).
        cache: keeps decoded images on disk; None decodes anew, and all N stand in memory.

    Raises:
        DataError: an image cannot be read.
    """
    index = np.asarray(indices, dtype=np.int64)
    if not len(index):
        return Samples.empty()
    source, held = resolve_selection(split.source, index)
    chosen = index.tolist()
    contents = [split.contents[i] for i in chosen] if split.contents else []
    return Samples(
        _images(source, held, contents, image_size, fit, cache),
        torch.from_numpy(split.labels[index]),
        tuple(split.record_ids[i] for i in chosen),
        tuple(split.patients[i] for i in chosen) if split.patients else (),
    )


def _images(
    source: ImageSource,
    indices: NDArray[np.int64],
    contents: Sequence[str],
    size: int,
    fit: Fit,
    cache: ImageCache | None,
) -> Images:
    if isinstance(source, ArraySource):
        chunks = (source.images[indices[start : start + CHUNK]] for start in range(0, len(indices), CHUNK))
        return torch.cat([fit_square(_to_tensor(chunk), size, fit) for chunk in chunks])
    places = indices.tolist()

    def decode(place: int) -> Tensor:
        return fit_square(_to_tensor(source.read(places[place])[None]), size, fit)[0]

    if not isinstance(source, FileSource):  # who wrote it may not have thought of threads
        return _stacked(map(decode, range(len(places))), len(places))
    if cache is None or not contents:
        return _stacked(in_order(decode, range(len(places))), len(places))
    paths = [source.paths[place] for place in places]
    return cache.load(paths, contents, Preparation(source.reading, size, fit), decode)


def _stacked(images: Iterator[Tensor], count: int) -> Tensor:
    """Collect images Tensor[c, S, S] as they come; what is grey becomes RGB with the first image in colour."""
    first = next(images)
    stacked = torch.empty(count, *first.shape, dtype=torch.uint8)
    stacked[0] = first
    for place, image in enumerate(images, 1):
        if image.shape[0] > stacked.shape[1]:
            wider = torch.empty(count, *image.shape, dtype=torch.uint8)
            wider[:place] = stacked[:place]
            stacked = wider
        stacked[place] = image
    return stacked


def _to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Turn [N, H, W] or [N, H, W, 3] into Tensor[N, C, H, W]."""
    tensor = torch.from_numpy(images if images.flags.writeable else images.copy())
    return tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)
