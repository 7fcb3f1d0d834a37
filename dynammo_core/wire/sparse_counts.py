"""How a table of counts travels: a test answers with C x C of them, of which nearly all are 0.

Under secure aggregation it travels whole: there all sites' vectors have one shape, and nobody sees where zeros are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.protocol import Report, lengths_of

TABLE = "confusion"
"""The number that travels so."""


def sparse(counts: Sequence[int]) -> list[int]:
    """Return each place with a count above 0, in ascending order, and after each place its count."""
    return [value for place, count in enumerate(counts) if count for value in (place, count)]


def dense(pairs: Sequence[int], length: int) -> list[int]:
    """Return the counts that `sparse` wrote.

    Raises:
        ProtocolError: `sparse` would not write this for any counts of this length.
    """
    places, counts = pairs[::2], pairs[1::2]
    ascending = all(before < after for before, after in pairwise([-1, *places, length]))
    if len(places) != len(counts) or not ascending or any(count < 1 for count in counts):
        raise ProtocolError(
            f"{TABLE!r} is not a list of places from 0 to {length - 1} with their counts, in their order"
        )
    table = [0] * length
    for place, count in zip(places, counts, strict=True):
        table[place] = count
    return table


def with_sparse_table(report: Report) -> Report:
    """Return a report as it travels."""
    table = report.numbers.get(TABLE)
    return replace(report, numbers={**report.numbers, TABLE: sparse(table)}) if isinstance(table, list) else report


def with_dense_table(report: Report, classes: int) -> Report:
    """Return a report that has travelled as it is read, for C classes.

    Raises:
        ProtocolError: its table is not sparse counts.
    """
    pairs = report.numbers.get(TABLE)
    if not isinstance(pairs, list):
        return report
    return replace(report, numbers={**report.numbers, TABLE: dense(pairs, lengths_of(classes)[TABLE])})
