from __future__ import annotations

import time
from typing import Any

import pytest
from flwr.serverapp.grid.grid import NodeInfo

from dynammo_core.configuration.federation import FederationSettings
from server.run.roster import Roster

NAMES = ("a", "b", "c")


class Nodes:
    """A grid of which only the nodes are asked: one list after another, the last one for ever."""

    def __init__(self, *online: dict[int, str]) -> None:
        self.online = list(online)

    def get_nodes(self) -> list[NodeInfo]:
        now = self.online.pop(0) if len(self.online) > 1 else self.online[0]
        return [NodeInfo(node_id=node, name=name) for node, name in now.items()]

    def get_node_ids(self) -> list[int]:
        return [node.node_id for node in self.get_nodes()]


def roster(nodes: Nodes, names: tuple[str, ...] | None = NAMES, patience: float = 0.3) -> Roster:
    settings = {"sites": 3} if names is None else {"site_names": names}
    return Roster(nodes, FederationSettings(**settings, patience_seconds=patience))  # type: ignore[arg-type]


def find(own: Roster, *, needed: int = 1, deadline: float = 5, told: list[list[int]] | None = None) -> dict[int, int]:
    tell = [] if told is None else told
    return own.nodes([0, 1, 2], needed=needed, deadline=deadline, on_waiting=tell.append)


def seconds(call: Any) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def test_simulated_sites_share_the_nodes_by_turns() -> None:
    assert find(roster(Nodes({8: "", 5: ""}), names=None)) == {0: 5, 1: 8, 2: 5}


def test_named_sites_are_found_by_name_and_strangers_are_passed_over() -> None:
    assert find(roster(Nodes({1: "c", 2: "stranger", 3: "a", 4: "b"}))) == {0: 3, 1: 4, 2: 1}


def test_two_nodes_of_one_name_are_none() -> None:
    assert find(roster(Nodes({1: "a", 2: "b", 3: "b", 4: "c"}))) == {0: 1, 2: 4}


def test_it_waits_until_all_are_there_and_says_for_whom() -> None:
    told: list[list[int]] = []
    own = roster(Nodes({}, {1: "a"}, {1: "a"}, {1: "a", 2: "b", 3: "c"}), patience=60)
    assert find(own, told=told) == {0: 1, 1: 2, 2: 3}
    assert told == [[0, 1, 2], [1, 2]]


def test_a_site_that_stayed_away_is_waited_for_once_and_welcome_later() -> None:
    nodes = Nodes({1: "a", 2: "b"})
    own = roster(nodes)
    assert seconds(lambda: find(own)) >= 0.3
    assert seconds(lambda: find(own)) < 0.3
    nodes.online = [{1: "a", 2: "b", 3: "c"}]
    assert find(own) == {0: 1, 1: 2, 2: 3}
    nodes.online = [{1: "a", 2: "b"}]
    assert seconds(lambda: find(own)) >= 0.3


def test_without_a_quorum_it_waits_up_to_the_deadline() -> None:
    own = roster(Nodes({1: "a"}), patience=0.1)
    assert seconds(lambda: find(own, needed=2, deadline=0.5)) >= 0.5
    nodes = Nodes(*[{1: "a"}] * 8, {1: "a", 2: "b"})
    assert find(roster(nodes, patience=0.1), needed=2, deadline=60) == {0: 1, 1: 2}


@pytest.mark.parametrize("names", [NAMES, None])
def test_with_nobody_there_it_returns_nobody(names: tuple[str, ...] | None) -> None:
    assert find(roster(Nodes({}), names, patience=0.1), deadline=0.2) == {}
