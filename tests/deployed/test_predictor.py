"""A deployed model answers from its two files alone as the run that made it, and refuses files that are not its own."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from small_runs import ALL_METHODS, Finished, run_small, small_config
from torch import Tensor

from dynammo_core.data.loading import load_samples
from dynammo_core.data.samples import Samples
from dynammo_core.data.transforms import NORMALISATIONS, to_input
from dynammo_core.deployed.model_files import FACTS, WEIGHTS, ModelFiles, tensors_sha256
from dynammo_core.deployed.predictor import Predictor
from dynammo_core.experiment import Experiment
from dynammo_core.methods import METHODS
from dynammo_core.methods.settings.closed_form import FeatureSettings
from dynammo_core.support.errors import DataError, WeightsError

every_method = pytest.mark.parametrize("method", ALL_METHODS)
WITH_OTHERS = {"dynammo", "acl"}


def copied(run: Path, folder: Path) -> Path:
    """The two files of the model, and nothing else."""
    folder.mkdir(exist_ok=True)
    for name in (WEIGHTS, FACTS):
        shutil.copy(run / name, folder / name)
    return folder


def edit_facts(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    facts = json.loads((folder / FACTS).read_text())
    change(facts)
    (folder / FACTS).write_text(json.dumps(facts))
    return folder


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Other tensors, with a hash that fits them: as if somebody had meant it."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    return edit_facts(folder, lambda facts: facts["lineage"].update(tensors_sha256=tensors_sha256(tensors)))


def images_of(experiment: Experiment) -> Samples:
    """All test images of the classes that the run has learnt."""
    split, seen = experiment.dataset.test, experiment.stream.seen(len(experiment.stream) - 1)
    return load_samples(split, np.flatnonzero(np.isin(split.labels, seen)), experiment.config.data.image_size)


def measured(run: Path, after_task: int) -> Counter[tuple[str, str]]:
    """True and predicted class names over all sites, as the sites' own evaluation has counted them."""
    counts: Counter[tuple[str, str]] = Counter()
    with (run / "confusion_matrix.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if int(row["after_task"]) == after_task:
                counts[row["true"], row["predicted"]] += int(row["count"])
    return counts


@every_method
def test_it_predicts_what_the_run_has_measured(finished: Finished, method: str, tmp_path: Path) -> None:
    run = finished(method)
    predictor, samples = Predictor.load(copied(run.path, tmp_path)), images_of(run.experiment)
    answers = predictor.predict(samples.images, batch_size=7)
    names = predictor.facts.class_names
    pairs = zip(samples.labels.tolist(), answers.labels.tolist(), strict=True)
    found = Counter((names[true], predictor.classes[predicted]) for true, predicted in pairs)
    assert found == measured(run.path, after_task=2)
    assert found.total() == 40  # four classes of ten test images each


@every_method
def test_probabilities_are_the_softmax_of_the_heads_that_answer(finished: Finished, method: str) -> None:
    run = finished(method)
    predictor = Predictor.load(run.path)
    answers = predictor.predict(images_of(run.experiment).images)
    assert answers.probabilities.shape == (40, 4)
    assert bool((answers.probabilities >= 0).all())
    answer = answers.probabilities.gather(1, answers.labels[:, None]).squeeze(1)
    if method in WITH_OTHERS:
        # Two classes and "others" are a head's whole softmax, so its classes sum to 1 - others; the head that answers
        # has the least "others", and in it the answer has the largest probability.
        sums = answers.probabilities.view(40, 2, 2).sum(dim=2)
        chosen = answers.labels // 2
        assert torch.allclose(answers.open_set_scores, sums.max(dim=1).values, atol=1e-6)
        assert torch.allclose(answers.open_set_scores, sums[torch.arange(40), chosen], atol=1e-6)
        within = answers.probabilities.view(40, 2, 2)[torch.arange(40), chosen]
        assert torch.equal(answer, within.max(dim=1).values)
    else:
        assert torch.allclose(answers.probabilities.sum(dim=1), torch.ones(40), atol=1e-6)
        assert torch.equal(answers.probabilities.argmax(dim=1), answers.labels)
        by_share = issubclass(METHODS[method].Params, FeatureSettings)
        assert torch.allclose(answers.open_set_scores, answer, atol=1e-6) is not by_share


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_pixels_enter_the_network_as_in_training(finished: Finished, tmp_path: Path, normalisation: str) -> None:
    run = finished("fine_tune")
    folder = edit_facts(copied(run.path, tmp_path), lambda facts: facts.update(normalisation=normalisation))
    predictor, images = Predictor.load(folder), images_of(run.experiment).images
    module = predictor.module
    with torch.no_grad():
        features = module.model.extractor(to_input(images, normalisation, torch.device("cpu")))
        known = module.method.decision.predict(module.model, features).known
    assert torch.allclose(predictor.predict(images).open_set_scores, known, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["dynammo", "streaming_ridge"])
def test_classes_stand_in_the_order_of_learning(method: str, tmp_path: Path) -> None:
    config = small_config(method, {"tasks.class_order": "[7, 2, 5, 0]", "tasks.sizes": "[1, 3]"})
    run = run_small(config, tmp_path).path
    predictor, samples = Predictor.load(run), images_of(Experiment(config))
    assert predictor.classes == ("7", "2", "5", "0")
    answers = predictor.predict(samples.images)
    predicted = [predictor.classes[label] for label in answers.labels.tolist()]
    found = Counter(zip((str(label) for label in samples.labels.tolist()), predicted, strict=True))
    assert found == measured(run, after_task=2)
    if method in WITH_OTHERS:  # the first head has one class, the second three
        first, second = answers.probabilities.split([1, 3], dim=1)
        sums = torch.stack([first.sum(dim=1), second.sum(dim=1)])
        assert torch.allclose(answers.open_set_scores, sums.max(dim=0).values, atol=1e-6)
    else:
        assert torch.equal(answers.probabilities.argmax(dim=1), answers.labels)


def test_grey_and_colour_are_the_same_image_and_batches_do_not_matter(finished: Finished) -> None:
    run = finished("dynammo")
    predictor, grey = Predictor.load(run.path), images_of(run.experiment).images[:9]
    assert grey.shape[1] == 1
    whole = predictor.predict(grey)
    colour = predictor.predict(grey.expand(-1, 3, -1, -1), batch_size=4)
    assert torch.equal(whole.labels, colour.labels)
    assert torch.allclose(whole.probabilities, colour.probabilities, atol=1e-6)


# --- reading


def test_files_are_read_as_the_sites_read_them(finished: Finished, tmp_path: Path) -> None:
    """Image files of the model's size come as they are, others resized as every data set's images are."""
    predictor = Predictor.load(finished("dynammo").path)
    noise = np.random.default_rng(1).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "same.png")
    Image.fromarray(np.full((31, 50, 3), (10, 20, 30), dtype=np.uint8)).save(tmp_path / "large.png")
    images = predictor.read([tmp_path / "same.png", tmp_path / "large.png"])
    assert (images.shape, images.dtype) == ((2, 3, 16, 16), torch.uint8)
    assert all(np.array_equal(channel, noise) for channel in images[0].numpy())
    # A weighted mean of equal pixels is that pixel.
    assert torch.equal(images[1], torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16))


def test_what_is_no_image_is_named(finished: Finished, tmp_path: Path) -> None:
    predictor = Predictor.load(finished("dynammo").path)
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(DataError, match=r"notes\.png cannot be read"):
        predictor.read([tmp_path / "notes.png"])


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 15, 16, dtype=torch.uint8), torch.zeros(1, 2, 16, 16).byte()],
    ids=["floats", "size", "channels"],
)
def test_other_tensors_are_refused(finished: Finished, images: Tensor) -> None:
    with pytest.raises(ValueError, match="16"):
        Predictor.load(finished("dynammo").path).predict(images)


# --- files


def test_answers_that_do_not_fit_the_description_are_refused(finished: Finished) -> None:
    """As a foreign ONNX file can give them."""
    loaded, images = Predictor.load(finished("dynammo").path), torch.zeros(2, 3, 16, 16).byte()
    n, c = len(images), len(loaded.classes)
    labels, even, known = torch.zeros(n, dtype=torch.int64), torch.full((n, c), 1 / c), torch.ones(n)
    for answers in ((labels + c, even, known), (labels, even[:, :1], known), (labels, even, known * torch.nan)):

        class Foreign(torch.nn.Module):
            def forward(self, _: Tensor, given: tuple[Tensor, ...] = answers) -> tuple[Tensor, ...]:
                return given

        with pytest.raises(WeightsError, match=f"has learnt {c} classes, and answers {n} images"):
            Predictor(loaded.facts, Foreign(), torch.device("cpu")).predict(images)


def test_a_model_file_that_was_sent_makes_nothing_ask_the_net(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object, local_files_only: bool = False, **__: object) -> str:
        assert local_files_only
        raise LocalEntryNotFoundError("")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", ask)
    folder = edit_facts(
        copied(finished("dynammo").path, tmp_path), lambda facts: facts.update(backbone="hf_hub:evil/n")
    )
    with pytest.raises(WeightsError, match=r"config\.json of evil/n is not in the cache"):
        Predictor.load(folder)


def test_a_model_can_be_named_in_three_ways(finished: Finished, tmp_path: Path) -> None:
    """The folder, its file, and a renamed file that carries its description: the same answers."""
    run = finished("icarl")
    (tmp_path / "alone.safetensors").write_bytes(ModelFiles.read(run.path).in_one_file())
    images = images_of(run.experiment).images
    places = (run.path, run.path / WEIGHTS, tmp_path / "alone.safetensors")
    first, *others = (Predictor.load(place).predict(images).probabilities for place in places)
    assert all(torch.equal(first, other) for other in others)


def test_models_of_before_the_hash_was_written_are_read(finished: Finished, tmp_path: Path) -> None:
    folder = copied(finished("dynammo").path, tmp_path)
    edit_facts(folder, lambda facts: facts["lineage"].pop("tensors_sha256"))
    assert Predictor.load(folder).facts.lineage.tensors_sha256 is None


def test_one_wrong_bit_is_found(finished: Finished, tmp_path: Path) -> None:
    folder = copied(finished("dynammo").path, tmp_path)
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-100] ^= 1  # within the tensors, which end the file
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors have the SHA-256 .* damaged"):
        Predictor.load(folder)


def test_a_file_that_was_cut_off(finished: Finished, tmp_path: Path) -> None:
    folder = copied(finished("dynammo").path, tmp_path)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"no safetensors file, or a damaged one"):
        Predictor.load(folder)


def test_weights_of_another_run(finished: Finished, tmp_path: Path) -> None:
    folder = copied(finished("dynammo").path, tmp_path)
    shutil.copy(finished("acl").path / WEIGHTS, folder / WEIGHTS)
    with pytest.raises(WeightsError, match="or of another model"):
        Predictor.load(folder)


@pytest.mark.parametrize("name", [WEIGHTS, FACTS])
def test_a_file_that_is_not_there(finished: Finished, tmp_path: Path, name: str) -> None:
    folder = copied(finished("dynammo").path, tmp_path)
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=f"cannot read .*{name}: No such file"):
        Predictor.load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("heads.task1.bias"), r"lacks heads\.task1\.bias \(1 such"),
        (lambda tensors: tensors.pop("extractor.backbone.prefix.block0.0.weight"), r"lacks extractor\.backbone"),
        (lambda tensors: tensors.update(surplus=torch.zeros(1)), "has the surplus surplus"),
        (
            lambda tensors: tensors.update({"heads.task0.bias": torch.zeros(4)}),
            r"holds heads\.task0\.bias as torch\.float32 \(4,\) instead of torch\.float32 \(3,\)",
        ),
        (lambda tensors: tensors.update({"heads.task0.bias": torch.zeros(3).double()}), r"torch\.float64 \(3,\)"),
        (lambda tensors: tensors["heads.task0.weight"].fill_(torch.nan), r"not finite in heads\.task0\.weight"),
    ],
    ids=["lacking", "no backbone", "surplus", "shape", "type", "nan"],
)
def test_tensors_that_do_not_fit(
    finished: Finished, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    folder = edit_tensors(copied(finished("dynammo").path, tmp_path), change)
    with pytest.raises(WeightsError, match=said):
        Predictor.load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: facts.update(backbone="resnet81"), r"unknown backbone 'resnet81' \(did you mean 'resnet18'\?\)"),
        (lambda facts: facts["method"].update(name="dynamo"), r"unknown method 'dynamo' \(did you mean 'dynammo'\?\)"),
        (lambda facts: facts["method"].update(alpha=-1), "alpha"),
        (lambda facts: facts.pop("image_size"), "image_size: Field required"),
        (lambda facts: facts.update(normalisation="z"), "Input should be 'half' or 'imagenet'"),
        (lambda facts: facts.update(tasks=[["0", "1"], ["1"]]), "each at most once"),
        (lambda facts: facts.update(tasks=[["0", "eleven"]]), "some of class_names"),
        (lambda facts: facts.update(insertion_points=["block1"]), "small_cnn is cut here at"),
        (lambda facts: facts["heads"].update(task1=[3, 2, -1]), "names the heads .* after these tasks"),
        (lambda facts: facts["tasks"].pop(), "names the heads .* after these tasks"),
    ],
    ids=["backbone", "method", "parameter", "missing", "value", "twice", "class", "cut", "rows", "tasks"],
)
def test_descriptions_that_describe_no_model(
    finished: Finished, tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    folder = edit_facts(copied(finished("dynammo").path, tmp_path), change)
    with pytest.raises(WeightsError, match=said):
        Predictor.load(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"class_names": 1}'])
def test_descriptions_that_are_none(finished: Finished, tmp_path: Path, text: str) -> None:
    folder = copied(finished("dynammo").path, tmp_path)
    (folder / FACTS).write_text(text)
    with pytest.raises(WeightsError, match=r"model\.json describes no model"):
        Predictor.load(folder)
