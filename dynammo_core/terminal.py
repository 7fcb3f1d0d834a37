"""What the three command lines have in common: their look, and errors as one paragraph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from dynammo_core.errors import ConfigError, DynammoError

if TYPE_CHECKING:
    from dynammo_core.config import Scalar


def command_line(words: str) -> typer.Typer:
    """An empty command line that describes itself by `words`."""
    return typer.Typer(
        help=words,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print a deliberate error as one paragraph and exit with 1; anything else is a defect and keeps its traceback."""
    try:
        yield
    except DynammoError as error:
        Console(stderr=True, emoji=False).print(
            f"[bold red]error[/] {escape(str(error))}", soft_wrap=True, highlight=False
        )
        raise typer.Exit(1) from None


def parse_overrides(pairs: list[str]) -> dict[str, Scalar]:
    """`key.path=value` texts as a mapping.

    Raises:
        ConfigError: a text without "=".
    """
    overrides: dict[str, Scalar] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"--set {pair!r} has no value", accepted="KEY=VALUE, such as federation.sites=10")
        overrides[key] = value
    return overrides
