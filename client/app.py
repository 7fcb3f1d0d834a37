"""The ClientApp that runs at a site: a thin shell of Flower around `client.steps`."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from types import MappingProxyType

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.hospital.door import declared, error_words, let_announcement_out, let_out, let_statistics_out
from client.hospital.hospital import Answer, Host, Request, host_of
from client.steps.actions import answer, own_head_again
from client.steps.parcels import opened, packed
from client.steps.secure_answers import secure_answer
from dynammo_core.code_identity import code_of, project_hash
from dynammo_core.support.errors import (
    AnsweredBefore,
    DynammoError,
    ForeignApp,
    NotApproved,
    PolicyError,
    ProtocolError,
)
from dynammo_core.support.terminal import printable
from dynammo_core.wire.envelope import decode_instruction, encode_announcement, encode_report, encode_statistics
from dynammo_core.wire.protocol import MOST, Phase
from dynammo_core.wire.secure_aggregation.phases import SITES

app = ClientApp()
logger = logging.getLogger("dynammo.client")
Handler = Callable[[RecordDict, Host], RecordDict]
PACKAGES = re.compile(r"[\w.+-]{1,60}( [\w.+-]{1,60})?(, [\w.+-]{1,60}( [\w.+-]{1,60})?){0,9}", re.ASCII)
LONGEST = 2000
"""Most characters of an error's text in the log: a server may have written it."""
REFUSALS = (NotApproved, PolicyError, ForeignApp, AnsweredBefore)
"""Errors by which a site declines a step that it could do."""


def sanitised(handler: Handler) -> Callable[[Message, Context], Message]:
    """Send only what the door approved, or an error's code and class: its text may hold paths and record ids.

    A handler sees only the message's content, so it cannot write into the metadata that travels with it.
    """

    @wraps(handler)
    def wrapped(message: Message, context: Context) -> Message:
        host: Host | None = None
        try:
            host = host_of(MappingProxyType(context.node_config))
            return Message(handler(message.content, host), reply_to=message)
        except Exception as error:
            return refusal(message, host, error)

    return wrapped


def refusal(message: Message, host: Host | None, error: Exception) -> Message:
    """Answer with an error's code and class; its text goes only into the site's log and audit log.

    Without a host, the site's settings could not be read, so the audit log's path is unknown.
    """
    _log(error)
    try:
        if host is not None:
            host.record_refusal(message.metadata.message_type, error_words(error)[0], error)
    except Exception as unrecorded:
        error = unrecorded
        _log(error)
    return Message(Error(*error_words(error)), reply_to=message)


def _log(error: Exception) -> None:
    """Write an error into the site's log, in one line that its engineer sees; an unexpected one with its traceback."""
    words = printable(" ".join(str(error)[:LONGEST].split()))
    if isinstance(error, REFUSALS):
        logger.error("step refused: %s", words)
    elif isinstance(error, DynammoError):
        logger.error("step failed: %s", words)
    else:
        logger.error("step failed: %s: %s", type(error).__name__, words, exc_info=error)


def reply(content: RecordDict, host: Host, phase: Phase | None = None) -> RecordDict:
    """Answer one instruction, or an exchange of secure aggregation."""
    request = Request(*decode_instruction(content))
    instruction = request.instruction
    _require_same_code(request)
    host.admit(request)
    site = host.open(request)
    whole = opened(instruction, request.hashes, site)
    if instruction.corrected:
        site.experiment.step(instruction.step, instruction.corrected)  # refuses where no sums are corrected
    answering = host.answering(request, site)
    if phase is None:
        wire = answering(lambda: packed(answer(whole, site), whole, site))
        if answering.again:
            own_head_again(whole, site)
    else:
        wire = secure_answer(phase, whole, site, answering)
    step = site.experiment.step(instruction.step, instruction.correction)
    form = declared(site, step, phase, len(whole.weights.get(SITES, ())))
    if answering.again:  # the site may have had more images then
        form = replace(form, most=MOST)
    leaving = let_out(encode_report(wire, form.tensors), form)
    site.received.keep(request.hashes, instruction.weights)
    host.record(Answer(whole, wire, site, phase, answering.again))
    return leaving


@app.train("fit")
@sanitised
def fit(content: RecordDict, host: Host) -> RecordDict:
    """Train on the site's images."""
    return reply(content, host)


@app.train("summarise")
@sanitised
def summarise(content: RecordDict, host: Host) -> RecordDict:
    """Compute statistics of the site's images."""
    return reply(content, host)


@app.train("remember")
@sanitised
def remember(content: RecordDict, host: Host) -> RecordDict:
    """Choose exemplars into the site's memory."""
    return reply(content, host)


@app.train("forget")
@sanitised
def forget(content: RecordDict, host: Host) -> RecordDict:
    """Take withdrawn records out of the sums that the server keeps."""
    return reply(content, host)


@app.evaluate()
@sanitised
def evaluate(content: RecordDict, host: Host) -> RecordDict:
    """Test the model on the site's images."""
    return reply(content, host)


@app.train("keys")
@sanitised
def keys(content: RecordDict, host: Host) -> RecordDict:
    """Offer public keys for a step of which the server learns only the sum over sites."""
    return reply(content, host, Phase.KEYS)


@app.train("shares")
@sanitised
def shares(content: RecordDict, host: Host) -> RecordDict:
    """Deal shares of this site's secrets to the other sites."""
    return reply(content, host, Phase.SHARES)


@app.train("masked")
@sanitised
def masked(content: RecordDict, host: Host) -> RecordDict:
    """Do the step, and answer with a masked vector."""
    return reply(content, host, Phase.MASKED)


@app.train("open")
@sanitised
def open_sum(content: RecordDict, host: Host) -> RecordDict:
    """Open the shares that remove the masks from the sum."""
    return reply(content, host, Phase.OPEN)


@app.query("announce")
@sanitised
def announce(content: RecordDict, host: Host) -> RecordDict:
    """Announce the site's classes, and about how many images it has of each."""
    announced = host.announce()
    leaving = let_announcement_out(encode_announcement(announced))
    host.record_told(announced)
    return leaving


@app.query("statistics")
@sanitised
def statistics(content: RecordDict, host: Host) -> RecordDict:
    """Count the site's images by class, size and brightness."""
    told, fewest = host.statistics()
    leaving = let_statistics_out(encode_statistics(told), fewest)
    host.record_told(told)
    return leaving


def _require_same_code(request: Request) -> None:
    """Refuse an instruction from other code: a different version of this project or of a plug-in that it names.

    Raises:
        ProtocolError: the hashes differ, as they do where the site lacks a plug-in.
        ConfigError: the code is the same, and the experiment is invalid.
    """
    instruction, own, packages, why = request.instruction, project_hash(), "", ""
    try:
        own, packages = code_of(request.instruction.experiment)
    except DynammoError as error:
        if instruction.code_hash == own:
            raise
        why = f", and cannot run the experiment: {error}"
    if instruction.code_hash != own:
        raise ProtocolError(
            f"the server runs the code {instruction.code_hash[:12]}{_with(instruction.packages)}, "
            f"this site runs {own[:12]}{_with(packages)}{why}",
            remedy="Install the same versions, including plug-ins, on both sides; in a simulation, stop the other "
            "copy's local SuperLink",
        )


def _with(packages: str) -> str:
    """Return the packages as words behind a hash; a server's text that is none stays out of logs and terminals."""
    return f" with {packages}" if PACKAGES.fullmatch(packages) else ""
