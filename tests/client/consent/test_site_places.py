"""Where `site.yaml` may put what a site writes: nowhere that is named by those who start runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.consent.settings import SiteSettings, load_site
from dynammo_core.support.errors import ConfigError

WHOLE = "site: north\nsuperlink: server:9092\ndata: {root: images}\n"


def load(folder: Path, lines: str) -> SiteSettings:
    (folder / "site.yaml").write_text(WHOLE + lines)
    return load_site(folder / "site.yaml")


@pytest.mark.parametrize("name", ["state", "approvals", "log", "audit"])
@pytest.mark.parametrize("place", ["memory/runs", "memory/runs/a", "memory/./runs/a/b", "x/../memory/runs/audit.jsonl"])
def test_nothing_of_the_site_lies_among_the_memories_of_runs(tmp_path: Path, name: str, place: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is .*, inside the folder of the runs' memories"):
        load(tmp_path, f"{name}: {place}\n")


def test_a_link_does_not_hide_it(tmp_path: Path) -> None:
    (tmp_path / "disk" / "runs").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/runs")
    for lines in ("memory: {folder: disk}\naudit: link/audit.jsonl\n", "memory: {folder: link/..}\nlog: disk/runs/l\n"):
        with pytest.raises(ConfigError, match="inside the folder of the runs' memories"):
            load(tmp_path, lines)


def test_beside_the_runs_and_elsewhere_everything_may_lie(tmp_path: Path) -> None:
    settings = load(tmp_path, "log: memory/site.log\naudit: memory/runs.jsonl\nstate: runs\n")
    assert settings.log == tmp_path / "memory" / "site.log"
    assert settings.state == tmp_path / "runs"


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for place in ("loop/a", '"a\\0b"'):
        with pytest.raises(ConfigError, match="cannot be resolved"):
            load(tmp_path, f"audit: {place}\n")
