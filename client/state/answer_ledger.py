"""What a site has answered: the same question gets the same answer again, another question in its place gets none.

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

from safetensors.torch import load, save

from client.consent.approvals import Proposal
from client.consent.settings import SiteMemory
from dynammo_core.memory.sealed_file import Header, read_header, seal, unreadable, unseal
from dynammo_core.memory.store import locked_folder, make_private
from dynammo_core.support.errors import AnsweredBefore
from dynammo_core.support.files import write_atomically
from dynammo_core.wire.protocol import Instruction, Report

ANSWERS = "answers"
DAY, MEGABYTE = 86_400.0, 10**6


Recording = Callable[[Callable[[], Report]], Report]
"""Gives the answer that work makes, or that was recorded when it was asked for first."""


Bind = Callable[[], "AnswerLedger | None"]
"""Counts the run among those that are approved; gives the ledger of the run whose place it takes, if any."""


def anew(work: Callable[[], Report]) -> Report:
    """Work without a record, as `Recording`: simulated sites are safe from being asked twice."""
    return work()


@dataclass(frozen=True)
class Question:
    """What a server asks, told apart from all that it may ask otherwise.

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
        """The question of an instruction whose tensors have these hashes; masks and keys are no part of it."""
        tensors = {name: known for name, known in hashes.items() if not name.startswith("secure.")}
        place = instruction.step, instruction.correction, instruction.corrected
        words = [proposal.experiment_hash, *place, sorted(instruction.taken), sorted(tensors.items())]
        asked = hashlib.sha256(json.dumps(words).encode("utf-8", "surrogatepass")).hexdigest()
        return Question(*place, proposal.id, asked)

    @property
    def place(self) -> str:
        """What of it must not be asked in two ways."""
        return f"{self.step:06d}.{self.correction}.{self.corrected}"

    @property
    def file(self) -> str:
        """The name of the file with its answer."""
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
        """The answer to a question, and whether it was given before.

        Args:
            question: what is asked.
            work: makes the answer, where there is none.
            bind: raises where the run may ask nothing new; gives the ledger of the run whose place this one takes.

        Raises:
            AnsweredBefore: this step was answered for other weights, or the recorded answer is kept no longer.
            MemoryStoreError: a recorded answer cannot be read; CheckpointError: it cannot be written.
        """
        with locked_folder(self.folder):
            path = self.folder / question.file
            if (told := self.recall(question)) is not None:
                return told, True
            if path.exists():
                raise AnsweredBefore(
                    f"step {question.step} of this run was answered before, for other weights",
                    accepted="one set of weights for each step of an approved experiment",
                    remedy="The server has lost its checkpoint, or is trying this site out: start a new run, which a "
                    "person here has to approve",
                )
            before = bind()
            report = work() if before is None else before.recall(question)
            assert report is not None  # or that run would not have begun with this question
            make_private(self.folder)
            words = {name: str(value) for name, value in vars(question).items()}
            owner = self._owner | words | {"tensors": str(len(report.weights))}
            write_atomically(path, seal(_pack(report), owner, self._key), mode=0o600)
            self._make_room(path)
        return report, before is not None

    def of_run(self, run: str) -> AnswerLedger:
        """The ledger of another run of this site."""
        return AnswerLedger(self.folder.parent.parent / run, self._limits, run=run, site=self._site, key=self._key)

    def began_with(self, question: Question) -> bool:
        """Whether this question is the only one that was answered in this run."""
        told = [header.owner for _, header in self._told("*.sealed")]
        return [owner["asked"] for owner in told] == [question.asked]

    def recall(self, question: Question) -> Report | None:
        """The answer that was given to this very question in this run; None if it was not asked.

        Raises:
            AnsweredBefore: the answer is kept no longer.
            MemoryStoreError: it cannot be read.
        """
        for path, header in self._told(f"{question.place}.*.sealed"):
            if header.owner["asked"] == question.asked:
                return self._recorded(path, header.owner)
        return None

    def size(self) -> tuple[int, int]:
        """Number of questions that were answered, and bytes of what is kept of the answers."""
        files = list(self.folder.glob("*.sealed"))
        return len(files), sum(path.stat().st_size for path in files)

    def _told(self, pattern: str) -> Iterator[tuple[Path, Header]]:
        for path in sorted(self.folder.glob(pattern)):
            yield path, read_header(path)

    def _recorded(self, path: Path, owner: Mapping[str, str]) -> Report:
        content = unseal(path, {**owner, **self._owner}, self._key)
        if not content:
            raise AnsweredBefore(
                f"step {owner['step']} of this run was answered before, and the answer is kept no longer",
                remedy="Raise memory.answers_megabytes or memory.answers_days in site.yaml for runs to come",
            )
        try:
            return _unpack(bytes(content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise unreadable(path, ValueError("what it holds is no answer")) from error

    def _make_room(self, last: Path) -> None:
        """Empty what is too old, and the oldest while all is too large; what was asked stays in their headers.

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
                write_atomically(path, seal(b"", owner | {"tensors": "0"}, self._key), mode=0o600)


@dataclass
class Answering:
    """Answers one question as `Recording`: from the record, or by work that is recorded before its result leaves.

    Attributes:
        ledger: of the run; None in a simulation, which works each time.
        question: what is asked.
        bind: raises where the run may ask nothing new.
        again: whether the answer came from the record.
    """

    ledger: AnswerLedger | None = None
    question: Question | None = None
    bind: Bind = lambda: None
    again: bool = False

    def __call__(self, work: Callable[[], Report]) -> Report:
        """What `work` makes, or made when it was asked first."""
        if self.ledger is None or self.question is None:
            return anew(work)
        report, self.again = self.ledger.once(self.question, work, self.bind)
        return report


def _pack(report: Report) -> bytes:
    said = json.dumps({"abstained": report.abstained, "numbers": dict(report.numbers)})
    tensors = {name: tensor.contiguous() for name, tensor in report.weights.items()}
    packed: bytes = save(tensors, metadata={"report": said})
    return packed


def _unpack(content: bytes) -> Report:
    length = int.from_bytes(content[:8], "little")
    said = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["report"])
    return Report(bool(said["abstained"]), load(content), said["numbers"])
