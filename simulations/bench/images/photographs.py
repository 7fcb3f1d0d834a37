"""Large photographs in class folders, as many as a measurement wants, and what it takes to load them."""

from __future__ import annotations

import io
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from dynammo_core.configuration.config import resolve
from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.decoded.image_cache import ImageCache
from dynammo_core.data.decoded.progress import Decoding, listening
from dynammo_core.data.decoded.simulated_cache import simulated_images
from dynammo_core.data.index.opening import open_dataset
from dynammo_core.data.loading import load_samples
from dynammo_core.support.errors import RunError
from dynammo_core.support.processes import usable_cores
from dynammo_core.support.seeding import derive_seed
from simulations.bench.memory_watch import peak_memory
from simulations.comparisons.process_pool import follow_parent
from simulations.engines.engines import run_local

DISTINCT = 4
"""Different pictures of each class; the others have the pixels of one of these and a comment of their own."""
BUDGET = 10**11
Kinds = Mapping[str, Callable[[], int]]


def write_photographs(folder: Path, images: int, classes: int, megapixels: float) -> None:
    """Write JPEG photographs, 4 wide to 3 high, into class folders, no two files alike; those that are there stay.

    Args:
        folder: gets a folder for each class.
        images: of all classes together.
        classes: C.
        megapixels: of each photograph.
    """
    height = round((0.75e6 * megapixels) ** 0.5)
    for label in range(classes):
        place = folder / f"class-{label:02d}"
        place.mkdir(parents=True, exist_ok=True)
        drawn = [_drawn(derive_seed(label, "photograph", number), height) for number in range(DISTINCT)]
        for number in range(images // classes + (label < images % classes)):
            path = place / f"{number:06d}.jpg"
            if not path.exists():
                comment = f"{label} {number:06d}".encode()
                head = b"\xff\xd8\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
                path.write_bytes(head + drawn[number % DISTINCT][2:])


def _drawn(seed: int, height: int) -> bytes:
    """Return a JPEG of colours that change slowly, with the noise of a camera."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((height * 4 // 3, height), Image.Resampling.BICUBIC), dtype=np.float64)
    noisy = smooth + rng.normal(0, 6, smooth.shape)
    content = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=75)
    return content.getvalue()


def loading_kinds(folder: Path, cache: Path, size: int) -> Kinds:
    """Return ways to load all training photographs of a folder once, by name; each returns how many it loaded.

    Args:
        folder: as `write_photographs` left it.
        cache: a folder for decoded images.
        size: side of the loaded images, in pixels.
    """
    split = open_dataset(DataSettings(dataset="image_folder", root=str(folder)), 0).train
    every = range(len(split.labels))

    def load(place: Path | None) -> int:
        kept = None if place is None else ImageCache(place, BUDGET, site="bench")
        return len(load_samples(split, every, size, cache=kept))

    def by_one_core() -> int:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        try:
            return load(None)
        finally:
            os.sched_setaffinity(0, allowed)

    def cold() -> int:
        with TemporaryDirectory(dir=cache) as empty:
            return load(Path(empty))

    load(cache / "warm")
    return {
        "one core": by_one_core,
        "all cores": lambda: load(None),
        "all cores, into an empty cache": cold,
        "from the cache": lambda: load(cache / "warm"),
        "torchvision's DataLoader, all cores": lambda: _by_torchvision(folder, len(every), size),
    }


def _by_torchvision(folder: Path, images: int, size: int) -> int:
    """Load as many images by torchvision's own folder, decoder and resizing, in one process for each core."""
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, PILToTensor, Resize

    transform = Compose([PILToTensor(), Resize((size, size), antialias=True)])
    some = Subset(ImageFolder(str(folder), transform), range(images))
    return sum(len(labels) for _, labels in DataLoader(some, batch_size=32, num_workers=usable_cores()))


def large_run(folder: Path, runs: Path, size: int) -> Mapping[str, float]:
    """Index photographs, split them, and learn heads on a random network's features of them: seconds and peak bytes.

    One site holds all images, and all classes are one task. Memory is that of this process, which must be fresh.
    """
    settings = {
        "name": "large",
        "seed": 1,
        "data": {"dataset": "image_folder", "root": str(folder), "image_size": size},
        "tasks": {"sizes": sum(1 for place in folder.iterdir() if place.is_dir())},
        "federation": {"sites": 1},
        "backbone": {"name": "small_cnn", "weights": "random"},
        "method": {"name": "streaming_ridge", "multi_scale": False},
        "compute": {"device": "cpu"},
    }
    config = resolve(settings, "the bench", {})
    decoded, clock = 0, [time.monotonic()]

    def note(progress: Decoding) -> None:
        nonlocal decoded
        decoded += progress.total if progress.done == progress.total else 0

    with peak_memory() as peak, listening(note):
        dataset = open_dataset(config.data, config.seed)
        clock.append(time.monotonic())
        for split in (dataset.train, dataset.test):
            load_samples(split, range(len(split.labels)), size, config.data.fit, cache=simulated_images())
        clock.append(time.monotonic())
        run_local(config, runs, None, lambda event: None)
        clock.append(time.monotonic())
    indexing, loading, learning = (after - before for before, after in pairwise(clock))
    return {
        "seconds of indexing and splitting": indexing,
        "images decoded": decoded,
        "seconds of loading": loading,
        "seconds of learning and testing": learning,
        "processor seconds in all": time.process_time(),
        "peak anonymous memory, GB": peak.anonymous / 1e9,
        "peak memory with files, GB": peak.bytes / 1e9,
    }


def large_run_apart(folder: Path, images: Path, size: int) -> Mapping[str, float]:
    """Do what `large_run` does with `images` in a fresh process, with its cache of decoded images in `folder`.

    Raises:
        DynammoError: the run cannot go on, or its process was killed.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _begin, (str(folder / "cache"),)) as pool:
        try:
            return pool.submit(large_run, images, folder / "runs", size).result()
        except BrokenProcessPool as error:
            raise RunError("the run's process was killed, for want of memory in most cases") from error


def _begin(cache: str) -> None:
    follow_parent()
    os.environ |= {"DYNAMMO_CACHE": cache, "DYNAMMO_IMAGES_MEGABYTES": str(BUDGET // 10**6)}
