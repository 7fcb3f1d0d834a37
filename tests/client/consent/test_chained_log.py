"""A chained log: no change goes unnoticed, nothing is lost in a crash, and many may write at once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.consent.chained_log import append, chain_line, read_chain


def written(count: int) -> list[bytes]:
    lines: list[bytes] = []
    for number in range(count):
        lines.append(chain_line({"n": number, "text": "ä"}, lines[-1] if lines else b""))
    return lines


LINES = written(5)
CONTENT = b"".join(LINES)


def is_whole(content: bytes) -> bool:
    try:
        return not read_chain(content).open_end
    except ValueError:
        return False


def test_a_line_holds_the_hash_of_the_line_before_and_itself(tmp_path: Path) -> None:
    append(tmp_path / "new" / "log", [{"a": 1}, {"b": [2.5, None]}])
    first, second = (tmp_path / "new" / "log").read_bytes().splitlines(keepends=True)
    assert json.loads(first) == {"a": 1, "link": hashlib.sha256(b'{"a": 1}').hexdigest()}
    expected = hashlib.sha256(first + b'{"b": [2.5, null]}').hexdigest()
    assert json.loads(second) == {"b": [2.5, None], "link": expected}
    assert (tmp_path / "new" / "log").stat().st_mode & 0o777 == 0o600
    chain = read_chain(first + second)
    assert [(entry.number, entry.fields) for entry in chain.entries] == [(1, {"a": 1}), (2, {"b": [2.5, None]})]
    assert (chain.lines, chain.last_link, chain.cut_off, chain.open_end) == (2, expected, (), False)


@given(place=st.integers(0, len(CONTENT) - 1), flip=st.integers(1, 255))
def test_any_changed_byte_is_found(place: int, flip: int) -> None:
    changed = bytearray(CONTENT)
    changed[place] ^= flip
    assert not is_whole(bytes(changed))


@given(st.data())
def test_any_removed_or_added_byte_is_found(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(CONTENT) - 1))
    assert not is_whole(CONTENT[:place] + CONTENT[place + 1 :])
    assert not is_whole(CONTENT[:place] + bytes([data.draw(st.integers(0, 255))]) + CONTENT[place:])


@given(st.lists(st.sampled_from(LINES), max_size=6))
def test_only_the_lines_in_order_are_a_chain(lines: list[bytes]) -> None:
    """Removed, moved and doubled lines, in any combination; what remains possible is to cut lines off the end."""
    assert is_whole(b"".join(lines)) is (lines == LINES[: len(lines)])


@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_first_bad_line_is_named(number: int) -> None:
    edited = [*LINES]
    edited[number - 1] = edited[number - 1].replace(b'"n": ', b'"n": 7')
    with pytest.raises(ValueError, match=f"^line {number} does not follow from the line before it"):
        read_chain(b"".join(edited))
    with pytest.raises(ValueError, match=f"^line {number} does not follow from the line before it"):
        read_chain(b"".join(LINES[: number - 1] + LINES[number:]))


@pytest.mark.parametrize(
    "junk", [b"\n", b"[]\n", b"{}\n", b"null\n", b"[" * 10**5 + b"\n", b'{"link": 1}\n', b"\xff\n"]
)
def test_what_is_no_line_is_refused(junk: bytes) -> None:
    for content in (junk, CONTENT + junk):
        with pytest.raises(ValueError, match="does not follow from the line before it"):
            read_chain(content)


@given(cut=st.integers(1, len(LINES[-1])), again=st.integers(0, 200))
def test_what_a_crash_cut_off_is_kept_and_closed(
    tmp_path_factory: pytest.TempPathFactory, cut: int, again: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    torn = CONTENT[:-cut]
    path.write_bytes(torn)
    append(path, [{"n": "next"}])
    content = path.read_bytes()
    if again:  # the line that closes is cut off as well, but not right after its first byte, which ends the old one
        path.write_bytes(content[: max(len(torn) + 2, len(content) - again)] if cut < len(LINES[-1]) else content)
        append(path, [{"n": "last"}])
        content = path.read_bytes()
    chain = read_chain(content)
    assert content.startswith(torn)
    assert not chain.open_end
    assert chain.entries[-1].fields["n"] == ("last" if again else "next")
    # Only the end of its line lacks where one byte was cut off: then that line is whole again.
    whole = 4 + (cut == 1)
    assert [entry.fields["n"] for entry in chain.entries[:whole]] == list(range(whole))
    if 1 < cut < len(LINES[-1]):
        assert chain.cut_off[0] == 5


def test_an_open_end_is_told_from_a_changed_line() -> None:
    chain = read_chain(CONTENT[:-3])
    assert (chain.open_end, chain.cut_off, len(chain.entries)) == (True, (5,), 4)
    edited = CONTENT.replace(b'"n": 3', b'"n": 8')[:-3]
    with pytest.raises(ValueError, match="line 4"):
        read_chain(edited)


def test_a_closing_line_excuses_no_other_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(CONTENT[:-3])
    append(tmp_path / "log", [])  # nothing to write: left open
    assert (tmp_path / "log").read_bytes() == CONTENT[:-3]
    append(tmp_path / "log", [{"n": 5}])
    closed = (tmp_path / "log").read_bytes()
    assert read_chain(closed).cut_off == (5,)
    for line in (b'"n": 3', b'"n": 4'):  # a whole one, and the one that is cut off
        with pytest.raises(ValueError, match="does not follow from the line before it"):
            read_chain(closed.replace(line, b'"n": 8'))


def test_lines_longer_than_a_block_are_chained(tmp_path: Path) -> None:
    for size in (10, 70_000, 300_000, 5):
        append(tmp_path / "log", [{"text": "x" * size}])
    content = (tmp_path / "log").read_bytes()
    assert read_chain(content).lines == 4
    (tmp_path / "log").write_bytes(content[:-200_000])
    append(tmp_path / "log", [{"text": "after"}])
    assert read_chain((tmp_path / "log").read_bytes()).cut_off == (3,)


def test_processes_that_append_at_once_keep_the_chain(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from client.consent.chained_log import append\n"
        "for n in range(50): append(Path(sys.argv[1]), [{'who': sys.argv[2], 'n': n}, {'second': n}])"
    )
    path = tmp_path / "log"
    running = [subprocess.Popen([sys.executable, "-c", program, str(path), who]) for who in "abc"]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    entries = [entry.fields for entry in read_chain(path.read_bytes()).entries]
    assert len(entries) == 300
    for who in "abc":
        assert [entry["n"] for entry in entries if entry.get("who") == who] == list(range(50))
    assert all(after == {"second": entry["n"]} for entry, after in zip(entries[::2], entries[1::2], strict=True))


def test_a_full_disk_leaves_the_log_as_it_was(small_disk: Path) -> None:
    path = small_disk / "log"
    append(path, [{"n": 0}])
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        append(path, [{"text": "x" * 3_000_000}])
    assert path.read_bytes() == before
    append(path, [{"n": 1}])
    assert read_chain(path.read_bytes()).lines == 2
