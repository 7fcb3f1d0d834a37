"""Render Markdown pages from templates; names in them are data, never read as Markdown or HTML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2
from rich import filesize


def markdown(**filters: Callable[..., Any]) -> jinja2.Environment:
    """Return an environment for Markdown templates, with the filters `cell`, `size` (of bytes) and those given."""
    environment = jinja2.Environment(
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(cell=cell, size=filesize.decimal, **filters)
    return environment


def cell(text: str) -> str:
    """Return text escaped for a table: a class's name is data, never Markdown or HTML."""
    plain = " ".join(str(text).split())
    for mark in "\\`*_[]<>|#":
        plain = plain.replace(mark, f"\\{mark}")
    return plain
