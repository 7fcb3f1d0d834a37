"""A page with a few images of each class: it shows patients' images, so it stays where they are."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from dynammo_core.data.samples import Dataset
from dynammo_core.data.sheet.data_sheet import ClassRow, DataSheet
from dynammo_core.data.sheet.tables import form_of, people_in, warnings_in
from dynammo_core.support.errors import DataError
from dynammo_core.support.terminal import printable

THUMBNAIL = 112
"""Side in pixels of the square that each image is fitted into."""
PRIVATE = (
    "This page holds images of patients, and no name of a file or a person. It is for this site alone: keep it as the "
    "images themselves are kept, and do not send it."
)
STYLE = """body { margin: 0 auto; padding: 2rem 1.25rem; max-width: 66rem; color: #1c2733;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
h1 { overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 1.75rem 0 .4rem; overflow-wrap: anywhere; }
.private { border-left: 4px solid #b3402a; background: #fdf0ed; padding: .75rem 1rem; }
.images { display: flex; flex-wrap: wrap; gap: .4rem; } .images p { color: #5a6773; margin: 0; }
img { display: block; background: #000; }
table { border-collapse: collapse; } th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; }
th { color: #5a6773; font-weight: 400; white-space: nowrap; } li { overflow-wrap: anywhere; }
h2 small { color: #5a6773; font-weight: 400; }"""


def contact_sheet(dataset: Dataset, sheet: DataSheet, title: str, per_class: int = 8) -> str:
    """Return an HTML page with the data sheet and images of each class, in itself: it refers to nothing outside.

    Args:
        dataset: the images; those that are shown lie evenly in the order of each class's training images.
        sheet: what was found about it.
        title: its name.
        per_class: number of images shown per class.
    """
    facts = "".join(
        f"<tr><th>{_escaped(name)}</th><td>{_escaped(words)}</td></tr>"
        for name, words in [*people_in(sheet), *form_of(sheet)]
    )
    remarks = "".join(f"<li>{_escaped(words)}</li>" for words in [*warnings_in(sheet), *sheet.notes])
    classes = "".join(
        f"<h2>{_escaped(row.name)} <small>{_numbers(row)}</small></h2>\n"
        f'<div class="images">{"".join(_images(dataset, label, per_class)) or "<p>no images</p>"}</div>\n'
        for label, row in enumerate(sheet.classes)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{_escaped(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n"
        f'<h1>{_escaped(title)}</h1>\n<p class="private">{PRIVATE}</p>\n<table>{facts}</table>\n'
        f"{f'<h2>To look at</h2><ul>{remarks}</ul>' if remarks else ''}\n{classes}</body>\n</html>\n"
    )


def _numbers(row: ClassRow) -> str:
    words = f"{row.train:,} training + {row.test:,} test images"
    return words if row.patients is None else f"{words} of {row.patients:,} patients"


def _images(dataset: Dataset, label: int, most: int) -> Iterator[str]:
    """Yield an image element per chosen image, or words where one cannot be shown."""
    members = np.flatnonzero(dataset.train.labels == label)
    chosen = members[np.unique(np.linspace(0, len(members) - 1, min(most, len(members))).round().astype(int))]
    for index in chosen.tolist():
        try:
            pixels = dataset.train.source.read(index)
        except DataError:
            yield "<p>cannot be shown: see <code>dynammo-site doctor</code></p>"
            continue
        shown = ImageOps.pad(Image.fromarray(pixels), (THUMBNAIL, THUMBNAIL))
        file = BytesIO()
        shown.save(file, "JPEG", quality=85)
        data = base64.b64encode(file.getvalue()).decode()
        yield f'<img alt="" width="{THUMBNAIL}" height="{THUMBNAIL}" src="data:image/jpeg;base64,{data}">'


def _escaped(words: str) -> str:
    return html.escape(printable(words))
