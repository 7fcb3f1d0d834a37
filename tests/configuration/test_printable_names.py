"""Names that cannot be printed or written down are refused where they come in, not after hours of training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_runs import small_settings

from dynammo_core.configuration.config import resolve
from dynammo_core.data.samples import Dataset, Split
from dynammo_core.data.sources import ArraySource
from dynammo_core.support.errors import ConfigError, DataError

ODD = {"a\udcff": "U+DCFF", "b\x1b[2J": "U+001B", "c\u202ed": "U+202E", "e\nf": "U+000A", "g\xa0h": "U+00A0"}


@pytest.mark.parametrize(("name", "found"), ODD.items())
@pytest.mark.parametrize(("section", "key"), [("data", "classes"), ("federation", "site_names")])
def test_classes_and_sites_of_a_configuration(section: str, key: str, name: str, found: str) -> None:
    settings = small_settings()
    settings["data"] |= {"classes": ["0", "1"]}
    settings["federation"] = {"site_names": ["alpha", "beta"]}
    resolve(settings, "here", {})
    settings[section] |= {key: ["plain", name]}
    with pytest.raises(ConfigError) as caught:
        resolve(settings, "here", {})
    assert f"{name!r} holds characters that cannot be printed ({found}" in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize(("name", "found"), ODD.items())
def test_classes_and_sites_of_a_data_set_wherever_it_comes_from(name: str, found: str) -> None:
    source = ArraySource(np.zeros((1, 8, 8), dtype=np.uint8))
    split = Split(source, np.zeros(1, dtype=np.int64), ("a",), sites=("München",))
    Dataset(("naevus ä 痣",), split, split)
    with pytest.raises(DataError, match="the class") as caught:
        Dataset((name,), split, split)
    assert f"({found}" in str(caught.value)
    with pytest.raises(DataError, match="the site") as caught:
        Dataset(("naevus ä 痣",), split, replace(split, sites=(name,)))
    assert f"({found}" in str(caught.value)
