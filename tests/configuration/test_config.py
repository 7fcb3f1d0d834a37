"""Configurations: what is refused and how it is named, what may be overridden, and what the content hash sees."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_runs import ALL_METHODS, small_config, small_settings

from dynammo_core.configuration.config import Config, Scalar, leaf_keys, load_config, resolve
from dynammo_core.support.errors import ConfigError

YAML = """\
name: clinic
data:
  dataset: digits
federation:
  sites: 5
method:
  name: dynammo
  adapt: {rounds: 2, epochs: 5}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "clinic.yaml"
    path.write_text(text)
    return path


def refused(path: Path, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize(
    ("line", "text", "key", "match", "accepted"),
    [
        (1, "sed: 3\n" + YAML, "sed", "seed", ("name", "data", "federation", "compute")),
        (5, YAML.replace("sites", "stes"), "federation.stes", "sites", ("partition", "alpha", "quorum")),
        (8, YAML.replace("adapt", "adpat"), "method.adpat", "adapt", ("name", "merge", "recalibrate", "balance")),
        (8, YAML.replace("epochs", "epochz"), "method.adapt.epochz", "epochs", ("rounds", "optimizer", "batch_size")),
    ],
    ids=["top level", "section", "method", "stage of the method"],
)
def test_unknown_key_is_refused_by_name(
    tmp_path: Path, line: int, text: str, key: str, match: str, accepted: tuple[str, ...]
) -> None:
    path = write(tmp_path, text)
    message = refused(path)
    assert f"{path} line {line}, {key}: unknown key (did you mean {match!r}?); accepted: " in message
    names = message.split("accepted: ")[1].rstrip(".").split(", ")
    assert {match, *accepted} <= set(names)


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    message = refused(write(tmp_path, YAML.replace("sites: 5", "sites: many\n  alpha: -1")))
    assert "line 5, federation.sites" in message
    assert "line 6, federation.alpha" in message
    assert "'many'" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "one"),
        ("seed", "-1"),
        ("federation.sites", "2.5"),
        ("federation.quorum", "1.1"),
        ("federation.partition", "dirichlett"),
        ("tasks.sizes", "0"),
        ("tasks.sizes", "[2, 0]"),
        ("tasks.sizes", "[]"),
        ("data.classes", "[naevus, naevus]"),
        ("data.sets", "[]"),
        ("data.window", "[40]"),
        ("data.window", "[40, 0]"),
        ("data.window", "[40, .inf]"),
        ("data.window", "40"),
        ("data.frame", "0"),
        ("data.sets", "[pathmnist, pathmnist]"),
        ("tasks.class_order", "[]"),
        ("tasks.class_order", "[2, 0, 2]"),
        ("tasks.class_order", "[1, -1]"),
        ("federation.arrival", "late"),
        ("federation.max_delay", "-1"),
        ("method.adapters", "perhaps"),
        ("method.adapt.learning_rate", "0"),
        ("method.adapt.learning_rate", ".nan"),
        ("method.adapt", "5"),
        ("name", "../elsewhere"),
        ("name", ""),
    ],
)
def test_wrong_value_is_refused_by_key_and_value(tmp_path: Path, key: str, value: str) -> None:
    message = refused(write(tmp_path, YAML), {key: value})
    assert f"clinic.yaml, {key}: " in message  # no line: the override's value stands nowhere in the file
    assert repr(yaml.safe_load(value)) in message


def test_wrong_type_in_the_file_is_refused_with_its_line(tmp_path: Path) -> None:
    assert "line 5, federation.sites: Input should be a valid integer" in refused(
        write(tmp_path, YAML.replace("sites: 5", "sites: [5]"))
    )


def test_missing_key_is_named(tmp_path: Path) -> None:
    assert "data.dataset: this key is required" in refused(write(tmp_path, YAML.replace("dataset: digits", "root: x")))


def test_unknown_method_names_the_nearest_and_all(tmp_path: Path) -> None:
    message = refused(write(tmp_path, YAML.replace("dynammo", "dynamo")))
    assert "method.name: unknown method 'dynamo' (did you mean 'dynammo'?)" in message
    assert all(name in message for name in ALL_METHODS)


@pytest.mark.parametrize("text", ["", "[1, 2]", "digits", YAML.replace("method:\n  name: dynammo", "method: []\nx:")])
def test_no_mapping_or_no_method_is_refused(tmp_path: Path, text: str) -> None:
    refused(write(tmp_path, text))


@pytest.mark.parametrize(
    "content", [b"name: [1", b"name: \x80", b"\tname: x", b"seed: 2024-13-45", b"name: !!python/object:os.x {}"]
)
def test_what_is_no_yaml_is_refused_with_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clinic.yaml"
    path.write_bytes(content)
    assert f"{path} is not valid YAML" in refused(path)


def test_missing_file_names_those_beside_it(tmp_path: Path) -> None:
    there = write(tmp_path, YAML)
    message = refused(tmp_path / "clinics.yaml")
    assert f"did you mean {str(there)!r}" in message
    assert "no configuration file" in refused(tmp_path / "nowhere" / "clinic.yaml")
    assert "no configuration file" in refused(tmp_path)


def test_overrides_are_texts_or_typed_scalars(tmp_path: Path) -> None:
    path = write(tmp_path, YAML)
    as_text = {"federation.sites": "10", "method.adapt.learning_rate": "1e-3", "method.adapters": "false"}
    typed = {"federation.sites": 10, "method.adapt.learning_rate": 0.001, "method.adapters": False}
    one, other = load_config(path, as_text), load_config(path, typed)
    assert one == other
    assert (one.federation.sites, one.method.adapt.learning_rate, one.method.adapters) == (10, 0.001, False)
    assert one.method.adapt.rounds == 2  # what stands beside an overridden leaf stays
    assert load_config(path, {"tasks.sizes": "[2, 3]"}).tasks.sizes == (2, 3)
    assert load_config(path, {"memory.exemplars": 7}).memory.exemplars == 7  # a section that the file leaves out
    as_text = load_config(str(path), {"method": "{adapt: {rounds: 3}, adapters: false}"}).method
    assert (as_text.adapt.rounds, as_text.adapters) == (3, False)
    assert as_text.name == load_config(path).method.name  # of a section, what is not given stays


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("federation.stes", "3", "federation.stes: unknown key (did you mean 'sites'?)"),
        ("federaton.sites", "3", "federaton: unknown key (did you mean 'federation'?)"),
        ("method.adapt.epochz", 3, "method.adapt.epochz: unknown key (did you mean 'epochs'?)"),
        ("name.first", "x", "goes through 'name', which is a value"),
        ("name", "[1", "the value '[1' of the override 'name' is not valid YAML"),
        ("seed", "2024-13-45", "is not valid YAML"),
    ],
)
def test_override_that_fits_nothing_is_refused(tmp_path: Path, key: str, value: str | int, said: str) -> None:
    assert said in refused(write(tmp_path, YAML), {key: value})


def test_another_method_starts_from_its_own_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, YAML)
    other = load_config(path, {"method.name": "replay", "method.train.epochs": 3})
    assert (other.method.name, other.method.train.epochs) == ("replay", 3)
    same = load_config(path, {"method.name": "dynammo"})
    assert same == load_config(path)


def test_config_is_frozen() -> None:
    config = small_config()
    for section, key in ((config, "seed"), (config.data, "image_size"), (config.method.adapt, "epochs")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 3)


@given(st.text() | st.binary(), st.sampled_from(leaf_keys()))
def test_any_text_as_file_or_override_is_accepted_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, content: str | bytes, key: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    with pytest.raises(ConfigError):
        load_config(path)
    if isinstance(content, str):
        try:
            resolve(small_settings(), "any.yaml", {key: content})
        except ConfigError as error:
            assert "\n" not in str(error)


# --- the content hash


def test_defaults_written_out_and_order_do_not_change_the_hash(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, YAML))
    written_out = load_config(write(tmp_path, config.to_yaml()))
    assert written_out == config
    assert written_out.content_hash == config.content_hash
    backwards = yaml.safe_dump(dict(reversed(yaml.safe_load(YAML).items())), sort_keys=False)
    assert load_config(write(tmp_path, backwards)).content_hash == config.content_hash
    assert load_config(write(tmp_path, YAML + "seed: 1  # the default\n")).content_hash == config.content_hash
    assert load_config(write(tmp_path, YAML.replace("sites: 5", "sites: 5.0"))).content_hash == config.content_hash


@pytest.mark.parametrize(
    ("key", "typo", "meant"),
    [
        ("data.dataset", "digts", "digits"),
        ("data.normalisation", "imagenett", "imagenet"),
        ("data.augmentation", "crop_flipp", "crop_flip"),
        ("data.fit", "strech", "stretch"),
        ("data.window", "lungs", "lung"),
        ("tasks.class_order", "shufled", "shuffled"),
        ("federation.partition", "dirichlt", "dirichlet"),
        ("federation.arrival", "sync", "synchronous"),
        ("federation.aggregator", "medain", "median"),
        ("federation.compression", "int8_bot", "int8_both"),
        ("scanners.kind", "contrst", "contrast"),
        ("scanners.own_statistics", "trainned", "trained"),
        ("backbone.name", "efficientnet_litte0", "efficientnet_lite0"),
        ("backbone.weights", "imagnet", "imagenet"),
        ("memory.selection", "herdng", "herding"),
        ("compute.features", "float61", "float16"),
        ("privacy.mechanism", "exampel", "example"),
        ("method.name", "dynamo", "dynammo"),
        ("method.merge", "meen", "mean"),
        ("method.merge", "[mean, last, slrp]", "slerp"),
        ("method.balance.optimizer", "adm", "adam"),
        ("method.balance.schedule", "cosin", "cosine"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest_and_all(key: str, typo: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}\S*: unknown .*\(did you mean '{meant}'\?\); accepted: "):
        small_config(overrides={key: typo})


def test_a_normalisation_may_be_means_and_deviations() -> None:
    config = small_config(overrides={"data.normalisation": "[[0.6, 0.5, 0.46], [0.26, 0.24, 1]]"})
    assert config.normalisation == ((0.6, 0.5, 0.46), (0.26, 0.24, 1.0))
    assert resolve(json.loads(config.canonical_json()), "wire", {}) == config
    for wrong in ("[[0, 0, 0]]", "[[0, 0], [1, 1]]", "[[0, 0, 0], [1, 1, 0]]", "[[0, 0, .inf], [1, 1, 1]]", "3"):
        with pytest.raises(ConfigError, match=r"data\.normalisation.*must be a name or \[\[R, G, B\]"):
            small_config(overrides={"data.normalisation": wrong})


def test_canonical_json_makes_the_same_config_again() -> None:
    for method in ALL_METHODS:
        config = small_config(method)
        again = resolve(json.loads(config.canonical_json()), "wire", {})
        assert again == config
        assert again.canonical_json() == config.canonical_json()
        tree = json.loads(config.canonical_json())  # whatever the order in which the models declare their fields
        assert config.canonical_json() == json.dumps(tree, sort_keys=True, separators=(",", ":"))


def another(value: Any, key: str) -> Any:
    """A valid value of the same leaf that is not `value`."""
    choices = {
        "data.normalisation": "imagenet",
        "data.augmentation": "crop",
        "data.fit": "pad",
        "data.split": "patient",
        "data.duplicates": "drop",
        "data.window": [40.0, 400.0],
        "data.dataset": "fashion_mnist",
        "data.root": "elsewhere",
        "method.past": "anew",
        "backbone.changes": [{"task": 2, "name": "small_cnn", "weights": "random"}],
        "data.classes": ["a", "b"],
        "data.sets": ["a", "b"],
        "tasks.sizes": [3, 1],
        "tasks.class_order": "shuffled",
        "federation.partition": "iid",
        "federation.arrival": "asynchronous",
        "federation.quorum": 0.5,
        "federation.aggregator": "median",
        "federation.compression": "int8",
        "federation.server_optimizer": "adam",
        "federation.sums_precision": "float32",
        "federation.site_names": ["a", "b", "c"],
        "federation.evaluate_only": ["b"],
        "federation.site_keys": [f"SHA256:{sign * 43}" for sign in "abc"],
        "federation.stages": {"adapt": {"quorum": 0.5}},
        "memory.selection": "random",
        "backbone.name": "resnet18",
        "backbone.weights": "other.pt",
        "backbone.sha256": "0" * 64,
        "backbone.image_size": 48,
        "compute.features": "float16",
        "method.adapter_form": "depthwise",
        "compute.precision": "bf16",
        "gate.broken": "stop",
        "method.covariance": "class",
        "method.batch_norm": "reestimated",
        "method.norm": "group",
        "privacy.mechanism": "example",
        "privacy.unit": "patient",
        "scanners.kind": "noise",
        "scanners.own_statistics": "trained",
        "method.merge": "last",
        "method.merge_alpha": "fold",
        "method.padding": 0,
        "method.prior": "observed",
        "method.shrink_towards": "earlier",
        "method.adapter": "bottleneck",
        "method.pooling": "spread" if value == "mean" else "mean",
        "method.variance_shrinkage": 2.0,
        "method.prediction": "classifier" if value == "nearest_mean" else "nearest_mean",
    }
    endings = {"optimizer": "sgd" if value == "adam" else "adam", "schedule": "step", "milestones": [3], "keep": "best"}
    if key in choices:
        return choices[key]
    if (ending := key.split(".")[-1]) in endings:
        return endings[ending]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.001
    return 3 if value is None else f"{value}2"


OWN = {method: small_config(method).method for method in ALL_METHODS}
TRAINING = {method for method in ALL_METHODS if {"train", "adapt"} & OWN[method].model_fields_set}
OVER_MEMORIES = ("ridge", "dynammo_ridge", "moving_ridge")  # refuse `method.personal`
OF_TRAINING = ("federation.proximal", "federation.server_optimizer")
LEAVES = [
    (method, key)
    for method in ALL_METHODS
    for key, _ in leaves(small_config(method).model_dump(mode="json"))
    if key != "method.name"
    and (method in TRAINING or key not in OF_TRAINING)
    and not (key == "method.personal" and method in OVER_MEMORIES)
    and not (key == "backbone.changes" and not OWN[method].outlives_network)
    and not (key == "privacy.mechanism" and OWN[method].obstacle_to_privacy("example"))
]


@given(st.sampled_from(LEAVES), st.sampled_from(LEAVES))
def test_any_changed_leaf_changes_the_hash(one: tuple[str, str], other: tuple[str, str]) -> None:
    """Change two leaves: each changes the hash, and in different ways."""
    hashes = {prepared(one[0], one[1]).content_hash, prepared(other[0], other[1]).content_hash}
    before = len(hashes)
    for method, key in {one, other}:
        hashes.add(changed(method, key).content_hash)
    assert len(hashes) == before + len({one, other})


@pytest.mark.parametrize("method", ALL_METHODS)
def test_each_leaf_is_in_the_hash(method: str) -> None:
    keys = [key for of, key in LEAVES if of == method]
    assert "seed" in keys
    assert [key for key in keys if changed(method, key).content_hash == prepared(method, key).content_hash] == []


NEEDS: dict[str, dict[str, Scalar]] = {
    "federation.site_names": {"data.classes": "[a, b, c, d]"},
    "federation.evaluate_only": {"data.classes": "[a, b, c, d]", "federation.site_names": "[a, b, c]"},
    "federation.site_keys": {"data.classes": "[a, b, c, d]", "federation.site_names": "[a, b, c]"},
    "method.shrink_towards": {"method.regulariser": 0.1},
    **{f"method.{stage}.patience": {f"method.{stage}.keep": "best"} for stage in ("adapt", "balance", "train")},
}


def prepared(method: str, key: str) -> Config[Any]:
    """A configuration in which the leaf alone may change."""
    return small_config(method, NEEDS.get(key))


def changed(method: str, key: str) -> Config[Any]:
    settings = prepared(method, key).model_dump(mode="json")
    *sections, leaf = key.split(".")
    place = settings
    for section in sections:
        place = place[section]
    place[leaf] = another(place[leaf], key)
    return resolve(settings, "changed", {})


def test_methods_have_different_hashes() -> None:
    assert len({small_config(method).content_hash for method in ALL_METHODS}) == len(ALL_METHODS)


# --- the list of all leaves


def test_leaf_keys_are_all_leaves_of_all_methods() -> None:
    everything = {key for method in ALL_METHODS for key, _ in leaves(small_config(method).model_dump(mode="json"))}
    assert leaf_keys() == sorted(everything)
    assert {"seed", "federation.sites", "method.name", "method.adapt.epochs", "method.train.rounds"} <= everything


JOBS = ("runs", "resume", "accept-new-code", "track", "consortium", "announce", "statistics", "evaluate", "forget")


def test_flower_is_told_of_each_leaf_and_of_nothing_else() -> None:
    """Flower refuses run-config keys that pyproject.toml does not name; an empty value leaves the YAML file's."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    declared = dict(leaves(project["tool"]["flwr"]["app"]["config"]))
    assert sorted(declared) == sorted([*leaf_keys(), "config", *JOBS])
    assert {declared[key] for key in (*leaf_keys(), *JOBS)} == {""}
    assert (Path(__file__).parents[2] / declared["config"]).is_file()


def test_each_leaf_key_can_be_overridden() -> None:
    having: dict[str, tuple[dict[str, Any], Any]] = {}  # a configuration that has the key, and its value there
    for method in ALL_METHODS:
        settings = small_config(method).model_dump(mode="json")
        having |= {key: (settings, value) for key, value in leaves(settings)}
    for key in leaf_keys():
        settings, value = having[key]
        text = json.dumps(value)  # JSON is YAML
        assert resolve(settings, "override", {key: text}) == resolve(settings, "as it is", {}), key


@pytest.mark.parametrize("key", OF_TRAINING)
def test_what_changes_training_is_refused_where_nothing_trains(key: str) -> None:
    change: dict[str, Scalar] = {key: 0.1 if key.endswith("proximal") else "adam"}
    for method in ALL_METHODS:
        if method in TRAINING:
            small_config(method, change)
        else:
            with pytest.raises(ConfigError, match=f"{method} trains nothing by gradients, and {key}"):
                small_config(method, change)


# --- secure aggregation


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            {"federation.aggregator": "median"},
            "median works on single updates, but with secure aggregation the server must see none",
        ),
        ({"federation.aggregator": "krum"}, "krum works on single updates"),
        ({"federation.compression": "int8"}, "int8 packs single updates"),
        ({"federation.sites": 2}, "a sum hides its terms only among 3 or more sites that train, but there are 2"),
        ({"federation.sums_rows": 5}, "the vectors of all sites must have one length"),
        ({"federation.sums_precision": "float32"}, "the vectors of all sites must have one length"),
        ({"federation.secure_threshold": 2}, "2 must be more than half of all 5 sites"),
        ({"federation.secure_threshold": 6}, "at most 5, the number of sites that train"),
        ({"federation.sites": 4, "federation.secure_threshold": 2}, "2 must be more than half of all 4 sites"),
    ],
)
def test_what_secure_aggregation_excludes_is_refused_with_the_reason(
    tmp_path: Path, overrides: dict[str, Any], reason: str
) -> None:
    secure = {"federation.secure_aggregation": True}
    assert reason in refused(write(tmp_path, YAML), {**overrides, **secure})
    load_config(write(tmp_path, YAML), {**overrides, "federation.secure_aggregation": False})


def test_sites_that_only_evaluate_hide_nobody_who_trains() -> None:
    names = {"data.classes": "[a, b]", "federation.site_names": "[a, b, c]", "federation.evaluate_only": "[c]"}
    secure: dict[str, Scalar] = {**names, "federation.secure_aggregation": True}
    settings = small_settings() | {"federation": {}}
    with pytest.raises(ConfigError, match="but there are 2"):
        resolve(settings, "x", {**secure, "federation.sites": 3})


@pytest.mark.parametrize(("sites", "threshold"), [(3, 3), (4, 3), (5, 4), (6, 5), (9, 7), (100, 67)])
def test_by_default_more_than_two_thirds_must_stay(sites: int, threshold: int) -> None:
    federation = small_config(overrides={"federation.sites": sites, "federation.secure_aggregation": True}).federation
    assert federation.threshold(sites) == threshold
    assert 3 * threshold > 2 * sites
    assert small_config(overrides={"federation.secure_threshold": 3}).federation.threshold(5) == 3
