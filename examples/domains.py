"""Write one manifest over several data sets, so that the tasks of one run come from domains far from each other.

cd ~/.cache/dynammo
python examples/domains.py dermoscopy=manifest:skin_centres pathology=manifest:lc25000 \\
    radiology=medical_mnist:MedNIST > domains.csv

Each word names a domain, a data set of this project whose images are files, and its `data.root`. A class becomes
DOMAIN/CLASS. Splits, patients and lesions stay as they are; images of unknown patients count as one patient each.
"""

from __future__ import annotations

import csv
import sys

import numpy as np

from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.opening import open_dataset
from dynammo_core.data.sources import FileSource, resolve_selection


def main(words: list[str]) -> None:
    """Write the rows of all domains to the standard output, their paths absolute."""
    table = csv.writer(sys.stdout)
    table.writerow(("path", "label", "patient", "split"))
    for word in words:
        domain, place = word.split("=", 1)
        name, root = place.split(":", 1)
        dataset = open_dataset(DataSettings(dataset=name, root=root), seed=1)
        for side in ("train", "test"):
            split = getattr(dataset, side)
            source, indices = resolve_selection(split.source, np.arange(len(split.labels)))
            if not isinstance(source, FileSource):
                raise SystemExit(f"{name} has no image files; accepted: data sets of folders or manifests")
            for index, label, patient in zip(indices, split.labels, split.patient_ids, strict=True):
                table.writerow(
                    (source.paths[index], f"{domain}/{dataset.class_names[label]}", f"{domain}/{patient}", side)
                )


if __name__ == "__main__":
    main(sys.argv[1:])
