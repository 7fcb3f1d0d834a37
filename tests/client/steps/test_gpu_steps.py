"""What a site computes on a GPU, and in another precision: nearly the same answers, and the same bits each time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_runs import instruction, small_config, small_site, step_of
from torch import Tensor

from client.steps.actions import answer
from client.steps.assignment import EpochBatches, receive
from dynammo_core.configuration.config import Scalar
from dynammo_core.experiment import Experiment
from dynammo_core.plan import Fit, LossContext
from dynammo_core.support.devices import find_device, limit_memory
from dynammo_core.support.errors import DeviceMemoryError
from dynammo_core.training import fit, train_only
from dynammo_core.wire.protocol import names_up

AUGMENTED: dict[str, Scalar] = {"data.augmentation": "crop_flip"}


def weights(stage: str, workspace: Path, **settings: Scalar) -> dict[str, Tensor]:
    """What the first site sends in a stage of the first task, under other settings of the section `compute`."""
    return asked(stage, workspace, {f"compute.{name}": value for name, value in settings.items()})


def asked(stage: str, workspace: Path, overrides: dict[str, Scalar]) -> dict[str, Tensor]:
    experiment = Experiment(small_config(overrides=overrides))
    step = step_of(experiment, 0, stage)
    report = answer(instruction(experiment, step, 0, workspace), small_site(experiment, 0, workspace))
    return dict(report.weights)


def assert_near(one: dict[str, Tensor], other: dict[str, Tensor], within: float) -> None:
    assert one
    for name, tensor in one.items():
        assert other[name].dtype == tensor.dtype == torch.float32
        torch.testing.assert_close(other[name], tensor, rtol=within, atol=within)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stage", ["adapt", "balance"])
def test_bf16_is_nearly_the_same_answer_and_the_same_bits_twice(stage: str, tmp_path: Path) -> None:
    exact, coarse, again = (
        weights(stage, tmp_path / name, precision=precision)
        for name, precision in (("exact", "float32"), ("coarse", "bf16"), ("again", "bf16"))
    )
    assert equal(coarse, again)
    assert not equal(coarse, exact)
    assert_near(exact, coarse, 0.05)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Each wait for the GPU is an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize("stage", ["adapt", "balance"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_gpu_gives_nearly_the_answer_of_a_cpu_and_the_same_bits_twice(
    stage: str, precision: str, tmp_path: Path
) -> None:
    cpu, gpu, again = (
        weights(stage, tmp_path / str(number), device=device, precision=precision)
        for number, device in enumerate(("cpu", "cuda", "cuda"))
    )
    assert equal(gpu, again)
    assert_near(cpu, gpu, 0.05)


@pytest.mark.cuda
def test_images_that_do_not_fit_are_copied_by_batch_and_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {**AUGMENTED, "compute.device": "cuda"}
    resident = asked("adapt", tmp_path / "one", overrides)
    monkeypatch.setattr("client.steps.assignment.fits", lambda *_: False)
    assert equal(resident, asked("adapt", tmp_path / "other", overrides))


@pytest.mark.cuda
@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
def test_nobody_waits_for_the_gpu_inside_an_epoch(augmentation: str, tmp_path: Path, no_waiting: None) -> None:
    experiment = Experiment(small_config(overrides={"compute.device": "cuda", "data.augmentation": augmentation}))
    step, site = step_of(experiment, 0, "adapt"), small_site(experiment, 0, tmp_path)
    assignment = receive(instruction(experiment, step, 0, tmp_path), site)
    stage = assignment.step.stage
    assert isinstance(stage, Fit)
    batches = EpochBatches(assignment, stage.learns_from(site.rehearsal(0)), "images")
    parameters = train_only(assignment.model, set(names_up(assignment.model, stage)))

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        return stage.loss(assignment.model, inputs, labels, LossContext(0, "images"))

    def watched(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        torch.cuda.set_sync_debug_mode("error")
        yield from batches(epoch)
        torch.cuda.set_sync_debug_mode("default")

    fit(parameters, loss, batches, stage.optimisation, round_=0)  # libraries prepare themselves with the first batch
    assert fit(parameters, loss, watched, stage.optimisation, round_=0) > 0


@pytest.mark.cuda
def test_too_little_memory_is_told_by_its_own_error(tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    try:
        with pytest.raises(DeviceMemoryError, match="device_megabytes"):
            asked("adapt", tmp_path, {"compute.device": "cuda", "compute.device_megabytes": 1, "data.image_size": 512})
    finally:
        limit_memory(find_device("cuda"), None)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_sites_share_one_backbone_on_one_device(device: str, tmp_path: Path) -> None:
    experiment = Experiment(small_config(overrides={"compute.device": device}))
    step = step_of(experiment, 0, "adapt")
    models = [
        receive(instruction(experiment, step, index, tmp_path), small_site(experiment, index, tmp_path)).model
        for index in (0, 2)
    ]
    one, other = (dict(model.extractor.backbone.named_parameters()) for model in models)  # type: ignore[union-attr]
    assert all(one[name] is other[name] and one[name].device.type == device for name in one)
    assert models[0].head("auxiliary").weight is not models[1].head("auxiliary").weight
