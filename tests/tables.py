"""Entries that are in a table for one test alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dynammo_core.support.registry import Registry


@contextmanager
def registered(table: Registry[Any], name: str, definition: Any, value: Any = None) -> Iterator[None]:
    """Add an entry, the definition itself or what it makes, and take it away again."""
    table.register(name, definition, definition if value is None else value)
    try:
        yield
    finally:
        del table._registered[name]
