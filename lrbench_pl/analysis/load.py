"""Read the results of runs into one table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from lrbench_pl.files import ResultError
from lrbench_pl.reading import LARGEST_YAML, UnreadableError, read_text
from lrbench_pl.runs.result import FIELD_TYPES, RESULT_FILE, read_fields, read_settings
from lrbench_pl.verdict import STATUSES

METRICS_FILE = "metrics.csv"


class AnalysisError(ValueError):
    """Raised if runs cannot be analysed as requested; the message says why and what to do."""


@dataclass(frozen=True)
class Skipped:
    """A folder without a usable result.

    Args:
        path: The folder.
        reason: Why it was skipped.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class Runs:
    """The results of runs.

    Args:
        table: One row per run, with the fields of :class:`~lrbench_pl.runs.result.RunResult` except ``versions`` and
            ``format``, and ``folder``. ``settings`` is JSON with sorted keys, null if unknown.
        skipped: Folders without a usable result.
    """

    table: pl.DataFrame
    skipped: tuple[Skipped, ...]


Folders = str | Path | Iterable[str | Path]
Source = pl.DataFrame | Runs | Folders


def load_runs(folders: Folders) -> Runs:
    """Read every run below one folder or several; a run found twice counts once.

    Results of earlier versions without ``mode`` and ``confirmations`` get them from the configuration beside them, else
    the defaults ``max`` and 1.

    Args:
        folders: Folder of a sweep or a run, or several of them.

    Raises:
        AnalysisError: If a folder does not exist, or no run has a readable result.
    """
    given = [Path(folders)] if isinstance(folders, (str, os.PathLike)) else [Path(folder) for folder in folders]
    for folder in given:
        if not folder.is_dir():
            raise AnalysisError(f"{folder}: no such folder; expected the folder of a run or of a sweep")
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA}
    skipped: list[Skipped] = []
    found = {path: has_result for folder in given for path, has_result in _run_folders(folder.resolve())}
    for path in sorted(found, key=_natural):
        if not found[path]:
            skipped.append(Skipped(Path(path), f"no {RESULT_FILE}: still running, or killed"))
            continue
        try:
            row = _read(path)
        except ResultError as error:
            skipped.append(Skipped(Path(path), str(error).removeprefix(f"{os.path.join(path, RESULT_FILE)}: ")))
            continue
        for name, values in columns.items():
            values.append(row.get(name))
    if not columns["folder"]:
        raise _no_runs(given, skipped)
    # an integer is a valid float; all other types are checked already
    table = pl.DataFrame([pl.Series(n, columns[n], k, strict=k != pl.Float64) for n, k in _SCHEMA.items()])
    floats = pl.col(pl.Float64)  # JSON has no NaN; one that is there nevertheless is a missing value
    return Runs(table.with_columns(pl.when(floats.is_finite()).then(floats)), tuple(skipped))


def as_table(source: Source) -> pl.DataFrame:
    """Return the table of runs, which is read if folders are given.

    Example:
        >>> as_table(pl.DataFrame({"policy": ["tri"]})).height
        1
    """
    if isinstance(source, pl.DataFrame):
        return source
    return source.table if isinstance(source, Runs) else load_runs(source).table


def _read(folder: str) -> dict[str, Any]:
    """Read a result; fields that earlier versions did not write come from the files beside it."""
    row = read_fields(os.path.join(folder, RESULT_FILE))
    if row.get("mode") is None or row.get("confirmations") is None:
        row |= _from_configuration(folder, row)
    settings = row.get("settings")
    row["settings"] = read_settings(folder) if settings is None else json.dumps(settings, sort_keys=True)
    row["folder"] = folder
    return row


def _no_runs(folders: Sequence[Path], skipped: Sequence[Skipped]) -> AnalysisError:
    why = f"{len(skipped)} unreadable, the first: {skipped[0].path}: {skipped[0].reason}" if skipped else "none found"
    names = ", ".join(str(folder) for folder in folders)
    return AnalysisError(f"{names}: no run with a readable {RESULT_FILE} ({why}); run a sweep first, see README.md")


def _schema() -> dict[str, pl.DataType | type[pl.DataType]]:
    """Return the columns of the table, from the fields of a result."""
    types = {str: pl.String, int: pl.Int64, float: pl.Float64}
    columns = {name: types[kind] for name, kind in FIELD_TYPES.items() if kind in types and name != "format"}
    return {**columns, "status": pl.Enum(STATUSES), "settings": pl.String, "folder": pl.String}


_SCHEMA = _schema()


def _run_folders(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield every folder of a run below a folder, and whether it has a result."""
    for path, folders, files in os.walk(folder):
        if RESULT_FILE in files:
            yield path, True
        elif METRICS_FILE in files or ("run.log" in files and ".hydra" in folders):
            yield path, False
        folders[:] = [name for name in folders if not name.startswith(".")]


def _from_configuration(folder: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return ``mode`` and ``confirmations`` of a run whose result does not contain them."""
    found: dict[str, Any] = {"mode": "max", "confirmations": 1}
    try:
        text = read_text(os.path.join(folder, ".hydra", "config.yaml"), LARGEST_YAML)
    except (OSError, UnreadableError):
        text = ""
    # two scalars at the top level; a YAML parser would take a minute for 10,000 runs
    if mode := re.search(r"^mode: (max|min)\s*$", text, re.MULTILINE):
        found["mode"] = mode[1]
    if confirmations := re.search(r"^confirmations: (\d{1,9})\s*$", text, re.MULTILINE):
        found["confirmations"] = int(confirmations[1])
    return {name: row[name] if row.get(name) is not None else value for name, value in found.items()}


def _natural(path: str) -> list[tuple[int, str]]:
    """Return a sort key that puts job 10 after job 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in path.split(os.sep)]
