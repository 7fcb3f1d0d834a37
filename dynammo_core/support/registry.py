"""Tables of what a configuration can name: this project's own entries, and those that other packages register.

An entry may be a reference, `module:attribute`, that is imported when it is asked for: then a table costs no more
than its names. Other packages add entries by entry points of the table's group, which are found where this
Python has its packages, or by a decorator.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, distribution, entry_points
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from dynammo_core.support.errors import ConfigError, unknown_name
from dynammo_core.support.plugins import Plugin, code_sha256

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
NAMES = "lower-case letters, digits and underscores, starting with a letter, at most 40 characters"
UNKNOWN = "unknown_name"
"""The type of pydantic's error for a name that a table does not have."""


@dataclass(frozen=True)
class Registration(Generic[T]):
    """What a decorator registered: the entry, and the class or function that was decorated."""

    value: T
    definition: Any

    @property
    def reference(self) -> str:
        """Where the definition is, as `module:attribute`."""
        return f"{self.definition.__module__}:{self.definition.__qualname__}"


class OpenNames(Protocol[T_co]):
    """Entries too many to list, whose names begin alike: a module with this constant and these functions will do."""

    PACKAGE: str  # the installed distribution, and its module, whose code stands behind the names

    def problem(self, name: str) -> str:
        """Says why a name cannot be used, and what is accepted; empty if it can be."""
        ...

    def find(self, name: str) -> T_co:
        """Returns the entry of that name."""
        ...


class Registry(Mapping[str, T]):
    """A table by name. As an annotation, `Annotated[str, TABLE]`, it accepts the names of the table alone."""

    def __init__(
        self,
        kind: str,
        group: str,
        built_in: Mapping[str, str | T],
        *,
        accepted: str,
        accepts: Callable[[str, Any], bool] = lambda _, value: callable(value),
        open_names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Make a table.

        Args:
            kind: what an entry is called in messages, such as `method`.
            group: group of the entry points by which installed packages add entries.
            built_in: this project's own entries by name, or references to them: `module:attribute`.
            accepted: what an entry must be, in words.
            accepts: whether an object may stand under a name.
            open_names: modules that are `OpenNames`, by the beginning of the names that they answer for.
        """
        self.kind, self.group, self.built_in = kind, group, MappingProxyType(dict(built_in))
        self._accepted, self._accepts, self._open_names = accepted, accepts, open_names
        self._registered: dict[str, Registration[T]] = {}

    def __getitem__(self, name: str) -> T:
        """Import and return an entry.

        Raises:
            KeyError: the table has no such name.
            ConfigError: several packages claim the name, or the one that brings it cannot be imported.
        """
        if found := self._open(name):
            return found.find(name)
        if conflict := self._conflict(name):
            raise ConfigError(conflict)
        if name in self._registered:
            return self._registered[name].value
        if name in self.built_in:
            return resolved(self.built_in[name])
        return self._load(name, self._entry_points[name][0])

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from sorted({*self._registered, *filter(NAME.fullmatch, self._entry_points)} - self.built_in.keys())

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in [*self]

    def find(self, name: str, key: str) -> T:
        """Return the entry that a key of a configuration names.

        Raises:
            ConfigError: the table has no such name, several packages claim it, or it cannot be imported.
        """
        if problem := self.problem(name):
            raise ConfigError(f"{key}: {problem}")
        return self[name]

    def problem(self, name: str) -> str:
        """Say why a name cannot be used, and what is accepted; return an empty string if it can be."""
        if found := self._open(name):
            return found.problem(name)
        if conflict := self._conflict(name):
            return conflict
        if name in self:
            return ""
        meant = [full for beginning in self._open_names if not self.problem(full := f"{beginning}{name}")]
        accepted = ", ".join([*self, *(f"{beginning}..." for beginning in self._open_names)])
        known = f"{unknown_name(self.kind, name, meant or self)}; accepted: {accepted}"
        return f"{known}; if another package provides it, install that package in this environment"

    def is_open(self, name: str) -> bool:
        """Tell whether a name begins like those of entries that are not listed."""
        return name.startswith(tuple(self._open_names))

    def register(self, name: str, definition: Any, value: T) -> None:
        """Add an entry for this process; a definition that is executed anew replaces itself.

        Args:
            name: its name in the table.
            definition: the class or function that a decorator stands above.
            value: the entry.

        Raises:
            ConfigError: it is not a name, it is taken, or the entry is not of the table's kind.
        """
        new, old = Registration(value, definition), self._registered.get(name)
        if name in self.built_in or (old is not None and old.reference != new.reference):
            holder = f"already registered by {old.reference}" if old else "built into this project"
            raise ConfigError(f"the {self.kind} {name!r} is {holder}", remedy="Choose another name")
        self._require(name, value, new.reference)
        self._registered[name] = new

    def decorator(self, name: str) -> Callable[[T], T]:
        """Return what adds the decorated class or function under a name, and leaves it as it is.

        Raises:
            ConfigError: as `register`, when it is applied.
        """

        def register(entry: T) -> T:
            self.register(name, entry, entry)
            return entry

        return register

    def plugin(self, name: str) -> Plugin | None:
        """Say what code from outside stands under a name; return None for one of this project's own entries.

        Raises:
            KeyError, ConfigError: as when the entry is looked up; or its code cannot be compared.
        """
        if found := self._open(name):
            if problem := found.problem(name):
                raise ConfigError(problem)
            package = found.PACKAGE
            sha256 = code_sha256(found, package, package)
            return Plugin(self.kind, name, package, distribution(package).version, package, sha256)
        if name in self.built_in and not self._conflict(name):
            return None
        value = self[name]
        if name not in self._entry_points:
            package, version, made = "", "", self._registered[name]
            reference, definition = made.reference, made.definition
        else:
            point = self._entry_points[name][0]
            assert point.dist is not None  # every entry point that was found in an installation has one
            package, version, reference, definition = point.dist.name, point.dist.version, point.value, value
        module = reference.partition(":")[0]
        sha256 = code_sha256(definition, module, package or None)
        return Plugin(self.kind, name, package or module.partition(".")[0], version, reference, sha256)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Accept a name of the table, or several, where a field is annotated with it."""

        def check(value: str | Sequence[str]) -> str | Sequence[str]:
            for name in _names(value):
                if problem := self.problem(name):
                    raise PydanticCustomError(UNKNOWN, "{problem}", {"problem": problem})
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))

    @property
    def _entry_points(self) -> Mapping[str, tuple[EntryPoint, ...]]:
        """The entry points of this table's group, by name, none of them loaded."""
        return installed_entry_points(self.group)

    def _open(self, name: str) -> OpenNames[T] | None:
        module = next((module for start, module in self._open_names.items() if name.startswith(start)), None)
        return import_module(module) if module else None

    def _conflict(self, name: str) -> str:
        """Say why a name that a package claims cannot be used; empty if there is no such package, or no reason."""
        points = self._entry_points.get(name, ())
        claims = " and ".join(_origin(point) for point in points)
        provided = f"the {self.kind} {name!r} is provided by"
        if points and not NAME.fullmatch(name):
            return f"{claims} registers the {self.kind} {name!r}; accepted: {NAMES}; install another version of it"
        if len(points) > 1 or (points and name in self.built_in):
            own = "this project and " if name in self.built_in else ""
            return f"{provided} {own}{claims}; uninstall all but one of them"
        if points and name in self._registered and self._load(name, points[0]) is not self._registered[name].value:
            other = self._registered[name].reference
            return f"{provided} {claims} and also registered by {other}; rename one of them"
        return ""

    def _load(self, name: str, point: EntryPoint) -> T:
        """Import what an entry point refers to."""
        try:
            value: T = point.load()
        except Exception as error:  # importing executes a stranger's module, which may raise anything
            raise ConfigError(
                f"the {self.kind} {name!r} of {_origin(point)} cannot be imported from {point.value!r} "
                f"({type(error).__name__}: {error})",
                remedy="Install a version of that package that works with this project",
            ) from error
        self._require(name, value, f"{point.value} of {_origin(point)}")
        return value

    def _require(self, name: str, value: object, source: str) -> None:
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is not a valid name for a {self.kind} ({source})", accepted=NAMES)
        if not self._accepts(name, value):
            raise ConfigError(
                f"{source} cannot serve as the {self.kind} {name!r}: it is {value!r}"[:300], accepted=self._accepted
            )


@cache
def installed_entry_points(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Read the entry points of a group, by name, from the metadata of this Python's packages, once a process."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=group):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def plugins_in(settings: BaseModel) -> set[Plugin]:
    """Return the code from outside that the fields annotated with a table name, in all sections.

    Raises:
        ConfigError: an entry cannot be imported, or its code cannot be compared.
    """
    return {plugin for table, name in _named(settings) if (plugin := table.plugin(name)) is not None}


def _named(settings: BaseModel) -> Iterator[tuple[Registry[Any], str]]:
    """Yield each name in the fields that are annotated with a table, and the table."""
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        if isinstance(value, BaseModel):
            yield from _named(value)
        for table in field.metadata:
            if isinstance(table, Registry):
                yield from ((table, name) for name in _names(value))


def resolved(entry: str | T) -> T:
    """Return an entry, imported if it is a reference."""
    if not isinstance(entry, str):
        return entry
    module, _, attribute = entry.partition(":")
    return getattr(import_module(module), attribute)  # type: ignore[no-any-return]


def _names(value: str | Sequence[str]) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value


def _origin(point: EntryPoint) -> str:
    """Name and version of the distribution that an entry point belongs to."""
    return f"the package {point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown package"
