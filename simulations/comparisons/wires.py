"""Simulated wires that change what sites answer: some lie about what they trained, or all but one keep silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client.app import app as client_app
from dynammo_core.configuration.config import Config
from dynammo_core.plan import Action
from dynammo_core.wire.envelope import MESSAGE_TYPES, encode_report
from dynammo_core.wire.protocol import Report
from simulations.comparisons.compare import Wire
from simulations.engines.local_grid import LocalGrid

Tensors = dict[str, NDArray[np.float32]]
Attack = Callable[[RecordDict, RecordDict], RecordDict]
"""From what the server sent and a site's true answer, which holds tensors, to what the site answers instead."""

TIMES = 10
TRAINING = frozenset(MESSAGE_TYPES[action] for action in (Action.FIT, Action.SUMMARISE))


def sign_flip(sent: RecordDict, answer: RecordDict) -> RecordDict:
    """Reverse the update."""
    return _with_updates(sent, answer, lambda update: -update)


def scale(sent: RecordDict, answer: RecordDict) -> RecordDict:
    """Multiply the update by ten."""
    return _with_updates(sent, answer, lambda update: TIMES * update)


def silence(sent: RecordDict, answer: RecordDict) -> RecordDict:
    """Abstain, as a site without images does: what is lost is only what the site knows."""
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
        """Return an instruction with the tensors in it that did not have to travel, since they did before."""
        hashes = {name: str(known) for name, known in sent.config_records["tensors"].items()}
        self._sent |= {name: (hashes[name], array) for name, array in sent.array_records["weights"].items()}
        arrays = dict(self._sent.values())
        self._sent |= {name: (known, arrays[known]) for name, known in hashes.items()}
        return RecordDict({"weights": ArrayRecord({name: arrays[known] for name, known in hashes.items()})})


class LonelyGrid(LocalGrid):
    """A grid on which one node learns: the others abstain from all that trains, and do the rest."""

    def __init__(self, client_app: ClientApp, nodes: int, *, learner: int) -> None:
        super().__init__(client_app, nodes, run_config={})
        self._learner = self.get_node_ids()[learner]

    def _answer(self, message: Message) -> Message:
        learns = message.metadata.dst_node_id == self._learner
        if learns or message.metadata.message_type not in TRAINING:
            return super()._answer(message)
        return Message(silence(message.content, message.content), reply_to=message)


def grid_of(wire: Wire, config: Config[Any]) -> LocalGrid:
    """Return a grid of the experiment's sites that answers as the wire says."""
    nodes = config.federation.sites
    if wire.attack:
        return LyingGrid(client_app, nodes, liars=config.federation.liars, attack=ATTACKS[wire.attack])
    if wire.learner is not None:
        return LonelyGrid(client_app, nodes, learner=wire.learner)
    return LocalGrid(client_app, nodes, run_config={})


def _with_updates(
    sent: RecordDict, answer: RecordDict, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> RecordDict:
    """Return the answer with other updates; of what was not sent down, the whole tensor is the update.

    Variances stay at least 0: a negative one gives the lie away.
    """
    earlier = _tensors(sent)
    lie: Tensors = {}
    for name, true in _tensors(answer).items():
        before = earlier.get(name, np.zeros_like(true))
        false = before + change(true - before)
        lie[name] = np.asarray(false.clip(min=0) if name.endswith("running_var") else false, dtype=true.dtype)
    arrays = {name: Array(tensor) for name, tensor in lie.items()}
    return RecordDict({**answer, "weights": ArrayRecord(arrays)})


def _tensors(content: RecordDict) -> Tensors:
    return {name: array.numpy() for name, array in content.array_records["weights"].items()}
