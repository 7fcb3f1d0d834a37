"""One question to all sites and their answers, over Flower: who answered, who failed, in a fixed order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.plan import Action
from dynammo_core.support.errors import MissingTensorsError, ProtocolError
from dynammo_core.wire.compression import CODECS
from dynammo_core.wire.protocol import Instruction, Phase, Report
from dynammo_core.wire.secure_aggregation.encoding import Total
from server.run.deliveries import Deliveries, Parcel
from server.run.roster import POLL_SECONDS, Roster

MESSAGE_TYPES: Mapping[Action, str] = {
    Action.FIT: "train.fit",
    Action.SUMMARISE: "train.summarise",
    Action.REMEMBER: "train.remember",
    Action.EVALUATE: "evaluate",
    Action.FORGET: "train.forget",
}

PHASE_TYPES: Mapping[Phase, str] = {phase: f"train.{phase.value}" for phase in Phase}

LOOK_SECONDS = 5.0
LONGEST_POLL_SECONDS = 2.0
"""A simulated round takes tenths of a second, one between hospitals minutes, and each question costs the SuperLink."""


@dataclass(frozen=True)
class Failure:
    """A site that did not answer well: Flower's or its own error code, and the class of the error, never its text."""

    site: int
    code: int
    error: str


@dataclass(frozen=True)
class Answers:
    """Reports by site, ascending, and failures, whatever the order in which they came; and what that cost.

    Attributes:
        bytes_down: bytes of the tensors that went to each site.
        bytes_held: of those that did not have to, as the site holds them.
        bytes_up: of those that came from it.
        total: of secure aggregation, all that the server learns.
    """

    reports: dict[int, Report] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    bytes_down: Counter[int] = field(default_factory=Counter)
    bytes_held: Counter[int] = field(default_factory=Counter)
    bytes_up: Counter[int] = field(default_factory=Counter)
    total: Total | None = None

    def site_fields(self) -> list[dict[str, object]]:
        """The reports for the event log; what a sum hides of a site is null."""
        return [
            {
                "site": site,
                "samples": _samples(report),
                "abstained": report.abstained if self.total is None else None,
                "bytes_up": self.bytes_up[site],
                "bytes_down": self.bytes_down[site],
                "metrics": {name: value for name, value in report.numbers.items() if not isinstance(value, list)},
            }
            for site, report in self.reports.items()
        ]

    def then(self, later: Answers) -> Answers:
        """With the answers to a second question, to those that failed in this one."""
        reports = dict(sorted({**self.reports, **later.reports}.items()))
        return Answers(
            reports,
            later.failures,
            self.bytes_down + later.bytes_down,
            self.bytes_held + later.bytes_held,
            self.bytes_up + later.bytes_up,
        )


def _samples(report: Report) -> int | None:
    counts = report.numbers.get("class_counts")
    return sum(counts) if isinstance(counts, list) else 0 if report.abstained else None


class Exchange:
    """Sends instructions to sites, each to the node that is that site."""

    def __init__(self, grid: Grid, federation: FederationSettings) -> None:
        self._grid = grid
        self._roster = Roster(grid, federation)
        self._codec = CODECS[federation.compression]
        self._deliveries = Deliveries()

    def ask(
        self,
        action: Action | Phase,
        instructions: Sequence[Instruction],
        *,
        group: str,
        needed: int,
        deadline: float,
        on_waiting: Callable[[list[int]], None],
        on_answers: Callable[[int], None],
        check: Callable[[int, Report], Report],
    ) -> Answers:
        """Send each instruction to its site and wait for all answers, or for the deadline.

        Of the tensors only those travel that a site does not hold; one that holds less than was believed is asked
        again, with all of them, as part of the same question.

        Args:
            action: what the sites are to do, or an exchange of secure aggregation.
            instructions: one a site.
            group: name of the step, for Flower's own logs.
            needed: sites without which there is no point in asking.
            deadline: seconds that the slowest site has.
            on_waiting: told which sites are not connected and waited for, whenever that changes.
            on_answers: told how many have answered, whenever that changes.
            check: opens a site's report as it travelled, or refuses it by raising ProtocolError; the site then counts
                as failed.
        """
        asked = [instruction.site for instruction in instructions]
        nodes = self._roster.nodes(asked, needed=needed, deadline=deadline, on_waiting=on_waiting)
        kind = PHASE_TYPES[action] if isinstance(action, Phase) else MESSAGE_TYPES[action]
        weights = {id(instruction.weights): instruction.weights for instruction in instructions}
        question = _Question(
            self._grid,
            self._deliveries,
            {key: Parcel.of(tensors, self._codec) for key, tensors in weights.items()},
            lambda content, site, ttl: Message(content, nodes[site], kind, ttl=ttl, group_id=group),
        )
        question.send([instruction for instruction in instructions if instruction.site in nodes], deadline)
        sites, replies = question.sites, dict[int, Message]()
        started, restarted = self._roster.activations(asked), set[int]()
        limit, pause, looked = time.monotonic() + deadline, POLL_SECONDS, time.monotonic()
        while len(replies) + len(restarted) < len(sites) and time.monotonic() < limit:
            waiting = [message_id for message_id, site in sites.items() if site not in {*replies, *restarted}]
            arrived = list(self._grid.pull_messages(waiting))
            for reply in arrived:
                site = sites[reply.metadata.reply_to_message_id]
                if not question.sent_all(site, reply, limit - time.monotonic()):
                    replies[site] = reply
            if arrived:
                on_answers(len(replies))
                pause = POLL_SECONDS
            elif len(replies) < len(sites):
                time.sleep(pause)
                pause = min(1.2 * pause, LONGEST_POLL_SECONDS)
                if time.monotonic() - looked > LOOK_SECONDS:
                    # Flower tells of a site that is gone, but not of one that was back before anyone looked.
                    now, looked = self._roster.activations(asked), time.monotonic()
                    again = {site for site in started if now.get(site, started[site]) != started[site]}
                    restarted = again & set(sites.values()) - set(replies)
        answers = _sort(sorted(nodes), set(sites.values()), replies, restarted, check)
        answers.bytes_down.update(question.bytes_down)
        answers.bytes_held.update(question.bytes_held)
        question.settle(answers.reports)
        answers.failures.extend(Failure(site, 0, "NotConnected") for site in sorted(set(asked) - set(nodes)))
        return answers


class _Question:
    """One question on its way to the sites.

    Attributes:
        sites: which site each message went to, by the message's id.
        bytes_down: bytes of the tensors that were sent, by site.
        bytes_held: of those that were not.
    """

    def __init__(
        self,
        grid: Grid,
        deliveries: Deliveries,
        parcels: Mapping[int, Parcel],
        message: Callable[[RecordDict, int, float], Message],
    ) -> None:
        self.sites: dict[str, int] = {}
        self.bytes_down: Counter[int] = Counter()
        self.bytes_held: Counter[int] = Counter()
        self._grid = grid
        self._deliveries = deliveries
        self._parcels = parcels
        self._message = message
        self._instructions: dict[int, Instruction] = {}
        self._in_part: set[int] = set()

    def send(self, instructions: Sequence[Instruction], ttl: float) -> None:
        """Ask each instruction's site, which has so many seconds; what it holds already is not sent."""
        messages, names = [], []
        for instruction in instructions:
            site, parcel = instruction.site, self._parcels[id(instruction.weights)]
            self._instructions[site] = instruction
            names.append(self._deliveries.lacking(site, parcel))
            fields = {name: value for name, value in vars(instruction).items() if name != "weights"}
            content = RecordDict({**parcel.records(names[-1]), "instruction": ConfigRecord(fields)})
            messages.append(self._message(content, site, ttl))
        # Flower returns nothing at all when a message is too large, and no id for one that it could not deliver.
        pushed = (list(self._grid.push_messages(messages)) if messages else []) or [""] * len(messages)
        for message_id, instruction, sent in zip(pushed, instructions, names, strict=True):
            if message_id:
                site, parcel = instruction.site, self._parcels[id(instruction.weights)]
                self.sites[message_id] = site
                travelling = sum(parcel.sizes[name] for name in sent)
                self.bytes_down[site] += travelling
                self.bytes_held[site] = sum(parcel.sizes.values()) - travelling
                if len(sent) < len(parcel.arrays):
                    self._in_part.add(site)

    def sent_all(self, site: int, reply: Message, ttl: float) -> bool:
        """Whether a site said that it lacks tensors that it was not sent, and so was asked again with all of them."""
        if not reply.has_error() or reply.error.code != MissingTensorsError.code or site not in self._in_part:
            return False
        del self.sites[reply.metadata.reply_to_message_id]
        self._in_part.remove(site)
        self._deliveries.forget(site)
        self.send([self._instructions[site]], ttl)
        return True

    def settle(self, sites: Iterable[int]) -> None:
        """These sites did what they were asked, and so hold what they were sent."""
        for site in sites:
            self._deliveries.arrived(site, self._parcels[id(self._instructions[site].weights)])


def _sort(
    sites: Sequence[int],
    reached: Set[int],
    replies: Mapping[int, Message],
    restarted: Set[int],
    check: Callable[[int, Report], Report],
) -> Answers:
    answers = Answers()
    for site in sites:
        reply = replies.get(site)
        if site not in reached:
            answers.failures.append(Failure(site, 0, "NotDelivered"))
        elif reply is None:
            why = "Restarted" if site in restarted else "NoAnswerBeforeDeadline"
            answers.failures.append(Failure(site, 0, why))
        elif reply.has_error():
            answers.failures.append(Failure(site, reply.error.code, error_class(reply.error.reason)))
        else:
            try:
                report = _decode(reply)
                answers.bytes_up[site] = report.bytes
                answers.reports[site] = check(site, report)
            except ProtocolError as error:
                answers.failures.append(Failure(site, error.code, type(error).__name__))
    return answers


def error_class(reason: str | None) -> str:
    """The class of an error that a site reports; any text beside it is dropped, as it may come from the site's disk."""
    word = (reason or "").split("(")[0].split(":")[0].strip()
    return word if word.isidentifier() else "Error"


def _decode(reply: Message) -> Report:
    try:
        content = reply.content
        weights: dict[str, Tensor] = {
            name: torch.from_numpy(array.numpy().copy()) for name, array in content.array_records["weights"].items()
        }
        numbers = {
            name: [int(count) for count in value] if isinstance(value, list) else float(value)
            for name, value in content.metric_records["numbers"].items()
        }
        return Report(bool(content.config_records["report"]["abstained"]), weights, numbers)
    except Exception as error:  # what a damaged or forged answer makes a decoder raise has no common type
        raise ProtocolError(f"the answer is no report ({type(error).__name__}: {error})") from error
