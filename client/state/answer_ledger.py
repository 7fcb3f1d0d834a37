"""Record a site's answers: a repeated question gets the same answer, a different one for the same step gets none.

Without this a server could ask one step as often as it likes with weights of its choice, or once before and once after
a record was withdrawn, and read single images from the differences. Each answer is a sealed file in the run's folder,
written before it leaves, whose header names the question.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors.torch import load, save

from client.consent.approvals import Proposal
from client.consent.settings import SiteMemory
from dynammo_core.memory.private_files import locked_folder
from dynammo_core.memory.sealed_file import Header, SealedFile, read_header
from dynammo_core.support.errors import AnsweredBefore
from dynammo_core.wire.protocol import Instruction, Report

ANSWERS = "answers"
DAY, MEGABYTE = 86_400.0, 10**6


Recording = Callable[[Callable[[], Report]], Report]
"""Returns the recorded answer, or the one that the given work computes."""


class Bind(Protocol):
    """Raises if the run may ask nothing new; returns the ledger of the run that it replaces, if any."""

    def __call__(self, *, count: bool) -> AnswerLedger | None:
        """Check, and with `count` also count the run towards its approval, once there is an answer to be given."""
        ...


def unlimited(*, count: bool) -> None:
    """Let any run ask; it takes no other's place."""


def anew(work: Callable[[], Report]) -> Report:
    """Compute the answer without a record: asking a simulated site twice does no harm."""
    return work()


@dataclass(frozen=True)
class Question:
    """Identifies what a server asks.

    Attributes:
        step: index in the plan.
        correction: number of the correction that is asked for; 0 for a step of the plan.
        corrected: corrections that the run's sums had before.
        proposal: SHA-256 of experiment and code, which a person at the site has approved.
        asked: SHA-256 of all that decides the answer except code and images: experiment, step, tensors, contributions.
    """

    step: int
    correction: int
    corrected: int
    proposal: str
    asked: str

    @staticmethod
    def of(instruction: Instruction, hashes: Mapping[str, str], proposal: Proposal) -> Question:
        """Return the question of an instruction whose tensors have these hashes; masks and keys do not belong to it."""
        tensors = {name: known for name, known in hashes.items() if not name.startswith("secure.")}
        place = instruction.step, instruction.correction, instruction.corrected
        content = [proposal.experiment_hash, *place, sorted(instruction.taken), sorted(tensors.items())]
        asked = hashlib.sha256(json.dumps(content).encode("utf-8", "surrogatepass")).hexdigest()
        return Question(*place, proposal.id, asked)

    @property
    def place(self) -> str:
        """Return the key under which only one question may be answered."""
        return f"{self.step:06d}.{self.correction}.{self.corrected}"

    @property
    def file(self) -> str:
        """Return the name of the file with the answer."""
        return f"{self.place}.{self.proposal[:16]}.sealed"


class AnswerLedger:
    """The answers of one site in one run.

    Args:
        folder: the site's folder of the run.
        limits: how many megabytes of answers are kept, beyond which the oldest go, but never the last one; and for how
            many days. Of an answer that went, what was asked stays, and is refused.
        run: name of the run.
        site: name of the site.
        key: encrypts the answers; None for plain files.
    """

    def __init__(self, folder: Path, limits: SiteMemory, *, run: str, site: str, key: bytes | None) -> None:
        self.folder = folder / ANSWERS
        self._limits, self._site, self._key = limits, site, key
        self._owner = {"run": run, "site": site, "content": "answer"}

    def once(self, question: Question, work: Callable[[], Report], bind: Bind) -> tuple[Report, bool]:
        """Return the answer to a question, and whether it was given before.

        Args:
            question: what is asked.
            work: makes the answer, if there is none yet.
            bind: checks before the work, and counts after it: a run that failed here has learnt nothing.

        Raises:
            AnsweredBefore: this step was answered for other weights, or the recorded answer was dropped.
            MemoryStoreError: a recorded answer cannot be read; CheckpointError: it cannot be written.
        """
        with locked_folder(self.folder):
            path = self.folder / question.file
            if (recorded := self.recall(question)) is not None:
                return recorded, True
            if path.exists():
                raise AnsweredBefore(
                    f"step {question.step} of this run was already answered, for other weights",
                    accepted="one set of weights for each step of an approved experiment",
                    remedy="The server has lost its checkpoint, or is probing this site: start a new run, which a "
                    "person here has to approve",
                )
            before = bind(count=False)
            report = work() if before is None else before.recall(question)
            assert report is not None  # or that run would not have begun with this question
            bind(count=True)
            if question.correction and report.abstained:  # it told nothing, and records may be withdrawn later
                return report, False
            fields = {name: str(value) for name, value in vars(question).items()}
            owner = self._owner | fields | {"tensors": str(len(report.weights))}
            SealedFile(path, owner, self._key).write(_packed_report(report))
            self._make_room(path)
        return report, before is not None

    def of_run(self, run: str) -> AnswerLedger:
        """Return the ledger of another run of this site."""
        return AnswerLedger(self.folder.parent.parent / run, self._limits, run=run, site=self._site, key=self._key)

    def began_with(self, question: Question) -> bool:
        """Return whether this question is the only one that was answered in this run."""
        return [header.owner["asked"] for _, header in self._headers("*.sealed")] == [question.asked]

    def recall(self, question: Question) -> Report | None:
        """Return the recorded answer to this question in this run, or None if it was not asked.

        Raises:
            AnsweredBefore: the answer was dropped.
            MemoryStoreError: it cannot be read.
        """
        for path, header in self._headers(f"{question.place}.*.sealed"):
            if header.owner["asked"] == question.asked:
                return self._recorded(path, header.owner)
        return None

    def size(self) -> tuple[int, int]:
        """Return the number of questions that were answered, and the bytes of the answers that are kept."""
        files = list(self.folder.glob("*.sealed"))
        return len(files), sum(path.stat().st_size for path in files)

    def _headers(self, pattern: str) -> Iterator[tuple[Path, Header]]:
        for path in sorted(self.folder.glob(pattern)):
            yield path, read_header(path)

    def _recorded(self, path: Path, owner: Mapping[str, str]) -> Report:
        file = SealedFile(path, {**owner, **self._owner}, self._key)
        report = file.read_as("answer", lambda content: _unpacked_report(bytes(content)) if content else None)
        if report is None:
            raise AnsweredBefore(
                f"step {owner['step']} of this run was already answered, and the recorded answer has been dropped",
                remedy="Raise memory.answers_megabytes or memory.answers_days in site.yaml for future runs",
            )
        return report

    def _make_room(self, last: Path) -> None:
        """Drop the content of old answers, and the oldest over the size limit; headers keep the questions.

        Answers without tensors, which are counts, stay: a finished run may be tested again at any time.
        """
        files = sorted((path.stat().st_mtime, path) for path in self.folder.glob("*.sealed") if path != last)
        total, oldest = self.size()[1], time.time() - self._limits.answers_days * DAY
        for written, path in files:
            if written >= oldest and total <= self._limits.answers_megabytes * MEGABYTE:
                break
            owner = dict(read_header(path).owner)
            if owner["tensors"] != "0":
                total -= path.stat().st_size
                SealedFile(path, owner | {"tensors": "0"}, self._key).write(b"")


@dataclass
class Answering:
    """Answers one question, from the record or by work that is recorded before its result leaves.

    Attributes:
        ledger: the answers of the run; None in a simulation, which works each time.
        question: what is asked.
        bind: raises if the run may ask nothing new.
        again: whether the answer came from the record.
    """

    ledger: AnswerLedger | None = None
    question: Question | None = None
    bind: Bind = unlimited
    again: bool = False

    def __call__(self, work: Callable[[], Report]) -> Report:
        """Return what `work` makes, or made when it was asked first."""
        if self.ledger is None or self.question is None:
            return anew(work)
        report, self.again = self.ledger.once(self.question, work, self.bind)
        return report


def _packed_report(report: Report) -> bytes:
    said = json.dumps({"abstained": report.abstained, "numbers": dict(report.numbers)})
    tensors = {name: tensor.contiguous() for name, tensor in report.weights.items()}
    packed: bytes = save(tensors, metadata={"report": said})
    return packed


def _unpacked_report(content: bytes) -> Report:
    length = int.from_bytes(content[:8], "little")
    said = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["report"])
    return Report(bool(said["abstained"]), load(content), said["numbers"])
