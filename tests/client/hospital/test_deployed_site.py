"""A real site: its own settings say what it reads and where it remembers, whatever a server asks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from hospitals import Hospitals, deployed, make_hospital, with_images
from PIL import Image
from small_runs import RUN

from client.app import app
from client.hospital.hospital import Hospital, Request, SimulatedHost
from client.steps.site import Site
from dynammo_core.code_identity import project_hash
from dynammo_core.configuration.config import Config
from dynammo_core.data.samples import Samples
from dynammo_core.support.errors import ConfigError, DataError, ProtocolError
from dynammo_core.wire.announcement import BANDS
from dynammo_core.wire.envelope import Parcel, encode_instruction
from dynammo_core.wire.protocol import Instruction
from simulations.engines.local_grid import LocalGrid

HELD = {"0": 5, "1": 4, "3": 3}
CLASSES = ["3", "1", "0", "2"]  # the registry: not in the order in which the site would sort them
CONFIG = deployed(["beta", "alpha"], CLASSES)


@pytest.fixture
def alpha(tmp_path: Path) -> Path:
    return make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", HELD))


def asked(config: Config[Any] = CONFIG, *, site: int = 1, run: str = RUN, **changes: Any) -> Instruction:
    """What a server sends to alpha; changes are made to the plain configuration, as a server could make any."""
    plain = json.loads(config.canonical_json())
    for key, value in changes.items():
        section, leaf = key.split("__")
        plain[section][leaf] = value
    return Instruction(json.dumps(plain, sort_keys=True), project_hash(), run, 0, site, "/server/says/so", {})


def opened(file: Path, instruction: Instruction) -> Site:
    return Hospital(file).open(Request(instruction, {}))


def training(site: Site) -> Samples:
    """All that it may train on in the last task."""
    return site.rehearsal(len(site.experiment.stream) - 1).seen


def images(site: Site) -> dict[str, int]:
    """Training images by the name of their class."""
    names = site.experiment.class_names
    counts = training(site).class_counts(len(names))
    return {name: count for name, count in zip(names, counts, strict=True) if count}


# --- what it reads


def test_it_reads_its_own_images_under_the_registry_of_classes(alpha: Path) -> None:
    site = opened(alpha, asked())
    assert site.experiment.class_names == ("3", "1", "0", "2")
    assert images(site) == HELD
    assert len(training(site).of_class(0)) == 3  # class 0 of the registry is the digit 3
    assert site.test_images((0, 1, 2, 3)).class_counts(4) == [1, 1, 1, 0]
    assert site.new_images(0).class_counts(4) == [3, 4, 0, 0]
    assert site.index == 1


@pytest.mark.parametrize("root", ["trap", "trap/manifest.csv", "/nonexistent", "", "../trap", None])
@pytest.mark.parametrize("dataset", ["manifest", "image_folder", "digits", "path16"])
def test_no_server_decides_what_it_reads(alpha: Path, tmp_path: Path, root: str | None, dataset: str) -> None:
    with_images(tmp_path / "trap", "beta", {"0": 9, "2": 9})
    trap = str(tmp_path / "trap" / "beta" / "images") if root and root.startswith("trap") else root
    site = opened(alpha, asked(data__root=trap, data__dataset=dataset))
    assert images(site) == HELD
    own = alpha.parent / "images"
    assert {record.partition("-")[0] for record in training(site).record_ids} == {"alpha"}
    assert (site.experiment.config.data.dataset, site.experiment.config.data.root) == ("manifest", str(own))


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "quantity", "natural"])
def test_how_a_simulation_would_share_images_out_is_nothing_to_it(alpha: Path, partition: str) -> None:
    names = [f"site-{i}" for i in range(40)] + ["alpha"]  # more sites than it has images
    site = opened(alpha, asked(deployed(names, CLASSES), site=40, federation__partition=partition))
    assert len(site.rehearsal(0).new) == 7


def test_it_computes_where_it_wants(alpha: Path) -> None:
    assert opened(alpha, asked(compute__device="cuda:7")).experiment.config.compute.device == "cpu"
    assert opened(alpha, asked(compute__device_megabytes=9)).experiment.config.compute.device_megabytes is None


def test_a_servers_file_of_weights_is_refused_and_its_own_is_taken(alpha: Path, tmp_path: Path) -> None:
    for weights in ("/etc/shadow", "", "imagenet/../x"):
        with pytest.raises(ConfigError, match="unknown weights"):
            opened(alpha, asked(backbone__weights=weights))
    for weights in ("/etc/shadow.pth", "weights.pth", "~/weights.pth", "imagenet/../x.safetensors"):
        with pytest.raises(ConfigError, match=r"weights from a file of the server.*as `weights` in site.yaml"):
            opened(alpha, asked(backbone__weights=weights))
    for weights in ("random", "imagenet"):
        assert opened(alpha, asked(backbone__weights=weights)).experiment.config.backbone.weights == weights
    own = make_hospital(tmp_path / "own", "alpha", alpha.parent / "images", weights="backbone.pth")
    for weights in ("/etc/shadow.pth", "random"):
        site = opened(own, asked(backbone__weights=weights))
        assert site.experiment.config.backbone.weights == str(tmp_path / "own" / "backbone.pth")


# --- what it lacks, and what it has beyond the registry


def test_a_site_that_lacks_classes_takes_part(tmp_path: Path) -> None:
    file = make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", {"2": 3}))
    site = opened(file, asked())
    assert images(site) == {"2": 3}
    assert len(site.new_images(0)) == 0
    assert len(site.new_images(1)) == 3


def keep_rows(folder: Path, wanted: Callable[[dict[str, str]], bool]) -> None:
    with (folder / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if wanted(row)]
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(("split", "left"), [("train", "test"), ("test", "train")])
def test_a_site_that_lacks_one_half_of_a_class_takes_part_and_announces_it(alpha: Path, split: str, left: str) -> None:
    keep_rows(alpha.parent / "images", lambda row: (row["label"], row["split"]) != ("3", split))
    site = opened(alpha, asked())
    counts = {"train": training(site).of_class(0), "test": site.test_images((0,))}
    assert len(counts[split]) == 0
    assert len(counts[left]) > 0
    assert Hospital(alpha).announce().bands["3"] == 1


def test_a_single_image_of_a_class_without_a_split_is_no_obstacle(tmp_path: Path) -> None:
    images_of = with_images(tmp_path, "alpha", {"0": 6, "1": 1})
    keep_rows(images_of, lambda row: row["label"] == "0" or row["split"] == "train")
    with (images_of / "manifest.csv").open() as file:
        rows = [(row["path"], row["label"]) for row in csv.DictReader(file)]
    with (images_of / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    alpha = make_hospital(tmp_path / "alpha", "alpha", images_of)
    assert images(opened(alpha, asked()))["1"] == 1
    assert Hospital(alpha).announce().bands == {"0": 1, "1": 1}


def test_a_site_that_has_more_than_the_registry_knows_waits_with_it(alpha: Path) -> None:
    """A new disease lies in its data before anyone learns it: what runs goes on without."""
    before = opened(alpha, asked())
    held = [training(before), before.test_images((0, 1, 2, 3))]
    with_images(alpha.parent.parent, "alpha", {**HELD, "5": 6})
    after = opened(alpha, asked(memory__exemplars=23))  # another experiment, so that nothing is kept from before
    assert images(after) == HELD
    for samples, again in zip(held, [training(after), after.test_images((0, 1, 2, 3))], strict=True):
        assert again.record_ids == samples.record_ids
        assert bool((again.images == samples.images).all())
    assert Hospital(alpha).announce().bands["5"] == 1


def test_folders_of_images_serve_as_well(tmp_path: Path) -> None:
    manifest = with_images(tmp_path, "alpha", HELD) / "manifest.csv"
    root = tmp_path / "folders"
    with manifest.open() as file:
        for row in csv.DictReader(file):
            target = root / row["split"] / row["label"] / row["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((manifest.parent / row["path"]).read_bytes())
    (root / "train" / "new").mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(root / "train" / "new" / "one.png")
    (root / "train" / "new" / "two.png").write_bytes(b"not read by anyone")
    data = {"dataset": "image_folder", "root": str(root)}
    site_yaml = make_hospital(tmp_path / "alpha", "alpha", root, data=data)
    assert images(opened(site_yaml, asked())) == HELD
    assert Hospital(site_yaml).announce().bands == {"0": 1, "1": 1, "3": 1, "new": 1}


def test_no_images_at_all_are_an_error_of_the_site(tmp_path: Path) -> None:
    file = make_hospital(tmp_path / "alpha", "alpha", tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"nowhere.csv"):
        opened(file, asked()).new_images(0)
    with pytest.raises(DataError, match=r"nowhere.csv"):
        Hospital(file).announce()


# --- whom it answers, and where it remembers


@pytest.mark.parametrize("index", [0, 2, -1, -2, 10**9])
def test_an_instruction_for_another_site_is_refused(alpha: Path, index: int) -> None:
    with pytest.raises(ProtocolError, match=rf"for site {index} of \['beta', 'alpha'\], and this site is 'alpha'"):
        opened(alpha, asked(site=index))


def test_an_experiment_without_its_name_or_without_names_is_refused(alpha: Path) -> None:
    with pytest.raises(ProtocolError, match="this site is 'alpha'"):
        opened(alpha, asked(deployed(["beta", "gamma"], CLASSES)))
    with pytest.raises(ProtocolError, match=r"for site 1 of \[\], and this site is 'alpha'"):
        opened(alpha, asked(federation__site_names=None))


@pytest.mark.parametrize(
    "run", ["", ".", "..", "../x", "/etc", "a/b", "a\\b", "a/../../b", ".hidden", "a\n", "a\0b", "-a", "a" * 201, "ä"]
)
def test_a_run_is_a_name_and_no_path(alpha: Path, run: str) -> None:
    with pytest.raises(ProtocolError, match="is not a valid run name"):
        opened(alpha, asked(run=run))


def test_it_remembers_in_its_own_folder_for_each_run(alpha: Path) -> None:
    places = [opened(alpha, asked(run=run)).store.path.parent for run in (RUN, "a..b")]
    assert places == [alpha.parent / "memory" / "runs" / RUN, alpha.parent / "memory" / "runs" / "a..b"]


# --- what leaves


def sent(instruction: Instruction) -> RecordDict:
    return encode_instruction(instruction, Parcel.of({}))


def reply_of(grid: LocalGrid, content: RecordDict, kind: str) -> Message:
    message = Message(content, grid.get_node_ids()[0], kind, ttl=60.0)
    (reply,) = grid.send_and_receive([message], timeout=60)
    return reply


@pytest.mark.parametrize(
    ("instruction", "error", "code"),
    [
        (asked(site=0), "ProtocolError", ProtocolError.code),
        (asked(run="../../x"), "ProtocolError", ProtocolError.code),
        (asked(backbone__weights="/etc/shadow"), "ConfigError", ConfigError.code),
        (asked(data__classes=[]), "ConfigError", ConfigError.code),
        (asked(method__name="no-such"), "ConfigError", ConfigError.code),
    ],
)
def test_of_a_refusal_only_code_and_class_leave(alpha: Path, instruction: Instruction, error: str, code: int) -> None:
    reply = reply_of(Hospitals({"alpha": alpha}), sent(instruction), "train.fit")
    assert (reply.error.code, reply.error.reason) == (code, error)


def test_an_announcement_tells_names_and_bands_and_nothing_else(tmp_path: Path) -> None:
    held = {"0": 9, "1": 8, "3": 2}
    file = make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", held))
    content = reply_of(Hospitals({"alpha": file}), RecordDict(), "query.announce").content
    assert set(content) == {"announcement"}
    # with one test image each: 10, 9 and 3 images
    assert dict(content.config_records["announcement"]) == {"classes": ["0", "1", "3"], "bands": [10, 1, 1]}
    assert {1, 10} < set(BANDS)


def test_a_simulated_site_has_nothing_to_announce() -> None:
    with pytest.raises(ConfigError, match="Start a real site with `dynammo-site start`"):
        SimulatedHost().announce()
    reply = reply_of(LocalGrid(app, nodes=1, run_config={}), RecordDict(), "query.announce")
    assert (reply.error.code, reply.error.reason) == (ConfigError.code, "ConfigError")


def test_a_site_with_wrong_settings_says_so_to_nobody_else(alpha: Path) -> None:
    alpha.write_text("site: alpha\nsecret-key: patient-4711\n")
    for kind, content in {"train.fit": sent(asked()), "query.announce": RecordDict()}.items():
        reply = reply_of(Hospitals({"alpha": alpha}), content, kind)
        assert (reply.error.code, reply.error.reason) == (ConfigError.code, "ConfigError")
