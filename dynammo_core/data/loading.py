"""From the indices of images to pixels of one size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynammo_core.data.images.fitting import fit_square
from dynammo_core.data.images.reading import Fit
from dynammo_core.data.samples import ImageSource, Samples, Split
from dynammo_core.data.sources import ArraySource, resolve_selection

CHUNK = 512
"""Images read and resized at a time, which bounds the memory that images of many megapixels take."""


def load_samples(
    split: Split, indices: Sequence[int] | NDArray[np.int64], image_size: int, fit: Fit = "stretch"
) -> Samples:
    """Decode and resize images: N samples in the order of `indices`, Tensor[N, C, S, S] uint8 with S = `image_size`.

    C is 1 if all of them are grey, else 3. An image that is not square becomes one as `fit` says (see `fit_square`).

    Raises:
        DataError: an image cannot be read.
    """
    index = np.asarray(indices, dtype=np.int64)
    if not len(index):
        return Samples.empty()
    source, held = resolve_selection(split.source, index)
    parts = [_read_chunk(source, held[start : start + CHUNK], image_size, fit) for start in range(0, len(held), CHUNK)]
    channels = max(part.shape[1] for part in parts)
    images = torch.cat([part.expand(-1, channels, -1, -1) for part in parts])
    chosen = index.tolist()
    return Samples(
        images,
        torch.from_numpy(split.labels[index]),
        tuple(split.record_ids[i] for i in chosen),
        tuple(split.patients[i] for i in chosen) if split.patients else (),
    )


def _read_chunk(source: ImageSource, indices: NDArray[np.int64], size: int, fit: Fit) -> Tensor:
    if isinstance(source, ArraySource):
        return fit_square(_to_tensor(source.images[indices]), size, fit)
    images = [_to_tensor(source.read(index)[None]) for index in indices.tolist()]
    by_shape: dict[torch.Size, list[int]] = {}
    for position, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(position)
    channels = max(image.shape[1] for image in images)
    resized = torch.empty(len(images), channels, size, size, dtype=torch.uint8)
    for positions in by_shape.values():
        resized[positions] = fit_square(torch.cat([images[position] for position in positions]), size, fit).expand(
            -1, channels, -1, -1
        )
    return resized


def _to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Turn [N, H, W] or [N, H, W, 3] into Tensor[N, C, H, W]."""
    tensor = torch.from_numpy(images if images.flags.writeable else images.copy())
    return tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)
