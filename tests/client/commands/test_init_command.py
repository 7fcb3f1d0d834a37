"""`dynammo-site init`: files that work together, and nothing touched that was there before."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from base64 import b64decode
from pathlib import Path

import pytest
import typer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from client.commands.init import init, write_site
from client.consent.settings import SiteSettings, load_site
from client.state.node_key import fingerprint, load_private_key
from dynammo_core.memory.encryption import load_key
from dynammo_core.support.errors import ConfigError
from server.consortium.consortium import make_consortium

app = typer.Typer()
app.command()(init)
GIVEN = {
    "site": "st-elsewhere",
    "superlink": "link.example.org:9092",
    "data": __file__,
}  # any file will do as a manifest
FILES = {"site.yaml", "policy.yaml", "site.key", "site.key.pub", "memory.key"}
needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no OpenSSH here")


def words(given: dict[str, str], output: Path) -> list[str]:
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    return [*options, "--output", str(output), "--no-input"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_is_given_stands_in_the_settings_and_all_files_fit(tmp_path: Path) -> None:
    output = tmp_path / "new" / "site.yaml"
    images = tmp_path / "images"
    images.mkdir()
    given = GIVEN | {
        "dataset": "image_folder",
        "data": str(images),
        "memory": str(tmp_path / "mem: #1"),
        "ca": "/etc/consortium ä/ca.pem",
    }
    result = CliRunner().invoke(app, words(given, output))
    assert result.exit_code == 0, result.output
    settings = load_site(output)
    assert (settings.site, settings.superlink) == ("st-elsewhere", "link.example.org:9092")
    assert (settings.data.dataset, settings.data.root) == ("image_folder", str(images))
    assert settings.memory.folder == tmp_path / "mem: #1"
    assert settings.ca_certificate == Path("/etc/consortium ä/ca.pem")
    assert len(load_key(str(settings.memory.key))) == 32

    folder = output.parent
    assert {path.name for path in folder.iterdir()} == FILES | {"state"}
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {
        **{"site.yaml": 0o644, "site.key": 0o600, "site.key.pub": 0o644, "memory.key": 0o600},
        "policy.yaml": 0o644,
        "state": 0o700,
    }
    assert settings.memory.folder.stat().st_mode & 0o777 == 0o700

    key = load_private_key(settings.private_key)
    assert isinstance(key.curve, ec.SECP384R1)
    public = serialization.load_ssh_public_key((folder / "site.key.pub").read_bytes())
    assert public == key.public_key()
    assert fingerprint(key) in result.stdout
    assert f"{settings.private_key}.pub" in result.stdout
    assert "Put the operator's ca.pem at /etc/consortium ä/ca.pem" in result.stdout
    assert key.private_numbers().private_value.to_bytes(48, "big") not in b64decode(
        b"".join((folder / "site.key.pub").read_bytes().split()[1:2])
    )


@needs_ssh_keygen
def test_openssh_reads_the_same_key(tmp_path: Path) -> None:
    settings, key_print = write_site(tmp_path / "site.yaml", GIVEN)

    def keygen(*options: str) -> str:
        return subprocess.run(["ssh-keygen", *options], capture_output=True, text=True, check=True).stdout

    assert keygen("-l", "-f", f"{settings.private_key}.pub") == f"384 {key_print} st-elsewhere (ECDSA)\n"
    public = Path(f"{settings.private_key}.pub").read_text()
    assert keygen("-y", "-f", str(settings.private_key)).split()[:2] == public.split()[:2]
    theirs = tmp_path / "theirs.key"
    keygen("-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(theirs))
    assert key_print != fingerprint(load_private_key(theirs))


def test_every_key_of_the_settings_is_written_with_its_default_and_a_comment(tmp_path: Path) -> None:
    write_site(tmp_path / "site.yaml", GIVEN)
    text = (tmp_path / "site.yaml").read_text()
    settings = load_site(tmp_path / "site.yaml")
    least = SiteSettings.model_validate({"site": "a", "superlink": "a:1", "data": {"root": "/a"}})
    assert settings.data.dataset == least.data.dataset
    assert settings.device == least.device
    for name in ("ca_certificate", "private_key", "state", "log", "audit", "approvals"):
        assert getattr(settings, name) == tmp_path / getattr(least, name)
    assert settings.memory.folder == tmp_path / least.memory.folder
    lines = text.splitlines()
    for section in (SiteSettings, *(type(getattr(settings, name)) for name in ("data", "memory"))):
        for name in set(section.model_fields) - {"data", "memory"}:
            (place,) = [i for i, line in enumerate(lines) if line.lstrip("# ").startswith(f"{name}: ")]
            assert lines[place - 1].lstrip().startswith("# "), name


@pytest.mark.parametrize("there", sorted(FILES))
def test_nothing_that_is_there_is_touched(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    result = CliRunner().invoke(app, words(GIVEN, tmp_path / "site.yaml"))
    assert result.exit_code == 1
    assert f"already exists: {tmp_path / there}; nothing was written" in result.stderr
    assert content(tmp_path) == {there: b"precious"}


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "site.yaml"
    assert CliRunner().invoke(app, words(GIVEN, output)).exit_code == 0
    before = content(tmp_path)
    assert CliRunner().invoke(app, words(GIVEN, output)).exit_code == 1
    assert content(tmp_path) == before


def test_a_dangling_link_too_is_something_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "site.key").symlink_to(tmp_path / "safe" / "site.key")
    with pytest.raises(ConfigError, match="already exists"):
        write_site(tmp_path / "site.yaml", GIVEN)
    assert [path.name for path in tmp_path.iterdir()] == ["site.key"]


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):  # the memory's folder comes last, below a file
        write_site(tmp_path / "site.yaml", GIVEN | {"memory": str(tmp_path / "file" / "memory")})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(ConfigError, match=r"state and memory\.folder are both"):
        write_site(tmp_path / "site.yaml", GIVEN | {"memory": str(tmp_path / "state")})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_certificate_of_a_server_is_no_authority(tmp_path: Path) -> None:
    consortium = make_consortium(tmp_path / "consortium", ["localhost"], port=9, listen="127.0.0.1")
    refusal = f"{consortium.certificate} is the certificate of a server, not of an authority"
    with pytest.raises(ConfigError, match=re.escape(refusal)):
        write_site(tmp_path / "site.yaml", GIVEN | {"ca": str(consortium.certificate)})
    write_site(tmp_path / "site.yaml", GIVEN | {"ca": str(consortium.ca_certificate)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": "St Elsewhere"}, "is not a valid site name"),
        ({"superlink": "https://link:9092"}, "is not an address"),
        ({"dataset": "manifst"}, "did you mean 'manifest'"),
        ({"data": "nowhere.csv"}, "there is no file nowhere.csv. Accepted: the manifest"),
        ({"data": "/"}, "there is no file /"),
        ({"dataset": "image_folder"}, f"there is no folder {__file__}"),
        ({"ca": __file__}, f"{__file__} is no certificate in PEM format. Ask the operator"),
        ({"memory": __file__}, f"{__file__} is a file. Accepted: a folder for the exemplars"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    result = CliRunner().invoke(app, words(GIVEN | change, tmp_path / "site.yaml"))
    assert result.exit_code == 1
    assert message in result.stderr
    assert content(tmp_path) == {}


def test_what_is_not_given_is_asked_for_and_asked_again_when_it_is_wrong(tmp_path: Path) -> None:
    answers = ["St Elsewhere", "st-elsewhere", "link", "link:9092", "", "nowhere", "images", "images", "chosen", ""]
    with CliRunner().isolated_filesystem(tmp_path):
        here = Path.cwd()
        Path("images").touch()  # a manifest, and no folder for a memory
        result = CliRunner().invoke(app, ["--output", "etc/site.yaml"], input="\n".join(answers) + "\n")
    assert result.exit_code == 0, result.output
    settings = load_site(here / "etc" / "site.yaml")
    assert (settings.site, settings.superlink, settings.data.dataset) == ("st-elsewhere", "link:9092", "manifest")
    assert settings.data.root == str(here / "images")  # meant from where the person is, not from etc/
    assert settings.memory.folder == here / "chosen"
    assert settings.ca_certificate == here / "etc" / "ca.pem"  # a default lies beside site.yaml


def test_without_input_what_is_missing_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--output", str(tmp_path / "site.yaml"), "--no-input", "--site", "a"])
    assert result.exit_code == 1
    assert "missing: --superlink, --data" in result.stderr
    assert content(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match=r"cannot be written.*Permit writing there"):
        write_site(tmp_path / "site.yaml", GIVEN)
