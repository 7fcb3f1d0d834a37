"""Malformed messages, configurations, memories, audit logs and approvals: an error that says what it is, nothing lost.

`DYNAMMO_FUZZ=10000` tries so many, a fifth of each kind, others in every run; without it a few, always the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hospitals import Hospitals, deployed, make_hospital, with_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import RUN, instruction, records, small_config, step_of
from typer.testing import CliRunner

from client.commands.approve import approve
from client.commands.audit import audit
from client.consent.approvals import DECISIONS, Approvals, Proposal
from client.consent.audit import AuditLog
from client.consent.chained_log import chain_line
from client.consent.policy import POLICY_TEMPLATE, load_policy
from client.consent.settings import load_site
from client.hospital.admission import approve_proposal
from client.hospital.door import UNEXPECTED
from client.hospital.hospital import Hospital, Request
from dynammo_core.configuration.config import load_config
from dynammo_core.experiment import Experiment
from dynammo_core.memory.store import MemoryStore
from dynammo_core.support.errors import DynammoError, MemoryStoreError
from dynammo_core.wire.envelope import MESSAGE_TYPES

EXAMPLES = int(os.environ.get("DYNAMMO_FUZZ", "0"))
fuzzed = settings(
    max_examples=EXAMPLES // 5 or 30,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
CONFIG = deployed(["beta", "alpha"], ["3", "1", "0", "2"])
CODES = {error.code for error in DynammoError.__subclasses__()}
SECRET = "alpha-"
"""Ids of the site's records begin so."""


class Bench:
    """A hospital that has remembered a task of an experiment that it approved, and what it was asked for that."""

    def __init__(self, site_yaml: Path) -> None:
        self.site_yaml = site_yaml
        self.grid = Hospitals({"alpha": site_yaml})
        self.grid.careful = True
        self.contents = {stage: valid(stage) for stage in ("remember", "evaluate")}

    @property
    def memory(self) -> Path:
        return self.site_yaml.parent / "memory" / "runs" / RUN / "memory.safetensors"

    def ask(self, kind: str, content: RecordDict) -> Message:
        message = Message(content, self.grid.get_node_ids()[0], kind, ttl=600.0)
        (reply,) = self.grid.send_and_receive([message], timeout=600)
        return reply


def valid(stage: str) -> RecordDict:
    sent = instruction(Experiment(CONFIG), step_of(Experiment(CONFIG), 0, stage), 1, Path("/server"))
    return records(sent)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("fuzzed")
    site_yaml = make_hospital(folder / "alpha", "alpha", with_images(folder, "alpha", {"0": 5, "1": 4, "3": 3}))
    (site_yaml.parent / "policy.yaml").write_text("fewest_images: 1\nmost_tasks: 9\nmost_rounds: 99\n")
    site = load_site(site_yaml)
    approve_proposal(site, Proposal.of(CONFIG), "Dr. Who")
    made = Bench(site_yaml)
    assert not made.ask("train.remember", made.contents["remember"]).has_error()
    before = made.memory.read_bytes()
    yield made
    # Nothing lost: neither the memory nor a line of the audit log, nor the one approval.
    assert made.memory.read_bytes() == before
    told = [entry.fields for entry in AuditLog(site.audit).read().entries]
    assert [entry["event"] for entry in told][:3] == ["approved", "memory", "answered"]
    assert [proposal.config for proposal in Approvals(site.approvals).approved()] == [CONFIG]


# --- what is drawn

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, -(2**63), 10**30]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["digits", "/etc/passwd", "../../x", "\x00", "1e999", "imagenet"]),
)
PLAIN = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
IN_CONFIG_RECORD = st.one_of(
    st.integers(-3, 10**6),
    st.floats(),
    st.booleans(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.lists(st.integers(-3, 3), max_size=3),
    st.lists(st.text(max_size=3), max_size=3),
)


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with a few places cut, doubled, changed or put in; or others altogether."""
    data = whole
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(0, len(data))))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 2, 8, 64, 10**9])))
        piece = draw(st.one_of(st.just(b""), st.just(data[start:end] * 2), st.binary(max_size=8)))
        data = data[:start] + piece + data[end:]
    return draw(st.one_of(st.just(data), st.just(data), st.just(data), st.binary(max_size=64)))


@st.composite
def changed_plain(draw: st.DrawFn, whole: Any) -> Any:
    """Plain data in which one leaf or branch is another, new or gone."""
    if not isinstance(whole, dict) or not whole or draw(st.integers(0, 5)) == 0:
        return draw(PLAIN)
    key = draw(st.sampled_from(sorted(whole)))
    match draw(st.sampled_from(["deeper", "deeper", "gone", "new"])):
        case "gone":
            return {name: value for name, value in whole.items() if name != key}
        case "new":
            return {**whole, draw(st.text(max_size=8)): draw(PLAIN)}
    return {**whole, key: draw(changed_plain(whole[key]))}


@st.composite
def instructions(draw: st.DrawFn, contents: dict[str, RecordDict]) -> tuple[str, RecordDict]:
    """A valid instruction of which something is wrong, under any message type."""
    kind = draw(st.sampled_from([*MESSAGE_TYPES.values(), "query.announce", "query.statistics"]))
    whole = contents[draw(st.sampled_from(sorted(contents)))]
    fields, weights = dict(whole.config_records["instruction"]), dict(whole.array_records["weights"])
    named = ConfigRecord(dict(whole.config_records["tensors"]))
    content = RecordDict({"weights": ArrayRecord(weights), "tensors": named, "instruction": ConfigRecord(fields)})
    name = draw(st.sampled_from(sorted(fields)))
    match draw(st.sampled_from(["field", "experiment", "text", "tensor", "bytes", "record", "gone"])):
        case "field":
            content.config_records["instruction"][name] = draw(IN_CONFIG_RECORD)
        case "experiment":
            plain = draw(changed_plain(json.loads(str(fields["experiment"]))))
            content.config_records["instruction"]["experiment"] = json.dumps(plain)
        case "text":
            text = draw(mutated(str(fields["experiment"]).encode())).decode("utf-8", "replace")
            content.config_records["instruction"]["experiment"] = text
        case "tensor":
            content.array_records["weights"][draw(st.text(max_size=8))] = next(iter(weights.values()))
        case "bytes":
            tensor = draw(st.sampled_from(sorted(weights)))
            data = draw(mutated(weights[tensor].data))
            shape = draw(st.one_of(st.just(weights[tensor].shape), st.just((-1, 2**30))))
            stype = draw(st.sampled_from(["numpy.ndarray", "torch", ""]))
            content.array_records["weights"][tensor] = Array("float32", shape, stype, data)
        case "record":
            where = draw(st.sampled_from(["weights", "instruction", "more"]))
            content[where] = draw(st.sampled_from([MetricRecord({"a": 1}), ConfigRecord(), ArrayRecord()]))
        case "gone":
            del content.config_records["instruction"][name]
    return kind, content


# --- what must hold


@fuzzed
@given(st.data())
def test_malformed_instructions(bench: Bench, data: st.DataObject) -> None:
    """A refusal with the code of one of our own errors, or an answer to what was harmless."""
    kind, content = data.draw(instructions(bench.contents))
    reply = bench.ask(kind, content)
    if reply.has_error():
        assert reply.error.code in CODES, reply.error
        assert reply.error.reason.isidentifier()
    else:
        assert set(reply.content) in ({"weights", "numbers", "report"}, {"announcement"})


@fuzzed
@given(st.data())
def test_malformed_settings_policies_and_experiments(bench: Bench, tmp_path: Path, data: st.DataObject) -> None:
    readers: dict[str, tuple[Callable[[Path], object], str]] = {
        "site.yaml": (load_site, bench.site_yaml.read_text()),
        "policy.yaml": (load_policy, POLICY_TEMPLATE.replace("\n# ", "\n")),
        "experiment.yaml": (load_config, small_config().to_yaml()),
    }
    name = data.draw(st.sampled_from(sorted(readers)))
    read, whole = readers[name]
    (tmp_path / name).write_bytes(data.draw(mutated(whole.encode())))
    try:
        read(tmp_path / name)
    except DynammoError as error:
        assert name in str(error)


@fuzzed
@given(st.data(), st.booleans())
def test_malformed_memories(bench: Bench, tmp_path: Path, data: st.DataObject, encrypted: bool) -> None:
    """Refused, however small the change; never other exemplars."""
    key = bytes(range(32)) if encrypted else None
    memory = MemoryStore(bench.memory.parent, run=RUN, site="alpha").load()
    store = MemoryStore(tmp_path / f"{encrypted}", run=RUN, site="alpha", key=key)
    if not store.path.exists():
        store.save(memory)
    whole = store.path.read_bytes()
    changed = data.draw(mutated(whole))
    store.path.write_bytes(changed)
    try:
        if changed == whole:
            assert store.load().record_ids == memory.record_ids
        else:
            with pytest.raises(MemoryStoreError) as error:
                store.load()
            assert SECRET not in str(error.value)
    finally:
        store.path.write_bytes(whole)


commands = typer.Typer()
commands.add_typer(audit, name="audit")
commands.command()(approve)


def said(*words: str) -> str:
    """What a command of `dynammo-site` prints; it ends with 0 or 1 and no traceback."""
    result = CliRunner().invoke(commands, [*words], input="later\n" * 9)
    assert result.exit_code in (0, 1), result.output
    assert isinstance(result.exception, SystemExit | None), repr(result.exception)
    return result.output


def chained(lines: list[Any]) -> bytes:
    """Anything, with hashes as if the site had written it."""
    content, before = b"", b""
    for fields in lines:
        before = chain_line(fields, before)
        content += before
    return content


def logs(whole: bytes) -> st.SearchStrategy[bytes]:
    """A log with changes, and one that somebody who knows how wrote anew with other fields."""
    entries = [json.loads(line) for line in whole.splitlines()]
    for entry in entries:
        del entry["link"]
    forged = st.lists(
        st.sampled_from(entries).flatmap(changed_plain).filter(lambda one: isinstance(one, dict)), max_size=4
    )
    return mutated(whole) | forged.map(chained)


@fuzzed
@given(st.data())
def test_malformed_audit_logs(bench: Bench, tmp_path: Path, data: st.DataObject) -> None:
    whole = load_site(bench.site_yaml).audit.read_bytes()[:100_000]
    whole = whole[: whole.rfind(b"\n") + 1]
    site_yaml = make_hospital(tmp_path, "alpha", tmp_path)
    log = AuditLog(load_site(site_yaml).audit)
    changed = data.draw(logs(b"".join(whole.splitlines(keepends=True)[:5])))
    log.path.write_bytes(changed)
    said("audit", "report", str(site_yaml))
    said("audit", "verify", str(site_yaml))
    said("approve", "--list", str(site_yaml))
    assert log.path.read_bytes() == changed


@fuzzed
@given(st.data())
def test_malformed_approvals(bench: Bench, tmp_path: Path, data: st.DataObject) -> None:
    """Whatever is done to them short of forging a decision, an experiment that was rejected does not run."""
    site_yaml = make_hospital(tmp_path, "alpha", tmp_path)
    site = load_site(site_yaml)
    approvals, proposal = Approvals(site.approvals), Proposal.of(CONFIG)
    if not site.approvals.exists():
        approvals.decide(proposal, "rejected", "Dr. Who", AuditLog(site.audit))
        approvals.file(Proposal.of(CONFIG.model_copy(update={"seed": 7})))
    files = sorted(site.approvals.iterdir())
    before = {file: file.read_bytes() for file in files}
    file = data.draw(st.sampled_from(files))
    file.write_bytes(data.draw(mutated(before[file])))
    sent = instruction(Experiment(CONFIG), Experiment(CONFIG).steps[0], 1, Path("/server"))
    try:
        with pytest.raises(DynammoError):
            Hospital(site_yaml).admit(Request(sent, {}))
        said("approve", str(site_yaml))
        said("approve", "--json", "--list", str(site_yaml))
        forged = data.draw(logs(before[site.approvals / DECISIONS]))
        (site.approvals / DECISIONS).write_bytes(forged)
        said("approve", str(site_yaml))
    finally:
        for made in site.approvals.iterdir():
            made.unlink()
        for path, content in before.items():
            path.write_bytes(content)


def test_there_is_an_own_code_for_each_error() -> None:
    assert UNEXPECTED not in CODES
    assert len(CODES) == len(DynammoError.__subclasses__())
