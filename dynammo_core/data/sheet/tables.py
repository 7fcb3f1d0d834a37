"""Show a data sheet in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table
from rich.text import Text

from dynammo_core.data.sheet.data_sheet import DataSheet
from dynammo_core.support.terminal import cell

MOST_SITES = 20
"""Sites that the sheet lists; of more only the number is told."""


def form_of(sheet: DataSheet) -> list[tuple[str, str]]:
    """Return what is known of the images' form as pairs of a name and words."""
    sizes = ", ".join(f"{name} {width} x {height}" for name, (width, height) in sheet.sizes.items())
    share = f"{sheet.not_square} of {sheet.images}"
    rows = [
        ("sizes", sizes),
        ("not square", f"{share}: data.fit says what becomes of them" if sheet.not_square else ""),
        ("formats", _counts(sheet.formats)),
        ("bits per channel", _counts(sheet.bits)),
        ("channels", _counts(sheet.modes)),
        ("turned by EXIF", f"{sheet.turned}, turned upright when read" if sheet.turned else ""),
    ]
    return [(name, words) for name, words in rows if words]


def people_in(sheet: DataSheet) -> list[tuple[str, str]]:
    """Return what is known of patients, sites and the split as pairs of a name and words."""
    patients = "not known: each image counts as a patient of its own"
    if sheet.patients is not None:
        patients = f"{sheet.patients}, with at most {sheet.most_of_a_patient} images each"
    sites = ", ".join(f"{name} {count}" for name, count in list(sheet.sites.items())[:MOST_SITES])
    more = len(sheet.sites) - MOST_SITES
    rows = [
        ("patients", patients),
        ("sites", f"{sites} and {more} more" if more > 0 else sites),
        ("test images chosen by", sheet.split),
    ]
    return [(name, words) for name, words in rows if words]


def warnings_in(sheet: DataSheet) -> list[str]:
    """Return a sentence for each thing that a person should look at."""
    said = [
        (sheet.unreadable, f"{sheet.unreadable} files are not images, or their header is damaged"),
        (sheet.burnt_in, burnt_in(sheet)),
        (sheet.several_frames, f"{sheet.several_frames} files have several frames or pages: data.frame says which"),
        (_deep(sheet.bits), f"{_deep(sheet.bits)} images have more than 8 bits: data.window says what of them is seen"),
        (sheet.patients_in_both, f"{sheet.patients_in_both} patients have images for training and for the test"),
        # of files a note says so, with names
        (sheet.repeated and not sheet.files, f"{sheet.repeated} images have the content of another one"),
    ]
    near = [f"the classes {one!r} and {other!r} may be the same" for one, other in sheet.near_names]
    return [words for count, words in said if count] + near


def burnt_in(sheet: DataSheet) -> str:
    """Return the sentence on burnt-in annotation, the one finding about which a site must do something."""
    return f"{sheet.burnt_in} DICOM files declare that their pixels show who the patient is (burnt-in annotation)"


def sheet_tables(sheet: DataSheet) -> Iterator[Table | Text]:
    """Yield the tables of a data sheet, which fit 80 columns, and its warnings."""
    classes = Table("class", title="Classes", title_justify="left")
    classes.columns[0].overflow = "fold"
    names = ["training", "test", *(["patients"] if sheet.patients is not None else [])]
    for name in names:
        classes.add_column(name, justify="right")
    for row in sheet.classes:
        numbers = [row.train, row.test, *([row.patients] if sheet.patients is not None else [])]
        classes.add_row(cell(row.name), *(f"{number:,}" for number in numbers))
    classes.add_section()
    totals = [sum(row.train for row in sheet.classes), sum(row.test for row in sheet.classes)]
    totals += [sheet.patients] if sheet.patients is not None else []
    classes.add_row("all", *(f"{number:,}" for number in totals))
    yield classes
    facts = Table("", "", show_header=False, title="Images", title_justify="left")
    facts.columns[1].overflow = "fold"
    for name, words in [*people_in(sheet), *form_of(sheet)]:
        facts.add_row(name, cell(words))
    yield facts
    for words in [*warnings_in(sheet), *sheet.notes]:
        yield Text.assemble(("look at ", "bold yellow"), cell(words))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())


def _deep(bits: Mapping[str, int]) -> int:
    return sum(count for name, count in bits.items() if int(name) > 8)
