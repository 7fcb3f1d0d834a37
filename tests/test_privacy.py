"""What leaves a site, seen on the wire of whole runs: declared tensors and counts, nothing of an image or a record."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from small_runs import ALL_METHODS, SITES, Finished, FinishedRun, small_site
from torch import Tensor

from dynammo_core.data.samples import Samples
from dynammo_core.data.transforms import to_input
from dynammo_core.experiment import Experiment
from dynammo_core.plan import Step
from dynammo_core.protocol import NUMBERS, names_up

every_method = pytest.mark.parametrize("method", ALL_METHODS)
CPU = torch.device("cpu")


def asked(run: FinishedRun, message: Message) -> tuple[int, Step]:
    fields = message.content.config_records["instruction"]
    return int(str(fields["site"])), run.experiment.steps[int(str(fields["step"]))]


def held(experiment: Experiment, site: int) -> Samples:
    """Every image of a site, of training and test."""
    own = small_site(experiment, site, Path("no memory is read"))
    everything = tuple(range(experiment.classes))
    return Samples.concatenate([own.train_images(everything), own.test_images(everything)])


def traces(images: Tensor) -> list[bytes]:
    """What an image would look like in a message: its middle rows as pixels, as floats, as the network's input."""
    strips = images[:, :1, 6:10].contiguous()
    assert all(len(strip.unique()) > 3 for strip in strips)  # too little to be there by chance
    found = []
    for strip, normalised in zip(strips, to_input(strips, "half", CPU)[:, 0], strict=True):
        forms = (strip, strip.float(), strip.float() / 255, normalised)
        found += [form.contiguous().numpy().tobytes() for form in forms]
    return found


def payload(reply: Message) -> bytes:
    return bytes(message_to_proto(reply).SerializeToString())


def test_the_search_finds_an_image_in_whatever_form(finished: Finished) -> None:
    """The tests below look for something that they would see."""
    run = finished("fine_tune")
    images = held(run.experiment, 0).images[:1]
    message = run.handled[0][1]
    for form in (images, images.float(), images.float() / 255, to_input(images, "half", CPU)):
        leak = RecordDict({"weights": ArrayRecord({"heads.classes.weight": Array(form.numpy())})})
        sent = payload(Message(leak, reply_to=message))
        assert any(trace in sent for trace in traces(images))


@every_method
def test_nothing_of_an_image_or_a_record_leaves_a_site(finished: Finished, method: str) -> None:
    run = finished(method)
    own = {site: held(run.experiment, site) for site in range(SITES)}
    marks = {site: traces(samples.images) for site, samples in own.items()}
    assert len(run.handled) == SITES * len(run.experiment.steps)
    for message, reply in run.handled:
        site, step = asked(run, message)
        sent = payload(reply)
        assert not any(trace in sent for trace in marks[site]), step
        assert b"digits/" not in sent, "the ids of records begin so"
        assert str(run.path).encode() not in sent
        assert b".safetensors" not in sent
    assert all(record.startswith("digits/") for samples in own.values() for record in samples.record_ids)


@every_method
def test_tensors_that_leave_are_those_that_the_stage_sends_up(finished: Finished, method: str) -> None:
    run = finished(method)
    model = cache(run.experiment.build_model)
    for message, reply in run.handled:
        _, step = asked(run, message)
        state = model(step.task).state_dict()
        declared = set(names_up(model(step.task), step.stage))
        arrays = {name: array.numpy() for name, array in reply.content.array_records["weights"].items()}
        abstained = reply.content.config_records["report"]["abstained"]
        assert set(arrays) == (set() if abstained else declared)
        for name, array in arrays.items():
            tensor = torch.from_numpy(array.copy())
            assert tensor.is_floating_point()
            assert (tensor.dtype, tensor.shape) == (state[name].dtype, state[name].shape)


@every_method
def test_numbers_that_leave_are_counts_loss_size_and_time(finished: Finished, method: str) -> None:
    run = finished(method)
    images = {site: len(held(run.experiment, site)) for site in range(SITES)}
    for message, reply in run.handled:
        site, step = asked(run, message)
        assert set(reply.content) == {"weights", "numbers", "report"}
        assert not reply.has_error()
        report = dict(reply.content.config_records["report"])
        assert report in ({"abstained": True}, {"abstained": False})
        numbers = dict(reply.content.metric_records["numbers"])
        assert set(numbers) == (set() if report["abstained"] else NUMBERS[step.stage.action])
        for name, value in numbers.items():
            if isinstance(value, list):  # counts of images: no list of pixels sums up to so little
                assert all(type(count) is int and count >= 0 for count in value)
                assert sum(value) <= images[site]
                assert len(value) == run.experiment.classes ** (2 if name == "confusion" else 1)
            else:
                assert type(value) is float
