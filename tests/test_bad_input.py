"""Bad input on the command line: exit code 1 and one paragraph that says what, where and what to do; no half files."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result
from safetensors.torch import save_file
from small_runs import Finished, events, small_settings, write_hospitals
from typer.testing import CliRunner

from dynammo_core.configuration.config import load_config
from dynammo_core.methods import METHODS
from dynammo_core.models import BACKBONES
from dynammo_core.models.description import untrained
from dynammo_core.scoring.cost import trained_after
from server.run_directory.checkpoint import CheckpointStore
from server.run_directory.progress import Progress
from simulations.cli import app, fits_for_sure


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The settings of the shared finished run of fine_tune."""
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_settings("fine_tune")))
    return path


def run(config: Path, *options: str | Path) -> Result:
    runs = config.parent / "runs"
    return CliRunner().invoke(app, ["run", str(config), "--runs", str(runs), *map(str, options)])


def setting(**values: object) -> list[str]:
    """`--set` options; `__` stands for the dot."""
    return [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]


def one_paragraph(result: Result) -> str:
    """The message, once it is known to be nothing else."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error ")
    assert line.endswith(".")
    return line.removeprefix("error ")


def refused(config: Path, *options: str | Path) -> str:
    """The message of a run that leaves nothing behind."""
    before = sorted(config.parent.rglob("*"))
    message = one_paragraph(run(config, *options))
    assert sorted(config.parent.rglob("*")) == before
    return message


def test_without_a_fault_the_command_works(config: Path) -> None:
    result = run(config)
    assert result.exit_code == 0, result.output
    (directory,) = (config.parent / "runs").iterdir()
    assert (directory / "report.html").is_file()
    assert json.loads((directory / "summary.json").read_text())["status"] == "completed"


# --- configuration


def test_unknown_key(config: Path) -> None:
    config.write_text(config.read_text().replace("epochs:", "epochz:"))
    message = refused(config)
    line = 1 + [line.strip().split(":")[0] for line in config.read_text().splitlines()].index("epochz")
    assert f"{config} line {line}, method.train.epochz: unknown key (did you mean 'epochs'?); accepted: " in message


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("federation.stes", 2, "federation.stes: unknown key (did you mean 'sites'?); accepted: sites, partition"),
        ("federation.sites", "many", "federation.sites: Input should be a valid integer"),
        ("federation.sites", "[1", "is not valid YAML"),
        ("backbone.name", "smal_cnn", "unknown backbone 'smal_cnn' (did you mean 'small_cnn'?); accepted: resnet18, "),
        (
            "method",
            "replay",
            "method: 'replay' is not a section. Write method: {name: replay} or --set method.name=replay",
        ),
        ("method.name", "", "method.name: no method is named. Accepted: dynammo, "),
        ("method.name", "fine_tuned", "unknown method 'fine_tuned' (did you mean 'fine_tune'?); accepted: dynammo, "),
        ("data.dataset", "digit", "unknown data set 'digit' (did you mean 'digits'?); accepted: cifar100, "),
        (
            "memory.selection",
            "hurding",
            "unknown value 'hurding' (did you mean 'herding'?); accepted: herding, ",
        ),
        ("compute.device", "gpu", "compute.device: 'gpu' cannot be used here"),
        ("tasks.sizes", "[6, 6]", "tasks.sizes needs 6 + 6 = 12 classes, and the data set has 10"),
        ("backbone.name", "'[/bold]'", "unknown backbone '[/bold]'"),
        ("backbone.name", "'[red]x'", "unknown backbone '[red]x'"),
    ],
)
def test_settings_on_the_command_line(config: Path, key: str, value: object, said: str) -> None:
    assert said in refused(config, "--set", f"{key}={value}")


def test_setting_without_a_value(config: Path) -> None:
    assert "--set 'federation.sites' has no value. Accepted: KEY=VALUE" in refused(config, "--set", "federation.sites")


def test_unknown_engine(config: Path) -> None:
    assert "unknown engine 'locale' (did you mean 'local'?)" in refused(config, "--engine", "locale")


def test_no_such_file_or_no_yaml(config: Path) -> None:
    assert f"did you mean {str(config)!r}" in refused(config.with_name("smal.yaml"))
    config.write_text("name: [1")
    assert f"{config} is not valid YAML" in refused(config)


# --- data


def test_missing_data_folder(config: Path) -> None:
    folder = config.parent / "nothing"
    message = refused(config, *setting(data__dataset="image_folder", data__root=folder))
    assert f"{folder} is not there" in message
    assert "Accepted: ROOT/train/<class>/<image>" in message
    assert "Set data.root" in message


def test_more_sites_than_samples(config: Path) -> None:
    """20 training images of each of ten classes."""
    message = refused(config, *setting(federation__sites=201))
    assert "federation.sites is 201, and there are 200 training images. Accepted: at most 200 sites" in message


def test_a_task_that_nobody_has_images_of(config: Path) -> None:
    folder = write_hospitals(config.parent / "data", {"a": {"0": 3, "1": 3}})
    manifest = setting(
        data__dataset="manifest", data__root=folder, federation__sites=1, federation__partition="natural"
    )
    message = refused(config, *manifest, *setting(data__classes="['0', '1', '2', '3']"))
    assert "task 2 (classes 2, 3) has no training images at any site" in message


def test_a_corrupt_image_is_named_by_the_site_that_holds_it(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is found when it is read, so a run has begun: its log says how it ended, and nothing else is there."""
    folder = write_hospitals(config.parent / "data", {"a": {"0": 3, "1": 3, "2": 3, "3": 3}})
    (folder / "a-0-1.png").write_bytes((folder / "a-0-0.png").read_bytes())
    broken = folder / "a-1-0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    manifest = setting(
        data__dataset="manifest", data__root=folder, federation__sites=1, federation__partition="natural"
    )
    message = one_paragraph(run(config, *manifest))
    assert "task 1, stage train, round 1: 0 of 1 sites answered, 1 are needed; failed: a (DataError, code" in message
    (logged,) = [record for record in caplog.records if record.name == "dynammo.client"]
    assert f"the image {broken} (row 6 of {folder / 'manifest.csv'}) cannot be read" in logged.getMessage()
    assert logged.exc_info is None
    (directory,) = (config.parent / "runs").iterdir()
    assert sorted(path.name for path in directory.iterdir()) == ["config.yaml", "events.jsonl", "report.html"]
    failed = events(directory)[-1]
    assert (failed["event"], failed["failures"]) == ("run_failed", [{"site": 0, "code": 102, "error": "DataError"}])
    assert message.startswith(failed["message"].rstrip("."))
    assert "1 are needed. a (DataError, code 102)." in (directory / "report.html").read_text()
    (note,) = events(directory, "run_started")[0]["data_notes"]
    assert note.startswith("2 images have the content of another one")


# --- weights


def save_weights(path: Path, *, misshapen: bool = False) -> Path:
    state = {name: tensor.clone() for name, tensor in BACKBONES["small_cnn"].build().state_dict().items()}
    if misshapen:
        state["block0.0.weight"] = state["block0.0.weight"][:-1].clone()
    save_file(state, path)
    return path


def test_weights_of_another_hash(config: Path) -> None:
    weights = save_weights(config.parent / "weights.safetensors")
    message = refused(config, *setting(backbone__weights=weights, backbone__sha256=f"'{'0' * 64}'"))
    assert f"{weights} has the SHA-256 " in message
    assert f"but {'0' * 64} is required" in message


def test_weights_that_do_not_fit_or_are_not_there(config: Path) -> None:
    weights = save_weights(config.parent / "weights.safetensors", misshapen=True)
    message = refused(config, *setting(backbone__weights=weights))
    assert f"{weights} does not fit the backbone" in message
    assert "block0.0.weight" in message
    missing = config.parent / "missing.pth"
    assert f"cannot read the file {missing}: No such file" in refused(config, *setting(backbone__weights=missing))


# --- going on with a run


@pytest.fixture
def earlier(finished: Finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished("fine_tune").path, tmp_path / "earlier"))


def test_checkpoint_of_another_config(config: Path, earlier: Path) -> None:
    kept = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file() and path.name != "events.jsonl"}
    message = one_paragraph(run(config, "--resume", earlier, *setting(seed=5)))
    assert "was made by another experiment: seed (then 1, now 5)" in message
    assert "without --resume" in message
    assert kept == {path: path.read_bytes() for path in kept}
    assert events(earlier)[-1]["message"] == message


def test_corrupt_checkpoint(config: Path, earlier: Path) -> None:
    checkpoint = earlier / "checkpoints" / "latest.safetensors"
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 1
    checkpoint.write_bytes(content)
    message = one_paragraph(run(config, "--resume", earlier))
    assert f"the checkpoint {checkpoint} cannot be read" in message
    assert "backup" in message


def test_no_checkpoint_or_no_run(config: Path, earlier: Path) -> None:
    shutil.rmtree(earlier / "checkpoints")
    assert "does not exist" in one_paragraph(run(config, "--resume", earlier))
    assert "nowhere does not exist" in refused(config, "--resume", config.parent / "nowhere")


def test_stopped_by_hand_it_says_how_to_go_on(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that it prints, typed as it stands, finishes the run."""
    folder = config.parent / "my runs [1]"
    save = CheckpointStore.save

    def save_and_stop(self: CheckpointStore, progress: Progress, *rest: Any) -> None:
        save(self, progress, *rest)
        if progress.next_step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", save_and_stop)
        stopped = run(config, "--runs", folder, *setting(seed=7), *setting(tasks__sizes="[2, 3]"))
    assert stopped.exit_code == 130
    command = stopped.stdout.split("Continue with: ")[1]
    name, *arguments = shlex.split(command)
    assert name == "dynammo-sim"
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (directory,) = folder.iterdir()
    assert [event["resumed_at"] for event in events(directory, "run_started")] == [0, 2]
    assert json.loads((directory / "summary.json").read_text())["seed"] == 7


# --- disk


def test_a_full_disk(config: Path, small_disk: Path) -> None:
    with (small_disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(os.urandom(4096)) == 4096:
                pass
        except OSError:
            pass
    message = one_paragraph(run(config, "--runs", small_disk / "runs"))
    assert f"cannot write {small_disk / 'runs'}" in message
    assert "No space left on device. Free disk space" in message
    assert not [path for path in (small_disk / "runs").rglob("*") if path.is_file()]


# --- the other commands


def test_validate_names_each_wrong_file_and_passes_the_others(config: Path) -> None:
    wrong = config.with_name("wrong [red].yaml")
    wrong.write_text(config.read_text().replace("sites:", "sights:"))
    result = CliRunner().invoke(app, ["validate", str(config), str(wrong)])
    assert result.exit_code == 1
    first, second = result.stdout.strip().splitlines()
    assert first.split()[:2] == ["ok", str(config)]
    assert second.startswith("wrong")
    assert f"{wrong} line " in second
    assert CliRunner().invoke(app, ["validate", str(config)]).exit_code == 0


def test_validate_tells_what_a_network_has_no_place_for(config: Path) -> None:
    for changed, said in (
        ({"backbone__name": "timm/hrnet_w18_small"}, "hrnet_w18_small cannot be cut: between 'layer1'"),
        ({"backbone__name": "timm/test_vit", "data__image_size": 33}, "does not take images of 33 pixels"),
        ({"backbone__name": "timm/test_vit", "backbone__image_size": 33}, "does not take images of 33 pixels"),
        ({"backbone__name": "timm/test_vit", "method__adapter_rank": 65}, "65 is more than the width of blocks.0"),
    ):
        words = setting(method__name="dynammo", backbone__weights="random", **changed)
        result = CliRunner().invoke(app, ["validate", str(config), *words])
        assert (result.exit_code, said in " ".join(result.output.split())) == (1, True), result.output


def test_what_validate_passes_unbuilt_can_be_built(config: Path) -> None:
    methods = {name: ("small_cnn", {"method.name": name}) for name in METHODS.built_in}
    blocks = {"method.name": "streaming_ridge", "method.multi_scale": "blocks"}
    networks = {f"on {name}": (name, more) for name in BACKBONES.built_in for more in ({"method.name": "acl"}, blocks)}
    for name, more in (methods | networks).values():
        settings = load_config(config, {**more, "backbone.name": name, "backbone.weights": "random"})
        assert fits_for_sure(name, settings.method)
        with torch.device("meta"):
            trained_after(1, settings.method, untrained(name, settings.data.image_size), 2)
    words = setting(method__name="dynammo", method__adapter="lora", backbone__weights="random")
    result = CliRunner().invoke(app, ["validate", str(config), *words])
    assert (result.exit_code, "and this network has none" in result.output) == (1, True), result.output
