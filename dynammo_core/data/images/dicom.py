"""DICOM files: which of them hold an image, its stored values, and what may be told of them without naming anyone.

Nothing of a header reaches a message or a log, except for the kinds and numbers that describe pixels.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynammo_core.data.images.deep import DeepPixels, develop
from dynammo_core.data.images.dicom_grey import EXPORT_AGAIN, grey_to_bytes, lowest_bits
from dynammo_core.data.images.formats import is_dicom, read_head
from dynammo_core.data.images.reading import Reading
from dynammo_core.data.images.refusal import ImageRefusal, choose_frame, refuse_size

if TYPE_CHECKING:
    from pydicom import Dataset

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
NOT_PICTURES = ("RT Dose Storage", "Segmentation Storage")
"""Classes with pixels that are no picture of a patient, as the standard names them."""
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
OF_PYDICOM = r"pydicom\b"
"""Modules whose warnings are not shown."""
PATIENT_HASH = b"dynammo patient\0"


def read_dicom(path: Path, reading: Reading) -> NDArray[np.uint8]:
    """Read the image of a DICOM file; see `decode_image`.

    Grey values go through the modality LUT or rescaling and the window (`grey_to_bytes`); palettes and colours of 8
    bits are taken as they are, RGB of more bits through the window that the reading declares. Overlays, shutters and
    presentation states are not applied.

    Raises:
        ImageRefusal: the file holds no image, a damaged one, or one that the reading does not say how to read.
    """
    dataset = open_dicom(path)
    try:
        meaning = _require_picture(dataset)
        refuse_size(int(dataset.Columns), int(dataset.Rows))
        frame = choose_frame(int(dataset.get("NumberOfFrames") or 1), reading)
        stored = _stored(dataset, frame)
        if meaning in GREY:
            return grey_to_bytes(stored, dataset, frame, reading)
        return _palette(stored, dataset) if meaning == PALETTE else _colours(stored, meaning, reading)
    except ImageRefusal:
        raise
    # Without its words and its cause, which may quote the header
    except Exception as error:
        raise _damaged(error) from None


def open_dicom(path: Path, *, header_only: bool = False) -> Dataset:
    """Open a DICOM file, with or without a preamble.

    Raises:
        ImageRefusal: pydicom is not installed, or the file is not DICOM.
    """
    pydicom = _import_pydicom()
    try:
        try:
            dataset: Dataset = pydicom.dcmread(path, stop_before_pixels=header_only)
        except pydicom.errors.InvalidDicomError:
            dataset = pydicom.dcmread(path, stop_before_pixels=header_only, force=True)
        known = "SOPClassUID" in dataset or "Rows" in dataset or "MediaStorageSOPClassUID" in dataset.file_meta
    except OSError as error:
        if error.strerror is None:
            raise _damaged(error) from None
        raise
    except Exception as error:
        raise _damaged(error) from None
    if not known:
        raise ImageRefusal(
            "is named as DICOM and is not, or its header is damaged",
            remedy="Replace it, or take it out of the data set",
        )
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        uid = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = uid if little else pydicom.uid.ExplicitVRBigEndian
    return dataset


def hash_patient(patient_id: str) -> str:
    """Return the SHA-256, in hex, by which this project tells the patient with this PatientID from others.

    It groups images and hides no identity: whoever can guess the number can compute it. It never leaves the site.
    """
    return hashlib.sha256(PATIENT_HASH + patient_id.strip().encode()).hexdigest()


def patient_of(path: Path) -> str | None:
    """Return the hashed PatientID of a DICOM file; None if it has none, or the file is no DICOM that can be read.

    Raises:
        ImageRefusal: it is DICOM, and pydicom is not installed.
    """
    if not is_dicom(path, read_head(path)):
        return None
    _import_pydicom()
    try:
        patient = str(open_dicom(path, header_only=True).get("PatientID") or "").strip()
    except (ImageRefusal, OSError):  # said when the image is to be read
        return None
    return hash_patient(patient) if patient else None


def _import_pydicom() -> Any:
    try:
        import pydicom
        import pydicom.errors
        import pydicom.pixels
        import pydicom.uid
    except ImportError:
        raise ImageRefusal(
            "is DICOM, and this Python has no pydicom to read it",
            remedy="Install the extra `dicom`: pip install '.[dicom]' in the checkout",
        ) from None
    _silence()
    return pydicom


def _silence() -> None:
    """Keep the libraries from warning, since their warnings quote values of the header."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    if ("ignore", None, Warning, re.compile(OF_PYDICOM), 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=OF_PYDICOM)
    if importlib.util.find_spec("gdcm") is None:  # then what needs it is refused
        return
    import gdcm

    for silence in (gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff, gdcm.Trace.DebugOff):
        silence()


def _require_picture(dataset: Dataset) -> str:
    """Return the photometric interpretation of the file's image; refuse a file without a picture."""
    kind = _class_name(dataset)
    held = [keyword for keyword in PIXELS if keyword in dataset]
    if "Rows" not in dataset:
        raise no_image(dataset)
    if not held or not dataset[held[0]].value:
        raise ImageRefusal(
            f"declares an image of {dataset.get('Columns')} x {dataset.Rows} pixels and holds no pixel data: {kind}",
            remedy="Export it again with its pixels, or take it out of the data set",
        )
    if kind in NOT_PICTURES or held[0] != "PixelData":
        raise ImageRefusal(
            f"holds numbers that are no picture: {kind}",
            accepted="images as a scanner or a camera makes them",
            remedy="Take it out of the data set",
        )
    meaning = str(dataset.get("PhotometricInterpretation", "none"))
    if meaning not in (*GREY, *COLOUR, PALETTE):
        raise ImageRefusal(
            "has a photometric interpretation that is not read here",
            accepted=", ".join((*GREY, PALETTE, *COLOUR)),
            remedy="Convert it to one of them",
        )
    return meaning


def no_image(dataset: Dataset) -> ImageRefusal:
    """Return the refusal of DICOM that was never meant to hold an image, such as a report."""
    return ImageRefusal(f"is DICOM without an image: {_class_name(dataset)}", remedy="Take it out of the data set")


def _class_name(dataset: Dataset) -> str:
    uid = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    return _standard_name(uid) or "a class that the standard does not name"


def _standard_name(uid: Any) -> str:
    """Return the standard's name of a UID, or an empty text; never the UID, which may be one of a patient."""
    from pydicom.uid import UID

    name = UID(str(uid or "")).name
    return "" if name == uid else name


def _stored(dataset: Dataset, frame: int) -> NDArray[Any]:
    """Return a frame's stored values, without bits above those that it declares: [H, W] or [H, W, 3] RGB."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import JPEGExtended12Bit

    syntax = dataset.file_meta.TransferSyntaxUID
    bits, allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
    if int(dataset.get("HighBit", bits - 1)) != bits - 1 or not 0 < bits <= allocated:
        raise ImageRefusal(
            "keeps its values in other bits than the lowest",
            accepted="HighBit is BitsStored - 1, as the standard has it since 2004",
            remedy="Convert it with the tools of its maker",
        )
    try:
        if not get_decoder(syntax).is_available:
            raise _undecodable(syntax)
        _refuse_more_than_declared(dataset)
        of_12_bits = syntax == JPEGExtended12Bit and bits > 8
        values = _jpeg_of_12_bits(dataset, frame) if of_12_bits else pixel_array(dataset, index=frame)
    except (NotImplementedError, RuntimeError):  # there is no decoder, or none could
        raise _undecodable(syntax) from None
    if int(dataset.get("SamplesPerPixel", 1)) == 1 and allocated > bits:
        values = lowest_bits(values.astype(np.int64), bits, bool(dataset.PixelRepresentation)).astype(values.dtype)
    return values


def _refuse_more_than_declared(dataset: Dataset) -> None:
    """Refuse uncompressed pixels of which the file declares at most half: they are frames that it does not name."""
    from pydicom.pixels.utils import get_expected_length

    held, declared = len(dataset.get("PixelData", b"")), get_expected_length(dataset)
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated and held >= 2 * declared:
        raise ImageRefusal(
            f"holds {held:,} bytes of pixels and declares {declared:,}: it has more frames or rows than it says",
            remedy=EXPORT_AGAIN,
        )


def _jpeg_of_12_bits(dataset: Dataset, frame: int) -> NDArray[Any]:
    """Decode grey JPEG of 12 bits [H, W], which the decoders that pydicom knows do not.

    Raises:
        ImageRefusal: it has colours, or another size than the file declares.
        RuntimeError: it is damaged.
    """
    import imagecodecs
    from pydicom.encaps import get_frame

    frames = int(dataset.get("NumberOfFrames") or 1)
    values: NDArray[Any] = imagecodecs.jpeg8_decode(get_frame(dataset.PixelData, frame, number_of_frames=frames))
    if values.shape != (dataset.Rows, dataset.Columns):
        raise ImageRefusal(
            f"holds JPEG of 12 bits of the shape {values.shape}, and declares {dataset.Rows} x {dataset.Columns}",
            accepted="grey images of the declared size",
            remedy=EXPORT_AGAIN,
        )
    return values.astype(np.int16) if dataset.PixelRepresentation else values


def _undecodable(syntax: Any) -> ImageRefusal:
    name = _standard_name(syntax) or "a way that the standard does not name"
    return ImageRefusal(
        f"has pixels that cannot be decompressed here, since they are damaged or of a kind that is not read: {name}",
        accepted="uncompressed, RLE, JPEG, JPEG-LS and JPEG 2000",
        remedy="Install the extra `dicom`: pip install '.[dicom]' in the checkout; or convert the file",
    )


def _palette(stored: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut

    colours = apply_color_lut(stored, dataset)[..., :3]
    # Tables of 16 bits hold 8-bit colours, either in the high byte or in both
    return np.ascontiguousarray((colours >> 8) if colours.dtype.itemsize == 2 else colours).astype(np.uint8)


def _colours(stored: NDArray[Any], meaning: str, reading: Reading) -> NDArray[np.uint8]:
    if stored.ndim == 3 and stored.shape[-1] == 3:
        if stored.dtype == np.uint8:
            return np.ascontiguousarray(stored)
        if meaning == "RGB":
            return develop(DeepPixels(stored), reading)
    raise ImageRefusal(
        f"has colours of {8 * stored.dtype.itemsize} bits ({meaning})",
        accepted="colours of 8 bits; RGB of more bits if data.window is [centre, width]",
        remedy="Convert it to RGB",
    )


def _damaged(error: Exception) -> ImageRefusal:
    return ImageRefusal(
        f"is damaged DICOM, cut off, or not as the standard says ({type(error).__name__})",
        remedy="Export it again, or take it out of the data set",
    )
