"""What the three command lines have in common: their look, and errors as one paragraph."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

import typer
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dynammo_core.support.errors import ConfigError, DynammoError

if TYPE_CHECKING:
    from dynammo_core.configuration.config import Scalar


T = TypeVar("T")


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


def listing(*columns: str, fold: Collection[str] = (), right: Collection[str] = (), title: str = "") -> Table:
    """Return an empty table without lines, in which only the columns `fold` break their words when space is short.

    Args:
        columns: the heads, which may have several lines.
        fold: columns with names, which may be long; by default the first one.
        right: columns that are aligned to the right.
        title: text above the table.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", title_justify="left")
    table.title = cell(title, "bold") if title else None
    for number, words in enumerate(columns):
        folds = words in fold if fold else number == 0
        justify: JustifyMethod = "right" if words in right else "left"
        table.add_column(words, no_wrap=not folds, overflow="fold" if folds else "ellipsis", justify=justify)
    return table


class _Lasting:
    """A stream to people that never stops a program: what can no longer be written is dropped."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        return self._try(lambda: self._stream.write(text))

    def flush(self) -> None:
        """Pass on what was written, or drop it."""
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], T]) -> T | int:
        try:
            return action()
        except OSError as error:  # a closed pipe, a terminal that is gone, a full disk
            # In the stream's own place, since Python itself writes there what is left when the program ends.
            with open(os.devnull, "w") as nowhere:  # noqa: PTH123
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if self._stream is not sys.stderr:
                lost = f"nothing more can be printed ({error.strerror}); the command continues"
                Terminal(stderr=True).print(f"[bold yellow]warning[/] {lost}", soft_wrap=True)
            return 0


class Terminal(Console):
    """A console that no printed name can control, and whose loss does not end the program."""

    @property  # type: ignore[misc]  # nobody sets it
    def file(self) -> IO[str]:
        """Return where it prints."""
        return cast("IO[str]", _Lasting(super().file))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Lay out as rich does, and leave only what is printable of any text, in this console's character set."""
        for segment in super().render(renderable, options):
            text = printable_lines(segment.text).encode(self.encoding, "replace").decode(self.encoding)
            yield segment if segment.control else Segment(text, segment.style)

    def say(self, words: str) -> None:
        """Print one line as it is: not wrapped, without markup."""
        self.print(printable(words), soft_wrap=True, markup=False, highlight=False)


def command_line(words: str) -> typer.Typer:
    """Return an empty command line that describes itself by `words`."""
    return typer.Typer(
        help=words,
        no_args_is_help=True,
        add_completion=False,
        suggest_commands=False,  # click suggests too
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
