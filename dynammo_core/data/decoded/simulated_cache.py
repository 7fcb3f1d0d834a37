"""Where simulations keep decoded images: one folder for all runs of a user."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from dynammo_core.data.decoded.image_cache import ImageCache
from dynammo_core.data.index.contents import cache_folder
from dynammo_core.support.errors import ConfigError

BUDGET_VARIABLE = "DYNAMMO_IMAGES_MEGABYTES"
MEGABYTES = 20_000
"""Room for 130,000 colour images of 224 pixels."""


def simulated_images() -> ImageCache | None:
    """Return the decoded images that all simulations of this user share; None if the environment says to keep none.

    They lie in `$DYNAMMO_CACHE/images`, and without that variable in `~/.cache/dynammo/images`. They take up to
    `$DYNAMMO_IMAGES_MEGABYTES`.

    Raises:
        ConfigError: that variable is no number.
    """
    megabytes = os.environ.get(BUDGET_VARIABLE) or str(MEGABYTES)
    if not megabytes.isdecimal():
        raise ConfigError(
            f"{BUDGET_VARIABLE} is {megabytes!r}", accepted="a number of megabytes; 0 keeps no decoded images"
        )
    if not int(megabytes):
        return None
    return _shared(cache_folder("images"), int(megabytes) * 10**6)


@lru_cache(maxsize=4)
def _shared(folder: Path, budget: int) -> ImageCache:
    """Return the same object for the same folder, so that a process reads each index once."""
    return ImageCache(folder, budget, site="simulation")
