"""`dynammo-server` as an operator types it: what it says, and that a mistake is one paragraph and exit code 1."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from hospitals import deployed
from small_runs import small_settings
from typer.testing import CliRunner, Result

from client.state.node_key import new_key_pair
from dynammo_core.code_identity import code_hash
from dynammo_core.configuration.config import load_config
from dynammo_core.wire.announcement import with_new_task
from server.cli import app
from server.consortium.certificates import fingerprint
from server.consortium.settings import ServerSettings, load_server
from server.run_directory.checkpoint import CheckpointStore
from server.run_directory.directory import RunDirectory
from server.run_directory.progress import Identity, Progress


def typed(*words: object, folder: Path | None = None) -> Result:
    environment = {"COLUMNS": "200", "DYNAMMO_CONSORTIUM": str(folder or "/nonexistent/consortium")}
    return CliRunner().invoke(app, [str(word) for word in words], env=environment)


def refused(*words: object, folder: Path | None = None) -> str:
    result = typed(*words, folder=folder)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)  # and nothing else, which would be a traceback
    assert result.stderr.startswith("error ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_init_says_what_is_to_be_done_next(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    result = typed("init", "--host", "fl.example.org", "--host", "10.1.2.3", "--port", "9443", "--folder", folder)
    assert result.exit_code == 0, result.output
    settings = load_server(folder)
    assert (settings.host_names, settings.port) == (("fl.example.org", "10.1.2.3"), 9443)
    assert f"dynammo-server start --folder '{folder}'" in result.stdout
    assert fingerprint(settings.ca_certificate) in result.stdout
    for words in (
        str(settings.ca_certificate),
        "sites add NAME site.key.pub",
        f"copy of {settings.ca_key} on another machine",
    ):
        assert words in result.stdout


def test_a_fingerprint_is_printed_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.consortium.certificates.fingerprint", lambda _: "0f:ab:12:cd:00:a:b:x:100:")
    assert "0f:ab:12:cd:00:a:b:x:100:" in typed("init", "--host", "a", folder=tmp_path / "c").stdout
    # the same of a message that names a file
    assert "/:cd:/:ab:" in refused("classes", folder=tmp_path / ":cd:" / ":ab:")


def test_the_folder_may_come_from_the_environment(tmp_path: Path) -> None:
    assert typed("init", "--host", "fl.example.org", folder=tmp_path / "mine").exit_code == 0
    assert load_server(tmp_path / "mine").host_names == ("fl.example.org",)
    assert re.search(
        r"is valid until \d{4}-\d\d-\d\d. Restart the server", typed("renew", folder=tmp_path / "mine").stdout
    )


def test_init_needs_a_host_and_sound_values(tmp_path: Path) -> None:
    assert typed("init", folder=tmp_path / "c").exit_code == 2
    assert "port" in refused("init", "--host", "a", "--port", "70000", folder=tmp_path / "c")
    assert "'http://a' is not a valid host name" in refused("init", "--host", "http://a", folder=tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty" in refused("init", "--host", "a", folder=tmp_path)


COMMANDS = [
    ("renew",),
    ("start",),
    ("sites", "list"),
    ("sites", "add", "general", "site.key.pub"),
    ("sites", "remove", "general"),
    ("classes",),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_says_where_it_looked_for_the_consortium(words: tuple[str, ...]) -> None:
    message = refused(*words)
    assert "there is no consortium in /nonexistent/consortium" in message
    assert "Create one with `dynammo-server init`" in message


def test_a_server_whose_certificates_are_gone_does_not_start(no_superlink: ServerSettings) -> None:
    no_superlink.certificate.unlink()
    assert "server.pem is missing. Create a consortium with `dynammo-server init`" in refused(
        "start", folder=no_superlink.folder
    )


def test_sites_are_added_by_public_keys_alone(no_superlink: ServerSettings, tmp_path: Path) -> None:
    (tmp_path / "site.key").write_bytes(new_key_pair("general")[0])
    message = refused("sites", "add", "general", tmp_path / "site.key", folder=no_superlink.folder)
    assert "the private site.key never leaves a site" in message
    assert "unknown site 'general'" in refused("sites", "remove", "general", folder=no_superlink.folder)


def test_without_a_superlink_it_says_how_to_start_one(no_superlink: ServerSettings) -> None:
    message = refused("sites", "list", folder=no_superlink.folder)
    assert f"the SuperLink at {no_superlink.address} does not answer" in message
    assert "start it with `dynammo-server start`" in message


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run that learnt two tasks, as far as its configuration tells."""
    config = deployed(["alpha"], ["actinic keratosis", "melanoma", "naevus", "psoriasis"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config.to_yaml())
    return tmp_path / "run"


def test_extending_by_a_disease_under_another_name_is_refused_with_a_hint(
    no_superlink: ServerSettings, run: Path
) -> None:
    extend = ("extend", run, "--class", "lentigo", "--class", "Actinic-Keratosis")
    message = refused(*extend, folder=no_superlink.folder)
    assert "the class 'Actinic-Keratosis' looks like 'actinic keratosis', which is in the registry" in message
    assert "if not, add --distinct" in message
    # with it the next question is asked: who takes part
    assert "the site 'alpha' is not registered" in refused(*extend, "--distinct", folder=no_superlink.folder)
    joined = refused(*extend, "--distinct", "--site", "alpha", folder=no_superlink.folder)
    assert "the site 'alpha' takes part already, or is named twice" in joined
    assert load_config(run / "config.yaml").data.classes == (
        "actinic keratosis",
        "melanoma",
        "naevus",
        "psoriasis",
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--image-size", "0"], "greater than or equal to 8"),
        (["--image-size", "100000"], "less than or equal to 1024"),
        (["--backbone", ""], "unknown backbone ''"),
        (["--weights", "random"], "random are weights of a network that takes over, and none is named. Name it with"),
        (["--image-size", "48", "--sha256", "ab" * 32], "abab are weights of a network that takes over, and none is"),
    ],
)
def test_no_option_of_a_network_that_takes_over_is_left_out_of_the_experiment(
    no_superlink: ServerSettings, run: Path, options: list[str], said: str
) -> None:
    assert said in refused("extend", run, "--class", "lentigo", *options, folder=no_superlink.folder)


def test_an_extension_that_is_refused_takes_nothing_back(no_superlink: ServerSettings, tmp_path: Path) -> None:
    """Nor does it say so: the run still asks for the class that was misspelt."""
    config = deployed(["alpha"], ["melanoma", "naevus"])
    run = RunDirectory.create(tmp_path, config)
    identity = Identity(config.canonical_json(), code_hash(config), "")
    CheckpointStore(run.checkpoints, identity).save(Progress(next_step=3), {}, {})
    (run.path / "config.yaml").write_text(with_new_task(config, ["psorasis"]).to_yaml())
    wrong = typed("extend", run.path, "--class", "Melanoma", folder=no_superlink.folder)
    assert "looks like 'melanoma'" in wrong.output
    assert "Taken back" not in wrong.output


def test_a_simulated_run_is_not_extended_among_sites(no_superlink: ServerSettings, tmp_path: Path) -> None:
    settings = small_settings("replay")
    settings["data"] = {"dataset": "manifest", "root": "x", "classes": ["0", "1", "2", "3"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    message = refused("extend", tmp_path, "--class", "new", folder=no_superlink.folder)
    assert "the experiment does not name any sites" in message


@pytest.mark.parametrize("command", ["resume", "evaluate", "classes"])
def test_a_folder_without_a_run(no_superlink: ServerSettings, tmp_path: Path, command: str) -> None:
    message = refused(command, tmp_path / "nothing", folder=no_superlink.folder)
    assert f"no configuration file '{tmp_path / 'nothing' / 'config.yaml'}'" in message


def test_a_run_that_was_never_submitted_cannot_be_stopped(no_superlink: ServerSettings, run: Path) -> None:
    assert f"{run} is not the run directory of a consortium's run" in refused("stop", run, folder=no_superlink.folder)


def test_overrides_are_checked(no_superlink: ServerSettings, run: Path) -> None:
    folder = no_superlink.folder
    assert "--set 'quorum' has no value" in refused("run", run / "config.yaml", "--set", "quorum", folder=folder)
    message = refused("resume", run, "--set", "federation.quorm=0.5", folder=folder)
    assert "federation.quorm: unknown key (did you mean 'quorum'?)" in message


def test_help_is_there_for_every_command() -> None:
    listed = typed("--help").stdout
    for command in ("init", "renew", "start", "sites", "run", "resume", "classes", "extend", "evaluate", "stop"):
        assert re.search(rf"^\W*{command}\s+\S", listed, re.MULTILINE), command
        assert typed(command, "--help").exit_code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="permissions as on Linux")
def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refused("init", "--host", "a", "--folder", tmp_path / "file" / "consortium")
    assert "cannot be created: Not a directory" in message
