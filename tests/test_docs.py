"""What the README and the pages under docs/ say is what the code does: links, commands, keys, tables and examples."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from generate import PART, PARTS, render, travelling_stages
from pages import PAGES, ROOT, anchors, blocks, code, first_column, prose, section, shell, tables, text_of
from pydantic import BaseModel
from small_runs import SITES, Finished, events, small_config
from tables import registered

from client.app import app as client_app
from client.cli import app as site_app
from client.hospital.door import UNEXPECTED
from dynammo_core.aggregation import AGGREGATORS
from dynammo_core.configuration.config import Config, leaf_keys, load_config, resolve
from dynammo_core.configuration.settings import BackboneSettings, DataSettings
from dynammo_core.data.datasets import DATASETS
from dynammo_core.data.index.opening import open_dataset
from dynammo_core.data.loading import load_samples
from dynammo_core.data.sites.scanners import SCANNERS
from dynammo_core.merging import MERGE_OPERATORS
from dynammo_core.methods import METHODS
from dynammo_core.models import BACKBONES, backbones
from dynammo_core.support.errors import DataError, DynammoError
from dynammo_core.wire.envelope import MESSAGE_TYPES, PHASE_TYPES
from dynammo_core.wire.protocol import NUMBERS, PRIVATE_NUMBERS, Instruction, Phase, Report
from dynammo_core.wire.secure_aggregation.phases import PHASE_DOWN, PHASE_UP
from server.cli import app as server_app
from server.run.run import run_and_report
from simulations.cli import app, parse_overrides
from simulations.comparisons.compare import is_comparison, load_comparison
from simulations.engines.local_grid import LocalGrid

SECURE_AGGREGATION = "docs/how-to/use-secure-aggregation.md"
CONFIGURATION, NAMES, MESSAGES, RUN_DIRECTORY, ERRORS = (
    f"docs/reference/{name}.md" for name in ("configuration", "names", "messages", "run-directory", "error-codes")
)
TO_BE_MADE = {"dynammo_core/data/datasets/arrays.py"}
"""Files that the reader is told to make."""
COMMANDS = typer.main.get_command(app)
OTHERS = {"dynammo-server": typer.main.get_command(server_app), "dynammo-site": typer.main.get_command(site_app)}
every_page = pytest.mark.parametrize("page", PAGES)


@every_page
def test_links_lead_somewhere(page: str) -> None:
    links = [link for link in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text_of(page)) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.relative_to(ROOT).as_posix()), link


@every_page
def test_files_that_are_named_exist(page: str) -> None:
    named = re.findall(
        r"(?<![\w/.])(?:server|client|dynammo_core|simulations|configs|docs|tests)/[\w./*-]+", text_of(page)
    )
    for name in {name.rstrip(".") for name in named}:
        assert bool(list(ROOT.glob(name))) is (name not in TO_BE_MADE), name


@every_page
def test_commands_that_are_shown_would_run(page: str) -> None:
    """Blocks are parsed whole, their overrides included; commands within a sentence have options that exist."""
    for words in shell(page):
        if words[0] == "dynammo-sim":
            _parse(words[1:])
        elif words[0] in OTHERS:
            _parse_deeply(OTHERS[words[0]], words[1:])
    for words in map(str.split, code(prose(page))):
        if words[0] == "dynammo-sim" and len(words) > 1:
            options = {option for parameter in _command(words[1]).params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= {*options, "--help"}, words
        elif words[0] == "make" and len(words) > 1:
            assert words[-1] in _targets()
    assert {words[1] for words in shell(page) if words[0] == "make"} <= _targets()


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _command(name: str) -> Any:
    return COMMANDS.commands[name]  # type: ignore[attr-defined]


def _parse_deeply(command: Any, words: list[str]) -> None:
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("", words)


def _parse(words: list[str]) -> None:
    given = _command(words[0]).make_context(words[0], words[1:]).params
    files = [Path(file) for file in given.get("files") or [given.get("config") or given.get("file")] if file]
    for file in files:
        if file.parts[0] != "configs":
            continue  # a placeholder such as RUN_DIR
        overrides = parse_overrides(list(given.get("set_") or []))
        assert load_comparison(ROOT / file) if is_comparison(ROOT / file) else load_config(ROOT / file, overrides)


@every_page
def test_flower_knows_the_run_config_that_is_shown(page: str) -> None:
    for words in shell(page):
        if words[:2] == ["flwr", "run"]:
            values = dict(pair.split("=") for pair in shlex.split(words[words.index("--run-config") + 1]))
            assert set(values) <= {*leaf_keys(), "config", "runs", "resume", "track"}
            assert values["config"].startswith("/path/") or (ROOT / values["config"]).is_file()


@every_page
def test_what_the_code_decides_is_as_the_code_says(page: str) -> None:
    assert render(text_of(page)) == text_of(page), "`make docs` writes the generated parts anew"


def test_every_part_that_is_generated_stands_on_one_page() -> None:
    shown = [name for page in PAGES for _, name, _ in PART.findall(text_of(page))]
    assert sorted(shown) == sorted(PARTS)


@every_page
def test_a_page_can_be_reached_from_the_index(page: str) -> None:
    linked = re.findall(r"\]\(\s*([^)#\s]+)", text_of("docs/README.md") + text_of("README.md").replace("](", "](../"))
    assert PAGES[page] in {(ROOT / "docs" / link).resolve() for link in linked} | {ROOT / "README.md"}


def test_the_tables_of_methods_data_sets_and_backbones_are_whole() -> None:
    assert set(first_column(tables(section("README.md", "Methods"))[0])) == set(METHODS)
    assert set(first_column(tables(section(NAMES, "Data sets"))[0])) == set(DATASETS)
    assert set(first_column(tables(section(NAMES, "Backbones"))[0])) == set(BACKBONES)
    assert set(first_column(tables(section(NAMES, "Merge operators"))[0])) == set(MERGE_OPERATORS)
    assert set(first_column(tables(section(NAMES, "Aggregators"))[0])) == set(AGGREGATORS)
    assert set(first_column(tables(section(NAMES, "Scanners"))[0])) == {"same", *SCANNERS}


def test_every_configuration_key_is_documented_with_its_default() -> None:
    (general,), (parameters,), (stages,) = (
        tables(section(CONFIGURATION, name)) for name in ("Keys", "Keys of the methods", "Keys of a training stage")
    )
    shared = {code(row[0])[0]: row[2].strip("`") for row in general}
    own = {
        (method, code(key)[0]): cell.strip("`") for key, methods, _, cell, _ in parameters for method in code(methods)
    }
    columns = ["adapt", "balance", "train", "podnet: balance", "dynamic_er: balance", "joint: train"]
    by_stage = {
        column: {code(key)[0]: cells[index].strip("`") for key, _, *cells, _ in stages}
        for index, column in enumerate(columns)
    }
    for method in METHODS:
        documented = {**shared, **{key: cell for (name, key), cell in own.items() if name == method}}
        defaults = _defaults(method)
        for stage in {key.split(".")[1] for key in defaults if key.startswith("method.") and key.count(".") == 2}:
            cells = by_stage.get(f"{method}: {stage}", by_stage[stage])
            documented |= {f"method.{stage}.{key}": cell for key, cell in cells.items()}
        assert sorted(documented) == sorted(defaults), method
        for key, cell in documented.items():
            assert (cell if cell == "required" else yaml.safe_load(cell)) == defaults[key], (method, key)


def test_sections_of_a_configuration_that_are_shown_are_valid() -> None:
    shown = [yaml.safe_load(block) for page in PAGES for block in blocks(page, "yaml")]
    assert {"path16", "medmnist"} <= {sections.get("data", {}).get("dataset") for sections in shown}
    experiments = [sections for sections in shown if {"rows", "grid"}.isdisjoint(sections)]  # and no comparisons
    for name, values in (item for sections in experiments for item in sections.items()):
        if isinstance(kind := Config.model_fields[name].annotation, type) and issubclass(kind, BaseModel):
            kind.model_validate(_with_fingerprints(values))


def _with_fingerprints(values: Mapping[str, Any]) -> dict[str, Any]:
    """The section, with keys where the page has left them out."""
    return {
        key: [f"SHA256:{number:043}" for number in range(len(value))] if key == "site_keys" else value
        for key, value in values.items()
    }


def _defaults(method: str) -> dict[str, Any]:
    """The value of each leaf in a configuration that gives nothing but what it must, at two sites in place of one."""
    must = {"name": "x", "data": {"dataset": "digits"}, "method": {"name": method}, "federation": {"sites": 2}}
    leaves = dict(_leaves(resolve(must, "test", {}).model_dump(mode="json"), "")) | {"federation.sites": 1}
    fitted = {"method.adapter": "auto"}  # which says what the network takes
    leaves |= {key: value for key, value in fitted.items() if key in leaves}
    return leaves | dict.fromkeys(("name", "data.dataset", "method.name"), "required")


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield from _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]


def test_every_file_and_key_of_a_run_directory_is_documented(tmp_path: Path) -> None:
    grid = LocalGrid(client_app, nodes=SITES, run_config={})
    run = run_and_report(grid, small_config(), runs=tmp_path, resume=None).path
    files = {
        re.sub(r"-\d+", _as_letters, path.relative_to(run).as_posix()) for path in run.rglob("*") if path.is_file()
    }
    listed = tables(section(RUN_DIRECTORY, "Run directory"))[0]
    assert {name for row in listed for name in code(row[0])} == files | {
        "flower.log",
        "sites/site-NNN/feedback.safetensors",
        "sites/site-NNN/heads/task-NN.sealed",
        "sites/site-NNN/privacy.json",
        "sites/site-NNN/statistics.sealed",
        "sites/site-NNN/tested/task-NN.sealed",
        "privacy_audit.json",
        "privacy_audit.html",
        "trackers.json",
        "tensorboard/",
    }
    cells = {code(row[0])[0]: row[1] for row in listed}
    for name in ("accuracy_matrix.csv", "confusion_matrix.csv"):
        with (run / name).open() as table:
            assert code(cells[name])[0] == ",".join(next(csv.reader(table)))
    assert set(json.loads((run / "model.json").read_text())) == set(code(cells["model.json"]))

    keys = tables(section(RUN_DIRECTORY, "summary.json"))[0]
    assert [code(row[0]) for row in keys] == [[key] for key in json.loads((run / "summary.json").read_text())]
    assert all(meaning and source for _, _, meaning, source in keys)


def _as_letters(number: re.Match[str]) -> str:
    return re.sub(r"\d", "N", number[0])


RARE = {
    *("gate_judged", "released", "rolled_back", "share_limited", "run_failed"),
    *("waiting", "asking_again", "code_changed", "forgotten", "round_kept"),
}


def test_every_event_and_its_fields_are_documented(finished: Finished) -> None:
    text = section(RUN_DIRECTORY, "events.jsonl")
    rows = {code(kind)[0]: code(cell) for kind, cell in tables(text)[0]}
    logged = events(finished("dynammo").path)
    assert set(rows) == {event["event"] for event in logged} | RARE
    rows["step_finished"] += rows["step_started"]
    for event in logged:
        assert set(event) - {"event", "time"} <= set(rows[event["event"]]), event["event"]
    step = next(event for event in logged if event["event"] == "step_finished")
    assert set(step["sites"][0]) <= set(code(text))


def test_what_travels_is_listed_exactly() -> None:
    handlers, instruction = (
        tables(section(MESSAGES, name))[0] for name in ("What runs at a site", "What comes to a site")
    )
    assert {code(row[0])[0]: code(row[1])[0] for row in handlers} == dict(MESSAGE_TYPES)
    assert first_column(instruction) == [*(field.name for field in fields(Instruction)), "tensors"]
    numbers, private, meanings = tables(section(MESSAGES, "What leaves a site"))
    for table, declared in ((numbers, NUMBERS), (private, PRIVATE_NUMBERS)):
        assert {code(row[0])[0]: set(code(row[1])) for row in table} == dict(declared)
    assert set(first_column(meanings)) == set().union(*NUMBERS.values(), *PRIVATE_NUMBERS.values())
    answer = re.findall(r"^\d\. `(\w+)`", section(MESSAGES, "What leaves a site"), re.MULTILINE)
    assert answer == ["abstained", "numbers", "weights"]
    assert set(answer) == {field.name for field in fields(Report)}
    (travelling,) = tables(section(MESSAGES, "Tensors by stage"))
    listed = {
        (method, *(tuple(code(cell)) for cell in (stage, action, down, up)))
        for stage, action, methods, down, up in travelling
        for method in code(methods)
    }
    assert listed == {
        (name, (stage.name,), (stage.action.value,), stage.down, stage.up) for name, stage in travelling_stages()
    }


def test_what_travels_under_secure_aggregation_is_listed_exactly() -> None:
    (exchanges,) = tables(section(MESSAGES, "With secure aggregation"))
    listed = {code(row[0])[0]: (set(code(row[1])), code(row[2])) for row in exchanges}
    assert listed == {PHASE_TYPES[phase]: (PHASE_DOWN[phase], [PHASE_UP[phase]]) for phase in Phase}
    (explained,) = tables(section(SECURE_AGGREGATION, "Use secure aggregation"))
    assert first_column(explained) == [phase.value for phase in Phase]


def test_every_error_code_is_documented() -> None:
    rows = tables(section(ERRORS, "Error codes"))[0]
    listed = {int(row[0]): row[1].strip("`") for row in rows}
    classes = [DynammoError, *DynammoError.__subclasses__()]
    assert listed == {c.code: c.__name__ for c in classes} | {UNEXPECTED: listed[UNEXPECTED]}


def example(holds: str) -> str:
    """The one block of Python in all pages that holds a text."""
    (found,) = [block for page in PAGES for block in blocks(page, "python") if holds in block]
    return found


@pytest.fixture
def load_example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Run an example as a module that can be found by its name: pydantic looks up annotations there."""

    def load(holds: str) -> ModuleType:
        module = ModuleType("example")
        monkeypatch.setitem(sys.modules, "example", module)
        exec(compile(example(holds), "example.py", "exec"), vars(module))
        return module

    return load


def test_the_example_of_a_data_set_loads(tmp_path: Path, load_example: Callable[[str], ModuleType]) -> None:
    load = load_example("def load_arrays").load_arrays
    arrays = {}
    for part, count in (("train", 3), ("test", 2)):
        arrays[f"{part}_images"] = np.full((count, 28, 28, 3), 7, dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count, dtype=np.uint8)
    np.savez(tmp_path / "own.npz", **arrays)
    (tmp_path / "other.npz").write_text("no arrays")
    with registered(DATASETS, "arrays", load):
        dataset = open_dataset(DataSettings(dataset="arrays", root=str(tmp_path / "own.npz")), 0)
        assert dataset.class_names == ("class 0", "class 1", "class 2")
        assert load_samples(dataset.train, [2], 14).images.shape == (1, 3, 14, 14)
        for bad in ("none.npz", "other.npz"):
            with pytest.raises(DataError):
                open_dataset(DataSettings(dataset="arrays", root=str(tmp_path / bad)), 0)


def test_the_example_of_a_backbone_fits_its_network() -> None:
    scope = dict(vars(backbones))
    exec(example("BackboneSpec("), scope)
    with registered(BACKBONES, "resnet34", backbones.BackboneSpec, scope["RESNET34"]):
        backbone = backbones.build_backbone(BackboneSettings(name="resnet34", weights="random"), seed=1)
    maps, _ = backbone.eval().stage_outputs(torch.zeros(1, 3, 32, 32))
    assert maps[-1].shape[1] == backbone.feature_dim
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, 512)


def test_the_example_of_a_prediction_predicts(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    exec(example("load_file").replace("RUN_DIR", str(finished("dynammo").path)), {})
    assert re.match(r"\['[0-3]'\] tensor\(\[0\.\d+\]\) tensor\(\[", capsys.readouterr().out)
