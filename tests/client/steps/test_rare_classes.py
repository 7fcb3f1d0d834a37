"""A class of which a real site holds too few images takes no part there, so that no small count leaves."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from hospitals import Hospitals, deployed, make_hospital, with_images
from small_runs import instruction, run_small, step_of

from client.consent.fewest import Fewest
from client.hospital.hospital import Hospital, Request
from client.hospital.site_opening import shared_experiment
from client.state.withdrawal import WithdrawalLedger
from client.steps.actions import answer
from client.steps.forgetting import kept_apart, withdrawn_from
from client.steps.site import Site
from dynammo_core.data.index.opening import open_dataset
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import ConfigError, PolicyError

CLASSES = ["0", "1", "2", "3"]
HELD = {"0": 12, "1": 5, "2": 4, "3": 1}
CONFIG = deployed(["alpha"], CLASSES, sections={"memory": {"exemplars": 400}, "tasks": {"sizes": [4]}})


def hospital(folder: Path, policy: str) -> Path:
    """A site with so many training images of each class, and one test image."""
    site_yaml = make_hospital(folder / "alpha", "alpha", with_images(folder, "alpha", HELD))
    (site_yaml.parent / "policy.yaml").write_text(policy)
    return site_yaml


def opened(site_yaml: Path) -> Site:
    experiment = Experiment(CONFIG)
    sent = instruction(experiment, experiment.steps[0], 0, Path("/server"))
    return Hospital(site_yaml).open(Request(sent, {}))


def counts(site: Site, stage: str) -> list[int]:
    step = step_of(site.experiment, 0, stage)
    report = answer(instruction(site.experiment, step, 0, Path("/server")), site)
    return [] if report.abstained else report.class_counts


@pytest.mark.parametrize(
    ("policy", "trained", "tested"),
    [
        ("fewest_images: 1", [12, 5, 4, 1], [1, 1, 1, 1]),
        ("fewest_images: 5", [12, 5, 0, 0], [0, 0, 0, 0]),
        ("{}", [12, 5, 0, 0], [0, 0, 0, 0]),  # five is the default
        ("fewest_images: 6", [12, 0, 0, 0], [0, 0, 0, 0]),
        ("fewest_images: 13", [], [0, 0, 0, 0]),
    ],
)
def test_a_rare_class_is_not_trained_remembered_or_tested(
    tmp_path: Path, policy: str, trained: list[int], tested: list[int]
) -> None:
    site = opened(hospital(tmp_path, policy))
    assert counts(site, "train") == trained
    assert counts(site, "remember") == (trained or [0, 0, 0, 0])
    assert counts(site, "evaluate") == tested
    assert site.memory().arrived == {label: 0 for label, count in enumerate(trained) if count}


def test_a_site_without_a_policy_suppresses_too(tmp_path: Path) -> None:
    site_yaml = hospital(tmp_path, "{}")
    site_yaml.write_text(site_yaml.read_text().replace("policy: policy.yaml", ""))
    assert counts(opened(site_yaml), "train") == [12, 5, 0, 0]


@pytest.mark.parametrize(
    ("policy", "bands"),
    [
        ("fewest_images: 1", {"0": 10, "1": 1, "2": 1, "3": 1}),
        ("fewest_images: 4", {"0": 10, "1": 1, "2": 1}),
        # With its one test image there are 5 of class 2, but no 5 of either kind.
        ("fewest_images: 5", {"0": 10, "1": 1}),
        ("fewest_images: 13", {}),
    ],
)
def test_a_rare_class_is_not_announced(tmp_path: Path, policy: str, bands: dict[str, int]) -> None:
    assert Hospital(hospital(tmp_path, policy)).announce().bands == bands


def test_a_site_may_announce_nothing(tmp_path: Path) -> None:
    site_yaml = hospital(tmp_path, "announce: false")
    with pytest.raises(PolicyError, match="does not announce classes"):
        Hospital(site_yaml).announce()
    grid = Hospitals({"alpha": site_yaml})
    (reply,) = grid.send_and_receive([Message(RecordDict(), grid.get_node_ids()[0], "query.announce", ttl=60.0)])
    assert (reply.error.code, reply.error.reason) == (PolicyError.code, "PolicyError")


def test_withdrawals_can_make_a_class_rare(tmp_path: Path) -> None:
    site = opened(hospital(tmp_path, "fewest_images: 5"))
    assert counts(site, "remember")[:2] == [12, 5]
    assert site.ledger is not None
    ledger = WithdrawalLedger(site.ledger.path.parent)
    ledger.withdraw([site.train_images((1,)).record_ids[0]], "consent", date(2026, 1, 1))
    assert counts(site, "train")[:2] == [24, 0]  # of class 0 the images and the exemplars
    assert site.memory().samples.class_counts(2) == [12, 0]
    assert Hospital(tmp_path / "alpha" / "site.yaml").announce().bands == {"0": 10}


def test_a_small_memory_is_no_small_count(tmp_path: Path) -> None:
    """Of 8 exemplars each of 4 classes has 2, whoever the patients are."""
    config = deployed(["alpha"], CLASSES, sections={"memory": {"exemplars": 8}, "tasks": {"sizes": [4]}})
    site_yaml = hospital(tmp_path, "fewest_images: 5")
    sent = instruction(Experiment(config), Experiment(config).steps[0], 0, Path("/server"))
    site = Hospital(site_yaml).open(Request(sent, {}))
    assert site.fewest_exemplars == Fewest(2, 1)
    # two classes take part, and share the memory of the one site
    assert counts(site, "remember") == [4, 4, 0, 0]
    assert site.memory().samples.class_counts(4) == [4, 4, 0, 0]


TWO_NETWORKS = {
    "memory": {"exemplars": 4},
    "method": {"adapters": False},
    "backbone": {
        "name": "small_cnn",
        "weights": "random",
        "changes": [{"task": 2, "name": "small_cnn", "weights": "random"}],
    },
}


@pytest.mark.parametrize(("fewest", "sent"), [(4, [4, 0, 0, 0]), (5, [])])
def test_features_before_and_after_are_summed_over_enough_images_or_not_at_all(
    tmp_path: Path, fewest: int, sent: list[int]
) -> None:
    """They are sums over all classes together; this site has four exemplars, and none of the new classes."""
    experiment = Experiment(deployed(["alpha"], CLASSES, "moving_ridge", TWO_NETWORKS))
    site_yaml = make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", {"0": 12}))
    (site_yaml.parent / "policy.yaml").write_text(f"fewest_images: {fewest}")
    asked = {}
    for task, stage in ((0, "remember"), (1, "pairs")):
        question = instruction(experiment, step_of(experiment, task, stage), 0, Path("/server"))
        asked[stage] = answer(question, Hospital(site_yaml).open(Request(question, {})))
    assert asked["remember"].class_counts == [4, 0, 0, 0]
    assert ([] if asked["pairs"].abstained else asked["pairs"].class_counts) == sent


def test_an_image_that_waits_is_in_no_sum_of_features_before_and_after(tmp_path: Path) -> None:
    """Or the difference of the two sums would be that image."""
    experiment = Experiment(deployed(["alpha"], CLASSES, "moving_ridge", TWO_NETWORKS))
    site_yaml = make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", {"2": 7}))
    (site_yaml.parent / "policy.yaml").write_text("fewest_images: 4")
    for stage in ("pairs", "count", "sum"):
        question = instruction(experiment, step_of(experiment, 1, stage), 0, Path("/server"))
        site = Hospital(site_yaml).open(Request(question, {}))
        assert site.sums is not None
        if stage == "pairs":
            site.sums.note(0, site.new_images(1).subset(range(6)))  # in an earlier sum
        assert (stage, answer(question, site).class_counts[2]) == (stage, 7 if stage == "count" else 6)


def test_a_class_that_becomes_common_is_learnt_with_the_next_task(tmp_path: Path) -> None:
    config = deployed(["alpha"], ["0", "1", "2", "3"])
    site_yaml = make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", {"0": 9, "1": 3, "2": 9}))
    (site_yaml.parent / "policy.yaml").write_text("fewest_images: 5")
    first = Experiment(config)
    site = Hospital(site_yaml).open(Request(instruction(first, first.steps[0], 0, Path("/server")), {}))
    assert counts(site, "remember") == [9, 0, 0, 0]
    with_images(tmp_path, "alpha", {"0": 9, "1": 7, "2": 9})
    again = Hospital(site_yaml).open(Request(instruction(first, first.steps[0], 0, Path("/server")), {}))
    assert again.rehearsal(1).new.class_counts(4) == [0, 7, 9, 0]


def with_patients(folder: Path, patients: Mapping[str, int]) -> None:
    """Say in the manifest of alpha whom the training images show: so many patients of each class, in turn."""
    file = folder / "alpha" / "images" / "manifest.csv"
    head, *rows = csv.reader(file.open())
    shown = []
    for path, label, split, site in rows:
        number = int(path.removesuffix(".png").rpartition("-")[2])
        patient = f"{label}-{number % patients[label]}" if split == "train" else f"test-{label}"
        shown.append([path, label, split, site, patient])
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([[*head, "patient"], *shown])
    shared_experiment.cache_clear()
    open_dataset.cache_clear()


@pytest.mark.parametrize(
    ("policy", "trained"),
    [
        ("{fewest_images: 1}", [12, 5, 4, 1]),
        ("{fewest_images: 1, fewest_patients: 2}", [12, 5, 0, 0]),
        ("{fewest_images: 1, fewest_patients: 3}", [12, 0, 0, 0]),
        ("{fewest_images: 5, fewest_patients: 2}", [12, 5, 0, 0]),
        ("{fewest_images: 1, fewest_patients: 5}", []),
    ],
)
def test_a_class_of_few_patients_takes_no_part(tmp_path: Path, policy: str, trained: list[int]) -> None:
    """Twelve images of four patients, five of two, four of one, one of one; one test image each."""
    site_yaml = hospital(tmp_path, policy)
    with_patients(tmp_path, {"0": 4, "1": 2, "2": 1, "3": 1})
    site = opened(site_yaml)
    assert counts(site, "train") == trained
    assert counts(site, "remember") == (trained or [0, 0, 0, 0])
    tested = "fewest_patients" not in policy
    assert counts(site, "evaluate") == [int(tested)] * 4
    bands = Hospital(site_yaml).announce().bands
    assert bands.keys() == {str(label) for label, count in enumerate(trained) if count}


def test_exemplars_of_enough_patients_are_kept_though_the_memory_is_small(tmp_path: Path) -> None:
    """Of 12 exemplars each of 4 classes has 3: of three patients where the policy wants as many or more."""
    config = deployed(["alpha"], CLASSES, sections={"memory": {"exemplars": 12}, "tasks": {"sizes": [4]}})
    site_yaml = hospital(tmp_path, "{fewest_images: 1, fewest_patients: 4}")
    with_patients(tmp_path, {"0": 4, "1": 5, "2": 1, "3": 1})
    sent = instruction(Experiment(config), Experiment(config).steps[0], 0, Path("/server"))
    site = Hospital(site_yaml).open(Request(sent, {}))
    assert site.fewest_exemplars == Fewest(1, 3)
    assert counts(site, "remember") == [6, 5, 0, 0]
    memory = site.memory().samples
    for label in (0, 1):
        assert len({*memory.of_class(label).patient_ids[:3]}) == 3
    assert site.ledger is not None
    site.ledger.withdraw([], "consent", date(2026, 1, 1), patients=["0-0", "0-1"])
    assert site.memory().samples.class_counts(4) == [0, 5, 0, 0]  # two patients are left of the first class
    assert counts(site, "train") == [0, 10, 0, 0]


def test_sums_are_told_apart_by_enough_patients_alone(tmp_path: Path) -> None:
    """Twelve images of four patients were summed, and three withdraw, one after another; the policy wants two."""
    config = deployed(["alpha"], CLASSES, "streaming_ridge", {"tasks": {"sizes": [4]}})
    site_yaml = hospital(tmp_path, "{fewest_images: 1, fewest_patients: 2}")
    with_patients(tmp_path, {"0": 4, "1": 3, "2": 1, "3": 1})
    sent = instruction(Experiment(config), step_of(Experiment(config), 0, "sum"), 0, Path("/server"))
    site = Hospital(site_yaml).open(Request(sent, {}))
    assert site.ledger is not None
    assert site.sums is not None
    assert answer(sent, site).class_counts == [12, 5, 0, 0]
    contribution = step_of(site.experiment, 0, "sum").contribution

    def leaving() -> dict[str, int]:
        return dict(Counter(withdrawn_from(site, site.sums, [contribution]).patient_ids))  # type: ignore[arg-type]

    site.ledger.withdraw([], "consent", date(2026, 1, 1), patients=["0-1"])
    assert leaving() == {}  # three images, and one person's
    assert kept_apart(site, site.sums, site.train_images((0,))).class_counts(1) == [8]  # one more stays away
    site.ledger.withdraw([], "consent", date(2026, 1, 1), patients=["0-3"])
    assert leaving() == {"0-1": 3, "0-3": 3}
    assert kept_apart(site, site.sums, site.train_images((0,))).class_counts(1) == [6]
    site.ledger.withdraw([], "consent", date(2026, 1, 1), patients=["0-2"])
    assert leaving() == {"0-0": 3, "0-1": 3, "0-2": 3, "0-3": 3}  # one patient would remain: all go


def test_a_policy_that_cannot_be_read_stops_the_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fewest_images"):
        opened(hospital(tmp_path, "fewest_images: none"))


def test_whole_runs_send_no_small_count(tmp_path: Path) -> None:
    """Three of four classes are rare at one of two sites, and the run goes through without them."""
    files = {
        "alpha": hospital(tmp_path, "fewest_images: 5"),
        "beta": make_hospital(tmp_path / "beta", "beta", with_images(tmp_path, "beta", dict.fromkeys(CLASSES, 9))),
    }
    config = deployed(["alpha", "beta"], CLASSES, sections={"memory": {"exemplars": 80}})
    grid = Hospitals(files)
    sent: list[list[int]] = []
    at_home = grid._app

    def tapped(message: Message, context: object) -> Message:
        reply = at_home(message, context)  # type: ignore[arg-type]
        if context.node_config["site-config"] == str(files["alpha"]):  # type: ignore[attr-defined]
            sent.extend(value for value in reply.content.metric_records["numbers"].values() if isinstance(value, list))
        return reply

    grid._app = tapped  # type: ignore[assignment]
    run_small(config, tmp_path / "runs", grid=grid)
    assert sent
    assert not [count for value in sent for count in value if 0 < count < 5]
