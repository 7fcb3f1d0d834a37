"""Reading a YAML file into a frozen model: every mistake is named with its file, line and key, and what is accepted."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from dynammo_core.support.errors import ConfigError, nearest_match, unknown_name
from dynammo_core.support.registry import UNKNOWN

T = TypeVar("T", bound=BaseModel)
FORMS = {
    "literal_error": "",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "none_required": "null",
}
"""What a value should have been, by pydantic's type of problem."""
TRUTH_VALUE = "truth_value"
TEXT, BOOL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:bool"
# Written in C where PyYAML was built with it, and ten times as fast: a site reads its files for each message.
LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class Section(BaseModel):
    """A part of a configuration: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_a_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `NO` and `on` for numbers: YAML takes them for truth values, and pydantic these for 0 and 1."""
        words = value if isinstance(value, list | tuple) else [value]
        accepted = _types(cls.model_fields[info.field_name or ""].annotation)
        if any(isinstance(word, bool) for word in words) and accepted & {int, float} and bool not in accepted:
            raise PydanticCustomError(TRUTH_VALUE, "a truth value")
        return value


def _types(annotation: Any) -> set[Any]:
    """Return the types in an annotation, with those of a literal's values."""
    inner = get_args(annotation)
    return {annotation if isinstance(annotation, type) else type(annotation)}.union(*map(_types, inner))


def parse_yaml(text: str) -> Any:
    """Parse a YAML document into plain data; an empty one is None.

    Raises:
        yaml.YAMLError: the text is not one YAML document.
        ValueError: a value is impossible, such as the date 2024-13-45.
    """
    return yaml.load(text, Loader=LOADER)


def read_yaml(path: Path, *, remedy: str = "") -> tuple[Any, yaml.Node | None]:
    """Read the plain data of a YAML file, and its tree, which knows the lines.

    Args:
        path: the file.
        remedy: what to do if there is none.

    Raises:
        ConfigError: the file is missing, cannot be read, or is not YAML.
    """
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        here = [str(file) for file in sorted(folder.glob("*.yaml")) if not file.name.startswith(".")]
        what = f"no configuration file '{path}'{nearest_match(str(path), here)}"
        if path.is_dir():
            what = f"{path} is a folder, and no configuration file"
        elif not folder.is_dir():
            what += f": there is no folder '{folder}'"
        raise ConfigError(what, accepted=", ".join(here) or "a YAML file", remedy=remedy)
    try:
        loader = LOADER(path.read_text(encoding="utf-8"))
        try:
            tree = loader.get_single_node()
            return None if tree is None else loader.construct_document(tree), tree
        finally:
            loader.dispose()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", remedy="Make the file readable for this user"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: invalid UTF-8, or a date such as 2024-13-45
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def validate(
    model: type[T], data: Any, source: str, tree: yaml.Node | None = None, overridden: Collection[str] = ()
) -> T:
    """Validate `data` as a `model`; `source`, `tree` and the dotted keys `overridden` are for error messages.

    Raises:
        ConfigError: keys are unknown, missing or have a wrong value; the message names every one.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{source} must contain a mapping of keys to values", accepted=", ".join(model.model_fields))
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = _without_forms(error.errors(), data)
        problems = [_explain(problem, model, data, source, tree, overridden) for problem in found]
        raise ConfigError("; ".join(dict.fromkeys(problems))) from error


def _without_forms(problems: Sequence[ErrorDetails], data: Any) -> list[ErrorDetails]:
    """Make one problem of a value that may have several forms, such as a number or a list: pydantic names one for each.

    If the value has one of the forms, what is wrong with it in that form remains.
    """
    found, tried = list[ErrorDetails](), dict[tuple[int | str, ...], list[ErrorDetails]]()
    for problem in problems:
        place = _place(problem["loc"], data)
        if len(place) == len(problem["loc"]) or problem["type"] == "missing" or problem["loc"][-1] == "[key]":
            found.append(problem)
        else:
            tried.setdefault(place, []).append(problem)
    for place, forms in tried.items():
        inside: list[ErrorDetails] = [
            {**one, "loc": (*place, *one["loc"][len(place) + 1 :])}
            for one in forms
            if one["type"] not in FORMS or len(one["loc"]) > len(place) + 1
        ]
        found += _without_forms(inside, data) if inside else [_of_no_form(place, forms)]
    return found


def _place(loc: tuple[int | str, ...], data: Any) -> tuple[int | str, ...]:
    """Return how much of a place is in the data; what follows is a form's name."""
    for depth, part in enumerate(loc):
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return loc[:depth]
    return loc


def _of_no_form(place: tuple[int | str, ...], forms: Sequence[ErrorDetails]) -> ErrorDetails:
    """Return the problem of a value that has none of the forms that it may have."""
    value = forms[0]["input"]
    words = [word for one in forms for word in re.findall("'([^']*)'", one.get("ctx", {}).get("expected", ""))]
    what = unknown_name("value", value, words) if isinstance(value, str) else f"unknown value {value!r}"
    accepted = [*words, *filter(None, dict.fromkeys(FORMS[one["type"]] for one in forms))]
    return {**forms[0], "loc": place, "type": UNKNOWN, "msg": f"{what}; accepted: {', '.join(accepted)}"}


def _explain(
    problem: ErrorDetails,
    model: type[BaseModel],
    data: Any,
    source: str,
    tree: yaml.Node | None,
    overridden: Collection[str],
) -> str:
    """Explain a problem: `FILE line 3, data.datset: unknown key (did you mean 'dataset'?); accepted: ...`."""
    bare = problem["type"] == "string_type" and not isinstance(problem["input"], list | dict)
    in_list = bare and isinstance(problem["loc"][-1], int)
    path = [str(part) for part in problem["loc"]][: -1 if in_list else None]  # a list is explained as a whole
    names = _accepted_names(model, path[:-1])
    steps = []
    for part in path:
        steps.append(part)
        if part not in _accepted_names(model, steps[:-1]):
            break
    keys = {".".join(steps[:end]) for end in range(1, len(steps) + 1)}
    tree = tree if keys.isdisjoint(overridden) else None
    line = _line(tree, steps)
    place = f"{source}{f' line {line}' if line else ''}, {'.'.join(steps)}"
    if bare:
        return f"{place}: {_to_be_quoted(path, problem['input'], data, tree)}"
    if problem["type"] == TRUTH_VALUE:
        taken, quoted = _words(path, problem["input"], data, tree, BOOL)
        return f"{place}: YAML takes {taken} for truth values; write numbers in digits, words in quotes: {quoted}"
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown key{nearest_match(path[-1], names)}; accepted: {', '.join(names)}"
    if problem["type"] == "missing":
        return f"{place}: this key is required"
    if problem["type"] == UNKNOWN:
        return f"{place}: {problem['msg']}"
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        words = re.findall("'([^']*)'", problem["ctx"]["expected"])
        return f"{place}: {unknown_name('value', problem['input'], words)}; accepted: {', '.join(words)}"
    whole_section = problem["type"] == "value_error" and isinstance(problem["input"], dict)
    got = "" if whole_section else f", got {problem['input']!r}"
    if problem["type"] in ("tuple_type", "dict_type"):  # which pydantic names after Python's types
        return f"{place}: {FORMS[problem['type']]} is needed{got}"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}{got}"


def _to_be_quoted(path: list[str], value: object, data: Any, tree: yaml.Node | None) -> str:
    """Say which words at `path`, such as `value`, YAML takes for something else than texts, and how to write them."""
    words, quoted = _words(path, value, data, tree)
    return (
        f"a text is needed, and YAML takes {words} for numbers, truth values, dates or nothing; write "
        f"{'them' if ', ' in words else 'it'} in quotation marks: {quoted}"
    )


def _words(path: list[str], value: object, data: Any, tree: yaml.Node | None, tag: str = "") -> tuple[str, str]:
    """Return the words at `path`, such as `value`, that YAML takes for what has a tag, or is no text; then quoted ones.

    They are named as the file writes them: `yes` is a truth value to YAML, and `01` a number. Of what did
    not come from the file it is known only how YAML took it.
    """
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
        pairs = tree.value if isinstance(tree, yaml.MappingNode) else ()
        tree = next((node for name, node in pairs if name.value == key), None)
    if tree is not None:
        nodes = tree.value if isinstance(tree, yaml.SequenceNode) else [tree]
        scalars = [node for node in nodes if isinstance(node, yaml.ScalarNode)]
        words = [node.value for node in scalars if (node.tag == tag if tag else node.tag != TEXT)]
    else:
        values = data if isinstance(data, list | tuple) else [value]
        kind = bool if tag else object
        words = [str(each) for each in values if isinstance(each, kind) and not isinstance(each, str | list | dict)]
    guessed = tree is None and {"True", "False", "None"} & {*words}
    return ", ".join(words), 'such as "no"' if guessed else ", ".join(f'"{word}"' for word in words)


def _accepted_names(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def _line(tree: yaml.Node | None, path: list[str]) -> int | None:
    """Return the line, from 1, of the key at `path` or of the list it is in; None if not from the file."""
    line = None
    for part in path:
        if not isinstance(tree, yaml.MappingNode):
            return line
        match = [(key, value) for key, value in tree.value if key.value == part]
        if not match:
            return None
        line, tree = match[0][0].start_mark.line + 1, match[0][1]
    return line
