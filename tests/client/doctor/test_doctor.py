"""`dynammo-site doctor`: what it finds wrong on purpose-made sites, some of them against a real SuperLink."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from packaging.requirements import Requirement
from PIL import Image
from site_bench import Authority, SuperLink, free_port, make_site
from typer.testing import CliRunner

from client.doctor import connection
from client.doctor.checks import package_problem
from client.doctor.connection import clock_finding, connection_findings, refusal
from client.doctor.doctor import _guarded, doctor, examine
from client.doctor.findings import Finding
from client.state.node_key import load_private_key
from dynammo_core.support.errors import ConfigError

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of EfficientNet-Lite0's weights, as dynammo_core/models/backbones.py requires it."""
command = typer.Typer()
command.command()(doctor)


@contextmanager
def server(answer: bytes, certificate: tuple[Path, Path] | None = None) -> Iterator[str]:
    """Something that listens on loopback, in TLS where it has a certificate, and always answers the same."""
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client = listening.accept()[0]
                with suppress(OSError), context.wrap_socket(client, server_side=True) if context else client as line:
                    while context and not line.recv(65536).endswith(b"END PUBLIC KEY-----\n"):
                        pass  # who closes before all is read resets the line
                    line.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def checked(site_yaml: Path, experiment: Path | None = None) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in examine(site_yaml, experiment, lambda done, total: None):
        found.setdefault(finding.check, []).append(finding)
    return found


def only(findings: list[Finding], state: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.state == state]
    return finding


def test_a_key_is_known_once_it_is_registered_and_asking_changes_nothing(superlink: SuperLink, tmp_path: Path) -> None:
    settings, file = make_site(tmp_path / "site", superlink.address, superlink.authority.path)
    before = connection_findings(settings)
    assert [(each.check, each.state) for each in before] == [
        ("certificate authority", "ok"),
        ("TLS", "ok"),
        ("clock", "ok"),
        ("SuperLink", "ok"),
        ("authentication", "wrong"),
    ]
    assert "is not registered" in before[-1].what
    assert f"{settings.private_key}.pub" in before[-1].remedy
    assert refusal(settings) == before[-1]

    superlink.register(settings)
    assert connection_findings(settings)[-1].state == "ok"
    assert refusal(settings) is None
    (node,) = json.loads(superlink.flwr("supernode", "list", "here", "--format", "json"))["nodes"]
    assert (node["status"], node["online-at"]) == ("registered", "N/A")

    # Flower's own tolerances, as the SuperLink applies them: 5 s ahead, 305 s behind
    for seconds, state in ((8, "wrong"), (3, "ok"), (-290, "ok"), (-330, "wrong")):
        signed_at = datetime.now(UTC) + timedelta(seconds=seconds)
        assert connection_findings(settings, signed_at)[-1].state == state, seconds

    result = CliRunner().invoke(command, [str(file), "--json"])
    report = json.loads(result.stdout)
    assert (result.exit_code, report["ready"]) == (0, True)
    assert {"software", "settings", "GPU", "disk", "secrets", "TLS", "clock", "authentication", "data", "images"} <= {
        finding["check"] for finding in report["findings"]
    }


def test_the_request_is_the_one_that_flower_makes(superlink: SuperLink, tmp_path: Path) -> None:
    settings, _ = make_site(tmp_path / "site", superlink.address, superlink.authority.path)
    request = connection._signed_request(settings, load_private_key(settings.private_key), None)
    public_key = b64decode(request.headers["flwr-public-key"])
    assert public_key.startswith(b"-----BEGIN PUBLIC KEY-----")
    assert request.content == ActivateNodeRequest(public_key=public_key).SerializeToString(deterministic=True)


def test_each_way_in_which_a_certificate_is_wrong_has_its_own_words(superlink: SuperLink, tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours", days=90), Authority(tmp_path / "theirs", days=90)
    over = Authority(tmp_path / "over", days=-1)

    def found(address: str, authority: Authority, folder: str) -> Finding:
        settings, _ = make_site(tmp_path / folder, address, authority.path)
        return connection_findings(settings)[-1]

    wrong_authority = found(superlink.address, theirs, "a")
    assert (wrong_authority.check, wrong_authority.state) == ("TLS", "wrong")
    assert f"was not issued by the authority in {theirs.path}" in wrong_authority.what
    other = found(superlink.address, Authority(tmp_path / "other", name="another consortium"), "f")
    assert "was not issued by the authority in" in other.what
    with server(b"", ours.sign(["127.0.0.1"], days=-2)) as address:
        expired = found(address, ours, "b")
    assert expired.what == f"the certificate of {address} has expired"
    with server(b"", ours.sign(["superlink.example.org"])) as address:
        other_name = found(address, ours, "c")
    assert "is for another name" in other_name.what and "127.0.0.1" in other_name.what
    assert "superlink" in other_name.remedy
    expired_authority = found(superlink.address, over, "d")
    assert (expired_authority.check, expired_authority.state) == ("certificate authority", "wrong")
    with server(NOT_FOUND, ours.sign(["127.0.0.1"], days=10)) as address:
        settings, _ = make_site(tmp_path / "e", address, ours.path)
        good_authority, soon, stranger = connection_findings(settings)
    assert good_authority.state == "ok"
    assert (soon.check, soon.state) == ("TLS", "warning")  # 10 days are fewer than 30
    assert stranger.state == "wrong"
    assert "is not a Flower SuperLink" in stranger.what
    remedies = {each.remedy for each in (wrong_authority, expired, other_name, expired_authority, stranger)}
    assert len(remedies) == 5


def test_no_answer_has_its_own_words_too(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    nothing, _ = make_site(tmp_path / "a", f"127.0.0.1:{free_port()}", authority.path)
    assert f"nothing listens at {nothing.superlink}" in connection_findings(nothing)[-1].what
    with server(NOT_FOUND) as address:
        plain, _ = make_site(tmp_path / "b", address, authority.path)
        assert "not with TLS" in connection_findings(plain)[-1].what
    nowhere, _ = make_site(tmp_path / "c", "no-such-host.invalid:9092", authority.path)
    assert "cannot reach no-such-host.invalid:9092" in connection_findings(nowhere)[-1].what


@pytest.mark.parametrize(
    "content", [None, b"no certificate", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----"]
)
def test_an_authority_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    settings, _ = make_site(tmp_path / "site", "127.0.0.1:1", tmp_path / "ca.pem")
    if content is not None:
        settings.ca_certificate.write_bytes(content)
    with pytest.raises(ConfigError, match=r"ca\.pem.* Ask the operator"):
        connection_findings(settings)


@pytest.mark.parametrize(
    ("ahead", "state"),
    # Flower takes 5 s ahead and 300 s behind; 1 s more is left to the header's whole seconds and the way
    [
        *[(0, "ok"), (2, "ok"), (4, "warning"), (7, "wrong"), (86_400, "wrong")],
        *[(-50, "ok"), (-70, "warning"), (-290, "warning"), (-305, "wrong")],
    ],
)
def test_a_clock_may_be_slow_but_hardly_fast(ahead: float, state: str) -> None:
    now = 1_700_000_000.5  # the header holds whole seconds: on average half a second less than the server's time
    date = format_datetime(datetime.fromtimestamp(now - ahead - 0.5, UTC), usegmt=True)
    finding = clock_finding(date, now)
    assert finding is not None
    assert finding.state == state
    assert (f"{abs(ahead)} s {'ahead of' if ahead > 0 else 'behind'}" in finding.what) == (state != "ok")


def test_without_a_date_nothing_is_said_of_the_clock() -> None:
    assert clock_finding(None, 0.0) is None
    assert clock_finding("yesterday", 0.0) is None


def image_site(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    data = {"dataset": "image_folder", "root": str(tmp_path / "images")}
    return make_site(folder, f"127.0.0.1:{free_port()}", tmp_path / "ca.pem", data=data, **changes)[1]


def write_images(folder: Path, count: int, first_grey: int) -> None:
    """Images of one grey each: those of different greys are different images."""
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = np.full((8, 8), first_grey + index, np.uint8)
        Image.fromarray(pixels).save(folder / f"{folder.name}{index}.png")


def test_images_are_counted_and_the_unreadable_ones_named_on_the_screen_only(tmp_path: Path) -> None:
    for part, mole, scar, first in (("train", 12, 1, 0), ("test", 2, 3, 100)):
        write_images(tmp_path / "images" / part / "mole", mole, first)
        write_images(tmp_path / "images" / part / "scar", scar, first + 50)
    broken = sorted((tmp_path / "images" / "train" / "mole").iterdir())
    for path in broken:
        path.write_bytes(b"smith, john")
    file = image_site(tmp_path / "site", tmp_path)
    steps: list[tuple[int, int]] = []
    found = {each.check: each for each in examine(file, None, lambda done, total: steps.append((done, total)))}
    # 12 + 2 moles, 1 + 3 scars; a single training image is too few
    assert found["data"].what == "2 classes, 13 training + 5 test images: mole 12+2, scar 1+3; few of: scar"
    assert found["data"].state == "warning"
    assert steps == [(done, 18) for done in range(1, 19)]
    images = found["images"]
    assert (images.state, images.what) == ("wrong", "12 of 18 cannot be read")
    assert len(images.details) == 11
    assert images.details[-1] == "and 2 more"
    for path, line in zip(broken[:10], images.details[:10], strict=True):
        assert f"the image {path}" in line

    screen = CliRunner().invoke(command, [str(file)])
    assert screen.exit_code == 1
    assert str(broken[0]) in screen.stdout
    as_json = CliRunner().invoke(command, [str(file), "--json"])
    assert as_json.exit_code == 1
    assert "12 of 18 cannot be read" in as_json.stdout
    assert "mole0" not in as_json.stdout


def test_labels_that_are_not_the_experiments_are_named(tmp_path: Path) -> None:
    for part, first in (("train", 0), ("test", 100)):
        for number, label in enumerate(("melanom", "burns", "burn", "scar")):
            write_images(tmp_path / "images" / part / label, 2, first + 10 * number)
    config = {
        "name": "study",
        "data": {"dataset": "image_folder", "classes": ["melanoma", "burn"]},
        "tasks": {"sizes": 1},
        "federation": {"site_names": ["here", "there"]},
        "method": {"name": "fine_tune"},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    found = checked(image_site(tmp_path / "site", tmp_path), tmp_path / "study.yaml")["labels"]
    unknown = "is not a class of the experiment"
    assert {each.state: each.what for each in found} == {
        # nothing of the class that is meant is here: this site would silently take no part in it
        "wrong": f"the label 'melanom' {unknown} (did you mean 'melanoma'?): its 4 images take no part",
        "warning": f"the label 'burns' {unknown} (did you mean 'burn'?): its 4 images take no part",
        "note": "not in the experiment, so without a part in it: scar",
    }


def test_a_data_set_that_cannot_be_opened_names_no_image_in_json(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "train" / "mole", 1, 0)
    write_images(tmp_path / "images" / "test" / "mole", 1, 0)  # the same picture: a leak that `assemble` refuses
    file = image_site(tmp_path / "site", tmp_path)
    (finding,) = checked(file)["data"]
    assert finding.state == "wrong"
    assert "train/mole/mole0.png" in finding.details[0]
    assert "mole0" not in CliRunner().invoke(command, [str(file), "--json"]).stdout


def test_an_experiment_brings_its_registry_its_sites_and_its_weights(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "train" / "mole", 3, 0)
    write_images(tmp_path / "images" / "test" / "mole", 2, 100)
    file = image_site(tmp_path / "site", tmp_path)

    def experiment(**changes: Any) -> Path:
        config = {
            "name": "study",
            "data": {"dataset": "image_folder", "classes": ["mole", "burn"], "train_per_class": 1},
            "tasks": {"sizes": 1},
            "federation": {"sites": 2, "site_names": ["here", "there"]},
            "method": {"name": "fine_tune"},
        } | changes
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
        return tmp_path / "study.yaml"

    found = checked(file, experiment(backbone={"name": "efficientnet_lite0", "sha256": PACKAGE_SHA256}))
    assert only(found["experiment"], "ok").what == "study names here among its 2 sites"
    assert found["data"][0].what == "1 classes, 3 training + 2 test images: mole 3+2; without images: burn"
    assert PACKAGE_SHA256 in only(found["weights"], "ok").what
    found = checked(file, experiment(backbone={"name": "efficientnet_lite0", "sha256": "0" * 64}))
    assert f"{'0' * 64} is required" in only(found["weights"], "wrong").what
    found = checked(file, experiment(backbone={"name": "efficientnet_lite0", "weights": "/server/only.pth"}))
    assert "weights in site.yaml" in only(found["weights"], "wrong").remedy
    later = [{"task": 2, "name": "efficientnet_lite0", "weights": "imagenet"}]
    grown = {"name": "small_cnn", "weights": "/server/only.pth", "changes": later}
    found = checked(file, experiment(backbone=grown, method={"name": "moving_ridge"}))
    assert "from a file of its own, /server/only.pth" in only(found["weights"], "wrong").what
    assert PACKAGE_SHA256 in only(found["weights"], "note").what  # the network to come is looked at, too
    own = image_site(tmp_path / "own", tmp_path, weights="/site/own.pth")
    assert "/site/own.pth" in only(checked(own, experiment(backbone={"weights": "imagenet"}))["weights"], "wrong").what
    found = checked(file, experiment(federation={"sites": 1, "site_names": ["there"]}, memory={"quota_megabytes": 1e9}))
    assert "does not name the site here, but there" in only(found["experiment"], "wrong").what
    wanted = (
        "less than memory.features_megabytes (1024) and the experiment's memory.quota_megabytes (1000000000) may fill"
    )
    assert wanted in only(found["disk"], "wrong").what
    thirsty = image_site(tmp_path / "thirsty", tmp_path, memory={"features_megabytes": 10**9})
    assert "less than memory.features_megabytes (1000000000) may fill" in only(checked(thirsty)["disk"], "wrong").what
    found = checked(file, tmp_path / "none.yaml")
    assert found["experiment"][0].state == "wrong"
    assert "weights" not in found
    assert found["data"][0].what == "1 classes, 3 training + 2 test images: mole 3+2"


def test_what_others_may_read_is_wrong(tmp_path: Path) -> None:
    file = image_site(tmp_path / "site", tmp_path, memory={"folder": "memory", "key": "file:memory.key"})
    site = file.parent
    (site / "memory").mkdir(mode=0o755)
    (site / "memory").chmod(0o750)
    (site / "site.key").chmod(0o644)
    (site / "audit.jsonl").touch(mode=0o644)
    (site / "audit.jsonl").chmod(0o644)
    found = checked(file)["secrets"]
    wrong = {each.what: each.remedy for each in found if each.state == "wrong"}
    assert wrong[f"others may read or change private_key, {site / 'site.key'} (mode 644)"] == (
        f"Run `chmod 600 {site / 'site.key'}`"
    )
    assert wrong[f"others may read or change memory.folder, {site / 'memory'} (mode 750)"] == (
        f"Run `chmod 700 {site / 'memory'}`"
    )
    assert f"others may read or change audit, {site / 'audit.jsonl'} (mode 644)" in wrong
    assert any("memory.key" in what and "cannot be read" in what for what in wrong)
    (site / "memory").chmod(0o700)
    (site / "site.key").chmod(0o600)
    (site / "audit.jsonl").chmod(0o600)
    (site / "memory.key").write_text("A" * 43 + "=\n")  # 32 zero bytes
    (site / "memory.key").chmod(0o600)
    assert {each.state for each in checked(file)["secrets"]} == {"ok"}
    (site / "memory").rmdir()
    (site / "memory").write_text("path,label\n")  # somebody's manifest: its mode is not ours to change
    misnamed = only(checked(file)["secrets"], "wrong")
    assert misnamed.what == f"memory.folder, {site / 'memory'}, is a file"
    assert "chmod" not in misnamed.remedy
    (site / "memory").unlink()
    (site / "site.key").write_text("no key")
    assert "OpenSSH" in only(checked(file)["secrets"], "wrong").what


def test_a_memory_without_a_key_is_a_warning(tmp_path: Path) -> None:
    found = checked(image_site(tmp_path / "site", tmp_path))["secrets"]
    assert "not encrypted" in only(found, "warning").what


def test_a_full_disk_is_wrong(tmp_path: Path, small_disk: Path) -> None:
    file = image_site(tmp_path / "site", tmp_path, memory={"folder": str(small_disk / "deep" / "memory")})
    assert f"for memory.folder at {small_disk}" in only(checked(file)["disk"], "wrong").what


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="has eight GPUs")
def test_a_gpu_that_is_not_there_is_wrong_and_none_at_all_a_note(tmp_path: Path) -> None:
    found = checked(image_site(tmp_path / "named", tmp_path, device="cuda:7"))["GPU"]
    assert only(found, "wrong").remedy
    found = checked(image_site(tmp_path / "auto", tmp_path))["GPU"]
    assert found[0].state == "note" or torch.cuda.is_available()
    assert only(checked(image_site(tmp_path / "cpu", tmp_path, device="cpu"))["GPU"], "note").what.startswith(
        "not used"
    )


def test_packages_are_held_against_what_is_required() -> None:
    assert package_problem(Requirement("numpy>=1")) is None
    assert package_problem(Requirement(f"numpy>{np.__version__}")) == f"numpy {np.__version__} is not >{np.__version__}"
    assert package_problem(Requirement("no-such-package")) == "no-such-package is not installed"


def test_without_settings_the_machine_is_still_looked_at(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("site: A B\n")
    found = checked(tmp_path / "site.yaml")
    assert found["software"][0].state in ("ok", "wrong")
    assert "site.yaml line 1, site" in only(found["settings"], "wrong").what


def test_a_check_that_breaks_does_not_stop_the_others() -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("x", "ok", "half")
        raise ZeroDivisionError("patient 7")

    half, rest = _guarded("x", broken)
    assert half.what == "half"
    assert (rest.state, rest.what) == ("wrong", "this check broke off (ZeroDivisionError)")
    assert rest.details == ("patient 7",)


def test_classes_that_the_policy_keeps_out_are_named(tmp_path: Path) -> None:
    for part, mole, scar, first in (("train", 12, 4, 0), ("test", 6, 6, 100)):
        write_images(tmp_path / "images" / part / "mole", mole, first)
        write_images(tmp_path / "images" / part / "scar", scar, first + 50)
    file = image_site(tmp_path / "site", tmp_path)
    said = {each.what for each in examine(file, None, lambda done, total: None) if each.check == "rare classes"}
    assert said == {"the policy wants 5 images or more of a class; these take no part in training: scar"}
