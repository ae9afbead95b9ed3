"""``selection.json``: what a selection was asked for and what it found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrbench_pl.files import FORMAT, ResultError, check_format, version, write_atomically
from lrbench_pl.reading import read_json
from lrbench_pl.runs.spec import RunSpec, readable
from lrbench_pl.selection.trials import Selection

SELECTION_FILE = "selection.json"
_SHOWN = 3  # differences that a message lists


def write_selection(folder: Path, asked: Mapping[str, Any], found: Selection | None) -> None:
    """Write ``selection.json``; ``found`` is None until the selection has ended."""
    content = {"format": FORMAT, "version": version(), "asked": asked, "found": found and plain(asdict(found))}
    write_atomically(folder / SELECTION_FILE, json.dumps(content, indent=2) + "\n")


def read_selection(folder: Path) -> dict[str, Any]:
    """Read ``selection.json``, of this format or an earlier one; without a number it is format 1.

    Raises:
        NewerFormatError: If it was written by a later version.
        ResultError: If it is not a selection.
    """
    path = folder / SELECTION_FILE
    try:
        content: Any = read_json(path)
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict) or "asked" not in content:
        raise ResultError(f"{path}: cannot be read as a selection")
    try:
        check_format(content.get("format", 1), content.get("version"))
    except ResultError as error:
        raise type(error)(f"{path}: {error}") from None
    found: dict[str, Any] = content
    return found


def read_asked(folder: Path) -> dict[str, Any]:
    """Read the request in ``selection.json``, in this format.

    Raises:
        NewerFormatError: If it was written by a later version.
        ResultError: If it is not a request.
    """
    path = folder / SELECTION_FILE
    asked: dict[str, Any] = read_selection(folder)["asked"]
    try:
        if "task" in asked["configuration"]:
            return asked
        # format 1 stored a configuration
        return {**asked, "configuration": plain(RunSpec.from_format_1(asked["configuration"]).to_dict())}
    except (TypeError, KeyError, ValueError) as error:
        raise ResultError(f"{path}: its configuration cannot be read ({error})") from error


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return how two requests differ, in words; None if they are equal.

    Example:
        >>> differences({"settings": {"eta": 2}, "configuration": {}}, {"settings": {"eta": 3}, "configuration": {}})
        'eta was 2, is 3'
    """
    if before == now:
        return None
    old, new = (_flat({**each, "configuration": readable(each["configuration"])}) for each in (before, now))
    keys = [key for key in {*old, *new} if old.get(key) != new.get(key)]
    keys.sort(key=lambda key: (key.startswith("task."), key.count("."), key))  # options of the user first
    shown = [f"{key.partition('.')[2]} was {old.get(key)!r}, is {new.get(key)!r}" for key in keys[:_SHOWN]]
    return "; ".join(shown) + (f"; and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def plain(value: Any) -> Any:
    """Return a value as JSON reads it back."""
    return json.loads(json.dumps(value, default=str))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping of dotted keys."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
