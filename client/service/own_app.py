"""Answer messages at a site in Flower's own way, but always with the installed app.

The process loads PyTorch, Flower and this project once. A copy of it answers each message, and ends with the answer.
Flower would unpack and import the app that came with the run. Here that app is compared with the installed one, as
bytes. If it differs, the answer is an error, before any of the message's content is decoded.
(flwr 1.41 and 1.42: supernode/runtime/run_clientapp.py)
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from flwr.app import Context, Message

from client.service.daemon import OWN_LINE
from client.service.foreign_app import difference
from dynammo_core.support.errors import ForeignApp
from dynammo_core.support.processes import answer_by_copies
from dynammo_core.support.terminal import printable
from dynammo_core.wire.waiting import SOON

NAME_LENGTH = 100
"""Most characters of a foreign app's name and version that are logged."""
Answer = Callable[[Message, Context], Message]


class InstalledApp:
    """Takes the place of the app that a run brings."""

    def __init__(self) -> None:
        self._difference: str | None = "it was not compared"

    def compare(self, content: bytes, **_: object) -> None:
        """Look at an app, in the place of `install_from_fab`."""
        self._difference = difference(content)

    def loader(self, **_: object) -> Callable[[str, str, str], Answer]:
        """Stand in for `get_load_client_app_fn`."""
        return self._load

    def _load(self, fab_id: str, fab_version: str, _: str) -> Answer:
        if self._difference is None:
            return _installed
        error = ForeignApp(
            f"the run's app {fab_id[:NAME_LENGTH]!r}, version {fab_version[:NAME_LENGTH]!r}, differs from the one "
            f"installed here: {self._difference}",
            remedy="None of it was unpacked or executed. If it is a newer version, install the same on both sides",
        )

        def fail(*_: object) -> NoReturn:
            raise error

        def refuse(message: Message, context: Context) -> Message:
            from client.app import sanitised

            return sanitised(fail)(message, context)

        return refuse


def _installed(message: Message, context: Context) -> Message:
    from client.app import app
    from dynammo_core.wire.envelope import bundled

    reply = app(message, context)
    if reply.has_content():
        reply.content = bundled(reply.content)
    return reply


def replace(module: ModuleType, name: str, stand_in: object) -> None:
    """Replace a name in a module of Flower.

    Raises:
        RuntimeError: the module does not have the name, so the replacement would change nothing.
    """
    if not hasattr(module, name):
        raise RuntimeError(f"this version of Flower lacks {module.__name__}.{name}: a site cannot run safely with it")
    setattr(module, name, stand_in)


def main() -> None:
    """Answer each task whose token is a line of standard input, where no other account can read it."""
    address, parent = sys.argv[1:]
    app, flower = InstalledApp(), import_module("flwr.supernode.runtime.run_clientapp")
    replace(flower, "install_from_fab", app.compare)
    replace(flower, "get_project_dir", lambda *_: Path())
    replace(flower, "get_load_client_app_fn", app.loader)
    pull = flower.pull_and_inflate_object_from_tree
    replace(flower, "pull_and_inflate_object_from_tree", partial(pull, **SOON))
    _mark_own_lines()
    _load()

    def answer(token: str) -> None:
        flower.run_clientapp(
            runtime_api_address=address,
            token=token,
            insecure=True,
            parent_pid=int(parent),
            runtime_dependency_install=False,
        )

    answer_by_copies(answer)


class OwnLines(logging.Formatter):
    """Marks the first line of a message alone: what a message quotes may look like a line of ours."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message with the mark, its other lines indented, and nothing in it but printable signs."""
        return OWN_LINE + "\n  ".join(map(printable, super().format(record).splitlines()))


def _mark_own_lines() -> None:
    """Begin each message of this project by `OWN_LINE`, so that `dynammo-site start` finds and shows it."""
    handler = logging.StreamHandler()
    handler.setFormatter(OwnLines())
    logger = logging.getLogger("dynammo.client")
    logger.addHandler(handler)
    logger.propagate = False


def _load() -> None:
    """Load what each answer needs, in seconds that the copies need not pay."""
    from dynammo_core.code_identity import project_hash  # and only here: a SuperNode needs no PyTorch

    import_module("client.app")
    import_module("torch._dynamo")  # which PyTorch loads with the first optimizer
    import_module("httpcore")  # which httpx loads with the first connection
    project_hash()  # of the code that is loaded, even if another version is installed meanwhile


if __name__ == "__main__":
    main()
