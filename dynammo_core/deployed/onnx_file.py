"""Prediction with an exported ONNX file: ONNX Runtime runs a graph of known operators, and no other code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynammo_core.deployed.model_files import METADATA_KEY, parse_facts, read_model_file
from dynammo_core.deployed.predictor import Predictor
from dynammo_core.support.errors import ConfigError, WeightsError

INPUT = "images"
OUTPUTS = ("label", "probabilities", "open_set_score")


class OnnxModel(nn.Module):
    """An ONNX session as a module from pixels to answers, on the CPU."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return labels, probabilities and open-set scores (see `Answers`) of images Tensor[N, 3, S, S] uint8, RGB."""
        return tuple(map(torch.from_numpy, self.session.run(OUTPUTS, {INPUT: images.contiguous().numpy()})))


def onnx_session(content: bytes) -> Any:
    """Return a session of ONNX Runtime on the CPU for the bytes of a file."""
    import onnxruntime

    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def onnx_predictor(path: Path, device: str = "cpu") -> Predictor:
    """Open a file that `export --format onnx` wrote.

    Raises:
        ConfigError: ONNX Runtime is not installed, or the device is not the CPU.
        WeightsError: the file is missing, damaged, or was not written by this project.
    """
    if device not in ("auto", "cpu"):
        raise ConfigError(f"--device {device}: an ONNX file is asked on the CPU", accepted="auto, cpu")
    if importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError(
            f"to read {path}, onnxruntime is needed, which is not installed in this Python",
            remedy="pip install '.[onnx]' in the checkout, or give the run directory or a safetensors file",
        )
    content = read_model_file(path)
    try:
        session = onnx_session(content)
        description = session.get_modelmeta().custom_metadata_map[METADATA_KEY]
    except Exception as error:  # the runtime's errors have no common type
        raise WeightsError(
            f"{path} is no ONNX file that this project exported, or a damaged one ({type(error).__name__})",
            accepted="what `dynammo-sim export --format onnx` wrote",
        ) from error
    return Predictor(parse_facts(description, path), OnnxModel(session), torch.device("cpu"))
