"""A table takes entries from other packages: by entry points and decorators, refused where they could be mistaken."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
import torch
from pages import blocks, tables, text_of
from plugins import FILES, METHOD, forget, install, on_the_path
from pydantic import BaseModel, ValidationError
from tables import registered

import dynammo_core
from dynammo_core.aggregation import AGGREGATORS
from dynammo_core.data.datasets import DATASETS, LABELS
from dynammo_core.merging import MERGE_OPERATORS
from dynammo_core.merging.operators import merge
from dynammo_core.merging.task_sets import TaskSets
from dynammo_core.methods import METHODS, register_method
from dynammo_core.methods.fine_tune import FineTune
from dynammo_core.models import BACKBONES, register_backbone
from dynammo_core.models.backbones import SMALL_CNN, BackboneSpec
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.plugins import Plugin
from dynammo_core.support.registry import Registry, plugins_in
from server.trackers import TRACKERS

ROOT = Path(__file__).parents[2]
TABLES = (METHODS, DATASETS, LABELS, BACKBONES, MERGE_OPERATORS, AGGREGATORS)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    with on_the_path(install(tmp_path / "installed")):
        yield tmp_path / "installed"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_every_entry_of_a_table_is_of_its_kind(table: Registry[object]) -> None:
    assert list(table) == list(table.built_in)
    for name in table:
        table._require(name, table[name], "the table")
        assert table.plugin(name) is None
    with pytest.raises(KeyError):
        table["nothing"]
    assert table.get("nothing") is None


def test_groups_of_entry_points_are_different() -> None:
    assert len({table.group for table in (*TABLES, TRACKERS)}) == len(TABLES) + 1


def test_names_cost_no_torch() -> None:
    script = """
import sys
import dynammo_core
from dynammo_core.aggregation import AGGREGATORS
from dynammo_core.data.datasets import DATASETS
from dynammo_core.methods import METHODS
from dynammo_core.models import BACKBONES
assert all("x" not in table for table in (METHODS, DATASETS, BACKBONES, AGGREGATORS))
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


# --- entry points


def test_an_installed_package_adds_entries(outside: Path) -> None:
    assert "half_replay" in METHODS and list(METHODS)[-1] == "half_replay"
    assert METHODS["half_replay"].name == "half_replay"
    assert "outside.merge" not in sys.modules  # only what is asked for is imported
    assert MERGE_OPERATORS["newest_half"].__module__ == "outside.merge"
    found = METHODS.plugin("half_replay")
    assert found is not None
    assert (found.package, found.version) == ("federated-outside", "1.0")
    assert found.reference == "outside.method:HalfReplay"
    assert str(found) == f"method half_replay of federated-outside 1.0 ({found.sha256[:16]})"


def plugin_of(folder: Path, files: Mapping[str, str] = FILES, **about: str) -> Plugin:
    """The method as it is installed, seen by a new process."""
    with on_the_path(install(folder, files, **about)):
        found = METHODS.plugin("half_replay")
    assert found is not None
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"outside/method.py": METHOD + "\n"},
        {"outside/data/table.json": "{}"},
        {"outside/deeper/__init__.py": ""},
        {"beside.py": ""},
        {"beside/code.py": ""},
    ],
)
def test_each_file_that_a_package_installs_is_in_its_hash(tmp_path: Path, change: dict[str, str]) -> None:
    assert plugin_of(tmp_path / "one").sha256 == plugin_of(tmp_path / "two").sha256
    assert plugin_of(tmp_path / "three", {**FILES, **change}).sha256 != plugin_of(tmp_path / "one").sha256


def test_what_this_machine_made_of_the_files_is_not(tmp_path: Path) -> None:
    one = plugin_of(tmp_path / "one")
    (tmp_path / "one" / "outside" / "__pycache__").mkdir(exist_ok=True)
    (tmp_path / "one" / "outside" / "__pycache__" / "method.cpython-00.pyc").write_bytes(b"made here")
    assert plugin_of(tmp_path / "one") == one


def test_another_version_is_another_plugin(tmp_path: Path) -> None:
    assert plugin_of(tmp_path / "one") != plugin_of(tmp_path / "two", version="1.1")


def test_code_that_lies_in_an_archive_is_refused(tmp_path: Path) -> None:
    folder = install(tmp_path / "unpacked")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))
    with on_the_path(tmp_path / "packed.zip"):
        with pytest.raises(ConfigError, match=r"is not in a file.*as a folder"):
            METHODS.plugin("half_replay")
        forget(tmp_path / "packed.zip")


@pytest.mark.parametrize(
    ("points", "name", "words"),
    [
        (
            {"fine_tune": "outside.method:HalfReplay"},
            "fine_tune",
            "'fine_tune' is provided by this project and the pack",
        ),
        (
            {"Half Replay": "outside.method:HalfReplay"},
            "Half Replay",
            "federated-outside 1.0 registers the method 'Half Rep",
        ),
        (
            {"other_name": "outside.method:HalfReplay"},
            "other_name",
            "cannot serve as the method 'other_name'.*whose attribute",
        ),
        (
            {"half_replay": "outside.merge:newest_half"},
            "half_replay",
            "cannot serve as the method.*Accepted: a subclass of",
        ),
        ({"half_replay": "outside.method:Gone"}, "half_replay", "of the package federated-outside 1.0 cannot be imp"),
        ({"half_replay": "outside.broken:x"}, "half_replay", r"\(ZeroDivisionError: .*Install a version of that pack"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_refused(
    tmp_path: Path, points: dict[str, str], name: str, words: str
) -> None:
    files = {**FILES, "outside/broken.py": "1 / 0"}
    with (
        on_the_path(install(tmp_path / "installed", files, {"dynammo.methods": points})),
        pytest.raises(ConfigError, match=words),
    ):
        METHODS.find(name, "method.name")


def test_one_bad_package_spoils_no_other_name(tmp_path: Path) -> None:
    points = {"dynammo.methods": {"fine_tune": "outside.broken:x", "Bad!": "outside.broken:x"}}
    with on_the_path(install(tmp_path / "installed", FILES, points)):
        assert METHODS["replay"].name == "replay"
        assert list(METHODS) == list(METHODS.built_in)


def test_two_packages_of_one_name_are_refused(outside: Path, tmp_path: Path) -> None:
    other = install(tmp_path / "other", {"third.py": METHOD}, {"dynammo.methods": {"half_replay": "third:HalfReplay"}})
    with on_the_path(other):  # the same distribution again: the first on the path counts, as for pip
        assert METHODS["half_replay"].__module__ == "third"
    install(tmp_path / "other", {}, {"dynammo.methods": {"half_replay": "third:HalfReplay"}}, name="federated-third")
    with (
        on_the_path(tmp_path / "other"),
        pytest.raises(
            ConfigError, match=r"provided by the package federated-.* and the package federated-.*; uninstall"
        ),
    ):
        METHODS["half_replay"]


def test_a_name_that_no_package_brings_tells_what_to_do(outside: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        METHODS.find("half_repay", "method.name")
    words = "method.name: unknown method 'half_repay' (did you mean 'half_replay'?); accepted: dynammo, "
    assert str(caught.value).startswith(words)
    assert str(caught.value).endswith(
        "half_replay; if another package provides it, install that package in this environment."
    )


def test_the_package_of_the_guide_works(tmp_path: Path) -> None:
    guide = "docs/how-to/plugins.md"
    module, typed_in = blocks(guide, "python")
    (described,) = blocks(guide, "toml")
    project = tomllib.loads(described)["project"]
    (reference,) = project["entry-points"]["dynammo.merging"].values()
    files = {f"{reference.partition(':')[0].replace('.', '/')}.py": module}
    about = {"name": project["name"], "version": project["version"]}
    sets = TaskSets([{"0.alpha": torch.tensor(value)} for value in (1.0, 5.0, 3.0)])
    with on_the_path(install(tmp_path, files, project["entry-points"], **about)):
        assert merge("first_and_last", sets) == {"0.alpha": torch.tensor(2.0)}
    try:
        exec(typed_in, {"__name__": "typed_in"})
        assert merge("newest_half", sets) == {"0.alpha": torch.tensor(3.0)}
    finally:
        del MERGE_OPERATORS._registered["newest_half"]


def test_the_guide_lists_every_table() -> None:
    rows = tables(text_of("docs/how-to/plugins.md"))[0]
    assert {row[1].strip("`") for row in rows} == {table.group for table in (*TABLES, TRACKERS)}


# --- decorators


def test_a_decorator_adds_an_entry_for_this_process() -> None:
    class Mine(FineTune):
        name = "mine"

    with registered(METHODS, "mine", Mine):
        assert METHODS["mine"] is Mine
        found = METHODS.plugin("mine")
        assert found is not None
        assert (found.package, found.version) == ("test_registry", "")
        assert register_method(Mine) is Mine  # executed anew
    assert "mine" not in METHODS


def test_all_decorators_leave_what_they_decorate() -> None:
    @dynammo_core.register_aggregator("mine")
    @dynammo_core.register_dataset("mine")
    @dynammo_core.register_merge_operator("mine")
    def mine(*_: object) -> None:
        """Do nothing."""

    try:
        assert AGGREGATORS["mine"] is DATASETS["mine"] is MERGE_OPERATORS["mine"] is mine
    finally:
        for table in (AGGREGATORS, DATASETS, MERGE_OPERATORS):
            del table._registered["mine"]


def test_a_backbone_is_what_the_function_returns() -> None:
    @register_backbone("tiny")
    def tiny() -> BackboneSpec:
        return SMALL_CNN

    try:
        assert BACKBONES["tiny"] is SMALL_CNN
        assert BACKBONES.plugin("tiny") is not None
    finally:
        del BACKBONES._registered["tiny"]
    with pytest.raises(ConfigError, match=r"cannot serve as the backbone 'none'.*Accepted: a .*BackboneSpec"):
        register_backbone("none")(lambda: None)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fine_tune", "the method 'fine_tune' is built into this project. Choose another name"),
        ("Mine", r"'Mine' is not a valid name for a method .*\. Accepted: lower-case letters, digits"),
        ("", "'' is not a valid name for a method"),
        ("a" * 41, "not a valid name"),
        ("../mine", "not a valid name"),
    ],
)
def test_bad_names_are_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        register_method(type("Bad", (FineTune,), {"name": name}))
    assert name not in METHODS._registered


def test_a_second_definition_of_a_name_is_refused() -> None:
    def first(*_: object) -> None: ...

    def second(*_: object) -> None: ...

    with (
        registered(AGGREGATORS, "mine", first),
        pytest.raises(ConfigError, match=r"'mine' is already registered by test_registry:.*first"),
    ):
        AGGREGATORS.decorator("mine")(second)


def test_what_is_no_method_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot serve as the method 'odd'.*Accepted: a subclass"):
        register_method(type("Odd", (), {"name": "odd"}))


def test_a_package_may_do_both(tmp_path: Path) -> None:
    """Its own module decorates what its entry point names; another object under that name is refused."""
    decorated = "from dynammo_core import register_method\n" + METHOD.replace(
        "class HalfReplay(", "@register_method\nclass HalfReplay("
    )
    with on_the_path(install(tmp_path / "installed", {**FILES, "outside/method.py": decorated})):
        try:
            assert METHODS["half_replay"] is METHODS["half_replay"]
            found = METHODS.plugin("half_replay")
            assert found is not None and found.package == "federated-outside"
            METHODS._registered["half_replay"] = type(METHODS._registered["half_replay"])(FineTune, FineTune)
            with pytest.raises(
                ConfigError, match=r"provided by the package federated-outside 1\.0 and also registered by dyn"
            ):
                METHODS["half_replay"]
        finally:
            del METHODS._registered["half_replay"]


def test_what_was_typed_in_is_known_by_its_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, where no file holds the code."""
    monkeypatch.setitem(sys.modules, "cell", ModuleType("cell"))
    source = "class Typed(FineTune):\n    name = 'typed'\n    def more(*_): return 'text {}'\n"
    hashes = []
    for number in (0, 0, 1):
        scope = {"__name__": "cell", "FineTune": FineTune}
        exec(compile(source.format(number), "cell", "exec"), scope)
        with registered(METHODS, "typed", scope["Typed"]):
            found = METHODS.plugin("typed")
        assert found is not None
        hashes.append(found.sha256)
    assert hashes[0] == hashes[1] != hashes[2]


# --- names in a model


class Part(BaseModel):
    merge: Annotated[str | tuple[str, ...], MERGE_OPERATORS] = "mean"


class Whole(BaseModel):
    part: Part = Part()
    backbone: Annotated[str, BACKBONES] = "small_cnn"


def test_the_plugins_of_a_model_are_found_in_all_sections(outside: Path) -> None:
    assert plugins_in(Whole()) == set()
    found = plugins_in(Whole(part=Part(merge=("mean", "newest_half", "newest_half"))))
    assert [(plugin.kind, plugin.name) for plugin in found] == [("merge operator", "newest_half")]


def test_a_field_takes_the_names_of_its_table_alone() -> None:
    with pytest.raises(
        ValidationError, match=r"unknown merge operator 'meen' \(did you mean 'mean'\?\); accepted: mean"
    ):
        Part(merge=("mean", "meen"))
    with pytest.raises(ValidationError, match="unknown backbone"):
        Whole(backbone="small")
    with pytest.raises(ValidationError, match="valid string"):
        Whole(backbone=5)  # type: ignore[arg-type]
