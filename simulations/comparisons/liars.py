"""Sites that lie on the wire: they train as they should, and what arrives of it is something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from dynammo_core.wire.envelope import encode_report
from dynammo_core.wire.protocol import Report
from simulations.engines.local_grid import LocalGrid

Tensors = dict[str, NDArray[np.float32]]
Attack = Callable[[RecordDict, RecordDict], RecordDict]
"""From what the server sent and a site's true answer, which holds tensors, to what the site answers instead."""

TIMES = 10


def sign_flip(sent: RecordDict, answer: RecordDict) -> RecordDict:
    """The update the other way round."""
    return _with_updates(sent, answer, lambda update: -update)


def scale(sent: RecordDict, answer: RecordDict) -> RecordDict:
    """Ten times the update."""
    return _with_updates(sent, answer, lambda update: TIMES * update)


def silence(sent: RecordDict, answer: RecordDict) -> RecordDict:
    """No update at all, as of a site without images: what is lost by the mere absence of the site's knowledge."""
    return encode_report(Report(abstained=True), [])


ATTACKS: Mapping[str, Attack] = MappingProxyType({"sign_flip": sign_flip, "scale": scale, "silence": silence})


class LyingGrid(LocalGrid):
    """A grid on which the first `liars` nodes lie in every answer with tensors, and answer the rest truly."""

    def __init__(self, client_app: ClientApp, nodes: int, *, liars: int, attack: Attack) -> None:
        super().__init__(client_app, nodes, run_config={})
        self._liars = frozenset(sorted(self.get_node_ids())[:liars])
        self._attack = attack
        self._sent: dict[str, tuple[str, Array]] = {}

    def _answer(self, message: Message) -> Message:
        whole = self._completed(message.content)
        reply = super()._answer(message)
        lies = message.metadata.dst_node_id in self._liars and not reply.has_error()
        if lies and reply.content.array_records["weights"]:
            reply.content = self._attack(whole, reply.content)
        return reply

    def _completed(self, sent: RecordDict) -> RecordDict:
        """An instruction with the tensors in it that did not have to travel, since they did before."""
        hashes = {name: str(known) for name, known in sent.config_records["tensors"].items()}
        self._sent |= {name: (hashes[name], array) for name, array in sent.array_records["weights"].items()}
        held = dict(self._sent.values())
        self._sent |= {name: (known, held[known]) for name, known in hashes.items()}
        return RecordDict({"weights": ArrayRecord({name: held[known] for name, known in hashes.items()})})


def _with_updates(
    sent: RecordDict, answer: RecordDict, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> RecordDict:
    """The answer with other updates; of what was not sent down, the whole tensor is the update.

    Variances stay at least 0: a negative one gives the lie away.
    """
    earlier = _tensors(sent)
    lie: Tensors = {}
    for name, true in _tensors(answer).items():
        before = earlier.get(name, np.zeros_like(true))
        told = before + change(true - before)
        lie[name] = np.asarray(told.clip(min=0) if name.endswith("running_var") else told, dtype=true.dtype)
    arrays = {name: Array(tensor) for name, tensor in lie.items()}
    return RecordDict({**answer, "weights": ArrayRecord(arrays)})


def _tensors(content: RecordDict) -> Tensors:
    return {name: array.numpy() for name, array in content.array_records["weights"].items()}
