"""What another scanner does to images: seeded by site, each image by itself, grey as colour, and off when it is off."""

from __future__ import annotations

import pytest
import torch
from small_runs import small_config, small_settings, small_site

from dynammo_core.configuration.config import resolve
from dynammo_core.configuration.scanners import ScannerSettings
from dynammo_core.data.samples import Samples
from dynammo_core.data.sites.scanners import SCANNERS, through_scanner
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import ConfigError

KINDS = sorted(SCANNERS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def samples(channels: int = 1, count: int = 6, side: int = 16) -> Samples:
    images = torch.randint(0, 256, (count, channels, side, side), generator=torch.Generator().manual_seed(5))
    return Samples(images.to(torch.uint8), torch.arange(count), tuple(f"record {i}" for i in range(count)))


def seen(given: Samples, kind: str, *, strength: float = 0.8, seed: int = 1, site: int = 0) -> torch.Tensor:
    settings = ScannerSettings.model_validate({"kind": kind, "strength": strength})
    shown = through_scanner(given, settings, seed=seed, site=site)
    assert torch.equal(shown.labels, given.labels)
    assert shown.record_ids == given.record_ids
    return shown.images


def test_the_same_scanner_changes_nothing() -> None:
    given = samples()
    assert through_scanner(given, ScannerSettings(), seed=1, site=0) is given


@every_kind
@pytest.mark.parametrize("channels", [1, 3])
def test_a_site_is_itself_and_no_other(kind: str, channels: int) -> None:
    given = samples(channels)
    shown = seen(given, kind)
    assert shown.dtype == torch.uint8
    assert shown.shape == given.images.shape
    assert torch.equal(shown, seen(given, kind))
    for other in (given.images, seen(given, kind, site=1), seen(given, kind, seed=2), seen(given, kind, strength=0.3)):
        assert not torch.equal(shown, other)


@every_kind
def test_an_image_does_not_depend_on_those_beside_it(kind: str) -> None:
    given = samples(3)
    assert torch.equal(seen(given.subset([4, 1]), kind), seen(given, kind)[[4, 1]])


@every_kind
def test_grey_is_seen_as_its_copy_in_colour(kind: str) -> None:
    grey = samples(1)
    colour = Samples(grey.images.expand(-1, 3, -1, -1), grey.labels, grey.record_ids)
    difference = seen(colour, kind).int() - seen(grey, kind).expand(-1, 3, -1, -1).int()
    assert int(difference.abs().max()) <= 1  # the sum of a row of the matrix is 1 but for rounding


@every_kind
def test_nothing_is_still_nothing(kind: str) -> None:
    assert not len(seen(Samples.empty(), kind))


def test_intensities_are_mapped_one_to_one_value_and_colours_are_not() -> None:
    grey = samples(1)
    for kind in ("stain", "contrast"):
        shown = seen(grey, kind)
        for value in (0, 17, 255):
            assert len(shown[grey.images == value].unique()) <= 1
    red = Samples(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ("red",))
    red.images[:, 0] = 255
    mixed = [seen(red, "stain", strength=1.0, site=site)[0, :, 0, 0] for site in range(8)]
    assert any(len(colour.unique()) == 3 for colour in mixed)


def test_a_coarse_scanner_loses_what_is_fine_and_keeps_what_is_flat() -> None:
    flat = Samples(torch.full((1, 1, 16, 16), 77, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ("flat",))
    fine = samples()
    for site in range(3):
        assert torch.equal(seen(flat, "resolution", site=site), flat.images)
        assert seen(fine, "resolution", strength=1.0, site=site).float().std() < fine.images.float().std()


def test_noise_is_another_on_each_record_and_adds_nothing_on_average() -> None:
    images = torch.full((20, 1, 32, 32), 128, dtype=torch.uint8)
    grey = Samples(images, torch.zeros(20, dtype=torch.int64), tuple(map(str, range(20))))
    noise = seen(grey, "noise", strength=1.0).double() - 128
    assert not torch.equal(noise[0], noise[1])
    # 20,480 draws of a deviation of at most 64: the mean of all has a deviation of 64 / 143
    assert abs(float(noise.mean())) < 3 * 64 / 143
    assert 0 < float(noise.std()) <= 65


def test_a_site_sees_training_test_and_exemplars_through_one_scanner(tmp_path: object) -> None:
    plain, scanned = (
        small_site(Experiment(small_config(overrides={"scanners.kind": kind})), 1, tmp_path)  # type: ignore[arg-type]
        for kind in ("same", "stain")
    )
    settings = scanned.experiment.config.scanners
    classes = scanned.experiment.stream.seen(1)
    for ours, theirs in (
        (scanned.train_images(classes), plain.train_images(classes)),
        (scanned.test_images(classes), plain.test_images(classes)),
    ):
        assert len(ours)
        assert not torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.images, through_scanner(theirs, settings, seed=1, site=1).images)


def test_hospitals_have_scanners_of_their_own() -> None:
    settings = small_settings()
    settings["data"]["classes"] = ["a", "b"]
    settings["federation"] = {"site_names": ["alpha", "beta"]}
    settings["scanners"] = {"kind": "noise"}
    with pytest.raises(ConfigError, match="is for simulated sites only"):
        resolve(settings, "named.yaml", {})
