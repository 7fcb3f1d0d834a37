"""The ClientApp that runs at a site: a thin shell of Flower around `local_steps`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from types import MappingProxyType

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.consent.admission import admit
from client.consent.audit import audit_log
from client.consent.door import declared, error_words, let_announcement_out, let_out
from client.service.announcement import announcement
from client.state.answer_ledger import Answering
from client.steps.local_steps import answer
from client.steps.parcels import arriving, opened, packed
from client.steps.secure_steps import secure_answer
from client.steps.site_opening import open_site
from dynammo_core.experiment import code_hash
from dynammo_core.plan import Action
from dynammo_core.support.errors import DynammoError, ProtocolError
from dynammo_core.wire.envelope import decode_instruction, encode_announcement, encode_report
from dynammo_core.wire.protocol import MOST, Phase
from dynammo_core.wire.secure_aggregation.phases import SITES

app = ClientApp()
logger = logging.getLogger("dynammo.client")
NodeConfig = Mapping[str, object]
Handler = Callable[[RecordDict, NodeConfig], RecordDict]


def sanitised(handler: Handler) -> Callable[[Message, Context], Message]:
    """Let only what the door let out leave, or an error's code and class: its text may hold paths and record ids.

    A handler sees nothing of the message but its content, so that it cannot write into what travels beside it.
    """

    @wraps(handler)
    def wrapped(message: Message, context: Context) -> Message:
        try:
            return Message(handler(message.content, MappingProxyType(context.node_config)), reply_to=message)
        except Exception as error:
            return refusal(message, context, error)

    return wrapped


def refusal(message: Message, context: Context, error: Exception) -> Message:
    """Answer with an error's code and class; the rest goes into the site's log and its audit log."""
    _log(error)
    try:
        if log := audit_log(context.node_config):
            log.refused(message.metadata.message_type, error_words(error)[0], error)
    except Exception as unrecorded:
        error = unrecorded
        _log(error)
    return Message(Error(*error_words(error)), reply_to=message)


def _log(error: Exception) -> None:
    """Into the site's own log; what is not deliberate with its traceback."""
    if isinstance(error, DynammoError):
        logger.error("step refused: %s", error)
    else:
        logger.error("step failed", exc_info=error)


def reply(content: RecordDict, node_config: NodeConfig, phase: Phase | None = None) -> RecordDict:
    """Answer one instruction, or an exchange of secure aggregation."""
    instruction, hashes = decode_instruction(content)
    if instruction.code_hash != code_hash():
        raise ProtocolError(
            f"the server runs the code {instruction.code_hash[:12]}, this site runs {code_hash()[:12]}",
            remedy="Install the same version on both sides; in a simulation, stop the other copy's local SuperLink",
        )
    admitted = admit(instruction, node_config)
    site, log = open_site(instruction, node_config), audit_log(node_config)
    if log:
        log.check_writable()
    whole = opened(instruction, hashes, site)
    if instruction.corrected:
        site.experiment.step(instruction.step, instruction.corrected)  # refuses where no sums are corrected
    answering = admitted.answering(instruction, hashes, site) if admitted else Answering()
    if phase is None:
        wire = answering(lambda: packed(answer(whole, site), whole, site))
    else:
        wire = secure_answer(phase, whole, site, answering)
    experiment, step = site.experiment, site.experiment.step(instruction.step, instruction.correction)
    form = declared(site, step, phase, len(whole.weights.get(SITES, ())))
    if answering.again:  # the site may have had more images then
        form = replace(form, most=MOST)
    leaving = let_out(encode_report(wire, form.tensors), form)
    site.received.keep(hashes, instruction.weights)
    if log:
        remembered = step.stage.action is Action.REMEMBER
        held = site.memory().samples.class_counts(experiment.classes) if remembered else None
        report = arriving(wire, whole, site) if phase is None else wire
        log.answered(
            instruction, step, report, experiment.class_names, wire.weights, phase, held, again=answering.again
        )
    return leaving


@app.train("fit")
@sanitised
def fit(content: RecordDict, node_config: NodeConfig) -> RecordDict:
    """Train on the site's images."""
    return reply(content, node_config)


@app.train("summarise")
@sanitised
def summarise(content: RecordDict, node_config: NodeConfig) -> RecordDict:
    """Compute statistics of the site's images."""
    return reply(content, node_config)


@app.train("remember")
@sanitised
def remember(content: RecordDict, node_config: NodeConfig) -> RecordDict:
    """Choose exemplars into the site's memory."""
    return reply(content, node_config)


@app.train("forget")
@sanitised
def forget(content: RecordDict, node_config: NodeConfig) -> RecordDict:
    """Take withdrawn records out of the sums that the server keeps."""
    return reply(content, node_config)


@app.evaluate()
@sanitised
def evaluate(content: RecordDict, node_config: NodeConfig) -> RecordDict:
    """Test the model on the site's images."""
    return reply(content, node_config)


@app.train("keys")
@sanitised
def keys(content: RecordDict, node_config: NodeConfig) -> RecordDict:
    """Offer public keys for a step of which the server learns only the sum."""
    return reply(content, node_config, Phase.KEYS)


@app.train("shares")
@sanitised
def shares(content: RecordDict, node_config: NodeConfig) -> RecordDict:
    """Deal shares of this site's secrets to the other sites."""
    return reply(content, node_config, Phase.SHARES)


@app.train("masked")
@sanitised
def masked(content: RecordDict, node_config: NodeConfig) -> RecordDict:
    """Do the step, and answer under masks."""
    return reply(content, node_config, Phase.MASKED)


@app.train("open")
@sanitised
def open_sum(content: RecordDict, node_config: NodeConfig) -> RecordDict:
    """Open the shares that take the masks off the sum."""
    return reply(content, node_config, Phase.OPEN)


@app.query("announce")
@sanitised
def announce(content: RecordDict, node_config: NodeConfig) -> RecordDict:
    """Say which classes the site can bring, and about how many images of each."""
    announced = announcement(node_config)
    leaving = let_announcement_out(encode_announcement(announced))
    if log := audit_log(node_config):
        log.announced(announced)
    return leaving
