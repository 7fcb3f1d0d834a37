"""Each simulated site's share as the files that a real site would have: images and a manifest, to rehearse with."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynammo_core.data.loading import load_samples
from dynammo_core.data.samples import Split
from dynammo_core.data.sites.scanners import through_scanner
from dynammo_core.experiment import Experiment
from dynammo_core.support.csv_text import as_cell
from dynammo_core.support.files import write_atomically

COLUMNS = ("path", "label", "split", "record_id")


def export_sites(experiment: Experiment, folders: Sequence[Path]) -> Iterator[Path]:
    """Write each site's images, without loss, and `manifest.csv` into its folder; yields each folder that is done.

    Rows stand in the order of the partition, so that a site that reads the manifest sees the same images in the same
    order as the simulated one.
    """
    dataset, partition = experiment.dataset, experiment.partition
    for site, folder in enumerate(folders):
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        for part, indices in (("train", partition.train[site]), ("test", partition.test[site])):
            split: Split = getattr(dataset, part)
            for index in indices.tolist():
                path = f"{part}/{index:06d}.png"
                image = io.BytesIO()
                Image.fromarray(_pixels(experiment, split, index, site)).save(image, "png")
                write_image(folder / path, image.getvalue())
                label = as_cell(dataset.class_names[split.labels[index]])
                writer.writerow([path, label, part, split.record_ids[index]])
        write_atomically(folder / "manifest.csv", buffer.getvalue().encode())
        yield folder


def _pixels(experiment: Experiment, split: Split, index: int, site: int) -> NDArray[np.uint8]:
    """Return the image as it is stored; with scanners that differ, as the site's own shows it, at its final size."""
    config = experiment.config
    if config.scanners.kind == "same":
        return split.source.read(index)
    plain = load_samples(split, [index], config.data.image_size, config.data.fit)
    seen = through_scanner(plain, config.scanners, seed=config.seed, site=site)
    pixels: NDArray[np.uint8] = seen.images[0].permute(1, 2, 0).numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def write_image(path: Path, content: bytes) -> None:
    """Write one image; the manifest that names it comes last, so nothing needs to be atomic before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
