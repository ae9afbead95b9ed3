"""From folders of runs to one table, and an account of what could not be read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from lrbench_pl.files import ResultError
from lrbench_pl.runs.result import FIELD_TYPES, RESULT_FILE, read_fields, read_settings
from lrbench_pl.verdict import STATUSES

METRICS_FILE = "metrics.csv"


class AnalysisError(ValueError):
    """A question that these runs cannot answer; the message says why and what to do."""


@dataclass(frozen=True)
class Skipped:
    """A folder that gave no row.

    Args:
        path: What was looked at.
        reason: Why it gave none.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class Runs:
    """What was found.

    Args:
        table: One row per run, with the columns of ``RunResult`` (without ``versions`` and ``format``) and ``folder``;
            ``settings`` as JSON with sorted keys, null where they are unknown.
        skipped: What gave no row.
    """

    table: pl.DataFrame
    skipped: tuple[Skipped, ...]


def load_runs(folders: Iterable[str | Path]) -> Runs:
    """Read every run below the folders; a run found twice counts once.

    A row that does not say ``mode`` and ``confirmations``, as those of older versions, gets them from the configuration
    beside it, or else the defaults: ``max`` and 1.

    Args:
        folders: Sweep folders, run folders, or folders of them.

    Raises:
        AnalysisError: If a folder does not exist, or none of them holds a run.
    """
    asked = [Path(folder) for folder in folders]
    for folder in asked:
        if not folder.is_dir():
            raise AnalysisError(f"{folder}: no such folder; expected the folder of a run or of a sweep")
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA}
    skipped: list[Skipped] = []
    found = {path: has_row for folder in asked for path, has_row in _run_folders(folder.resolve())}
    for path in sorted(found, key=_natural):
        if not found[path]:
            skipped.append(Skipped(Path(path), f"no {RESULT_FILE}: still running, or killed"))
            continue
        file = os.path.join(path, RESULT_FILE)
        try:
            row = read_fields(file)
        except ResultError as error:
            skipped.append(Skipped(Path(path), str(error).removeprefix(f"{file}: ")))
            continue
        if row.get("mode") is None or row.get("confirmations") is None:
            row |= _of_configuration(path, row)
        settings = row.get("settings")
        row["settings"] = read_settings(path) if settings is None else json.dumps(settings, sort_keys=True)
        row["folder"] = path
        for name, values in columns.items():
            values.append(row.get(name))
    if not columns["folder"]:
        names = ", ".join(str(folder) for folder in asked)
        why = (
            f"{len(skipped)} unreadable, the first: {skipped[0].path}: {skipped[0].reason}" if skipped else "none found"
        )
        raise AnalysisError(f"{names}: no run with a readable {RESULT_FILE} ({why}); run a sweep first, see README.md")
    # a whole number is a float too; everything else is checked already
    table = pl.DataFrame([pl.Series(n, columns[n], k, strict=k != pl.Float64) for n, k in _SCHEMA.items()])
    # JSON knows neither; a value that came all the same is missing
    floats = pl.col(pl.Float64)
    return Runs(table.with_columns(pl.when(floats.is_finite()).then(floats)), tuple(skipped))


def _schema() -> dict[str, pl.DataType | type[pl.DataType]]:
    """Return the columns of the table, from the fields of a result."""
    types = {str: pl.String, int: pl.Int64, float: pl.Float64}
    columns = {name: types[kind] for name, kind in FIELD_TYPES.items() if kind in types and name != "format"}
    return {**columns, "status": pl.Enum(STATUSES), "settings": pl.String, "folder": pl.String}


_SCHEMA = _schema()


def _run_folders(folder: Path) -> Iterator[tuple[str, bool]]:
    """Every folder below that a run wrote into, and whether it holds a row."""
    for path, folders, files in os.walk(folder):
        if RESULT_FILE in files:
            yield path, True
        elif METRICS_FILE in files or ("run.log" in files and ".hydra" in folders):
            yield path, False
        folders[:] = [name for name in folders if not name.startswith(".")]


def _of_configuration(folder: str, row: dict[str, Any]) -> dict[str, Any]:
    """``mode`` and ``confirmations`` of a run whose row does not say them."""
    found: dict[str, Any] = {"mode": "max", "confirmations": 1}
    try:
        with open(os.path.join(folder, ".hydra", "config.yaml"), encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError):
        text = ""
    # two scalars at the top level, read without a YAML parser: of 10,000 runs that would take a minute
    if mode := re.search(r"^mode: (max|min)\s*$", text, re.MULTILINE):
        found["mode"] = mode[1]
    if confirmations := re.search(r"^confirmations: (\d+)\s*$", text, re.MULTILINE):
        found["confirmations"] = int(confirmations[1])
    return {name: row[name] if row.get(name) is not None else value for name, value in found.items()}


def _natural(path: str) -> list[tuple[int, str]]:
    """So that job 10 comes after job 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in path.split(os.sep)]
