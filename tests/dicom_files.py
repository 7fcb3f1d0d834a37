"""DICOM files as scanners write them, made of an array and of what the header is to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, FileMetaDataset, Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

NAME, PATIENT_ID, BIRTH_DATE = "Doe^Jane", "MRN-4711", "19700131"
"""What no message and no log may show."""


def dicom(values: np.ndarray, **attributes: Any) -> Dataset:
    """Make a single-frame image of [H, W], or of [H, W, 3] RGB, with further attributes; None leaves one out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = NAME, PATIENT_ID, BIRTH_DATE
    dataset.Modality = "CT"
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 1 if values.ndim == 2 else 3
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "MONOCHROME2" if values.ndim == 2 else "RGB"
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.add_new("PixelData", "OB" if values.dtype.itemsize == 1 else "OW", values.tobytes())
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
            if keyword == "BitsStored":
                dataset.HighBit = value - 1
    return dataset


def lookup_table(first: int, entries: list[int], bits: int = 16, declared: int | None = None) -> Sequence:
    """Make a sequence of one table, whose entries are stored as 16 bits each, and which may declare another number."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [declared or len(entries), first, bits])
    item.add_new("LUTData", "OW", np.array(entries, dtype="<u2").tobytes())
    return Sequence([item])


def write_dicom(path: Path, values: np.ndarray, **attributes: Any) -> Path:
    """Write what `dicom` makes, with a preamble, and return the path."""
    dicom(values, **attributes).save_as(path, enforce_file_format=True)
    return path
