from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynammo_core.data.index.labels import folded, is_missing, refuse_unclear_labels
from dynammo_core.support.errors import DataError


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("melanoma", "Melanoma"),
        ("melanoma", "melanoma "),
        ("basal cell", "basal\u00a0cell"),
        ("basal cell", "basal  cell"),
        ("basal cell", "basal_cell"),
        ("basal cell", "basalcell"),
        ("näevus", unicodedata.normalize("NFD", "näevus")),
        ("ﬁbroma", "fibroma"),
        ("fib\u200broma", "fibroma"),
        ("STRASSE", "straße"),
        ("1", "1.0"),
        ("01", "1"),
    ],
)
def test_two_spellings_of_one_label_are_refused_with_their_counts(one: str, other: str) -> None:
    with pytest.raises(DataError, match=r"\([72] images\).*\([72] images\) in here differ in nothing but .*one label"):
        refuse_unclear_labels({one: 7, other: 2}, "here")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HER2+", "HER2-"),
        ("grade 1", "grade 2"),
        ("1", "10"),
        ("1.0", "10"),
        ("a/b", "ab"),
        ("café", "cafe"),
        ("1.5", "15"),
    ],
)
def test_labels_that_mean_two_things_are_two(one: str, other: str) -> None:
    refuse_unclear_labels({one: 1, other: 1}, "here")


@pytest.mark.parametrize(
    "label", ["nan", "NaN", "NA", "N/A", "#N/A", "null", "NULL", "None", "<NA>", " ", "\u00a0", "a\nb"]
)
def test_what_is_no_label_is_refused(label: str) -> None:
    with pytest.raises(DataError, match=r"3 images in here have the label .* no name of a class.*Give these images"):
        refuse_unclear_labels({"melanoma": 4, label: 3}, "here")


def test_a_registry_may_name_classes_as_it_likes_but_no_second_spelling() -> None:
    refuse_unclear_labels({"NA": 3}, "here", registry=["NA", "none"])
    with pytest.raises(DataError, match=r"'melanoma' \(0 images\) and 'Melanoma' \(3 images\)"):
        refuse_unclear_labels({"Melanoma": 3}, "here", registry=["melanoma"])


def test_none_can_be_a_finding_and_missing_values_are_known() -> None:
    assert not is_missing("none")
    assert is_missing("")


@given(st.text())
def test_folding_twice_changes_nothing(label: str) -> None:
    assert folded(folded(label)) == folded(label)
