"""Whoever follows an exported model's own words, without this project, feeds it the same bytes and gets its answers.

The functions here are such a programmer's: Pillow, NumPy and pydicom read, and ONNX Runtime answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import onnxruntime
import pydicom
import pytest
from dicom_files import write_dicom
from PIL import Image
from small_runs import Finished

from dynammo_core.deployed.model_files import METADATA_KEY, PREPARATION_KEY, ModelFiles
from dynammo_core.deployed.predictor import Predictor
from server.report.export import export_model

NOISE = np.random.default_rng(0)
WINDOW = (900.0, 2400.0)
ORIENTATION = 0x0112


def window_linear(x: np.ndarray, c: float, w: float) -> np.ndarray:
    y = ((x - (c - 0.5)) / (w - 1) + 0.5) * 255
    y[x <= c - 0.5 - (w - 1) / 2] = 0
    y[x > c - 0.5 + (w - 1) / 2] = 255
    return np.rint(y)


def read_deep_png(path: Path, window: Any) -> np.ndarray:
    return window_linear(np.array(Image.open(path)).astype(float), *window)[..., None]


def read_deep_colour(path: Path, window: Any) -> np.ndarray:
    values = imagecodecs.png_decode(path.read_bytes()).astype(float)
    return np.rint(window_linear(values[..., :3], *window) * values[..., 3:] / 65535)


def read_photograph(path: Path, window: Any) -> np.ndarray:
    image = Image.open(path)
    assert image.getexif()[ORIENTATION] == 6
    return np.rot90(np.array(image), -1)  # the first row is at the right


def read_with_alpha(path: Path, window: Any) -> np.ndarray:
    values = np.array(Image.open(path)).astype(float)
    return np.rint(values[..., :3] * values[..., 3:] / 255)


def read_ct(path: Path, window: Any) -> np.ndarray:
    file = pydicom.dcmread(path)
    stored = file.pixel_array.astype(float)
    c, w = (file.WindowCenter[0], file.WindowWidth[0]) if window == "file" else window
    y = 255 - window_linear(stored * float(file.RescaleSlope) + float(file.RescaleIntercept), float(c), float(w))
    y[stored == file.PixelPaddingValue] = 0
    return y[..., None]


def resize_axis(image: np.ndarray, n: int) -> np.ndarray:
    """Resize the first axis of [m, ...]."""
    m = len(image)
    if m == n:
        return image
    r, weights = max(m / n, 1), np.zeros((n, m))
    for i in range(n):
        z = (i + 0.5) * (m / n)
        j = np.arange(max(int(z - r + 0.5), 0), min(int(z + r + 0.5), m))
        weigh = np.maximum(0, 1 - np.abs(j + 0.5 - z) / r)
        weights[i, j] = weigh / weigh.sum()
    p = max(p for p in range(23) if int(weights.max() * 2**p + 0.5) < 2**15)
    whole = np.floor(weights * 2**p + 0.5).astype(np.int64)
    return np.clip((np.tensordot(whole, image, 1) + 2 ** (p - 1)) >> p, 0, 255)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return resize_axis(resize_axis(image.swapaxes(0, 1), width).swapaxes(0, 1), height)


def prepare(image: np.ndarray, size: int, fit: str) -> np.ndarray:
    """Make [H, W, C] into the model's input [3, S, S]."""
    image = image.astype(np.int64)
    height, width = image.shape[:2]
    short, long = min(height, width), max(height, width)
    if fit == "crop":
        top, left = (height - short) // 2, (width - short) // 2
        image = resize(image[top : top + short, left : left + short], size, size)
    elif fit == "pad":
        n = max(1, int(np.floor(size * short / long + 0.5)))
        image = resize(image, *((n, size) if height < width else (size, n)))
        before = (size - n) // 2
        sides = (before, size - n - before)
        image = np.pad(image, (sides, (0, 0), (0, 0)) if height < width else ((0, 0), sides, (0, 0)))
    else:
        image = resize(image, size, size)
    return np.broadcast_to(np.moveaxis(image, -1, 0), (3, size, size)).astype(np.uint8)


Reader = Callable[[Path, Any], np.ndarray]


@pytest.fixture
def files(tmp_path: Path) -> dict[Path, Reader]:
    """One file of each kind, none of them square, and how a programmer reads it."""
    photograph = Image.Exif()
    photograph[ORIENTATION] = 6
    colours = NOISE.integers(0, 256, (30, 41, 3), dtype=np.uint8)
    paths = {
        name: tmp_path / name for name in ("deep.png", "colour.png", "turned.jpg", "cut.png", "ct.dcm", "small.png")
    }
    Image.fromarray(NOISE.integers(0, 4096, (50, 37), dtype=np.uint16)).save(paths["deep.png"])
    paths["colour.png"].write_bytes(imagecodecs.png_encode(NOISE.integers(0, 65536, (21, 60, 4), dtype=np.uint16)))
    Image.fromarray(colours).resize((123, 90)).save(paths["turned.jpg"], exif=photograph)
    Image.fromarray(NOISE.integers(0, 256, (40, 25, 4), dtype=np.uint8)).save(paths["cut.png"])
    values = NOISE.integers(0, 4096, (48, 64), dtype=np.uint16)
    values[:4] = 4000
    header = {"RescaleSlope": "1.0002441", "RescaleIntercept": "-01.024000E+03", "BitsStored": 12}
    several = {"WindowCenter": ["40", "-600"], "WindowWidth": ["400", "1500"], "PixelPaddingValue": 4000}
    write_dicom(paths["ct.dcm"], values, **header, **several, PhotometricInterpretation="MONOCHROME1")
    Image.fromarray(NOISE.integers(0, 256, (9, 5, 4), dtype=np.uint8)).save(paths["small.png"])
    readers = (read_deep_png, read_deep_colour, read_photograph, read_with_alpha, read_ct, read_with_alpha)
    return dict(zip(paths.values(), readers, strict=True))


def trained_with(run: Path, **facts: Any) -> ModelFiles:
    """A run's model, as if its images had been prepared in another way."""
    files = ModelFiles.read(run)
    return replace(files, facts=files.facts.model_copy(update=facts))


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("window", ["file", WINDOW])
def test_the_words_of_the_preparation_give_its_bytes(
    finished: Finished, files: dict[Path, Reader], fit: str, window: Any
) -> None:
    predictor = Predictor.of_files(trained_with(finished("streaming_ridge").path, fit=fit, window=window))
    for path, read in files.items():
        if window == "file" and read in (read_deep_png, read_deep_colour):
            continue  # refused: they declare no window
        expected = prepare(read(path, window), predictor.facts.image_size, fit)
        assert np.array_equal(predictor.read([path])[0].numpy(), expected), path.name


def test_onnx_runtime_alone_answers_as_the_model(finished: Finished, files: dict[Path, Reader], tmp_path: Path) -> None:
    model = trained_with(finished("dynammo").path, fit="pad", window=WINDOW)
    export_model(model, "onnx", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    facts, words = json.loads(metadata[METADATA_KEY]), metadata[PREPARATION_KEY]
    assert "900 (centre c) and 2400 (width w)" in words and "black fills up to S x S" in words
    pixels = np.stack(
        [prepare(read(path, facts["window"]), facts["image_size"], facts["fit"]) for path, read in files.items()]
    )
    labels, probabilities, scores = session.run(None, {"images": pixels})
    predictor = Predictor.of_files(model)
    expected = predictor.predict(predictor.read(list(files)))
    assert labels.tolist() == expected.labels.tolist()
    assert np.allclose(probabilities, expected.probabilities.numpy(), rtol=0, atol=1e-4)
    assert np.allclose(scores, expected.open_set_scores.numpy(), rtol=0, atol=1e-4)


def test_each_format_carries_the_words(finished: Finished, tmp_path: Path) -> None:
    model = trained_with(finished("dynammo").path, fit="crop", window="lung", frame=2)
    export_model(model, "safetensors", tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    words = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][PREPARATION_KEY]
    assert words == model.facts.preparation
    for said in ("number 2, counted from 1", "-600 (centre c) and 1500", "Hounsfield", "the middle square"):
        assert said in words
    assert ModelFiles.read(tmp_path / "model.safetensors").facts == model.facts
