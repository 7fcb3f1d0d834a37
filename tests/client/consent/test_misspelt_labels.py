"""A label that is nearly a class of the experiment: said before anybody approves it, and whenever the site starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from hospitals import deployed, make_hospital
from PIL import Image
from site_bench import Authority
from typer.testing import CliRunner

from client.commands.approve import approve
from client.consent.approvals import Proposal
from client.consent.labels import misspelt_in_approved, misspelt_labels
from client.consent.settings import load_site
from client.hospital.admission import approve_proposal
from client.service.supernode import supervise

CONFIG = deployed(["alpha", "beta"], ["melanoma", "naevus"])
SAID = "this site's label 'melanom' is not a class of small (did you mean 'melanoma'?); its images take no part"
app = typer.Typer()
app.command()(approve)


@pytest.fixture
def alpha(tmp_path: Path) -> Path:
    """A site with a misspelt folder, a right one, and one of a disease that the experiment does not ask for."""
    for number, label in enumerate(("melanom", "naevus", "psoriasis")):
        for image in range(2):
            path = tmp_path / "images" / label / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 10 * number + image).save(path)
    data = {"dataset": "image_folder", "root": str(tmp_path / "images")}
    return make_hospital(tmp_path / "alpha", "alpha", tmp_path, data=data)


def test_only_what_is_nearly_a_class_is_named(alpha: Path) -> None:
    assert misspelt_labels(load_site(alpha), CONFIG) == [SAID]
    right = deployed(["alpha", "beta"], ["melanom", "naevus"])
    assert misspelt_labels(load_site(alpha), right) == []


def test_who_approves_sees_it(alpha: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.to_yaml())
    words = [str(alpha), "--config", str(tmp_path / "config.yaml")]
    assert f"WARNING: {SAID}" in CliRunner().invoke(app, words, input="later\n").output
    (tmp_path / "images" / "melanom").rename(tmp_path / "images" / "melanoma")
    assert "WARNING" not in CliRunner().invoke(app, words, input="later\n").output


def test_the_site_says_it_whenever_it_starts(alpha: Path) -> None:
    settings = load_site(alpha)
    Authority(settings.ca_certificate.parent)
    assert list(misspelt_in_approved(settings)) == []
    approve_proposal(settings, Proposal.of(CONFIG), "a person", 1)
    lines: list[str] = []
    assert supervise(settings, alpha, say=lines.append, once=True) == 1
    assert lines[0] == f"warning: {SAID}"
    assert lines[1].startswith("not admitted: ")  # there is no such server
    assert SAID in settings.log.read_text()


def test_labels_that_cannot_be_read_keep_nothing_from_starting(alpha: Path, tmp_path: Path) -> None:
    settings = load_site(alpha)
    approve_proposal(settings, Proposal.of(CONFIG), "a person", 1)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert list(misspelt_in_approved(settings)) == []
