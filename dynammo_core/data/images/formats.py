"""The kinds of image files: by name, as folders are searched, and by content, as files are read."""

from __future__ import annotations

from pathlib import Path

EXTENSIONS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp"),
    *(".pgm", ".ppm", ".pbm", ".pnm", ".jp2", ".j2k", ".dcm", ".dicom"),
)
"""Endings of image files, in small letters; case makes no difference."""
DICOM_EXTENSIONS = (".dcm", ".dicom")
DICOM_MARK, DICOM_MARK_AT = b"DICM", 128
HEAD = DICOM_MARK_AT + len(DICOM_MARK)
"""Bytes at the beginning of a file by which its kind is known."""
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Without a preamble a file begins with an element of the group 0002 or 0008, whose length or representation follows.
BARE_DICOM_GROUPS = (b"\x02\0", b"\x08\0")


def is_image_file(path: Path) -> bool:
    """Tell whether a file is named as an image, or has no ending and is DICOM by its content."""
    if path.suffix.lower() in EXTENSIONS:
        return path.is_file()
    # Scanners name files by their instance, such as IM000001 or 1.2.840.113619, whose last part is a number
    return (not path.suffix or path.suffix[1:].isdigit()) and path.is_file() and is_dicom(path, read_head(path))


def is_dicom(path: Path, head: bytes) -> bool:
    """Tell whether a file is DICOM, by its first `HEAD` bytes or by its name."""
    if head[DICOM_MARK_AT:HEAD] == DICOM_MARK:
        return True
    bare = head[:2] in BARE_DICOM_GROUPS and head[3:4] == b"\0" and (head[4:6].isupper() or head[6:8] == b"\0\0")
    return bare or path.suffix.lower() in DICOM_EXTENSIONS


def is_tiff(head: bytes) -> bool:
    """Tell whether a file is TIFF or BigTIFF, by its first bytes."""
    return head[:4] in TIFF_MARKS


def read_head(path: Path) -> bytes:
    """Return the first `HEAD` bytes of a file, or fewer; none of a file that cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""
