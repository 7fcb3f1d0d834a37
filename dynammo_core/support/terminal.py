"""What the three command lines have in common: their look, and errors as one paragraph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from dynammo_core.support.errors import ConfigError, DynammoError

if TYPE_CHECKING:
    from dynammo_core.configuration.config import Scalar


def printable(text: str) -> str:
    """Replace each sign that commands a terminal or reorders its line; the result is one line.

    Names of classes, sites, runs, records and files come from others and may hold such signs.
    """
    # A question mark, since any character set has it: no name may stop a command either.
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def printable_lines(text: str) -> str:
    """Make each line of a text printable, and keep the lines."""
    return "\n".join(map(printable, text.split("\n")))


def cell(text: object, style: str = "") -> Text:
    """Make a text that others may have written fit for a table: one line, printable, and never read as markup."""
    return Text(printable(str(text)), style)


class Terminal(Console):
    """A console to which no name that it prints can give commands."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Lay out as rich does, and leave only what is printable of any text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable_lines(segment.text), segment.style)

    def say(self, words: str) -> None:
        """Print one line as it is: not wrapped, without markup."""
        self.print(printable(words), soft_wrap=True, markup=False, highlight=False)


def command_line(words: str) -> typer.Typer:
    """Return an empty command line that describes itself by `words`."""
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
        words = printable(" ".join(str(error).splitlines()))
        Terminal(stderr=True, emoji=False).print(f"[bold red]error[/] {escape(words)}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None


def parse_overrides(pairs: list[str]) -> dict[str, Scalar]:
    """Parse `key.path=value` texts into a mapping.

    Raises:
        ConfigError: a text lacks "=".
    """
    overrides: dict[str, Scalar] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"--set {pair!r} has no value", accepted="KEY=VALUE, such as federation.sites=10")
        overrides[key] = value
    return overrides
