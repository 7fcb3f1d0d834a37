"""A YAML file into a model: every mistake is named with file, line and key, and no text is too odd to be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from dynammo_core.support.errors import ConfigError
from dynammo_core.support.yaml_files import Section, read_yaml, validate


class Inner(Section):
    depth: int = Field(default=1, ge=1)
    names: tuple[str, ...] = ()


class Forms(Section):
    share: Literal["equal", "seen"] | dict[str, Annotated[float, Field(gt=0)]] = "equal"
    sizes: Literal["all"] | int | tuple[int | str, ...] | None = None
    listed: tuple[str, ...] = ()
    even: bool = True

    @model_validator(mode="after")
    def _even(self) -> Forms:
        if not self.even:
            raise ValueError("even must stay true")
        return self


class Outer(Section):
    title: str
    inner: Inner = Inner()
    forms: Forms = Forms()


def read(folder: Path, text: str | bytes) -> Outer:
    file = folder / "some.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    data, tree = read_yaml(file)
    return validate(Outer, data, str(file), tree)


def refused(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    message = str(caught.value)
    assert str(folder / "some.yaml") in message
    assert "\n" not in message
    return message


def test_what_is_right_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "title: a\ninner:\n  depth: 2\n  names: [x]\n") == Outer(
        title="a", inner=Inner(depth=2, names=("x",))
    )


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").touch()
    (tmp_path / ".hidden.yaml").touch()
    for path, words in (
        (tmp_path, f"is a folder, and no configuration file. Accepted: {tmp_path}/site.yaml. Make one."),
        (tmp_path / "sit.yaml", f"site.yaml'?). Accepted: {tmp_path}/site.yaml."),
        (tmp_path / "gone" / "site.yaml", f": there is no folder '{tmp_path}/gone'. Accepted: a YAML file."),
    ):
        with pytest.raises(ConfigError) as caught:
            read_yaml(path, remedy="Make one")
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title: a\n\ninner:\n  dept: 2\n", "line 4, inner.dept: unknown key (did you mean 'depth'?); accepted: depth"),
        ("# comment\ntitel: a\n", "line 2, titel: unknown key (did you mean 'title'?)"),
        ("inner: {depth: 0}\ntitle: a\n", "line 1, inner.depth: Input should be greater than or equal to 1, got 0"),
        ("title: a\ninner:\n  names:\n    - x\n    - [y]\n", "line 3, inner.names"),
        ("title: a\ninner: 5\n", "line 2, inner: "),
        ("inner: {}\n", "title: this key is required"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    assert words in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("forms", "words"),
    [
        ("share: sen", "forms.share: unknown value 'sen' (did you mean 'seen'?); accepted: equal, seen, a mapping."),
        ("share: 3", "forms.share: unknown value 3; accepted: equal, seen, a mapping."),
        ("share: [1]", "forms.share: unknown value [1]; accepted: equal, seen, a mapping."),
        ("share: {a: -1}", "forms.share.a: Input should be greater than 0, got -1."),
        (
            "share: {a: x}",
            "forms.share.a: Input should be a valid number, unable to parse string as a number, got 'x'.",
        ),
        ("sizes: al", "forms.sizes: unknown value 'al' (did you mean 'all'?); accepted: all, a whole number, a list."),
        ("sizes: [1, {}]", "forms.sizes.1: unknown value {}; accepted: a whole number, a text."),
        (
            "sizes: [1, no, ON]",
            "forms.sizes: YAML takes no, ON for truth values; write numbers in digits, words in quotes",
        ),
        (
            "sizes: yes",
            'forms.sizes: YAML takes yes for truth values; write numbers in digits, words in quotes: "yes".',
        ),
        ("listed: no", "forms.listed: a list is needed, got False."),
        ("even: false", "forms: even must stay true."),
        ("even: 3\n  share: 3", "forms.even: Input should be a valid boolean"),
    ],
)
def test_a_value_that_may_have_several_forms_has_one_mistake(tmp_path: Path, forms: str, words: str) -> None:
    message = refused(tmp_path, f"title: a\nforms:\n  {forms}\n")
    assert words in message
    assert message.count("forms.share") <= 1


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, "titel: a\ninner: {depth: 0}\n")
    assert all(words in message for words in ("titel: unknown", "title: this key is required", "inner.depth: "))


@pytest.mark.parametrize("text", ["", "[]", "just words", "5", "null", "- title: a"])
def test_what_holds_no_keys(tmp_path: Path, text: str) -> None:
    assert "must contain a mapping of keys to values. Accepted: title, inner" in refused(tmp_path, text)


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "\tx", b"\xff\xfe\xff", "a: 2024-13-45", "!!python/object:os.x {}"]
)
def test_what_is_no_yaml(tmp_path: Path, text: str | bytes) -> None:
    assert "is not valid YAML" in refused(tmp_path, text)


@given(text=st.text(max_size=30))
def test_no_text_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    try:
        read(tmp_path_factory.getbasetemp(), f"title: {text}")
    except ConfigError as error:
        assert "some.yaml" in str(error)


def test_a_file_that_is_not_there_is_named_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"no configuration file '.*serve.yaml' \(did you mean '.*server.yaml'\?\)"):
        read_yaml(tmp_path / "serve.yaml")
    with pytest.raises(ConfigError, match="Accepted: a YAML file"):
        read_yaml(tmp_path / "nowhere" / "server.yaml")
    with pytest.raises(ConfigError, match="no configuration file"):
        read_yaml(tmp_path)


def test_an_override_has_no_line() -> None:
    with pytest.raises(ConfigError, match=r"^here, inner.depth: "):
        validate(Outer, {"title": "a", "inner": {"depth": 0}}, "here", None, ["inner.depth"])


def test_an_overridden_list_has_none_either(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("title: a\ninner:\n  names: [x]\n")
    _, tree = read_yaml(tmp_path / "some.yaml")
    with pytest.raises(ConfigError, match=r"^here, inner\.names: .* takes 5 for .*: \"5\"\.$"):
        validate(Outer, {"title": "a", "inner": {"names": ["x", 5]}}, "here", tree, ["inner.names"])
    with pytest.raises(ConfigError, match=r"takes False for .* in quotation marks: such as \"no\"\.$"):
        validate(Outer, {"title": "a", "inner": {"names": ["x", False]}}, "here", tree, ["inner.names"])


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("names: [1, 02, no, ~, 2024-01-31, 1.50, x]", "line 3, inner.names", "1, 02, no, ~, 2024-01-31, 1.50"),
        ("names:\n  - yes\n  - x", "line 3, inner.names", "yes"),
    ],
)
def test_words_that_yaml_takes_for_something_else_are_named_as_they_are_written(
    tmp_path: Path, text: str, place: str, words: str
) -> None:
    message = refused(tmp_path, "title: a\ninner:\n  " + text.replace("\n", "\n  ") + "\n")
    assert message.count(", inner.names") == 1  # one sentence, however many words
    assert f"YAML takes {words} for numbers, truth values, dates or nothing; write " in message
    assert ", ".join(f'"{word}"' for word in words.split(", ")) in message
    assert place in message


def test_a_single_word_too(tmp_path: Path) -> None:
    assert "line 1, title: a text is needed, and YAML takes on for" in refused(tmp_path, "title: on\n")
    assert read(tmp_path, 'title: "on"\n').title == "on"
