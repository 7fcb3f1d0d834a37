"""One question to all sites and their answers, over Flower: who answered, who failed, in a fixed order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from dynammo_core.errors import ProtocolError
from dynammo_core.plan import Action
from dynammo_core.protocol import Instruction, Phase, Report, tensor_bytes
from dynammo_core.secure_aggregation.encoding import Total
from dynammo_core.settings import FederationSettings
from server.roster import POLL_SECONDS, Roster

MESSAGE_TYPES: Mapping[Action, str] = {
    Action.FIT: "train.fit",
    Action.SUMMARISE: "train.summarise",
    Action.REMEMBER: "train.remember",
    Action.EVALUATE: "evaluate",
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
    """Reports by site, ascending, and failures, whatever the order in which they came.

    Attributes:
        reports: of secure aggregation, what each site sent in all exchanges.
        failures: of sites without a report.
        total: of secure aggregation, all that the server learns.
        beyond: of secure aggregation, bytes that each site was sent beyond the stage's tensors; negative for one that
            fell out before it was sent those.
    """

    reports: dict[int, Report] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    total: Total | None = None
    beyond: Mapping[int, int] = field(default_factory=dict)

    @property
    def asked(self) -> int:
        """Number of sites."""
        return len(self.reports) + len(self.failures)

    def bytes_down(self, sent: Mapping[str, Tensor]) -> int:
        """Bytes of tensors that went to all sites, where each was sent the same."""
        return tensor_bytes(sent) * self.asked + sum(self.beyond.values())

    def site_fields(self, sent: Mapping[str, Tensor]) -> list[dict[str, object]]:
        """The reports for the event log; what a sum hides of a site is null."""
        return [
            {
                "site": site,
                "samples": _samples(report),
                "abstained": report.abstained if self.total is None else None,
                "bytes_up": report.bytes,
                "bytes_down": tensor_bytes(sent) + self.beyond.get(site, 0),
                "metrics": {name: value for name, value in report.numbers.items() if not isinstance(value, list)},
            }
            for site, report in self.reports.items()
        ]


def _samples(report: Report) -> int | None:
    counts = report.numbers.get("class_counts")
    return sum(counts) if isinstance(counts, list) else 0 if report.abstained else None


class Exchange:
    """Sends instructions to sites, each to the node that is that site."""

    def __init__(self, grid: Grid, federation: FederationSettings) -> None:
        self._grid = grid
        self._roster = Roster(grid, federation)

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
        check: Callable[[Report], None],
    ) -> Answers:
        """Send each instruction to its site and wait for all answers, or for the deadline.

        Args:
            action: what the sites are to do, or an exchange of secure aggregation.
            instructions: one a site.
            group: name of the step, for Flower's own logs.
            needed: sites without which there is no point in asking.
            deadline: seconds that the slowest site has.
            on_waiting: told which sites are not connected and waited for, whenever that changes.
            on_answers: told how many have answered, whenever that changes.
            check: refuses a report by raising ProtocolError; the site then counts as failed.
        """
        asked = [instruction.site for instruction in instructions]
        nodes = self._roster.nodes(asked, needed=needed, deadline=deadline, on_waiting=on_waiting)
        weights = _shared_records(instructions)
        sent = [instruction for instruction in instructions if instruction.site in nodes]
        messages = [
            Message(
                _encode(instruction, weights[id(instruction.weights)]),
                nodes[instruction.site],
                PHASE_TYPES[action] if isinstance(action, Phase) else MESSAGE_TYPES[action],
                ttl=deadline,
                group_id=group,
            )
            for instruction in sent
        ]
        # Flower returns nothing at all when a message is too large, and no id for one that it could not deliver.
        pushed = (list(self._grid.push_messages(messages)) if messages else []) or [""] * len(messages)
        sites = {message_id: one.site for message_id, one in zip(pushed, sent, strict=True) if message_id}
        replies: dict[int, Message] = {}
        started, restarted = self._roster.activations(asked), set[int]()
        limit, pause, looked = time.monotonic() + deadline, POLL_SECONDS, time.monotonic()
        while len(replies) + len(restarted) < len(sites) and time.monotonic() < limit:
            waiting = [message_id for message_id, site in sites.items() if site not in {*replies, *restarted}]
            arrived = list(self._grid.pull_messages(waiting))
            for reply in arrived:
                replies[sites[reply.metadata.reply_to_message_id]] = reply
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
        answers.failures.extend(Failure(site, 0, "NotConnected") for site in sorted(set(asked) - set(nodes)))
        return answers


def _sort(
    sites: Sequence[int],
    reached: Set[int],
    replies: Mapping[int, Message],
    restarted: Set[int],
    check: Callable[[Report], None],
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
                check(report)
                answers.reports[site] = report
            except ProtocolError as error:
                answers.failures.append(Failure(site, error.code, type(error).__name__))
    return answers


def error_class(reason: str | None) -> str:
    """The class of an error that a site reports; any text beside it is dropped, as it may come from the site's disk."""
    word = (reason or "").split("(")[0].split(":")[0].strip()
    return word if word.isidentifier() else "Error"


def _shared_records(instructions: Sequence[Instruction]) -> dict[int, dict[str, Array]]:
    """Tensors serialised once, however many sites receive them."""
    return {
        key: {name: Array(tensor.detach().cpu().contiguous().numpy()) for name, tensor in weights.items()}
        for key, weights in {id(instruction.weights): instruction.weights for instruction in instructions}.items()
    }


def _encode(instruction: Instruction, weights: dict[str, Array]) -> RecordDict:
    fields = {name: value for name, value in vars(instruction).items() if name != "weights"}
    return RecordDict({"weights": ArrayRecord(dict(weights)), "instruction": ConfigRecord(fields)})


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
