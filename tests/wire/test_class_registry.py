"""One disease, one name; and an announcement says of a site's images no more than a band."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import small_settings

from dynammo_core.configuration.config import Config, resolve
from dynammo_core.data.task_stream import build_task_stream
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import ConfigError, ProtocolError
from dynammo_core.wire.announcement import (
    BANDS,
    LONGEST_NAME,
    MOST_NAMES,
    Announcement,
    band,
    same_disease,
    with_new_task,
)

KNOWN = ("actinic keratosis", "melanoma", "nevus", "psoriasis vulgaris")


def registered(**tasks: Any) -> Config[Any]:
    settings = small_settings("replay")
    settings["data"] = {"dataset": "manifest", "classes": list(KNOWN)}
    settings["tasks"] = tasks or {"sizes": 2}
    settings["federation"] = {"site_names": ["alpha", "beta"]}
    return resolve(settings, "registered.yaml", {})


# --- bands


@given(st.integers(1, 10**7))
def test_a_band_is_reached_and_the_next_is_not(count: int) -> None:
    found = band(count)
    assert found in BANDS
    assert found <= count
    assert not any(found < bound <= count for bound in BANDS)


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_more_images_never_make_a_lower_band(count: int, more: int) -> None:
    assert band(count) <= band(count + more)


def test_bands_hide_single_patients() -> None:
    assert [band(count) for count in (1, 9, 10, 29, 30, 99, 100, 10**9)] == [1, 1, 10, 10, 30, 30, 100, 100_000]
    assert list(BANDS) == sorted(set(BANDS))


# --- announcements


def test_an_announcement_of_bands_is_taken() -> None:
    assert Announcement({"melanoma": 300, "n" * LONGEST_NAME: 1}).bands["melanoma"] == 300
    assert Announcement({}).bands == {}
    assert len(Announcement({str(i): 1 for i in range(MOST_NAMES)}).bands) == MOST_NAMES


@pytest.mark.parametrize("count", [0, -1, 2, 299, 301, 10**12])
def test_an_exact_count_is_no_band(count: int) -> None:
    with pytest.raises(
        ProtocolError, match=f"'melanoma' cannot be announced with {count} images. Accepted: one of .1, 10, 30"
    ):
        Announcement({"nevus": 10, "melanoma": count})


@pytest.mark.parametrize("name", ["", "\x1b]0;pwned\x07", "a\nb", "a\rb", "\u202ereversed"])
def test_names_that_are_none_or_command_a_terminal_are_refused(name: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        Announcement({name: 1})
    assert str(caught.value).isprintable()


def test_a_text_is_no_name() -> None:
    with pytest.raises(ProtocolError) as caught:
        Announcement({"n" * 10_000: 1})
    assert len(str(caught.value)) < 2 * LONGEST_NAME  # a forged one does not fill the log


def test_a_flood_of_names_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"1001 classes are named. Accepted: at most 1000"):
        Announcement({str(i): 1 for i in range(MOST_NAMES + 1)})


# --- one disease under two names

ALIKE = [
    ("Melanoma", "melanoma"),
    ("MELANOMA", "melanoma"),
    (" melanoma ", "melanoma"),
    ("melanomas", "melanoma"),
    ("melanom", "melanoma"),
    ("Actinic-Keratosis", "actinic keratosis"),
    ("actinic_keratosis", "actinic keratosis"),
    ("actinickeratosis", "actinic keratosis"),
    ("actinic  keratoses", "actinic keratosis"),
    ("psoriasis (vulgaris)", "psoriasis vulgaris"),
    ("névus", "nevus"),
    ("ne\u0301vus", "nevus"),
]
DIFFERENT = [
    "amelanoma",
    "no nevus",
    "melanoma 2",
    "angioma",
    "basal cell carcinoma",
    "lentigo",
    "psoriasis",
    "keratosis",
    "dermatofibroma",
    "痣",
]


@pytest.mark.parametrize(("name", "other"), ALIKE)
def test_one_disease_under_two_names_is_noticed(name: str, other: str) -> None:
    assert same_disease(name, KNOWN) == other
    with pytest.raises(ConfigError) as caught:
        with_new_task(registered(), ["lentigo", name])
    message = str(caught.value)
    assert f"the class {name!r} looks like {other!r}, which is in the registry" in message
    assert f"ask the site to call it {other!r}; if not, add --distinct" in message
    assert with_new_task(registered(), ["lentigo", name], distinct=True).data.classes == (*KNOWN, "lentigo", name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("contrast", "no_contrast"),
        ("typical", "atypical"),
        ("benign", "malign"),
        ("hypotension", "hypertension"),
        ("stage I", "stage II"),
        ("grade3", "grade4"),
        ("nodule T1a", "nodule T1b"),
        ("HER2+", "HER2-"),
        ("type A lesion", "type B lesion"),
        ("mass", "moss"),
    ],
)
def test_names_that_differ_by_what_means_something_are_two(one: str, other: str) -> None:
    assert same_disease(one, [other]) is None and same_disease(other, [one]) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tumor", "tumour"),
        ("oedema", "edema"),
        ("melanoma", "melnaoma"),
        ("melanoma", "mel\u0430noma"),
        ("squamos cell carcinma", "squamous cell carcinoma"),
        ("B.C.C.", "bcc"),
        ("grade-1", "Grade 01"),
    ],
)
def test_a_typing_error_does_not_make_two_names(one: str, other: str) -> None:
    assert same_disease(one, [other]) == other and same_disease(other, [one]) == one


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_disease_is_let_in(name: str) -> None:
    assert same_disease(name, KNOWN) is None
    assert with_new_task(registered(), [name]).data.classes == (*KNOWN, name)


def test_two_new_names_are_compared_too() -> None:
    with pytest.raises(ConfigError, match="the class 'Lentigo' looks like 'lentigo'"):
        with_new_task(registered(), ["lentigo", "Lentigo"])


@pytest.mark.parametrize("distinct", [False, True])
def test_a_name_that_is_there_is_refused_even_as_distinct(distinct: bool) -> None:
    for names in (["nevus"], ["lentigo", "lentigo"]):
        with pytest.raises(ConfigError, match=f"the class {names[-1]!r} is already in the registry"):
            with_new_task(registered(), names, distinct=distinct)


def test_an_empty_name_or_no_name_is_refused() -> None:
    for names in ([""], []):
        with pytest.raises(ConfigError):
            with_new_task(registered(), names, distinct=True)


def test_without_a_registry_there_is_nothing_to_add_to() -> None:
    with pytest.raises(ConfigError, match=r"no registry of classes to which a class can be added. Set data.classes"):
        with_new_task(resolve(small_settings("replay"), "small.yaml", {}), ["new"])


# --- one task more

tasks_of_four = st.one_of(
    st.fixed_dictionaries({"sizes": st.integers(1, 4), "class_order": st.sampled_from(["fixed", "shuffled"])}),
    st.fixed_dictionaries({"sizes": st.sampled_from([[1, 1], [2, 1], [1, 3], [4]])}),
    st.fixed_dictionaries({"sizes": st.just(1), "class_order": st.permutations(range(4)).map(lambda o: list(o)[:3])}),
)


@given(tasks_of_four, st.integers(1, 3))
def test_old_classes_and_tasks_keep_their_numbers(tasks: dict[str, Any], new: int) -> None:
    before = registered(**tasks)
    names = ["angioma", "lentigo", "dermatofibroma"][:new]
    after = with_new_task(before, names)
    assert after.data.classes == (*KNOWN, *names)
    old = build_task_stream(before.tasks, 4, before.seed).tasks
    now = build_task_stream(after.tasks, 4 + new, after.seed).tasks
    assert now == (*old, tuple(range(4, 4 + new)))
    assert after.model_copy(update={"data": before.data, "tasks": before.tasks}) == before


def test_the_experiment_gains_a_task_and_nothing_else() -> None:
    before, after = (Experiment(config) for config in (registered(), with_new_task(registered(), ["angioma"])))
    assert (len(before.stream), len(after.stream)) == (2, 3)
    assert after.steps[: len(before.steps)] == before.steps
    assert len(after.steps) > len(before.steps)
