"""Which apps are ours: those that Flower packs of this checkout, and none that differs from it by a byte or a file."""

from __future__ import annotations

import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import ErrorCode

from client.service.foreign_app import LARGEST, difference
from client.service.own_app import InstalledApp, replace
from client.service.own_code import ROOT
from server.consortium.flower_app import APP_DIRECTORY, staged_app
from simulations.engines.local_grid import LocalGrid

Files = list[tuple[str | zipfile.ZipInfo, bytes]]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """As an operator's commands submit it."""
    return build_fab_from_disk(staged_app(APP_DIRECTORY, tmp_path_factory.mktemp("staged") / "app"))


def files_of(archive: bytes) -> Files:
    with zipfile.ZipFile(BytesIO(archive)) as opened:
        return [(name, opened.read(name)) for name in opened.namelist()]


def packed(files: Files, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = BytesIO()
    with pytest.MonkeyPatch.context() as patch, zipfile.ZipFile(buffer, "w", compression) as archive:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # of names that come twice
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()


def test_the_app_of_this_checkout_is_ours(ours: bytes) -> None:
    assert difference(ours) is None
    assert difference(packed(files_of(ours), zipfile.ZIP_DEFLATED)) is None  # as another Flower may pack it
    assert len(ours) < LARGEST / 2, "before long the app would be too large for its own sites"


def test_plain_flwr_run_of_a_checkout_packs_the_same() -> None:
    assert difference(build_fab_from_disk(ROOT)) is None


def test_it_is_ours_wherever_the_site_is_installed(
    ours: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In site-packages too, among other packages and what Python has compiled."""
    for package in ("client", "dynammo_core", "server", "simulations"):
        shutil.copytree(ROOT / package, tmp_path / package)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "module.py").touch()
    monkeypatch.setattr("client.service.foreign_app.ROOT", tmp_path)
    assert difference(ours) is None
    (tmp_path / "client" / "app.py").write_text("changed")
    assert difference(ours) == "it has a different 'client/app.py'"


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


CHANGES: dict[str, tuple[Callable[[Files], Files], str]] = {
    "empty": (lambda files: [], "it lacks 'client/__init__.py', "),
    "a byte": (
        lambda files: [(n, c.replace(b"import", b"imporT", 1) if n == "client/app.py" else c) for n, c in files],
        "it has a different 'client/app.py'",
    ),
    "longer": (
        lambda files: [(n, c + b"\n" if n == "server/app.py" else c) for n, c in files],
        "it has a different 'server/app.py'",
    ),
    "lacks one": (
        lambda files: [f for f in files if f[0] != "client/hospital/door.py"],
        "it lacks 'client/hospital/door.py'",
    ),
    "twice": (
        lambda files: [("client/app.py", b"evil"), *files],
        "it has twice 'client/app.py'",
    ),
    "twice, the evil one last": (
        lambda files: [*files, ("client/app.py", b"evil")],
        "it has a different 'client/app.py'",
    ),
    "a link": (
        lambda files: [
            (link("client/app.py"), b"/etc/passwd") if name == "client/app.py" else (name, content)
            for name, content in files
        ],
        "it has a different 'client/app.py'",
    ),
    **{
        name: (lambda files, name=name: [*files, (name, b"")], f"it also has {name!r}")
        for name in (
            *("evil.py", "client/evil.py", "sitecustomize.py", "evil.pth", "client/native.so", "client/app.pyc"),
            *("evil-1.0.dist-info/entry_points.txt", "dynammo-0.1.0.dist-info/METADATA", "client/", ".info/other"),
            *("/etc/cron.d/evil", "../evil.py", "client/../../evil.py", "a\\b.py", "configs/evil.py"),
            *("tests/test_app.py", "CLIENT/app.py", "client/app.py ", "\u200bclient/app.py", "x\ny.py"),
        )
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_other_is_not(ours: bytes, change: str) -> None:
    changed, said = CHANGES[change]
    found = difference(packed(changed(files_of(ours))))
    assert found is not None
    assert found.startswith(said)
    assert "\n" not in found


@pytest.mark.parametrize("damage", [b"", b"PK", b"PK\x05\x06" + bytes(18), "half", "flipped", "encrypted"])
def test_damaged_archives_are_not(ours: bytes, damage: bytes | str) -> None:
    content = bytearray(ours)
    if damage == "half":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "encrypted":
        for start in range(len(content) - 4):
            if content[start : start + 4] == b"PK\x01\x02":
                content[start + 8] |= 1
    else:
        content[:] = damage  # type: ignore[assignment]
    assert difference(bytes(content)) is not None


def test_bombs_are_not_unpacked(ours: bytes) -> None:
    """Neither a file that would be a gigabyte, nor more than there may be at all, nor one that says it is small."""
    files = [f for f in files_of(ours) if f[0] != "client/app.py"]
    bomb = packed([*files, ("client/app.py", bytes(2**27))], zipfile.ZIP_DEFLATED)
    lying = bomb.replace(
        (2**27).to_bytes(4, "little"), len((ROOT / "client/app.py").read_bytes()).to_bytes(4, "little")
    )
    bzipped = packed(files_of(ours), zipfile.ZIP_BZIP2)
    tracemalloc.start()
    try:
        for archive in (bomb, lying, bytes(LARGEST + 1), bzipped):
            assert difference(archive) is not None
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def asked(app: InstalledApp, message_type: str) -> Error:
    """How the app answers a message of this type in a run whose app bears a name of its own."""
    grid = LocalGrid(app.loader(default_app_ref="")("evil/evil", "1/../../..", "hash"), nodes=1, run_config={})
    message = Message(RecordDict(), grid.get_node_ids()[0], message_type, ttl=60.0)
    (reply,) = grid.send_and_receive([message], timeout=60)
    assert reply.has_error()
    return reply.error


def test_what_was_not_compared_is_refused() -> None:
    """So that a Flower which no longer asks for it cannot run it."""
    error = asked(InstalledApp(), "train.fit")
    assert (error.code, error.reason) == (111, "ForeignApp")


def test_our_app_is_the_installed_one_whatever_it_is_called(ours: bytes) -> None:
    app = InstalledApp()
    app.compare(ours, skip_prompt=True)
    assert asked(app, "train.fit").reason == "ProtocolError"  # it is no instruction
    assert asked(app, "train.nonsense").code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    app.compare(b"", skip_prompt=True)
    assert asked(app, "train.fit").reason == "ForeignApp"


def test_a_flower_without_the_places_to_replace_is_not_run() -> None:
    import client.service.own_app as module

    with pytest.raises(RuntimeError, match=r"this version of Flower lacks client\.service\.own_app\.missing"):
        replace(module, "missing", None)
    replace(module, "NAME_LENGTH", module.NAME_LENGTH)
