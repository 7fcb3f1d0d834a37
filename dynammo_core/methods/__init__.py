"""The table of methods. A new method is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from dynammo_core.methods.acl import ACL
from dynammo_core.methods.base import Method
from dynammo_core.methods.dark_er import DarkER
from dynammo_core.methods.dynamic_er import DynamicER
from dynammo_core.methods.dynammo import DynaMMo
from dynammo_core.methods.dynammo_ridge import DynaMMoRidge
from dynammo_core.methods.fine_tune import FineTune
from dynammo_core.methods.first_session import FirstSession
from dynammo_core.methods.icarl import ICaRL
from dynammo_core.methods.joint import Joint
from dynammo_core.methods.lucir import LUCIR
from dynammo_core.methods.podnet import PODNet
from dynammo_core.methods.replay import Replay
from dynammo_core.methods.ridge import Ridge
from dynammo_core.methods.streaming_ridge import StreamingRidge
from dynammo_core.methods.wa import WA

METHODS: Mapping[str, type[Method[Any]]] = MappingProxyType(
    {
        method.name: method
        for method in (
            *(DynaMMo, FineTune, Replay, Joint),
            *(ICaRL, WA, LUCIR, PODNet, DarkER, DynamicER, ACL),
            *(Ridge, StreamingRidge, DynaMMoRidge, FirstSession),
        )
    }
)
