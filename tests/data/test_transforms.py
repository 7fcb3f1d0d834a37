from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.data.transforms import augment, to_input
from dynammo_core.support.errors import ConfigError

CPU = torch.device("cpu")


def random_images(batch: int, channels: int = 1, side: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, channels, side, side), dtype=torch.uint8, generator=generator)


def test_half_maps_bytes_onto_minus_one_to_one() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    # (51 / 255 - 0.5) / 0.5 = -0.6
    expected = torch.tensor([-1.0, -0.6, 1.0]).expand(1, 3, 1, 3)
    actual = to_input(images, "half", CPU)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected)


def test_imagenet_statistics_are_by_channel() -> None:
    white = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    # (1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225
    expected = torch.tensor([2.248908, 2.428571, 2.640000]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(to_input(white, "imagenet", CPU), expected)


@pytest.mark.parametrize("normalisation", ["half", "imagenet"])
def test_grey_is_rgb_with_equal_channels(normalisation: str) -> None:
    grey = random_images(3)
    assert torch.equal(to_input(grey, normalisation, CPU), to_input(grey.expand(-1, 3, -1, -1), normalisation, CPU))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown normalisation 'halve'.*did you mean 'half'"):
        to_input(random_images(1), "halve", CPU)
    with pytest.raises(ConfigError, match=r"unknown augmentation 'crops'.*did you mean 'crop'"):
        augment(random_images(1), "crops", torch.Generator())


def slow_augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Image by image: pad by reflection, crop at a random corner, mirror."""
    batch, _, height, width = images.shape
    reach_y, reach_x = height // 8, width // 8
    down, right = torch.zeros(2, batch, 1).int()
    if "crop" in kind:
        down = torch.randint(-reach_y, reach_y + 1, (batch, 1), generator=generator)
        right = torch.randint(-reach_x, reach_x + 1, (batch, 1), generator=generator)
    flips = torch.rand(batch, 1, generator=generator) < 0.5 if "flip" in kind else torch.zeros(batch, 1).bool()
    results = []
    for image, dy, dx, flip in zip(images, down.flatten(), right.flatten(), flips.flatten(), strict=True):
        padded = F.pad(image[None].double(), (reach_x, reach_x, reach_y, reach_y), mode="reflect")[0]
        top, left = reach_y + int(dy), reach_x + int(dx)
        crop = padded[:, top : top + height, left : left + width]
        results.append(crop.flip(-1) if flip else crop)
    return torch.stack(results).to(images.dtype)


@pytest.mark.parametrize("kind", ["flip", "crop", "crop_flip"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_batch_is_varied_as_image_by_image(kind: str, dtype: torch.dtype) -> None:
    images = random_images(40, channels=3)[:, :, :, :17].to(dtype)
    before = images.clone()
    fast = augment(images, kind, torch.Generator().manual_seed(5))
    assert fast.dtype == dtype
    assert torch.equal(fast, slow_augment(images, kind, torch.Generator().manual_seed(5)))
    assert torch.equal(images, before), "the images given are left as they are"


def test_shifts_reach_an_eighth_of_the_side_both_ways_and_no_further() -> None:
    ramp = torch.arange(24, dtype=torch.uint8).expand(300, 1, 24, 24)
    shifted = augment(ramp, "crop", torch.Generator().manual_seed(0))
    # away from the edges a ramp shifted by d is the ramp plus d; 24 // 8 = 3
    shifts = shifted[:, 0, 12, 12].int() - 12
    assert set(shifts.tolist()) == set(range(-3, 4))


def test_half_of_the_images_are_mirrored() -> None:
    ramp = torch.arange(24, dtype=torch.uint8).expand(400, 1, 24, 24)
    varied = augment(ramp, "crop_flip", torch.Generator().manual_seed(0))
    mirrored = int((varied[:, 0, 12, 12] < varied[:, 0, 12, 10]).sum())
    # 400 tosses of a coin: mean 200, standard deviation 10; five of them on each side
    assert 150 < mirrored < 250


def test_none_draws_nothing_and_changes_nothing() -> None:
    images, generator = random_images(2), torch.Generator().manual_seed(3)
    assert augment(images, "none", generator) is images
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())


def test_an_empty_batch_stays_empty() -> None:
    assert augment(torch.empty(0, 1, 8, 8), "crop_flip", torch.Generator()).shape == (0, 1, 8, 8)
    assert to_input(torch.empty(0, 1, 8, 8, dtype=torch.uint8), "half", CPU).shape == (0, 3, 8, 8)
