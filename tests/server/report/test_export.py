"""Exported files answer as the run's model, in the runtimes that others use; one that does not is never kept."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from small_runs import Finished, run_small, small_config
from torch import Tensor

from dynammo_core.data.loading import load_samples
from dynammo_core.deployed.model_files import METADATA_KEY, ModelFacts, ModelFiles, OwnStatistics
from dynammo_core.deployed.onnx_file import onnx_predictor
from dynammo_core.deployed.predictor import Predictor
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import CheckpointError, ConfigError, WeightsError
from server.report import export as export_module
from server.report.export import FORMATS, Format, check, check_images, description, export_model

CLOSE = 1e-4


def images_of(experiment: Experiment) -> Tensor:
    """The run's test images, as an integrator would feed them."""
    split = experiment.dataset.test
    return load_samples(split, range(len(split.labels)), 16).images.expand(-1, 3, -1, -1).contiguous()


def same(predictor: Predictor, found: Sequence[Tensor], images: Tensor) -> bool:
    labels, probabilities, scores = found
    expected = predictor.predict(images)
    return (
        torch.equal(labels, expected.labels)
        and torch.allclose(probabilities, expected.probabilities, rtol=0, atol=CLOSE)
        and torch.allclose(scores, expected.open_set_scores, rtol=0, atol=CLOSE)
    )


@pytest.mark.parametrize("method", ["dynammo", "icarl", "streaming_ridge"])
def test_onnx_answers_in_onnx_runtime(finished: Finished, method: str, tmp_path: Path) -> None:
    """One head a task, the nearest mean, and closed form; every digit, also those that were never learnt."""
    run = finished(method)
    files, images = ModelFiles.read(run.path), images_of(run.experiment)
    exported = export_model(files, "onnx", tmp_path / "model.onnx")
    assert exported.difference < CLOSE
    assert exported.sha256 == hashlib.sha256((tmp_path / "model.onnx").read_bytes()).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape) == ("images", "tensor(uint8)", ["N", 3, 16, 16])
    assert [given.name for given in session.get_outputs()] == ["label", "probabilities", "open_set_score"]
    predictor = Predictor.load(run.path)
    for batch in (images[:1], images):
        found = [torch.from_numpy(value) for value in session.run(None, {"images": batch.numpy()})]
        assert same(predictor, found, batch)
    answers = onnx_predictor(tmp_path / "model.onnx", "auto").predict(images)  # as the command `predict` asks it
    assert same(predictor, (answers.labels, answers.probabilities, answers.open_set_scores), images)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata == description(predictor)
    assert json.loads(metadata["classes"]) == ["0", "1", "2", "3"]
    assert ModelFacts.model_validate_json(metadata[METADATA_KEY]) == files.facts


def test_onnx_takes_the_quarters_of_odd_maps(tmp_path: Path) -> None:
    config = small_config(
        "streaming_ridge", {"method.pooling": "grid", "data.image_size": 24}
    )  # the last map has 3 x 3
    run = run_small(config, tmp_path / "runs")
    assert export_model(ModelFiles.read(run.path), "onnx", tmp_path / "model.onnx").difference < CLOSE


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:FutureWarning")
@pytest.mark.parametrize("method", ["dynammo", "acl", "lucir", "podnet"])
def test_torchscript_answers_without_this_project(finished: Finished, method: str, tmp_path: Path) -> None:
    run = finished(method)
    exported = export_model(ModelFiles.read(run.path), "torchscript", tmp_path / "model.pt")
    assert exported.difference < CLOSE
    told = {"description.json": ""}
    loaded = torch.jit.load(tmp_path / "model.pt", _extra_files=told)
    predictor, images = Predictor.load(run.path), images_of(run.experiment)
    for batch in (images[:1], images):
        assert same(predictor, loaded(batch), batch)
    assert json.loads(told["description.json"]) == description(predictor)


def test_safetensors_is_one_file_that_stands_alone(finished: Finished, tmp_path: Path) -> None:
    run = finished("acl")
    exported = export_model(ModelFiles.read(run.path), "safetensors", tmp_path / "lung.safetensors")
    assert exported.difference == 0
    images = images_of(run.experiment)
    alone, whole = Predictor.load(tmp_path / "lung.safetensors"), Predictor.load(run.path)
    assert torch.equal(alone.predict(images).probabilities, whole.predict(images).probabilities)
    before, after = load_file(run.path / "model.safetensors"), load_file(tmp_path / "lung.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before | after)


def test_the_check_sees_images_that_excite_the_network() -> None:
    images = check_images(16)
    assert (images.shape, images.dtype) == ((16, 3, 16, 16), torch.uint8)
    assert torch.equal(images, check_images(16))
    deviations = images.float().std(dim=(1, 2, 3))
    assert float(deviations.min()) > 25  # of 255; a flat image would tell nothing


def test_a_wrong_answer_is_refused_and_leaves_no_file(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run's weights of the same shape, in a format that claims to write this one's."""
    files, other = (ModelFiles.read(finished(method).path) for method in ("fine_tune", "joint"))
    safetensors = FORMATS["safetensors"]
    wrong = Format(lambda files, predictor: safetensors.write(other, predictor), safetensors.open, (".wrong",))
    monkeypatch.setattr(export_module, "FORMATS", {"wrong": wrong, "safetensors": safetensors})
    with pytest.raises(WeightsError, match=r"as wrong does not answer .*nothing was written.*\(safetensors\)"):
        export_model(files, "wrong", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("shift", "fine"), [(9e-5, True), (2e-4, False), (float("nan"), False)])
@pytest.mark.parametrize("output", [1, 2])
def test_where_the_line_is_drawn(finished: Finished, shift: float, fine: bool, output: int) -> None:
    predictor = Predictor.load(finished("dynammo").path)

    def shifted(images: Tensor) -> list[Tensor]:
        answers = predictor.predict(images)
        found = [answers.labels, answers.probabilities.clone(), answers.open_set_scores.clone()]
        found[output][-1] += shift
        return found

    if fine:
        assert check(predictor, shifted, "onnx") == pytest.approx(shift, rel=1e-2)
    else:
        with pytest.raises(WeightsError, match=r"differ by up to (0\.0002|nan); 0\.0001 is accepted"):
            check(predictor, shifted, "onnx")


def test_another_class_is_refused_however_close(finished: Finished) -> None:
    predictor = Predictor.load(finished("dynammo").path)

    def other_class(images: Tensor) -> list[Tensor]:
        answers = predictor.predict(images)
        return [(answers.labels + 1) % 4, answers.probabilities, answers.open_set_scores]

    with pytest.raises(WeightsError, match=r"it predicts .* instead of"):
        check(predictor, other_class, "onnx")


def test_a_file_that_takes_one_size_of_batch_is_refused(finished: Finished) -> None:
    predictor = Predictor.load(finished("dynammo").path)
    fixed = torch.export.export(predictor.module, (check_images(16)[:2],)).module()
    with pytest.raises(WeightsError, match="does not accept 1 images at a time"):
        check(predictor, lambda images: fixed(images), "onnx")


def test_without_the_extra_the_remedy_is_named(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs onnxruntime, .*pip install '\.\[onnx\]'"):
        export_model(ModelFiles.read(finished("dynammo").path), "onnx", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_and_a_place_that_cannot_be_written(finished: Finished, tmp_path: Path) -> None:
    files = ModelFiles.read(finished("dynammo").path)
    with pytest.raises(ConfigError, match=r"unknown format 'onyx' \(did you mean 'onnx'\?\).*safetensors, torchscript"):
        export_model(files, "onyx", tmp_path / "model.onnx")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        export_model(files, "safetensors", tmp_path / "file" / "model.safetensors")


def test_a_file_says_that_its_statistics_are_not_those_that_sites_tested(finished: Finished) -> None:
    files = ModelFiles.read(finished("dynammo").path)
    own = OwnStatistics(kind="all", tested_sha256="ab" * 32)
    with_own = ModelFiles(files.facts.model_copy(update={"own_statistics": own}), files.tensors, files.origin)
    described, plain = (description(Predictor.of_files(one)) for one in (with_own, files))
    assert set(described) - set(plain) == {"statistics"}
    assert "each site tested the model with its own batch-norm statistics" in described["statistics"]
