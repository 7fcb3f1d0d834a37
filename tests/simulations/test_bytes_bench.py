"""The table of bytes: what is computed is right by hand, and each row is less than the one before."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from small_runs import SITES, Finished, small_config

from simulations.bytes_bench import measured


def test_each_row_is_less_than_the_one_before(finished: Finished, tmp_path: Path) -> None:
    whole, sent, once, half, byte = measured(small_config())
    assert [row.kind for row in (whole, sent, once, half, byte)] == [
        *("the whole network", "what dynammo sends", "once per change"),
        *("float16", "int8"),
    ]
    assert sent.total > once.total > half.total > byte.total
    summary = json.loads((finished("dynammo").path / "summary.json").read_text())
    assert (once.up * SITES, once.down * SITES) == (summary["bytes_up"], summary["bytes_down"])
    assert once.accuracy == sent.accuracy == summary["last_accuracy"]
    # Convolutions of 3x3 from 3 to 8, to 16, to 32 and to 64 channels, each with a batch norm of four vectors; three
    # heads of 64 + 1 by three: of two tasks, and the auxiliary one. Six rounds train, each both ways: in each of two
    # tasks one of adapting and two of balancing.
    channels = (3, 8, 16, 32, 64)
    network = sum(9 * a * b + 4 * b for a, b in pairwise(channels)) + 3 * 3 * 65
    assert (whole.up, whole.down, whole.accuracy) == (6 * 4 * network, 6 * 4 * network, None)
