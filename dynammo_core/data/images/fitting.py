"""How an image becomes a square of the size that the network takes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dynammo_core.data.images.reading import Fit


def fit_square(images: Tensor, size: int, fit: Fit = "stretch") -> Tensor:
    """Resize images of one shape to squares: Tensor[N, C, H, W] uint8 -> Tensor[N, C, S, S] uint8 with S = `size`.

    Resizing is bilinear, with antialiasing along each axis that shrinks. `stretch` resizes both axes to S. `crop` first
    keeps the middle square of side min(H, W). `pad` resizes the longer axis to S and the other in proportion, to
    floor(S * short / long + 1/2) pixels and at least 1, and fills up with black. What does not halve evenly is one
    row or column less at the top or left.
    """
    height, width = images.shape[-2:]
    short, long = min(height, width), max(height, width)
    if fit == "crop" and short < long:
        top, left = (height - short) // 2, (width - short) // 2
        return _resize(images[..., top : top + short, left : left + short], size, size)
    if fit == "pad" and short < long:
        narrow = max((2 * size * short + long) // (2 * long), 1)
        tall, wide = (size, narrow) if height > width else (narrow, size)
        top, left = (size - tall) // 2, (size - wide) // 2
        return F.pad(_resize(images, tall, wide), (left, size - wide - left, top, size - tall - top))
    return _resize(images, size, size)


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images.contiguous()
    # antialias widens the filter by the scale, and only if the image shrinks: growing images get plain bilinear
    resized = F.interpolate(images, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return resized.contiguous()
