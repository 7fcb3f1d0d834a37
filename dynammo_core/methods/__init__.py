"""The table of methods. A new method is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dynammo_core.methods.base import Method
from dynammo_core.methods.dynammo import DynaMMo
from dynammo_core.methods.fine_tune import FineTune
from dynammo_core.methods.joint import Joint
from dynammo_core.methods.replay import Replay

METHODS: Mapping[str, type[Method]] = MappingProxyType(
    {method.name: method for method in (DynaMMo, FineTune, Replay, Joint)}
)
