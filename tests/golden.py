"""The exact bits of a small run of every method and of each variant that takes another way through the code.

`python -m tests.golden --out FILE` runs them all by the local engine and writes a SHA-256 of each thing that a run
leaves behind. With `--compare EARLIER` it prints what differs from an earlier file and exits with 1: a refactoring
changes no bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.append(str(Path(__file__).parent))  # the tests' own helpers import each other by their bare names

from hospitals import deployed, make_hospitals
from small_runs import events, run_small, small_settings

from client.consent.settings import load_site
from client.state.withdrawal import WithdrawalLedger
from dynammo_core.configuration.config import Config, resolve
from dynammo_core.memory.store import MemoryStore
from dynammo_core.merging import MERGE_OPERATORS
from dynammo_core.methods import METHODS
from dynammo_core.support.errors import DynammoError
from dynammo_core.wire.tensor_store import tensor_hash
from server.jobs.forget import forget_run

Settings = Mapping[str, Any]
"""Overrides by dotted key."""

LATE: Settings = {"federation.arrival": "asynchronous", "federation.max_delay": 1, "seed": 3}
GROUP: Settings = {"method.norm": "group"}
EXAMPLE: Settings = {"privacy.mechanism": "example", "privacy.feature_norm": 10.0}
CLIENT: Settings = {"privacy.mechanism": "client"}
SECURE: Settings = {"federation.secure_aggregation": True}
OWN: Settings = {"scanners.kind": "mixed", "scanners.own_statistics": "all"}
TRANSFORMER: Settings = {"backbone.name": "timm/test_vit"}
FOUR_OPERATORS: Settings = {"method.merge": ["ties", "mean", "last"]}

DYNAMMO: Mapping[str, Settings] = {
    **{name: {"method.merge": name} for name in MERGE_OPERATORS if name != "mean"},
    "an operator for each place": FOUR_OPERATORS,
    "fisher of folded scales": {"method.merge": "fisher", "method.merge_alpha": "fold"},
    "folded scales": {"method.merge_alpha": "fold"},
    "not recalibrated": {"method.recalibrate": False},
    "no adapters": {"method.adapters": False},
    "group norm": GROUP,
    "augmented": {"data.augmentation": "crop_flip"},
    "late classes": LATE,
    "example privacy": {**GROUP, **EXAMPLE},
    "example privacy, no adapters": {"method.adapters": False, **EXAMPLE},
    "example privacy, proximal": {**GROUP, **EXAMPLE, "federation.proximal": 0.1},
    "client privacy": {**GROUP, **CLIENT},
    "client privacy, no adapters": {"method.adapters": False, **CLIENT},
    "secure": SECURE,
    "secure, fisher": {**SECURE, "method.merge": "fisher"},
    "secure, weighted": {**SECURE, "method.merge": "weighted"},
    "int8": {"federation.compression": "int8"},
    "median": {"federation.aggregator": "median"},
    "own statistics": OWN,
    "lora": TRANSFORMER,
    "lora, example privacy": {**TRANSFORMER, **EXAMPLE},
    "lora, secure, fisher": {**TRANSFORMER, **SECURE, "method.merge": "fisher"},
    "bottleneck": {**TRANSFORMER, "method.adapter": "bottleneck"},
}
RIDGE: Mapping[str, Settings] = {
    "late classes": LATE,
    "example privacy": EXAMPLE,
    "last features": {"method.multi_scale": False},
    "grid, fixed regulariser": {"method.pooling": "grid", "method.regulariser": 0.1},
}
REHEARSED: Mapping[str, Settings] = {"nearest mean": {"method.prediction": "nearest_mean"}, "late classes": LATE}
EVERY_SCALE: Settings = {"method.multi_scale": True}
OF_EACH_CLASS: Settings = {"method.covariance": "class"}
OPTIMISED: Mapping[str, Settings] = {
    "proximal": {"federation.proximal": 0.1},
    "server's momentum": {"federation.server_optimizer": "momentum", "federation.compression": "int8_both"},
    "server's adam": {"federation.server_optimizer": "adam", "federation.aggregator": "median"},
    "server's yogi": {"federation.server_optimizer": "yogi", **SECURE},
}
VARIANTS: Mapping[str, Mapping[str, Settings]] = {
    "dynammo": DYNAMMO,
    "acl": {"late classes": LATE, "example privacy": {**GROUP, **EXAMPLE}, "client privacy": {**GROUP, **CLIENT}},
    "ridge": RIDGE,
    "streaming_ridge": {**RIDGE, "secure": SECURE},
    "dynammo_ridge": {
        "late classes": LATE,
        "secure, fisher": {**SECURE, "method.merge": "fisher"},
        "frozen beside": {"method.frozen_beside": True, "method.pooling": "grid"},
        "group norm": GROUP,
        "last features": {"method.multi_scale": False},
    },
    "first_session": {"late classes": LATE, "alone": {"method.frozen_beside": False}, "secure": SECURE},
    "ranpac": {"late classes": LATE, "example privacy": EXAMPLE, "secure": SECURE, "every scale": EVERY_SCALE},
    "fecam": {
        "late classes": LATE,
        "of each class": OF_EACH_CLASS,
        "of each class, late classes": {**OF_EACH_CLASS, **LATE},
        "of each class, secure": {**OF_EACH_CLASS, **SECURE},
    },
    "icarl": {"classifier": {"method.prediction": "classifier"}, "late classes": LATE},
    "replay": {**REHEARSED, **OPTIMISED},
    **dict.fromkeys(("wa", "lucir", "podnet", "dark_er", "dynamic_er"), REHEARSED),
    "joint": {"late classes": LATE},
    "fine_tune": {"late classes": LATE, "own statistics": {**OWN, "scanners.own_statistics": "trained"}},
}
HOLDINGS: Mapping[str, Mapping[str, int]] = {
    "alpha": {"0": 9, "1": 9, "2": 9, "3": 9},
    "beta": {"0": 9, "2": 9},
    "gamma": {"1": 9, "3": 7},
}
WITHDRAWN = {"alpha": ["alpha-0-1.png", "alpha-3-2.png"], "gamma": ["gamma-1-0.png"]}
AT_HOSPITALS = ("dynammo", "ridge", "lucir", "streaming_ridge", "first_session", "fecam")


def main() -> int:
    """Run all, write the file, compare; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--compare", type=Path, help="an earlier file, which must say the same")
    parser.add_argument("--only", default="", help="only runs whose name contains this")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    found = {}
    with TemporaryDirectory(prefix="dynammo-golden-") as folder:
        for number, (name, run) in enumerate(all_runs(asked.only)):
            started = time.monotonic()
            found[name] = run(Path(folder) / str(number))
            print(f"{time.monotonic() - started:6.1f} s  {name}", flush=True)
    asked.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if asked.compare is None:
        return 0
    earlier = {name: bits for name, bits in json.loads(asked.compare.read_text()).items() if asked.only in name}
    lines = list(differences(earlier, found))
    print("\n".join(lines) if lines else f"all {len(found)} runs are equal, bit for bit")
    return bool(lines)


class Simulated:
    """A run of simulated sites: three tasks of two digits, three sites with skewed labels."""

    def __init__(self, method: str, overrides: Settings) -> None:
        self._method, self._overrides = method, overrides

    def __call__(self, folder: Path) -> dict[str, Any]:
        """The bits; or why the configuration is refused, which is behaviour too."""
        try:
            settings = small_settings(self._method)
            settings["tasks"] = {"sizes": [2, 2, 2]}
            config = resolve(settings, "golden.yaml", {})
            config = type(config).model_validate(_changed(config.model_dump(mode="json"), self._overrides))
            path = run_small(config, folder).path
        except (DynammoError, ValueError) as error:
            return {"refused": str(error).splitlines()}
        sites = sorted((path / "sites").glob("site-*"))
        return bits(path, config, {place.name: MemoryStore(place, run=_run(path), site=place.name) for place in sites})


class Deployed:
    """A run of hospitals that have their own images and folders; of methods that keep sums, records leave it."""

    def __init__(self, method: str) -> None:
        self._method = method

    def __call__(self, folder: Path) -> dict[str, Any]:
        """The bits before and, where something can be forgotten, after."""
        hospitals = make_hospitals(folder, HOLDINGS)
        regulariser = {"regulariser": 1.0} if "regulariser" in METHODS[self._method].Params.model_fields else {}
        config = deployed(list(HOLDINGS), ["0", "1", "2", "3"], self._method, {"method": regulariser})
        path = run_small(config, folder / "runs", grid=hospitals).path
        places = {name: load_site(file).memory.folder for name, file in hospitals.files.items()}
        stores = {
            name: MemoryStore(next(place.glob("runs/*")), run=_run(path), site=name) for name, place in places.items()
        }
        found = {"run": bits(path, config, stores)}
        for name, records in WITHDRAWN.items():
            WithdrawalLedger(places[name]).withdraw(records, "golden", date(2026, 3, 1))
        try:
            forget_run(hospitals, config, path, folder / "forgotten.json")
        except DynammoError as error:
            return {**found, "forget": str(error).splitlines()}
        answer = json.loads((folder / "forgotten.json").read_text())
        return {**found, "forget": answer, "forgotten": bits(path, config, stores)}


def all_runs(only: str) -> Iterator[tuple[str, Simulated | Deployed]]:
    """Every run by its name."""
    for method in METHODS:
        for variant, overrides in {"": {}, **VARIANTS.get(method, {})}.items():
            name = f"{method}, {variant}".removesuffix(", ")
            if only in name:
                yield name, Simulated(method, overrides)
    for method in AT_HOSPITALS:
        if only in (name := f"{method}, at hospitals"):
            yield name, Deployed(method)


def bits(path: Path, config: Config[Any], memories: Mapping[str, MemoryStore]) -> dict[str, Any]:
    """A hash of each thing that a run leaves: tensors of model and archive, exemplars, results, what travelled."""
    summary = json.loads((path / "summary.json").read_text())
    for changing in ("seconds", "code_hash", "config_hash"):
        del summary[changing]
    facts = json.loads((path / "model.json").read_text())
    steps = [
        {key: step[key] for key in ("task", "stage", "round", "bytes_up", "bytes_down")}
        for step in events(path, "step_finished")
    ]
    return {
        "checkpoint": _of_tensors(load_file(path / "checkpoints" / "latest.safetensors")),
        "model": _of_tensors(load_file(path / "model.safetensors")),
        "facts": _sha256({key: value for key, value in facts.items() if key not in ("lineage", "versions")}),
        "summary": summary,
        "tables": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.glob("*.csv"))},
        "steps": _sha256(steps),
        "memories": {name: _of_memory(store) for name, store in memories.items()},
    }


def differences(earlier: Any, now: Any, place: str = "") -> Iterator[str]:
    """A line for each leaf that differs between two trees."""
    if not (isinstance(earlier, dict) and isinstance(now, dict)):
        if earlier != now:
            yield f"{place}: was {earlier}, is {now}"
        return
    for key in sorted(earlier.keys() | now.keys()):
        yield from differences(earlier.get(key, "missing"), now.get(key, "missing"), f"{place}/{key}")


def _changed(settings: dict[str, Any], overrides: Settings) -> dict[str, Any]:
    for key, value in overrides.items():
        section, _, leaf = key.rpartition(".")
        (settings[section] if section else settings)[leaf] = value
    return settings


def _of_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: tensor_hash(tensor) for name, tensor in sorted(tensors.items())}


def _of_memory(store: MemoryStore) -> str:
    memory = store.load()
    return _sha256(
        [
            memory.task,
            memory.record_ids,
            memory.samples.labels.tolist(),
            tensor_hash(memory.samples.images),
            [one.task for one in memory.taken],
            sorted(memory.arrived.items()),
        ]
    )


def _sha256(content: dict[str, Any] | Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _run(path: Path) -> str:
    return str(events(path, "run_started")[0]["run"])


if __name__ == "__main__":
    sys.exit(main())
