"""Ask sites one question over Flower, and collect answers and failures in a fixed order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.serverapp import Grid
from torch import Tensor

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.plan import Action
from dynammo_core.support.errors import MissingTensorsError, ProtocolError
from dynammo_core.wire.compression import CODECS, pack
from dynammo_core.wire.envelope import MESSAGE_TYPES, PHASE_TYPES, Parcel, decode_report, encode_instruction
from dynammo_core.wire.protocol import Instruction, Phase, Report
from server.run.answers import Answers, Failure
from server.run.deliveries import Deliveries
from server.run.roster import POLL_SECONDS, Roster

LOOK_SECONDS = 5.0
LONGEST_POLL_SECONDS = 2.0
"""Seconds between polls: simulated rounds take tenths of a second, hospitals' take minutes."""
LONGEST_CLASS = 60
"""Most characters of an error's class, which a site reports."""

Check = Callable[[int, Report], Report]
"""Decodes a site's report, or raises ProtocolError to refuse it; the site then counts as failed."""


@dataclass(frozen=True)
class Question:
    """What the sites are asked in one exchange.

    Attributes:
        action: what the sites are to do, or an exchange of secure aggregation.
        instruction: the instruction to all sites; `site` and `taken` are set for each.
        check: opens or refuses a report.
        deadline: seconds after which a site counts as failed.
        group: name of the step, for Flower's own logs.
        taken: by site, what `Instruction.taken` says.
        individual: by site, tensors for it alone.
    """

    action: Action | Phase
    instruction: Instruction
    check: Check
    deadline: float
    group: str = ""
    taken: Mapping[str, list[int]] = field(default_factory=dict)
    individual: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)


class Exchange:
    """Send instructions to sites, each to the node that is that site."""

    def __init__(self, grid: Grid, federation: FederationSettings) -> None:
        self._grid = grid
        self._roster = Roster(grid, federation)
        self._codec = CODECS[federation.compression]
        self._deliveries = Deliveries()

    def ask(
        self,
        question: Question,
        sites: Sequence[int],
        *,
        needed: int,
        on_waiting: Callable[[list[int]], None],
        on_asked: Callable[[list[int]], None],
        on_answers: Callable[[list[int], list[int]], None],
    ) -> Answers:
        """Send a question to sites, wait for all answers or for the deadline, and return the answers.

        Only tensors that a site lacks are sent. A site that has fewer than expected is asked again, with all tensors,
        as part of the same question.

        Args:
            question: what is asked.
            sites: who is asked.
            needed: fewest connected sites for which asking makes sense.
            on_waiting: called with the sites that are waited for, whenever they change.
            on_asked: called with the sites that the question was sent to.
            on_answers: called with the sites that have answered since, and those that have failed.
        """
        nodes = self._roster.nodes(sites, needed=needed, deadline=question.deadline, on_waiting=on_waiting)
        asked = [site for site in sites if site in nodes]
        mail = _Mail(self._grid, self._deliveries, question, self._parcels(question, asked), nodes)
        mail.send(asked, question.deadline)
        on_asked(sorted(mail.delivered))
        replies, restarted = self._collect(mail, sites, question.deadline, on_answers)
        answers = Answers(bytes_down=mail.bytes_down, bytes_held=mail.bytes_held)
        for site in sorted(sites):
            if site not in nodes:
                continue
            if site not in mail.delivered:
                answers.failures.append(Failure(site, 0, "NotDelivered"))
            elif site not in replies:
                answers.failures.append(
                    Failure(site, 0, "Restarted" if site in restarted else "NoAnswerBeforeDeadline")
                )
            else:
                _take(answers, site, replies[site], question.check)
        mail.settle(answers.reports)
        answers.failures.extend(Failure(site, 0, "NotConnected") for site in sorted(set(sites) - set(nodes)))
        return answers

    def _parcels(self, question: Question, sites: Iterable[int]) -> dict[int, Parcel]:
        """Serialise what all sites receive once, and what is for one site separately."""
        common = Parcel.of(pack(self._codec.downwards, question.instruction.weights, {}))
        return {
            site: common | Parcel.of(pack(self._codec.downwards, question.individual[site], {}))
            if site in question.individual
            else common
            for site in sites
        }

    def _collect(
        self,
        mail: _Mail,
        sites: Sequence[int],
        deadline: float,
        on_answers: Callable[[list[int], list[int]], None],
    ) -> tuple[dict[int, Report | Failure], set[int]]:
        """Return what sites replied, and the sites that restarted and so will never answer."""
        replies: dict[int, Report | Failure] = {}
        started, restarted = self._roster.activations(sites), set[int]()
        limit, pause, looked = time.monotonic() + deadline, POLL_SECONDS, time.monotonic()
        while mail.awaited and time.monotonic() < limit:
            arrived = list(self._grid.pull_messages(list(mail.awaited)))
            answered: list[int] = []
            failed: list[int] = []
            for reply in arrived:
                site = mail.awaited.pop(reply.metadata.reply_to_message_id)
                if not mail.sent_all(site, reply, limit - time.monotonic()):
                    replies[site] = _read(site, reply)  # at once, or its bytes would wait for all other sites
                    (failed if reply.has_error() else answered).append(site)
            if arrived:
                on_answers(answered, failed)
                pause = POLL_SECONDS
            else:
                time.sleep(pause)
                pause = min(1.2 * pause, LONGEST_POLL_SECONDS)
                if time.monotonic() - looked > LOOK_SECONDS:
                    # Flower reports a site that is gone, but not one that came back between two polls.
                    now, looked = self._roster.activations(sites), time.monotonic()
                    again = {site for site in started if now.get(site, started[site]) != started[site]}
                    restarted |= mail.given_up(again)
        return replies, restarted


class _Mail:
    """The messages of one question.

    Attributes:
        delivered: the sites whose message Flower took.
        awaited: the site that each message went to, by the id of the message, until it is answered.
        bytes_down: bytes of the tensors that were sent, by site.
        bytes_held: bytes of the tensors that the site holds already, by site.
    """

    def __init__(
        self,
        grid: Grid,
        deliveries: Deliveries,
        question: Question,
        parcels: Mapping[int, Parcel],
        nodes: Mapping[int, int],
    ) -> None:
        self.delivered: set[int] = set()
        self.awaited: dict[str, int] = {}
        self.bytes_down: Counter[int] = Counter()
        self.bytes_held: Counter[int] = Counter()
        self._grid = grid
        self._deliveries = deliveries
        self._question = question
        self._parcels = parcels
        self._nodes = nodes
        self._in_part: set[int] = set()

    def given_up(self, sites: Collection[int]) -> set[int]:
        """Await no more answers of sites, and return those of which some were awaited."""
        lost = {message_id: site for message_id, site in self.awaited.items() if site in sites}
        for message_id in lost:
            del self.awaited[message_id]
        return set(lost.values())

    def send(self, sites: Sequence[int], ttl: float) -> None:
        """Ask sites, with a deadline in seconds; what a site holds already is not sent."""
        names = {site: self._deliveries.lacking(site, self._parcels[site]) for site in sites}
        messages = [self._message(site, names[site], ttl) for site in sites]
        # Flower returns nothing at all when a message is too large, and no id for one that it could not deliver.
        pushed = (list(self._grid.push_messages(messages)) if messages else []) or [""] * len(messages)
        for message_id, site in zip(pushed, sites, strict=True):
            if message_id:
                parcel = self._parcels[site]
                self.delivered.add(site)
                self.awaited[message_id] = site
                travelling = sum(parcel.sizes[name] for name in names[site])
                self.bytes_down[site] += travelling
                self.bytes_held[site] = sum(parcel.sizes.values()) - travelling
                if len(names[site]) < len(parcel.arrays):
                    self._in_part.add(site)

    def sent_all(self, site: int, reply: Message, ttl: float) -> bool:
        """Ask a site again, with all tensors, if it lacks some that were not sent; return whether it was asked."""
        if not reply.has_error() or reply.error.code != MissingTensorsError.code or site not in self._in_part:
            return False
        self.delivered.remove(site)
        self._in_part.remove(site)
        self._deliveries.forget(site)
        self.send([site], ttl)
        return True

    def settle(self, sites: Iterable[int]) -> None:
        """Note that these sites answered, and so have what they were sent."""
        for site in sites:
            self._deliveries.arrived(site, self._parcels[site])

    def _message(self, site: int, names: Iterable[str], ttl: float) -> Message:
        question = self._question
        instruction = replace(question.instruction, site=site, taken=question.taken.get(str(site), []))
        content = encode_instruction(instruction, self._parcels[site], names)
        action = question.action
        kind = PHASE_TYPES[action] if isinstance(action, Phase) else MESSAGE_TYPES[action]
        return Message(content, self._nodes[site], kind, ttl=ttl, group_id=question.group)


def _read(site: int, reply: Message) -> Report | Failure:
    """Return the report in a site's reply, or say that it holds none."""
    if reply.has_error():
        return Failure(site, reply.error.code, error_class(reply.error.reason))
    try:
        return decode_report(reply.content)
    except ProtocolError as error:
        return Failure(site, error.code, type(error).__name__)


def _take(answers: Answers, site: int, reply: Report | Failure, check: Check) -> None:
    """Put what a site replied among the answers, its report only if it passes the check."""
    if isinstance(reply, Failure):
        answers.failures.append(reply)
        return
    answers.bytes_up[site] = reply.bytes
    try:
        answers.reports[site] = check(site, reply)
    except ProtocolError as error:
        answers.failures.append(Failure(site, error.code, type(error).__name__))


def error_class(reason: str | None) -> str:
    """Return the class of an error that a site reports, without its text, which may quote the site's disk."""
    word = (reason or "").split("(")[0].split(":")[0].strip()
    return word if word.isidentifier() and len(word) <= LONGEST_CLASS else "Error"
