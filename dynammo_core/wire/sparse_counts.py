"""How tables of counts travel: a test answers with C x C of them, of which nearly all are 0.

Under secure aggregation it travels whole: there all sites' vectors have one shape, and nobody sees where zeros are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.protocol import TABLES, Report


def sparse(counts: Sequence[int]) -> list[int]:
    """Return each place with a count above 0, in ascending order, and after each place its count."""
    return [value for place, count in enumerate(counts) if count for value in (place, count)]


def dense(pairs: Sequence[int], length: int, name: str = "confusion") -> list[int]:
    """Return the counts that `sparse` wrote of the table `name`.

    Raises:
        ProtocolError: `sparse` would not write this for any counts of this length.
    """
    places, counts = pairs[::2], pairs[1::2]
    ascending = all(before < after for before, after in pairwise([-1, *places, length]))
    if len(places) != len(counts) or not ascending or any(count < 1 for count in counts):
        raise ProtocolError(
            f"{name!r} is not a list of places from 0 to {length - 1} with their counts, in their order"
        )
    table = [0] * length
    for place, count in zip(places, counts, strict=True):
        table[place] = count
    return table


def with_sparse_table(report: Report) -> Report:
    """Return a report as it travels."""
    tables = {name: sparse(table) for name in TABLES if isinstance(table := report.numbers.get(name), list)}
    return replace(report, numbers={**report.numbers, **tables}) if tables else report


def with_dense_table(report: Report, classes: int) -> Report:
    """Return a report that has travelled as it is read, for C classes.

    Raises:
        ProtocolError: one of its tables is not sparse counts.
    """
    length = classes**2
    tables = {
        name: dense(pairs, length, name) for name in TABLES if isinstance(pairs := report.numbers.get(name), list)
    }
    return replace(report, numbers={**report.numbers, **tables}) if tables else report
