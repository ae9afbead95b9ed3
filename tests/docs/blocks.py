"""What README.md and the guides tell a reader to type, taken out of their Markdown.

The conventions, all of them plain Markdown:

- an indented or ``sh`` block whose first word is a program holds commands; one below it, which begins with no program,
  shows what comes out, with ``…`` for what is left out;
- a ``python``, ``yaml`` or ``sh`` block whose first line is a comment with a path is a file that the reader writes;
- other ``python`` blocks are doctests, which pytest runs;
- ``<!-- not run: REASON -->`` before a block: its commands are only parsed; ``<!-- exits with N -->``: so they end.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["commands", "output", "file", "doctest", "other"]

_PROGRAMS = "python|lrbench|source|make|pip|wandb|ray|git|mkdir|cat|timeout"
_COMMAND = re.compile(rf"^(\w+=\S+ )*({_PROGRAMS}) ")
_FENCE = re.compile(r"^```(\w*)\s*$")
_COMMENT = re.compile(r"^<!-- (?:not run: (?P<reason>.+)|exits with (?P<code>\d+)) -->$")
_PATH = re.compile(r"^(?:# @package \S+\n)?# ([\w./-]+\.(?:py|yaml|sh))$", re.MULTILINE)
_INLINE = re.compile(r"`([^`]+)`")
_KEY_VALUE = re.compile(r"^[+~]{0,2}[a-z][\w./@]*=\S+$")
_PLACEHOLDER = re.compile(r"…|\b(?:[A-Z]{2,}|N)\b(?!\()")
# between them stands what a script wrote
_TABLE_MARKS = ("<!-- from results.csv -->", "<!-- from curves.csv -->", "<!-- end -->")


@dataclass(frozen=True)
class Block:
    """One block of a document.

    Args:
        line: Where it begins, from 1.
        kind: What it is.
        text: What it holds, without its indentation.
        path: The file that it is, for ``file``.
        not_run: Why its commands are not run, or None.
        code: The exit code with which its commands end.
    """

    line: int
    kind: Kind
    text: str
    path: str | None = None
    not_run: str | None = None
    code: int = 0

    @property
    def commands(self) -> list[str]:
        """Its commands, one a line, those with a backslash at the end joined."""
        joined = re.sub(r"\s*\\\n\s*", " ", self.text)
        return [line for line in joined.splitlines() if line.strip()]


def documents(root: Path) -> list[Path]:
    """README.md and the guides."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def blocks(markdown: str) -> list[Block]:
    """The blocks of a document, in order.

    Raises:
        ValueError: If a comment for this program is not understood, or a Python block is neither a file nor a doctest.

    Example:
        >>> [block.kind for block in blocks("Run\\n\\n    make demo\\n\\nand see\\n\\n    tier  rank\\n")]
        ['commands', 'output']
    """
    found: list[Block] = []
    not_run, code, after_commands = None, 0, False
    for line, language, text in _raw(markdown):
        if language == "comment" and text in _TABLE_MARKS:
            continue
        if language == "comment":
            comment = _COMMENT.match(text)
            if comment is None:
                raise ValueError(f"line {line}: expected <!-- not run: REASON --> or <!-- exits with N -->, got {text}")
            not_run, code = comment["reason"] or not_run, int(comment["code"] or code)
            continue
        for at, kind, part in _parts(language, text):
            if kind == "other" and language == "python":
                raise ValueError(f"line {line}: a Python block must begin with '# path.py' or '>>> '")
            if kind == "output" and not after_commands:
                kind = "other"
            after_commands = kind == "commands" or (kind != "file" and after_commands)
            path = _PATH.match(part) if kind == "file" else None
            found.append(Block(line + at, kind, part, path and path[1], not_run, code))
        not_run, code = None, 0
    return found


def _parts(language: str, text: str) -> Iterator[tuple[int, Kind, str]]:
    """A block as its commands and what comes out of them, which an empty line separates; each with its first line."""
    if language and _PATH.match(text):
        yield 0, "file", text
    elif language == "python":
        yield 0, "doctest" if text.startswith(">>> ") else "other", text
    elif language not in ("", "sh", "text"):
        yield 0, "other", text
    else:
        lines = text.splitlines()
        begins = [at for at in range(len(lines)) if at == 0 or not lines[at - 1].strip()]
        kinds: list[Kind] = ["commands" if _COMMAND.match(lines[at]) else "output" for at in begins]
        changes = [i for i in range(len(begins)) if i == 0 or kinds[i] != kinds[i - 1]]
        for this, following in zip(changes, [*changes[1:], None], strict=True):
            end = len(lines) if following is None else begins[following]
            yield begins[this], kinds[this], "\n".join(lines[begins[this] : end]).rstrip()


def _raw(markdown: str) -> Iterator[tuple[int, str, str]]:
    """Line, language and text of every block, and every comment that stands alone."""
    lines = markdown.splitlines()
    at = 0
    while at < len(lines):
        begin = at
        if fence := _FENCE.match(lines[at]):
            at += 1
            while lines[at] != "```":
                at += 1
            yield begin + 1, fence[1] or "text", "\n".join(lines[begin + 1 : at])
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip() or lines[at - 1].endswith("-->")):
            while at + 1 < len(lines) and (lines[at + 1].startswith("    ") or _goes_on(lines, at + 1)):
                at += 1
            yield begin + 1, "", "\n".join(line[4:] for line in lines[begin : at + 1])
        elif lines[at].startswith("<!--"):
            yield begin + 1, "comment", lines[at]
        at += 1


def _goes_on(lines: list[str], at: int) -> bool:
    """Whether an empty line is amid an indented block, as in a table with tiers."""
    return not lines[at].strip() and at + 1 < len(lines) and lines[at + 1].startswith("    ")


def inline(markdown: str) -> list[tuple[int, str]]:
    """Commands and options in running text and in tables, with their lines; those with a placeholder left out.

    Example:
        >>> inline("Add `seed=0,1` to `python run.py lr_policy=tri`, or `lr=RATE`; `lr` alone is a name.")
        [(1, 'seed=0,1'), (1, 'python run.py lr_policy=tri')]
    """
    found = []
    inside = False
    for number, line in enumerate(markdown.splitlines(), 1):
        inside ^= bool(_FENCE.match(line))
        if inside or line.startswith("    "):
            continue
        for text in _INLINE.findall(line):
            if not _PLACEHOLDER.search(text) and (_COMMAND.match(text) or all(map(_KEY_VALUE.match, _words(text)))):
                found.append((number, text))
    return found


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text) or [""]
    except ValueError:
        return [""]
