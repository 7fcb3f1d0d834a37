from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from test_compare import pretend, write_comparison
from typer.testing import CliRunner

from dynammo_core.support.errors import ConfigError
from simulations.cli import app
from simulations.comparisons.compare import METRICS, load_comparison
from simulations.tune_command import chosen, parse_tries, trials

SETTINGS = {"three": {"federation.sites": 3}, "two": {"federation.sites": 2}}
ROWS = {"dynammo": {}, "replay": {"method.name": "replay"}, "sums": {"method.name": "streaming_ridge"}}
TRIED = {"method.train.learning_rate": [0.1, 0.01], "method.adapt.learning_rate": [0.5]}


def test_each_row_tries_every_combination_of_the_keys_that_it_has_on_held_out_images(tmp_path: Path) -> None:
    file = write_comparison(tmp_path, settings=SETTINGS, rows=ROWS, overrides={})
    made = trials(load_comparison(file), TRIED, validation=3)
    rates = [{"method.adapt.learning_rate": 0.5}, *({"method.train.learning_rate": rate} for rate in (0.1, 0.01))]
    rows = ["dynammo", "replay", "replay"]
    assert [(trial.setting, trial.row, trial.values) for trial in made] == [
        (setting, *tried) for setting in SETTINGS for tried in zip(rows, rates, strict=True)
    ]
    assert {trial.cell.config.data.validation_per_class for trial in made} == {3}
    assert {trial.cell.config.seed for trial in made} == {1}
    assert made[2].cell.config.method.train.learning_rate == 0.01
    one = trials(load_comparison(file), {"federation.proximal": [0.1]}, 3, ["replay"])
    assert {trial.row for trial in one} == {"replay"}
    with pytest.raises(ConfigError, match=r"row 'replayed'.*Accepted: dynammo, replay, sums"):
        trials(load_comparison(file), TRIED, 3, ["replayed"])
    for key, said in (
        ("method.margin", r"no row .* has the key --try method\.margin"),
        ("method.train.learning_rat", r"\(did you mean 'method\.train\.learning_rate'\?\)"),
    ):
        with pytest.raises(ConfigError, match=said):
            trials(load_comparison(file), TRIED | {key: [1]}, validation=3)
    with pytest.raises(ConfigError, match=r"no row .* has a key of --try: method\.train"):
        trials(load_comparison(file), {"method.train.learning_rate": [0.1]}, 3, ["dynammo"])


def test_the_best_on_average_is_chosen_and_a_comparison_takes_it(tmp_path: Path) -> None:
    file = write_comparison(tmp_path, settings=SETTINGS, rows=ROWS, overrides={})
    made = trials(load_comparison(file), {"method.train.learning_rate": [0.1, 0.01]}, validation=50)
    for trial, average in zip(made, (70.0, 80.0, 60.0, 60.0), strict=True):
        pretend(trial.cell, tmp_path / "runs", average=average)
    found = chosen(made, METRICS["accuracy"], tmp_path / "runs")
    best = {
        "three": {"replay": {"method.train.learning_rate": 0.01}},
        "two": {"replay": {"method.train.learning_rate": 0.1}},
    }
    assert found == best
    command = ["tune", str(file), "--try", "method.train.learning_rate=0.1,0.01", "--runs", str(tmp_path / "runs")]
    printed = CliRunner().invoke(app, command)
    assert printed.exit_code == 0, printed.output
    assert yaml.safe_load(printed.stdout[printed.stdout.index("chosen:") :]) == {"chosen": best}
    taken = load_comparison(write_comparison(tmp_path, settings=SETTINGS, rows=ROWS, overrides={}, chosen=best))
    rates = {(cell.setting, cell.config.method.train.learning_rate) for cell in taken.cells if cell.row == "replay"}
    assert rates == {("three", 0.01), ("two", 0.1)}


def test_what_is_chosen_without_settings_is_easy_to_read_and_taken(tmp_path: Path) -> None:
    file = write_comparison(tmp_path, rows={"dynammo": {}}, overrides={})
    (trial,) = trials(load_comparison(file), {"method.alpha": [0.5]}, validation=50)
    pretend(trial.cell, tmp_path / "runs", average=70.0)
    command = ["tune", str(file), "--try", "method.alpha=0.5", "--runs", str(tmp_path / "runs")]
    lines = CliRunner().invoke(app, command).stdout
    block = lines[lines.index("chosen:") :]
    assert block.strip() == "chosen:\n  '':\n    dynammo:\n      method.alpha: 0.5"
    taken = load_comparison(write_comparison(tmp_path, rows={"dynammo": {}}, **yaml.safe_load(block)))
    assert {cell.config.method.alpha for cell in taken.cells} == {0.5}


def test_what_names_nothing_is_refused(tmp_path: Path) -> None:
    for text in ("method.alpha", "=1", "method.alpha=", "method.alpha=[1"):
        with pytest.raises(ConfigError, match="names no values"):
            parse_tries([text])
    assert parse_tries(["tasks.sizes=[1,3],2"]) == {"tasks.sizes": [[1, 3], 2]}
    for wrong, word in (({"five": {}}, "setting 'five'"), ({"": {"dynamo": {}}}, "row 'dynamo'")):
        with pytest.raises(ConfigError, match=word):
            load_comparison(write_comparison(tmp_path, chosen=wrong))
