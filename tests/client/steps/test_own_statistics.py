"""Statistics of a site's own: of its images, at the site alone, the backbone's once, and none where none are wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import Outcome, instruction, run_small, small_config, small_site, step_of
from torch import Tensor, nn

from client.state.feature_files import FeatureFiles
from client.steps.actions import answer
from client.steps.own_statistics import PRIOR, with_own_statistics
from client.steps.site import Site
from dynammo_core.data.transforms import to_input
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import ConfigError, MemoryStoreError

IID = {"federation.partition": "iid", "scanners.kind": "stain", "scanners.strength": 1.0}


def site_of(folder: Path, own: str, index: int = 0, **changes: str) -> Site:
    return small_site(
        Experiment(small_config(overrides={**IID, "scanners.own_statistics": own, **changes})), index, folder
    )


def statistics(site: Site, task: int, stage: str, factor: float = 1.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Received, and the site's own, in a step; the weights of adapters are multiplied by a factor."""
    model = site.experiment.build_model(task)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "adapters" in name and "running_mean" in name:
                tensor.fill_(0.25)  # as if the server had pooled it
            elif "adapters" in name and tensor.ndim == 4:
                tensor.mul_(factor)
    own = with_own_statistics(model, step_of(site.experiment, task, stage), site)
    received, estimated = (
        {name: tensor.clone() for name, tensor in one.state_dict().items() if "running_" in name}
        for one in (model, own)
    )
    return received, estimated


def changed(received: dict[str, Tensor], own: dict[str, Tensor]) -> set[str]:
    """Where statistics are others than those received: in the backbone, in adapters."""
    names = {name for name in received if not torch.equal(received[name], own[name])}
    return {"adapters" if ".adapters." in name else "backbone" for name in names}


def test_without_the_option_the_model_is_the_one_received(tmp_path: Path) -> None:
    site = site_of(tmp_path, "none")
    model = site.experiment.build_model(0)
    assert with_own_statistics(model, step_of(site.experiment, 0, "evaluate"), site) is model


@pytest.mark.parametrize(
    ("own", "stage", "wanted"),
    [
        ("trained", "evaluate", {"adapters"}),
        ("trained", "balance", {"adapters"}),
        ("trained", "adapt", set()),  # sent up, and so common to all
        ("frozen", "adapt", {"backbone"}),
        ("frozen", "evaluate", {"backbone"}),
        ("all", "remember", {"adapters", "backbone"}),
        ("all", "adapt", {"backbone"}),
    ],
)
def test_what_is_a_sites_own(tmp_path: Path, own: str, stage: str, wanted: set[str]) -> None:
    assert changed(*statistics(site_of(tmp_path, own), 0, stage)) == wanted


def test_they_are_those_of_its_images_beside_the_prior(tmp_path: Path) -> None:
    site = site_of(tmp_path, "frozen")
    _, own = statistics(site, 0, "evaluate")
    samples = site.new_images(0)
    backbone = site.experiment.new_model().extractor.backbone  # type: ignore[union-attr]
    convolution = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))  # type: ignore[union-attr]
    with torch.no_grad():
        maps = convolution(to_input(samples.images, "half", torch.device("cpu"))).transpose(0, 1).flatten(1)
    # The network is random: its first batch norm has mean 0 and variance 1. A mixture's variance has that of its means.
    share = len(samples) / (len(samples) + PRIOR)
    mean = share * maps.mean(dim=1)
    variance = share * (maps.var(dim=1) + (maps.mean(dim=1) - mean) ** 2) + (1 - share) * (1 + mean**2)
    first = next(name for name in own if name.endswith("prefix.block0.1.running_mean"))
    assert torch.allclose(own[first], mean, atol=1e-5)
    assert torch.allclose(own[first.replace("mean", "var")], variance, rtol=1e-4)


def test_those_of_the_backbone_are_estimated_once_and_kept(tmp_path: Path) -> None:
    site = site_of(tmp_path, "all")
    _, first = statistics(site, 0, "adapt")
    received, second = statistics(site, 1, "evaluate")
    of_backbone = {name for name in second if ".backbone." in name}
    assert all(torch.equal(first[name], second[name]) for name in of_backbone)
    # In another folder the same site begins in task 2, and so with other images.
    _, late = statistics(site_of(tmp_path / "late", "all"), 1, "evaluate")
    assert any(not torch.equal(late[name], second[name]) for name in of_backbone)
    # What all models of a process share is as it was.
    assert all(float(received[name].abs().max()) in (0.0, 1.0) for name in of_backbone)


def test_those_on_the_disk_are_of_the_networks_weights(tmp_path: Path) -> None:
    """A site whose process ends with each step keeps them in files, those of other weights beside them."""
    files = FeatureFiles(tmp_path / "files", 2**20, run="run", site="site-000", key=bytes(range(32)))
    for seed in ("1", "2", "1"):
        plain = site_of(tmp_path / seed, "trained", seed=seed)
        _, computed = statistics(plain, 0, "evaluate")
        for _ in range(2):
            site = site_of(tmp_path / seed, "trained", seed=seed)
            _, kept = statistics(replace(site, features=files), 0, "evaluate")
            assert all(torch.equal(computed[name], kept[name]) for name in computed)


def test_those_on_the_disk_are_of_the_adapters_that_came(tmp_path: Path) -> None:
    files = FeatureFiles(tmp_path / "files", 2**20, run="run", site="site-000", key=bytes(range(32)))
    found = []
    for factor in (1.0, 2.0):
        _, computed = statistics(site_of(tmp_path, "trained"), 0, "evaluate", factor)
        site = replace(site_of(tmp_path, "trained"), features=files)
        found.append(statistics(site, 0, "evaluate", factor)[1])
        assert all(torch.equal(computed[name], found[-1][name]) for name in computed)
    assert changed(*found) == {"adapters"}


def test_what_was_remembered_of_a_task_is_not_counted_twice(tmp_path: Path) -> None:
    site = site_of(tmp_path, "trained")
    _, before = statistics(site, 0, "evaluate")
    answer(instruction(site.experiment, step_of(site.experiment, 0, "remember"), 0, tmp_path), site)
    again = site_of(tmp_path, "trained")  # nothing is kept in this process
    assert again.memory().record_ids
    _, after = statistics(again, 0, "evaluate")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_file_is_of_one_site_in_one_run(tmp_path: Path) -> None:
    site = site_of(tmp_path, "frozen")
    statistics(site, 0, "adapt")
    assert site.statistics.path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(MemoryStoreError, match="belongs to"):
        small_site(site.experiment, 0, tmp_path, run="another-run").statistics.load()


def test_a_site_without_two_images_takes_what_it_receives(tmp_path: Path) -> None:
    skewed = {"federation.partition": "dirichlet"}
    sites = [site_of(tmp_path, "all", index, **skewed) for index in range(3)]
    (poor,) = [site for site in sites if len(site.new_images(0)) < 2]  # see `small_runs`: one image of task 1
    assert changed(*statistics(poor, 0, "evaluate")) == set()
    assert not poor.statistics.path.exists()


def test_a_run_repeats_and_differs_from_one_without(tmp_path: Path) -> None:
    configs = [small_config(overrides={**IID, "scanners.own_statistics": own}) for own in ("all", "all", "none")]
    one, again, without = (
        Outcome.of(run_small(config, tmp_path / str(number)).path) for number, config in enumerate(configs)
    )
    assert one == again
    assert one.model != without.model
    kept = sorted(path.name for path in (tmp_path / "0").glob("*/sites/*/statistics.sealed"))
    assert kept == ["statistics.sealed"] * 3


def test_images_that_are_protected_one_by_one_are_not_mixed() -> None:
    with pytest.raises(ConfigError, match="changes the features of all others"):
        small_config(
            overrides={
                "privacy.mechanism": "example",
                "method.norm": "group",
                "scanners.own_statistics": "frozen",
            }
        )
