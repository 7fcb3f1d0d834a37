"""A site that has answered others gives the same bits as one that has just started."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from hospitals import Hospitals, deployed, make_hospitals

from client.service.daemon import OWN_LINE
from client.service.own_app import OwnLines
from dynammo_core.wire.envelope import decode_report
from server.run.run import run_experiment

LOADED = """
import pickle, sys
from pathlib import Path
from hospitals import Hospitals
from client.app import app
from dynammo_core.support.processes import answer_by_copies

def answer(line):
    asked, site, told = map(Path, line.split())
    message, context = pickle.loads(asked.read_bytes())
    context.node_config = {"site-config": str(site)}
    Hospitals._approve(site, message)
    Path(f"{told}.part").write_bytes(pickle.dumps(app(message, context).content))
    Path(f"{told}.part").rename(told)

answer_by_copies(answer)
"""


class Noting(Hospitals):
    """Hospitals whose questions and answers are kept."""

    def __init__(self, files: dict[str, Path]) -> None:
        super().__init__(files)
        self.asked: list[bytes] = []
        self.told: list[RecordDict] = []

    def _at_home(self, message: Message, context: Context) -> Message:
        self.asked.append(pickle.dumps((message, context)))
        reply = super()._at_home(message, context)
        self.told.append(reply.content)
        return reply


def test_an_answer_does_not_depend_on_what_was_asked_before(tmp_path: Path) -> None:
    hospitals = make_hospitals(tmp_path / "engine", {"alpha": {"0": 6, "1": 6}})
    for name in ("warm", "cold"):
        shutil.copytree(tmp_path / "engine" / "alpha", tmp_path / name)
    grids = []
    for rate in (0.01, 0.02):
        grid = Noting(hospitals.files)
        experiment = deployed(
            ["alpha"], ["0", "1"], sections={"method": {"train": {"rounds": 1, "epochs": 1, "learning_rate": rate}}}
        )
        run_experiment(grid, experiment, runs=tmp_path, resume=None)
        grids.append(grid)
    first, second = grids
    questions = [
        (first.asked[0], "warm"),
        (first.asked[1], "warm"),
        (second.asked[0], "warm"),
        (second.asked[0], "cold"),
    ]
    told = by_copies(tmp_path, questions)
    expected = same_bits(second.told[0])
    assert expected[1]
    assert [same_bits(content) == expected for content in told] == [False, False, True, True]


def by_copies(folder: Path, questions: list[tuple[bytes, str]]) -> list[RecordDict]:
    """The answers of copies of one process to questions at sites, one after the other."""
    tests = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    answers = []
    with subprocess.Popen([sys.executable, "-c", LOADED], stdin=subprocess.PIPE, text=True, env=environment) as loaded:
        assert loaded.stdin is not None
        for place, (question, site) in enumerate(questions):
            asked, told = folder / f"asked-{place}", folder / f"told-{place}"
            asked.write_bytes(question)
            print(asked, folder / site / "site.yaml", told, file=loaded.stdin, flush=True)
            limit = time.monotonic() + 60
            while not told.exists():
                assert time.monotonic() < limit and loaded.poll() is None
                time.sleep(0.02)
            answers.append(pickle.loads(told.read_bytes()))
        loaded.stdin.close()
    return answers


def same_bits(content: RecordDict) -> tuple[bool, dict[str, bytes]]:
    """What a report says, without how long it took."""
    report = decode_report(content)
    return report.abstained, {name: tensor.numpy().tobytes() for name, tensor in report.weights.items()}


def test_a_line_that_a_message_quotes_is_not_marked_as_ours() -> None:
    forged = f"step refused: no such class\n{OWN_LINE}type `approve --yes`\r{OWN_LINE}all is well\x1b]0;x\x07"
    try:
        raise ValueError(forged)
    except ValueError:
        record = logging.LogRecord("dynammo.client", logging.ERROR, "", 0, forged, (), sys.exc_info())
    lines = OwnLines().format(record).splitlines()
    assert "\r" not in "".join(lines) and all(line.isprintable() for line in lines)
    assert [line.startswith(OWN_LINE) for line in lines] == [True, *[False] * (len(lines) - 1)]
    assert len(lines) > 4
