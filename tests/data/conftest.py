"""Images on disk and labelled splits in memory, made as small as the tests allow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteImage = Callable[..., Path]


def _write_image(path: Path, seed: int, *, size: tuple[int, int] = (8, 8), mode: str = "L") -> Path:
    """Random pixels: different seeds give different content."""
    width, height = size
    shape = (height, width) if mode == "L" else (height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, mode=mode).save(path)
    return path


@pytest.fixture
def write_image() -> WriteImage:
    return _write_image


@pytest.fixture
def write_classes() -> Callable[..., Path]:
    """Fill folder/<class>/<i>.png with so many different images of each class."""

    def write(folder: Path, counts: dict[str, int], first_seed: int = 0) -> Path:
        seed = first_seed
        for name, count in counts.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                _write_image(folder / name / f"{i:03d}.png", seed)
                seed += 1
        return folder

    return write
