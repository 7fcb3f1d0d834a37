"""What code stands behind a name that a package outside this project brought: its version, and a hash of its files."""

from __future__ import annotations

import hashlib
import marshal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path, PurePosixPath
from types import CodeType, FunctionType

from dynammo_core.support.errors import ConfigError

OWN = ("client", "dynammo_core", "server", "simulations")
"""Packages of this project, which the hash of its own code covers."""


@dataclass(frozen=True, order=True)
class Plugin:
    """An entry of a table that was registered from outside.

    Attributes:
        kind: what it is, such as `method`.
        name: its name in the table.
        package: the installed distribution that brought it, or the module that registered it.
        version: version of that distribution; empty for a module.
        reference: where the object is, as `module:attribute`.
        sha256: hash of the names and contents of the package's files, as 64 hexadecimal digits.
    """

    kind: str
    name: str
    package: str
    version: str
    reference: str
    sha256: str

    def __str__(self) -> str:
        release = f"{self.package} {self.version}".strip()
        return f"{self.kind} {self.name} of {release} ({self.sha256[:16]})"


def code_sha256(value: object, module: str, distribution: str | None) -> str:
    """Return the SHA-256 of the code that `value` consists of, as 64 hexadecimal digits.

    It covers every file, data included, of the top-level package that `module` belongs to, and of all others that the
    distribution installed. What was typed into a notebook has no file: there the compiled functions are hashed.

    Args:
        value: the registered object.
        module: where it was defined.
        distribution: name of the distribution that brought it, if one did.

    Raises:
        ConfigError: its code lies in no file that could be compared, as in a zip archive.
    """
    if (digest := _files_sha256(module.partition(".")[0], distribution)) is not None:
        return digest
    code = [marshal.dumps(part) for part in _compiled(value)]
    if not code or distribution is not None:
        raise ConfigError(
            f"the code of {value!r} is not in a file, so two machines cannot compare it",
            remedy="Install its package unpacked, as a folder and not as an archive",
        )
    return hashlib.sha256(b"\0".join(code)).hexdigest()


@cache
def _files_sha256(package: str, distribution: str | None) -> str | None:
    """Hash each file once a process, as the project's own code is; return None if there is no file."""
    files = dict(_package_files(package))
    if distribution is not None:
        files |= dict(_installed_files(distribution))
    if not files:
        return None
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _package_files(package: str) -> Iterator[tuple[str, Path]]:
    """Yield the files of an imported top-level package, or of a single module, wherever it was imported from."""
    module = sys.modules[package]
    for place in map(Path, getattr(module, "__path__", ())):
        for file in place.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                yield f"{package}/{file.relative_to(place).as_posix()}", file
    file = Path(getattr(module, "__file__", None) or "")
    if not hasattr(module, "__path__") and file.is_file():
        yield file.name, file


def _installed_files(distribution: str) -> Iterator[tuple[str, Path]]:
    """Yield what else the distribution installed, except its metadata and what an editable installation adds."""
    try:
        installed = Distribution.from_name(distribution)
    except PackageNotFoundError:
        return
    for listed in installed.files or ():
        parts, file = PurePosixPath(listed).parts, Path(str(installed.locate_file(listed)))
        beside = parts[0].endswith((".dist-info", ".egg-info", ".pth")) or parts[0].startswith("__editable__")
        if not beside and parts[0] not in ("..", *OWN) and "__pycache__" not in parts and file.is_file():
            yield PurePosixPath(listed).as_posix(), file


def _compiled(value: object) -> Iterator[CodeType]:
    """Yield the code of a function, or of all functions of a class."""
    if isinstance(value, FunctionType):
        yield value.__code__
    elif isinstance(value, type):
        for part in vars(value).values():
            yield from _compiled(getattr(part, "__func__", part))
