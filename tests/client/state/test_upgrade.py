"""A site upgrades while its memories live: files that an earlier version wrote are read, and written alike."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import pytest
import torch

from client.consent.approvals import Proposal
from client.consent.settings import SiteMemory
from client.state.answer_ledger import AnswerLedger, Question, unlimited
from client.state.error_feedback import ErrorFeedback
from client.state.feature_files import FeatureFiles
from client.state.privacy_ledger import LedgerFile, NamedCharge, SiteLedger
from client.state.secure_ledger import OpenedSums, SecureLedger
from client.state.statistics_file import StatisticsFile, own_tensors_for_model
from client.state.sums_note import SumsNote, describe
from client.state.withdrawal import WithdrawalLedger
from dynammo_core.data.samples import Samples
from dynammo_core.memory.store import MemoryStore, ReplayMemory, Taken
from dynammo_core.plan import Remember, Step
from dynammo_core.privacy.accounting import Charge
from dynammo_core.wire.protocol import Report
from dynammo_core.wire.secure_aggregation.masking import Context

DISKS = Path(__file__).parent / "disks"
"""Memory folders of a site: what `write` left on the disk before the files of a site had one form of code."""
KEYS = {"plain": None, "encrypted": bytes(range(32))}
DRAWN = {"secure.json", "withdrawn.jsonl"}
"""Files that begin with something random."""

RUN, SITE, EXPERIMENT = "run-7", "north", "e" * 64
SAMPLES = Samples(torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2), torch.tensor([0, 1]), ("anna", "bert"))
MEMORY = ReplayMemory(1, SAMPLES, (Taken(0, date(2026, 2, 1)), Taken(1, date(2026, 2, 2))), ("a", "b"), {0: 0, 1: 1})
STATISTICS = {"norm.running_mean": torch.tensor([0.5, 2.0])}
FEATURES = torch.arange(8, dtype=torch.float32).reshape(2, 4)
LOST, LOST_AFTER = {"head": torch.tensor([0.125])}, {"head": torch.tensor([0.25])}
STEP = Step(3, 0, Remember(down=()), 1)
CHARGE = Charge(0, "census", 0, 4.0, 1.0, 1, (0, 1))
NAMED = NamedCharge(RUN, 4.0, 1.0, 1, ("a", "b"))
QUESTION = Question(3, 0, 0, Proposal("{}", "c" * 64, RUN, "").id, "a" * 64)
REPORT = Report(False, {"head": torch.tensor([1.5, -2.0])}, {"class_counts": [2, 0], "loss": 0.25})
CONTEXT, ROSTER = Context(RUN, 3, bytes(16)), {0: b"one", 1: b"two"}


def folder_of(memory: Path) -> Path:
    return memory / "runs" / RUN


def answers(memory: Path, key: bytes | None) -> AnswerLedger:
    return AnswerLedger(folder_of(memory), SiteMemory(), run=RUN, site=SITE, key=key)


def features(memory: Path, key: bytes | None) -> FeatureFiles:
    return FeatureFiles(memory / "runs", 10**6, run=RUN, site=SITE, key=key)


def write(memory: Path, key: bytes | None) -> None:
    """All that a site keeps, one of each kind."""
    folder = folder_of(memory)
    MemoryStore(folder, run=RUN, site=SITE, key=key).save(MEMORY)
    statistics = StatisticsFile(folder, run=RUN, site=SITE, key=key)
    statistics.save(STATISTICS)
    statistics.save_tested(STATISTICS, task=0, model="ab")
    SumsNote(folder, run=RUN, site=SITE, key=key).note(0, SAMPLES)
    features(memory, key).get(("features",), SAMPLES, lambda: FEATURES)
    answers(memory, key).once(QUESTION, lambda: REPORT, unlimited)
    ErrorFeedback(folder).keep(STEP, LOST, LOST_AFTER)
    with LedgerFile(folder).changing() as ledger:
        ledger.charges["1/census/1"] = CHARGE
        ledger.census |= {0: 12, 1: 0}
    site_ledger = SiteLedger(memory)
    with site_ledger.locked():
        site_ledger.write([NAMED])
    SecureLedger(folder).mask(CONTEXT, ROSTER)
    OpenedSums(memory, EXPERIMENT).open(3, [0, 1])
    WithdrawalLedger(memory).withdraw(["carl"], "consent", date(2026, 3, 1))


def files(memory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(memory)): path.read_bytes() for path in memory.rglob("*") if path.is_file()}


@pytest.fixture(params=KEYS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bytes | None]:
    """A copy of what an earlier version left, and its key."""
    shutil.copytree(DISKS / request.param, tmp_path / "memory")
    return tmp_path / "memory", KEYS[request.param]


def test_what_an_earlier_version_wrote_is_read(disk: tuple[Path, bytes | None]) -> None:
    memory, key = disk
    folder = folder_of(memory)
    held = MemoryStore(folder, run=RUN, site=SITE, key=key).load()
    assert torch.equal(held.samples.images, SAMPLES.images)
    assert (held.record_ids, held.taken, held.arrived) == (MEMORY.record_ids, MEMORY.taken, MEMORY.arrived)
    kept = StatisticsFile(folder, run=RUN, site=SITE, key=key).load()
    tested = own_tensors_for_model(memory / "runs", task=0, model="ab", site=SITE, key=key)
    for statistics in (kept, tested):
        assert torch.equal(statistics["norm.running_mean"], STATISTICS["norm.running_mean"])
    assert SumsNote(folder, run=RUN, site=SITE, key=key).load() == {0: describe(SAMPLES)}
    again, was_recorded = answers(memory, key).once(QUESTION, lambda: Report(abstained=True), unlimited)
    assert was_recorded
    assert (again.abstained, again.numbers) == (False, REPORT.numbers)
    assert torch.equal(again.weights["head"], REPORT.weights["head"])
    assert torch.equal(ErrorFeedback(folder).before(STEP)["head"], LOST["head"])
    ledger = LedgerFile(folder).read()
    assert (ledger.charges, ledger.census) == ({"1/census/1": CHARGE}, {0: 12, 1: 0})
    assert SiteLedger(memory).read() == (NAMED,)
    assert WithdrawalLedger(memory).is_withdrawn(["carl", "anna"]).tolist() == [True, False]


def test_what_an_earlier_version_computed_is_not_computed_again(disk: tuple[Path, bytes | None]) -> None:
    def compute() -> torch.Tensor:
        raise AssertionError("it lies on the disk")

    assert torch.equal(features(*disk).get(("features",), SAMPLES, compute), FEATURES)


def test_what_an_earlier_version_told_under_masks_binds_this_one(disk: tuple[Path, bytes | None]) -> None:
    memory, _ = disk
    secure, before = SecureLedger(folder_of(memory)), files(memory)
    secure.secret()
    secure.mask(CONTEXT, ROSTER)
    assert files(memory) == before
    with pytest.raises(Exception, match="the set of sites changed within one attempt"):
        secure.mask(CONTEXT, {0: b"one"})
    with pytest.raises(Exception, match="opened step 3 for other sites"):
        OpenedSums(memory, EXPERIMENT).open(3, [0, 2])


def test_files_are_written_as_they_were(tmp_path: Path) -> None:
    write(tmp_path, None)
    now, then = files(tmp_path), files(DISKS / "plain")
    assert now.keys() == then.keys()
    assert {name for name in now if now[name] != then[name]} == {name for name in now if Path(name).name in DRAWN}
