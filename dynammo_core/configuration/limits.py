"""Limits on what one site is believed: how many images it may speak for, and how much it weighs in a mean."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, field_validator

from dynammo_core.plan import Action
from dynammo_core.support.yaml_files import Section

MOST_IMAGES = 1_000_000
"""Upper limit of a site's images if none is configured."""

NOISE_AT_MOST = 10
"""Standard deviations by which noise may raise a count: more than any normal number that will ever be drawn."""


class LimitSettings(Section):
    """The limits on what one site may claim and how much it may weigh."""

    most_images: int | dict[str, int] = Field(
        default=MOST_IMAGES,
        description="largest number of training or test images that a site may report; or one number per site, such as "
        "{clinic-a: 20000}",
    )
    largest_share: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="largest weight of one site in a mean of several, whatever it reports; 1: no limit",
    )

    @field_validator("most_images")
    @classmethod
    def _positive(cls, most: int | dict[str, int]) -> int | dict[str, int]:
        if min(most.values() if isinstance(most, dict) else [most], default=1) < 1:
            raise ValueError(f"{most} must allow each site at least 1 image")
        return most

    def images(self, name: str) -> int:
        """Return the largest number of images of one split that a site of that name may speak for."""
        return self.most_images.get(name, MOST_IMAGES) if isinstance(self.most_images, dict) else self.most_images


def most_samples(images: int, action: Action, config: Any, classes: int) -> int:
    """Return how many samples a site's answer can speak for, given its number of images of the split that is read.

    Training sets hold exemplars beside images; and noised numbers of training images may be too large.

    Args:
        images: number of images that the site has, or is believed to have.
        action: the action that was asked for.
        config: the experiment's configuration.
        classes: number C of classes.
    """
    if action is Action.EVALUATE:
        return images
    noised = config.privacy.mechanism == "example"
    room = math.ceil(NOISE_AT_MOST * config.privacy.count_noise * classes) if noised else 0
    return int(images + config.memory.exemplars + room)
