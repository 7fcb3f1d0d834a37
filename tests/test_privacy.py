"""What leaves a site, seen on the wire of whole runs: declared tensors and counts, nothing of an image or a record."""

from __future__ import annotations

import base64
import csv
from functools import cache
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto
from hospitals import Hospitals, deployed, make_hospital, with_images
from small_runs import ALL_METHODS, SITES, Finished, FinishedRun, run_small, small_site
from torch import Tensor

from dynammo_core.data.samples import Samples
from dynammo_core.data.transforms import to_input
from dynammo_core.experiment import Experiment
from dynammo_core.plan import Step
from dynammo_core.wire.protocol import NUMBERS, names_up
from dynammo_core.wire.sparse_counts import dense

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
    """What an image would look like in a message: its middle rows as bytes, floats, the network's input, or a text.

    The texts are those of the pixels, base64 wherever in its groups of three bytes the rows begin.
    """
    strips = images[:, :1, 6:10].contiguous()
    assert all(len(strip.unique()) > 3 for strip in strips)  # too little to be there by chance
    found = []
    for strip, normalised in zip(strips, to_input(strips, "half", CPU)[:, 0], strict=True):
        forms = (strip, strip.float(), strip.float() / 255, normalised, strip.double() / 255)
        found += [form.contiguous().numpy().tobytes() for form in forms]
        pixels = strip.numpy().tobytes()
        found.append(pixels.hex().encode())
        found += [base64.b64encode(pixels[start : start + 3 * (len(pixels) // 3 - 1)]) for start in range(3)]
    return found


def payload(reply: Message) -> bytes:
    return bytes(message_to_proto(reply).SerializeToString())


def test_the_search_finds_an_image_in_whatever_form(finished: Finished) -> None:
    """The tests below look for something that they would see."""
    run = finished("fine_tune")
    images = held(run.experiment, 0).images[:1]
    message = run.handled[0][1]
    for form in (images, images.float(), images.double() / 255, to_input(images, "half", CPU)):
        leak = RecordDict({"weights": ArrayRecord({"heads.classes.weight": Array(form.numpy())})})
        sent = payload(Message(leak, reply_to=message))
        assert any(trace in sent for trace in traces(images))
    for before in (b"", b"a", b"bc"):
        texts = [
            (before + images.numpy().tobytes()).hex(),
            base64.b64encode(before + images.numpy().tobytes()).decode(),
        ]
        for text in texts:
            sent = payload(Message(RecordDict({"report": ConfigRecord({"note": text})}), reply_to=message))
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
        numbers = reply.content.metric_records["numbers"]
        declared = run.experiment.sums_form.declared(model(step.task), step.stage, numbers.get("class_counts"))
        arrays = {name: array.numpy() for name, array in reply.content.array_records["weights"].items()}
        abstained = reply.content.config_records["report"]["abstained"]
        assert set(arrays) == (set() if abstained else set(declared))
        assert set(declared) == set(names_up(model(step.task), step.stage))
        for name, array in arrays.items():
            tensor = torch.from_numpy(array.copy())
            assert tensor.is_floating_point()
            assert (tensor.dtype, tensor.shape) == (declared[name].dtype, declared[name].shape)


@every_method
def test_numbers_that_leave_are_counts_loss_size_and_time(finished: Finished, method: str) -> None:
    run = finished(method)
    images = {site: len(held(run.experiment, site)) for site in range(SITES)}
    lengths = {"class_counts": 10, "confusion": 100, "calibration": 3 * 15, "open_set": 2 * 128}
    for message, reply in run.handled:
        site, step = asked(run, message)
        assert set(reply.content) == {"weights", "numbers", "report"}
        assert not reply.has_error()
        report = dict(reply.content.config_records["report"])
        assert report in ({"abstained": True}, {"abstained": False})
        numbers = dict(reply.content.metric_records["numbers"])
        assert set(numbers) == (set() if report["abstained"] else NUMBERS[step.stage.action])
        for name, value in numbers.items():
            if name == "confusion":  # places and counts, without zeros
                value = dense(value, lengths[name])
            if isinstance(value, list):  # counts of images: no list of pixels sums up to so little
                assert all(type(count) is int and count >= 0 for count in value)
                # In 15 bins: images, those answered right, and the sum of confidences in thousandths.
                assert sum(value[:30] if name == "calibration" else value) <= 2 * images[site]
                assert len(value) == lengths[name]
                if name == "calibration":
                    assert sum(value[30:]) <= 1000 * images[site]
            else:
                assert type(value) is float


def accounted_for(reply: Message, message: Message, run: FinishedRun) -> bytes:
    """The bytes of an answer that holds the values of `reply` under the names of the model and nothing else.

    What travels beside it is made from the question anew; only when it was answered is taken from the answer.
    """
    _, step = asked(run, message)
    names = names_up(run.experiment.build_model(step.task), step.stage)
    told = reply.content
    arrays, numbers = told.array_records["weights"], told.metric_records["numbers"]
    abstained = told.config_records["report"]["abstained"] is True
    content = RecordDict(
        {
            "weights": ArrayRecord({} if abstained else {name: Array(arrays[name].numpy().copy()) for name in names}),
            "numbers": MetricRecord({name: numbers[name] for name in sorted(numbers)}),
            "report": ConfigRecord({"abstained": abstained}),
        }
    )
    twin = Message(content, reply_to=message)
    for clock in ("_created_at", "_ttl"):
        vars(twin.metadata)[clock] = vars(reply.metadata)[clock]
    return payload(twin)


@every_method
def test_every_byte_that_leaves_is_accounted_for(finished: Finished, method: str) -> None:
    run = finished(method)
    for message, reply in run.handled:
        assert payload(reply) == accounted_for(reply, message, run)
        later = reply.metadata.created_at - message.metadata.created_at
        assert 0 <= later < 600
        assert reply.metadata.ttl == pytest.approx(message.metadata.ttl - later, abs=0.01)


DISEASES = {"0": "xanthoma", "1": "lentigo", "2": "naevus", "3": "keratosis"}


def named(images: Path) -> Path:
    """A site's images under the names of diseases."""
    with (images / "manifest.csv").open() as file:
        rows = [{**row, "label": DISEASES[row["label"]]} for row in csv.DictReader(file)]
    with (images / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return images


@pytest.mark.parametrize("method", ["dynammo", "replay"])
def test_of_a_real_site_no_name_place_or_record_leaves_but_announced_classes(tmp_path: Path, method: str) -> None:
    """Answers, refusals and an announcement: all that two hospitals send in a run, of which one is changed midway."""
    holdings = {"alpha": {"0": 8, "1": 8, "2": 2, "3": 8}, "beta": {"0": 8, "1": 8, "2": 8, "3": 8}}
    files = {
        name: make_hospital(tmp_path / name, name, named(with_images(tmp_path, name, held)))
        for name, held in holdings.items()
    }
    (tmp_path / "alpha" / "policy.yaml").write_text("fewest_images: 5\n")
    grid, sent = Hospitals(files), list[tuple[str, Message]]()
    at_home = grid._app

    def tapped(message: Message, context: Context) -> Message:
        reply = at_home(message, context)
        sent.append((message.metadata.message_type, reply))
        assert not context.state  # nor is anything kept in what Flower keeps
        return reply

    grid._app = tapped  # type: ignore[assignment]
    config = deployed(["alpha", "beta"], list(DISEASES.values()), method, {"federation": {"quorum": 0.5}})

    def move_away(event: object) -> None:
        """The images of one site are gone when the second task begins."""
        if isinstance(event, dict) and (event["event"], event.get("task")) == ("step_started", 1):
            (tmp_path / "beta" / "images" / "manifest.csv").unlink(missing_ok=True)

    run_small(config, tmp_path / "runs", grid=grid, listeners=[move_away])
    for kind in ("query.announce", "query.statistics"):
        grid.send_and_receive([Message(RecordDict(), node, kind, ttl=60.0) for node in grid.get_node_ids()])
    forbidden = [str(tmp_path), ".png", "manifest", ".yaml", "safetensors", "Traceback", "alpha-", "beta-"]
    for kind, reply in sent:
        inside = payload(reply)
        names = [name for name in DISEASES.values() if name.encode() in inside]
        assert names == (
            ["xanthoma", "lentigo", "keratosis"] if kind == "query.announce" and not reply.has_error() else []
        )
        assert not [word for word in forbidden if word.encode() in inside]
    assert {reply.has_error() for _, reply in sent} == {True, False}
    assert {kind for kind, _ in sent} >= {
        "train.fit",
        "train.remember",
        "evaluate",
        "query.announce",
        "query.statistics",
    }
