from __future__ import annotations

import pytest
import torch

from dynammo_core.data.images.fitting import fit_square
from dynammo_core.data.images.reading import Fit

GENERATOR = torch.Generator().manual_seed(0)


def image(height: int, width: int) -> torch.Tensor:
    return torch.randint(1, 256, (2, 3, height, width), dtype=torch.uint8, generator=GENERATOR)


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (30, 9), (9, 30), (31, 2), (1, 500)])
def test_every_shape_becomes_a_square(fit: Fit, height: int, width: int) -> None:
    fitted = fit_square(image(height, width), 8, fit)
    assert fitted.shape == (2, 3, 8, 8) and fitted.dtype == torch.uint8 and fitted.is_contiguous()


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_square_is_only_resized(fit: Fit) -> None:
    square = image(20, 20)
    assert torch.equal(fit_square(square, 8, fit), fit_square(square, 8))


def test_crop_keeps_the_middle() -> None:
    wide = image(8, 13)  # (13 - 8) // 2 = 2 columns go at the left, 3 at the right
    assert torch.equal(fit_square(wide, 8, "crop"), wide[..., 2:10])
    tall = image(13, 8)
    assert torch.equal(fit_square(tall, 8, "crop"), tall[..., 2:10, :])


def test_pad_keeps_everything_between_black() -> None:
    wide = image(5, 8)  # (8 - 5) // 2 = 1 black row above, 2 below
    padded = fit_square(wide, 8, "pad")
    assert torch.equal(padded[..., 1:6, :], wide)
    assert not padded[..., :1, :].any() and not padded[..., 6:, :].any()
    tall = wide.transpose(2, 3)
    assert torch.equal(fit_square(tall, 8, "pad"), padded.transpose(2, 3))


def test_pad_keeps_proportions() -> None:
    padded = fit_square(image(30, 90), 12, "pad")  # 12 * 30 / 90 = 4 rows, 4 black ones on each side
    assert padded[..., 4:8, :].all() and not padded[..., :4, :].any() and not padded[..., 8:, :].any()


def test_a_batch_is_fitted_as_each_image_alone() -> None:
    batch = image(30, 17)
    for fit in ("stretch", "pad", "crop"):
        whole = fit_square(batch, 12, fit)
        assert torch.equal(whole, torch.cat([fit_square(one[None], 12, fit) for one in batch]))
