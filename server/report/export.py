"""Export a run's model as one file for other software, kept only if it answers as the original does.

Every format except safetensors holds the whole pipeline, from RGB bytes to answers, so an integrator has no
normalisation to get wrong. Each format's own description says in words how a file becomes these bytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.deployed.model_files import METADATA_KEY, PREPARATION_KEY, ModelFiles
from dynammo_core.deployed.onnx_file import INPUT, OUTPUTS, OnnxModel, onnx_session
from dynammo_core.deployed.predictor import Predictor
from dynammo_core.support.errors import ConfigError, WeightsError, unknown_name
from dynammo_core.support.files import write_atomically
from dynammo_core.support.seeding import seeded_generator

TOLERANCE = 1e-4
ONNX_OPSET = 18
"""Version that ONNX Runtime reads from 1.14 (2023) on."""
NOT_AS_TESTED = "common to all sites; each site tested the model with its own batch-norm statistics, which stay there"
TORCHSCRIPT_EXTRA = "description.json"
"""Name of TorchScript's extra file that holds the description."""
PER_GRAIN = 4
GRAINS = (2, 4, 8)
"""Cells per side of the check's images, which are blobs of several sizes, and pure noise."""

Asked = Callable[[Tensor], Sequence[Tensor]]
"""A function from images Tensor[N, 3, S, S] uint8 to labels, probabilities and open-set scores."""


@dataclass(frozen=True)
class Format:
    """A file format: how a file is made from a model, and how it is queried.

    Attributes:
        write: returns the content of the file.
        open: returns a function that answers, made from that content alone.
        suffixes: how the names of such files end; other software goes by them.
        needs: packages that are not always installed.
    """

    write: Callable[[ModelFiles, Predictor], bytes]
    open: Callable[[bytes], Asked]
    suffixes: tuple[str, ...]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: where the file is.
        sha256: SHA-256 of the file, in hex.
        difference: largest absolute difference from PyTorch over probabilities and open-set scores of the check.
    """

    path: Path
    sha256: str
    difference: float


def export_model(files: ModelFiles, format_name: str, output: Path) -> Exported:
    """Write a model to `output`, once the exported content has answered as the original does.

    Raises:
        ConfigError: the format is unknown, or the packages that it needs are not installed.
        WeightsError: the model cannot be built, or what was exported answers otherwise; nothing is written.
        CheckpointError: the file cannot be written.
    """
    check_format(format_name)
    chosen = FORMATS[format_name]
    predictor = Predictor.of_files(files)
    content = chosen.write(files, predictor)
    difference = check(predictor, chosen.open(content), format_name)
    write_atomically(output, content)
    return Exported(output, hashlib.sha256(content).hexdigest(), difference)


def format_of(output: Path, asked: str | None) -> str:
    """Return the format that was asked for, or else the one that the file's name says.

    Raises:
        ConfigError: neither says one, or they contradict each other.
    """
    said = next((name for name, one in FORMATS.items() if output.suffix.lower() in one.suffixes), None)
    if asked in FORMATS and said not in (None, asked):
        raise ConfigError(
            f"--format {asked} contradicts the name {output.name}, which says {said}", remedy="Leave one out"
        )
    if chosen := asked or said:
        return chosen
    endings = ", ".join(ending for one in FORMATS.values() for ending in one.suffixes)
    raise ConfigError(
        f"the name {output.name} says no format", accepted=f"names that end in {endings}; or add --format"
    )


def check_format(name: str) -> None:
    """Refuse an unknown or unavailable format before anything is read.

    Raises:
        ConfigError: the format is unknown, or packages that it needs are not installed.
    """
    if name not in FORMATS:
        raise ConfigError(unknown_name("format", name, FORMATS), accepted=", ".join(FORMATS))
    lacking = [package for package in FORMATS[name].needs if importlib.util.find_spec(package) is None]
    if lacking:
        raise ConfigError(
            f"the export as {name} needs {', '.join(lacking)}, not installed in this Python",
            remedy="pip install '.[onnx]' in the checkout, or export as torchscript",
        )


def check(predictor: Predictor, asked: Asked, format_name: str) -> float:
    """Return the largest absolute difference of probabilities and open-set scores, for one image and for batches.

    Raises:
        WeightsError: it is not below `TOLERANCE`, another class is predicted, or a batch is refused.
    """
    images = check_images(predictor.facts.image_size)
    largest = 0.0
    for batch in torch.split(images, [1, len(images) - 1]):
        expected = predictor.predict(batch)
        try:
            labels, probabilities, scores = asked(batch)
        except Exception as error:  # each runtime has errors of its own
            raise _refused(
                format_name, f"it does not accept {len(batch)} images at a time ({type(error).__name__})"
            ) from error
        if not torch.equal(labels, expected.labels):
            raise _refused(format_name, f"it predicts {labels.tolist()} instead of {expected.labels.tolist()}")
        pairs = ((probabilities, expected.probabilities), (scores, expected.open_set_scores))
        for actual, reference in pairs:
            difference = float((actual - reference).abs().max())
            if actual.shape != reference.shape or not difference < TOLERANCE:  # nan is not below anything
                raise _refused(format_name, f"its answers differ by up to {difference:.2g}; {TOLERANCE:g} is accepted")
            largest = max(largest, difference)
    return largest


def check_images(size: int) -> Tensor:
    """Return random images for the check, noise and blobs of several sizes: Tensor[16, 3, S, S] uint8."""
    generator = seeded_generator("export", size)
    parts = []
    for grain in (*GRAINS, size):
        coarse = torch.rand(PER_GRAIN, 3, grain, grain, generator=generator)
        parts.append(F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False))
    return (torch.cat(parts) * 255).round().to(torch.uint8)


def description(predictor: Predictor) -> dict[str, str]:
    """Return the file's metadata as texts: how to feed the model, how to read its answers, and what it is."""
    side = predictor.facts.image_size
    statistics = {"statistics": NOT_AS_TESTED} if predictor.facts.own_statistics else {}
    return {
        "input": f"{INPUT}: uint8 [N, 3, {side}, {side}], RGB, 0 to 255, not normalised, any N from 1; made as "
        f"{PREPARATION_KEY} says",
        PREPARATION_KEY: predictor.facts.preparation,
        OUTPUTS[0]: "int64 [N], the answer, an index into classes; not always the largest probability",
        OUTPUTS[1]: f"float32 [N, {len(predictor.classes)}], one per class, not calibrated; see the model card",
        OUTPUTS[2]: "float32 [N], near 1: a class that was learnt; near 0: like nothing learnt, do not use the answer",
        "classes": json.dumps(predictor.classes),
        METADATA_KEY: predictor.facts.model_dump_json(),
        **statistics,
    }


def _refused(format_name: str, why: str) -> WeightsError:
    return WeightsError(
        f"the model exported as {format_name} does not answer as in PyTorch: {why}; nothing was written",
        remedy=f"Export in another format ({', '.join(name for name in FORMATS if name != format_name)})",
    )


def _write_safetensors(files: ModelFiles, predictor: Predictor) -> bytes:
    return files.in_one_file()


def _open_safetensors(content: bytes) -> Asked:
    loaded = Predictor.of_files(ModelFiles.parse(content, Path("the exported file")))

    def ask(images: Tensor) -> Sequence[Tensor]:
        answers = loaded.predict(images)
        return answers.labels, answers.probabilities, answers.open_set_scores

    return ask


def _write_torchscript(files: ModelFiles, predictor: Predictor) -> bytes:
    with warnings.catch_warnings():
        # PyTorch recommends torch.export, and warns of tensors made from lists: here these are constants.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(predictor.module, check_images(predictor.facts.image_size)[:2], check_trace=False)  # type: ignore[no-untyped-call]
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={TORCHSCRIPT_EXTRA: json.dumps(description(predictor))})
    return buffer.getvalue()


def _open_torchscript(content: bytes) -> Asked:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded: Asked = torch.no_grad()(torch.jit.load(io.BytesIO(content)))  # type: ignore[no-untyped-call]
    return loaded


def _write_onnx(files: ModelFiles, predictor: Predictor) -> bytes:
    import onnx
    from onnxscript import opset18 as op

    def distances(left: object, right: object, power: float, mode: int | None) -> object:
        """Return Euclidean distances [N, M] of the rows of [N, D] and [M, D], which the translator does not know."""
        apart = op.Sub(
            op.Unsqueeze(left, op.Constant(value_ints=[1])), op.Unsqueeze(right, op.Constant(value_ints=[0]))
        )
        return op.ReduceL2(apart, op.Constant(value_ints=[2]), keepdims=0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            predictor.module,
            (check_images(predictor.facts.image_size)[:2],),
            dynamo=True,
            input_names=[INPUT],
            output_names=OUTPUTS,
            dynamic_shapes={INPUT: {0: torch.export.Dim("N")}},
            opset_version=ONNX_OPSET,
            custom_translation_table={torch.ops.aten._cdist_forward.default: distances},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for key, value in description(predictor).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _open_onnx(content: bytes) -> Asked:
    return OnnxModel(onnx_session(content))


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "safetensors": Format(_write_safetensors, _open_safetensors, (".safetensors",)),
        "torchscript": Format(_write_torchscript, _open_torchscript, (".pt", ".torchscript")),
        "onnx": Format(_write_onnx, _open_onnx, (".onnx",), needs=("onnx", "onnxruntime", "onnxscript")),
    }
)
"""The formats by name. A new one is two functions and one line here."""
