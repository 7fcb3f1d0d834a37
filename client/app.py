"""The ClientApp that runs at a site: a thin shell of Flower around `local_steps`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.approvals import admit
from client.audit import audit_log
from client.local_steps import answer
from client.site import announcement, open_site
from dynammo_core.errors import DynammoError, ProtocolError
from dynammo_core.experiment import code_hash
from dynammo_core.protocol import Instruction, Report

app = ClientApp()
logger = logging.getLogger("dynammo.client")
Handler = Callable[[Message, Context], Message]
UNEXPECTED = 199


def sanitised(handler: Handler) -> Handler:
    """Let only an error's code and class leave the site: its text may hold paths and record ids."""

    @wraps(handler)
    def wrapped(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except Exception as error:
            return _refusal(message, context, error)

    return wrapped


def _refusal(message: Message, context: Context, error: Exception) -> Message:
    code = _logged(error)
    try:
        if log := audit_log(context.node_config):
            log.refused(message.metadata.message_type, code, error)
    except Exception as unrecorded:
        error, code = unrecorded, _logged(unrecorded)
    return Message(Error(code, type(error).__name__), reply_to=message)


def _logged(error: Exception) -> int:
    """The code of an error, once it stands in the site's own log; what is not deliberate with its traceback."""
    if isinstance(error, DynammoError):
        logger.error("step refused: %s", error)
        return error.code
    logger.error("step failed", exc_info=error)
    return UNEXPECTED


def reply(message: Message, context: Context) -> Message:
    """Answer one instruction."""
    instruction = _decode(message)
    if instruction.code_hash != code_hash():
        raise ProtocolError(
            f"the server runs the code {instruction.code_hash[:12]}, this site runs {code_hash()[:12]}",
            remedy="Install the same version on both sides; in a simulation, stop the other copy's local SuperLink",
        )
    admit(instruction, context.node_config)
    site, log = open_site(instruction, context.node_config), audit_log(context.node_config)
    if log:
        log.check_writable()
    report = answer(instruction, site)
    if log:
        log.answered(instruction, site.experiment.steps[instruction.step], report, site.experiment.class_names)
    return Message(_encode(report), reply_to=message)


@app.train("fit")
@sanitised
def fit(message: Message, context: Context) -> Message:
    """Train on the site's images."""
    return reply(message, context)


@app.train("summarise")
@sanitised
def summarise(message: Message, context: Context) -> Message:
    """Compute statistics of the site's images."""
    return reply(message, context)


@app.train("remember")
@sanitised
def remember(message: Message, context: Context) -> Message:
    """Choose exemplars into the site's memory."""
    return reply(message, context)


@app.evaluate()
@sanitised
def evaluate(message: Message, context: Context) -> Message:
    """Test the model on the site's images."""
    return reply(message, context)


@app.query("announce")
@sanitised
def announce(message: Message, context: Context) -> Message:
    """Say which classes the site can bring, and about how many images of each."""
    announced = announcement(context.node_config)
    if log := audit_log(context.node_config):
        log.announced(announced)
    bands = dict(announced.bands)
    names = ConfigRecord({"classes": list(bands), "bands": list(bands.values())})
    return Message(RecordDict({"announcement": names}), reply_to=message)


def _decode(message: Message) -> Instruction:
    try:
        fields = message.content.config_records["instruction"]
        weights = {
            name: torch.from_numpy(array.numpy().copy())
            for name, array in message.content.array_records["weights"].items()
        }
        return Instruction(
            experiment=str(fields["experiment"]),
            code_hash=str(fields["code_hash"]),
            run=str(fields["run"]),
            step=int(fields["step"]),  # type: ignore[arg-type]
            site=int(fields["site"]),  # type: ignore[arg-type]
            workspace=str(fields["workspace"]),
            weights=weights,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the message is no instruction ({type(error).__name__}: {error})") from error


def _encode(report: Report) -> RecordDict:
    arrays = {name: Array(tensor.contiguous().numpy()) for name, tensor in report.weights.items()}
    return RecordDict(
        {
            "weights": ArrayRecord(arrays),
            "numbers": MetricRecord(dict(report.numbers)),
            "report": ConfigRecord({"abstained": report.abstained}),
        }
    )
