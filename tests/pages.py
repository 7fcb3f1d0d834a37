"""The README and the pages under docs/, as tests read them: prose, blocks of code, sections, tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from itertools import chain, takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (*(ROOT / name for name in ("README.md", "REPRODUCIBILITY.md")), *sorted(ROOT.glob("docs/**/*.md")))
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HERE_DOCUMENT = re.compile(r"(?<=<<EOF\n).*?^EOF\n", re.MULTILINE | re.DOTALL)
SHELL = {">", "2>", "|", "||", "&", "<<EOF"}
"""What ends a command's own words."""
CODE = re.compile(r"`([^`\n]+)`")


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def prose(page: str) -> str:
    """The page without its blocks of code, in which # is a comment and no heading."""
    return FENCE.sub("", text_of(page))


def blocks(page: str, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(text_of(page)) if found == language]


def shell(page: str) -> list[list[str]]:
    """The words of each command in a page's blocks of shell, without the files that some of them write."""
    lines = chain.from_iterable(HERE_DOCUMENT.sub("", block).splitlines() for block in blocks(page, "sh"))
    split = (shlex.split(line, comments=True) for line in lines)
    return [words for line in split if (words := list(takewhile(lambda word: word not in SHELL, line)))]


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next of its level or above."""
    match = re.search(rf"^(#+) {re.escape(heading)}$(.*?)(?=^#{{1,2}} |\Z)", prose(page), re.MULTILINE | re.DOTALL)
    assert match, f"{page} has no heading {heading!r}"
    return match.group(2)


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table, without its head."""
    found = re.findall(r"^\|.*\|\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.MULTILINE)
    return [[[cell.strip() for cell in line[1:-1].split("|")] for line in body.splitlines()] for body in found]


def code(cell: str) -> list[str]:
    return CODE.findall(cell)


def first_column(rows: Sequence[Sequence[str]]) -> list[str]:
    return [name for row in rows for name in code(row[0])]


def anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
