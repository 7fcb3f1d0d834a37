"""Complete an instruction with tensors that the site already has, and pack its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from client.state.error_feedback import ErrorFeedback
from client.steps.site import Site
from dynammo_core.plan import Summarise
from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.compression import CODECS, pack, unpack
from dynammo_core.wire.compression.base import Codec
from dynammo_core.wire.protocol import Instruction, Report, all_finite
from dynammo_core.wire.sparse_counts import with_dense_table, with_sparse_table


def opened(instruction: Instruction, hashes: Mapping[str, str], site: Site) -> Instruction:
    """Complete an instruction: add the tensors that the site holds already, and decode all to what is computed with.

    Raises:
        MissingTensorsError: the site lacks a tensor that was not sent.
        ProtocolError: a tensor is not the one that is named.
    """
    wire = site.received.complete(hashes, instruction.weights)
    return replace(instruction, weights=unpack(_codec(site).downwards, wire, {}))


def packed(report: Report, instruction: Instruction, site: Site) -> Report:
    """Encode the answer to a whole instruction, after adding what rounding lost in earlier answers.

    Raises:
        ProtocolError: a value is too large for the form in which it would travel.
        DynammoError: what rounding loses cannot be written down.
    """
    codec, sent, report = _codec(site), instruction.weights, with_sparse_table(report)
    step = site.experiment.step(instruction.step, instruction.correction)
    if isinstance(step.stage, Summarise) and site.experiment.sums_form.loses:  # or a model would be built for nothing
        report = site.experiment.sums_form.sent(report, step.stage, site.experiment.build_model(step.task))
    if not any(codec.feeds_back(tensor) for tensor in report.weights.values()):
        return replace(report, weights=_finite(pack(codec, report.weights, sent), report.weights))
    feedback = ErrorFeedback(site.store.path.parent)
    before = feedback.before(step)
    meant = {name: tensor + before.get(name, 0) for name, tensor in report.weights.items()}
    wire = _finite(pack(codec, meant, sent), {})
    arriving = unpack(codec, wire, sent)
    after = {name: meant[name] - arriving[name] for name in meant if codec.feeds_back(meant[name])}
    feedback.keep(step, before, after)
    return replace(report, weights=wire)


def arriving(wire: Report, instruction: Instruction, site: Site) -> Report:
    """Return the report as the server decodes it from the wire."""
    report = replace(wire, weights=unpack(_codec(site), wire.weights, instruction.weights))
    return with_dense_table(report, site.experiment.classes)


def _codec(site: Site) -> Codec:
    return CODECS[site.experiment.config.federation.compression]


def _finite(wire: dict[str, Tensor], checked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in wire.items():
        if tensor is not checked.get(name) and not all_finite(tensor):
            raise ProtocolError(
                f"tensor {name!r} has values that {tensor.dtype} cannot represent",
                remedy="Set federation.compression: none, or find out why the values are so large",
            )
    return wire
