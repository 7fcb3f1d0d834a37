"""How the values of an array become bytes on the wire and back: NumPy's own format, each header made or read once."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

PREFIX = 10
"""Bytes before a header's text: NumPy's magic, the version 1.0, and the length of the text in two bytes."""


def written(values: NDArray[np.generic]) -> bytes:
    """Return an array as `numpy.save` writes it, row by row."""
    return header(name_of(values.dtype), values.shape) + values.tobytes()


@lru_cache(maxsize=64)
def name_of(dtype: np.dtype[np.generic]) -> str:
    """Return the name of a type, which NumPy composes anew whenever it is asked."""
    return dtype.name


@lru_cache(maxsize=1024)
def header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the bytes that `numpy.save` writes before the values of an array of this type and shape."""
    buffer, form = BytesIO(), np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(buffer, {"descr": form, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def read(data: bytes) -> NDArray[np.generic]:
    """Return the array in bytes that `written` made; it shares them, and cannot be changed.

    Raises:
        ValueError: they hold something else, more or less.
    """
    end = PREFIX + int.from_bytes(data[PREFIX - 2 : PREFIX], "little")
    dtype, shape = _form(data[:end])
    return np.frombuffer(data, dtype, offset=end).reshape(shape)


@lru_cache(maxsize=1024)
def _form(text: bytes) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    buffer = BytesIO(text)
    if np.lib.format.read_magic(buffer) != (1, 0):
        raise ValueError("the array is not in version 1.0 of NumPy's format")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(buffer)
    if by_columns or dtype.hasobject:
        raise ValueError(f"the array holds {dtype} by columns or by reference")
    return dtype, shape
