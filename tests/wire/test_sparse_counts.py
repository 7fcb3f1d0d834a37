"""Tables of counts travel exactly, and in one way only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.protocol import Report
from dynammo_core.wire.sparse_counts import dense, sparse, with_dense_table, with_sparse_table


@given(st.lists(st.integers(0, 3), max_size=30))
def test_counts_come_back(counts: list[int]) -> None:
    assert dense(sparse(counts), len(counts)) == counts
    assert len(sparse(counts)) == 2 * sum(count > 0 for count in counts)


@given(st.lists(st.integers(-1, 10), max_size=6))
def test_there_is_one_way_to_write_counts(pairs: list[int]) -> None:
    try:
        counts = dense(pairs, 9)
    except ProtocolError:
        return
    assert sparse(counts) == pairs


@pytest.mark.parametrize("pairs", [[0], [3, 1, 3, 1], [4, 1, 3, 1], [9, 1], [-1, 1], [0, 0], [0, -1]])
def test_anything_else_is_refused(pairs: list[int]) -> None:
    with pytest.raises(ProtocolError, match="'confusion' is not a list of places from 0 to 8"):
        dense(pairs, 9)


def test_a_report_travels_with_a_sparse_table_and_is_read_with_a_dense_one() -> None:
    report = Report(False, {}, {"class_counts": [2, 1], "confusion": [2, 0, 0, 1]})
    sent = with_sparse_table(report)
    assert sent.numbers == {"class_counts": [2, 1], "confusion": [0, 2, 3, 1]}
    assert with_dense_table(sent, 2) == report
    silent = Report(abstained=True)
    assert with_dense_table(with_sparse_table(silent), 2) == silent
