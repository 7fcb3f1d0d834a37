"""Real packages outside this project, as pip installs them: modules, metadata, a record of the files, entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import invalidate_caches
from pathlib import Path

from dynammo_core.support.plugins import _files_sha256
from dynammo_core.support.registry import installed_entry_points

METHOD = """
from pydantic import Field

from dynammo_core.methods.base import Method
from dynammo_core.methods.heads import grow_classifier, train
from dynammo_core.methods.settings.heads import SingleHeadSettings
from dynammo_core.methods.rehearsal import new_and_exemplars
from dynammo_core.plan import Remember


class HalfReplaySettings(SingleHeadSettings):
    share: float = Field(default=0.5, gt=0, le=1)


class HalfReplay(Method[HalfReplaySettings]):
    name = "half_replay"
    paper_url = "https://arxiv.org/abs/1902.10486"

    def grow(self, model, task):
        grow_classifier(model, self.stream, task)

    def stages(self, task):
        return *train(self.params, new_and_exemplars), Remember(down=self.deployed)
"""
MERGE = """
def newest_half(given):
    first, last = given.sets[0], given.sets[-1]
    return {name: (first[name] + last[name]) / 2 for name in last}
"""
FILES = {"outside/__init__.py": "", "outside/method.py": METHOD, "outside/merge.py": MERGE}
POINTS = {
    "dynammo.methods": {"half_replay": "outside.method:HalfReplay"},
    "dynammo.merging": {"newest_half": "outside.merge:newest_half"},
}


def install(
    folder: Path,
    files: Mapping[str, str] = FILES,
    points: Mapping[str, Mapping[str, str]] = POINTS,
    *,
    name: str = "federated-outside",
    version: str = "1.0",
) -> Path:
    """Install a package into a folder, which is then to be on the path of a Python; returns the folder."""
    about = f"{name.replace('-', '_')}-{version}.dist-info"
    groups = "".join(
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in points.items()
    )
    written = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/entry_points.txt": groups,
    }
    record = "".join(f"{path},,\n" for path in (*written, f"{about}/RECORD"))
    for path, text in {**written, f"{about}/RECORD": record}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


@contextmanager
def on_the_path(*folders: Path) -> Iterator[None]:
    """Let this process find the packages in some folders, as a newly started one would."""
    sys.path[:0] = map(str, folders)
    forget()
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(str(folder))
        forget(*folders)


def forget(*folders: Path) -> None:
    """Undo what this process keeps for its life: modules from the folders, metadata, and hashes of files."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and any(Path(file).is_relative_to(folder) for folder in folders):
            del sys.modules[name]
    installed_entry_points.cache_clear()
    _files_sha256.cache_clear()
    invalidate_caches()
