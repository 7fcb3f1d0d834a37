"""Arrays travel as NumPy itself writes them, and what it would not write is refused."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest

from dynammo_core.wire.arrays import read, written

ARRAYS = [np.float32(1.5).reshape(()), np.zeros((0, 3), np.float16), np.arange(6, dtype=np.int64).reshape(2, 3)]


@pytest.mark.parametrize("array", ARRAYS)
def test_bytes_are_those_of_numpy(array: np.ndarray) -> None:
    buffer = BytesIO()
    np.save(buffer, array)
    assert written(array) == buffer.getvalue()
    found = read(written(array))
    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_anything_else_is_refused() -> None:
    whole, buffer, by_columns = written(ARRAYS[2]), BytesIO(), BytesIO()
    np.save(buffer, np.array([{"a": 1}]), allow_pickle=True)
    np.save(by_columns, np.asfortranarray(ARRAYS[2]))
    for data in (b"", whole[:-1], whole + bytes(8), b"x" + whole[1:], buffer.getvalue(), by_columns.getvalue()):
        with pytest.raises(ValueError, match=r"."):
            read(data)
