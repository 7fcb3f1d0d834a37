"""The help of every command of the three command lines explains each argument and option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from client.cli import app as site
from server.cli import app as server
from simulations.cli import app as simulation

APPS = {"dynammo-sim": simulation, "dynammo-server": server, "dynammo-site": site}


def commands(app: typer.Typer) -> Iterator[tuple[str, ...]]:
    """The words of each command that runs something, without the program's own name."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if not hasattr(command, "commands"):
            yield words
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, (*words, name))

    return walk(typer.main.get_command(app), ())


@pytest.mark.parametrize(
    ("program", "words"), [(name, words) for name, app in APPS.items() for words in commands(app)], ids=str
)
def test_help_explains_every_parameter(program: str, words: tuple[str, ...]) -> None:
    command: Any = typer.main.get_command(APPS[program])
    for word in words:
        command = command.commands[word]
    shown = CliRunner().invoke(APPS[program], [*words, "--help"], terminal_width=400, env={"COLUMNS": "400"}).output
    said = " ".join(shown.split())
    for parameter in command.params:
        told = " ".join(Text.from_markup(parameter.help or "").plain.split())
        assert told, parameter.name
        styles = re.sub(r"\[(bold|/)\]", "", parameter.help).replace("\\[", "[")
        assert told == " ".join(styles.split()), "words in brackets are lost, as markup"
        assert told in said, parameter.name


def test_a_mistyped_command_is_answered_once() -> None:
    said = CliRunner().invoke(simulation, ["exprt"], env={"COLUMNS": "200"}).output
    assert said.count("Did you mean") == 1 and "'export'" in said, said
