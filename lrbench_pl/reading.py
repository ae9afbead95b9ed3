"""Read files that others may have written, within bounds: regular files, of limited size and depth.

Whatever exceeds a bound is an :class:`UnreadableError`, so that a command can name the file, skip it and go on. The
standard library suffices, except for YAML.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import IO, Any

LARGEST_JSON = 64 * 2**20  # bytes; a result has a few thousand
LARGEST_YAML = 2**20
LARGEST_TABLE = 4 * 2**30  # histories and exports
DEEPEST = 64  # nested lists and mappings

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class UnreadableError(ValueError):
    """Raised for a file that exceeds a bound or is not what its name says; the message is the reason."""


def read_bytes(path: str | Path, largest: int = LARGEST_JSON) -> bytes:
    """Read a regular file.

    Args:
        path: The file. A pipe or a device is refused, and not waited for.
        largest: The largest size in bytes.

    Raises:
        OSError: If it cannot be opened.
        UnreadableError: If it is not a regular file, or larger.

    Example:
        >>> read_bytes("/dev/zero")
        Traceback (most recent call last):
        ...
        lrbench_pl.reading.UnreadableError: expected a regular file
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(21, "Is a directory", str(path))
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableError("expected a regular file")
        data = file.read(largest + 1) if found.st_size <= largest else b""
        if found.st_size > largest or len(data) > largest:
            raise UnreadableError(f"expected at most {largest} bytes, got {max(found.st_size, len(data))}")
        return data


def read_text(path: str | Path, largest: int = LARGEST_JSON) -> str:
    """Read a regular file as text in UTF-8.

    Raises:
        OSError: If it cannot be opened.
        UnreadableError: If it is not such a file, see :func:`read_bytes`.
    """
    try:
        return read_bytes(path, largest).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"expected text in UTF-8 ({error})") from error


def read_json(path: str | Path) -> Any:
    """Read a file of JSON.

    Raises:
        OSError: If it cannot be opened.
        UnreadableError: If it is not such a file, see :func:`read_bytes` and :func:`parse_json`.
    """
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """Parse JSON of limited depth.

    Raises:
        UnreadableError: If it is not JSON, is nested too deeply, or has a number or text that no file of ours has.

    Example:
        >>> parse_json('{"seed": 0}')
        {'seed': 0}
        >>> parse_json("[" * 10_000)
        Traceback (most recent call last):
        ...
        lrbench_pl.reading.UnreadableError: nested more than 64 levels deep
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UnreadableError(f"not complete JSON ({error.msg} at line {error.lineno})") from error
    except RecursionError:
        raise UnreadableError(f"nested more than {DEEPEST} levels deep") from None
    except ValueError as error:  # of Python's limit of digits
        raise UnreadableError("it contains a number of too many digits") from error
    if text.count("[") + text.count("{") > DEEPEST:
        _check_depth(found)
    if _SURROGATE.search(text):
        try:
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise UnreadableError("it contains half of a character (a lone surrogate)") from None
    return found


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise UnreadableError(f"nested more than {DEEPEST} levels deep")


def read_yaml(path: str | Path) -> Any:
    """Read a file of YAML as plain data, see :func:`parse_yaml`.

    Raises:
        OSError: If it cannot be opened.
        UnreadableError: If it is not such a file.
    """
    return parse_yaml(read_text(path, LARGEST_YAML), str(path))


def parse_yaml(text: str, name: str = "YAML") -> Any:
    r"""Parse YAML as plain data; references ``${…}`` stay text.

    Aliases are refused: a few hundred bytes of them expand to gigabytes, and no file of ours has any.

    Args:
        text: The YAML.
        name: Name of its file, for messages.

    Raises:
        UnreadableError: If it has an anchor or an alias, is nested too deeply, or is no list or mapping.
        yaml.YAMLError: If it is not valid YAML.

    Example:
        >>> parse_yaml("lr: 1e-3\nwhere: ${oc.env:HOME}")
        {'lr': 0.001, 'where': '${oc.env:HOME}'}
        >>> parse_yaml("a: &a [x, x]\nb: [*a, *a]")
        Traceback (most recent call last):
        ...
        lrbench_pl.reading.UnreadableError: line 1: expected YAML without anchors and aliases, got 'a'; write it out
    """
    import io

    from omegaconf import OmegaConf

    stream = io.StringIO(text)
    stream.name = name
    _check_events(stream)
    stream.seek(0)
    try:
        return OmegaConf.to_container(OmegaConf.load(stream), resolve=False)
    except OSError as error:  # OmegaConf's for a scalar
        raise UnreadableError("expected a mapping or a list") from error
    except ValueError as error:  # of Python's limit of digits
        raise UnreadableError("it contains a number of too many digits") from error


def _check_events(stream: IO[str]) -> None:
    """Refuse anchors, aliases and deep nesting before anything is built."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(stream, Loader=loader):
        if (anchor := getattr(event, "anchor", None)) is not None:
            line = event.start_mark.line + 1 if event.start_mark is not None else 0
            raise UnreadableError(
                f"line {line}: expected YAML without anchors and aliases, got {anchor!r}; write it out"
            )
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
            if depth > DEEPEST:
                raise UnreadableError(f"nested more than {DEEPEST} levels deep")
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
