"""Read records from folders of runs and from files, and write them to files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from lrbench_pl.policies import to_config
from lrbench_pl.reading import LARGEST_TABLE, UnreadableError, parse_json, read_text, read_yaml
from lrbench_pl.runs.result import FIELD_TYPES, RESULT_FILE, RunResult, stored_settings
from lrbench_pl.selection.database import DatabaseError
from lrbench_pl.selection.records import POLICY_FILE, Found, Refused, StoredRun, one_line, stored_run
from lrbench_pl.words import from_spreadsheet_cell, spreadsheet_cell

FileFormat = Literal["jsonl", "csv"]

_Record = tuple[str, StoredRun | str]  # its source, and the record or why it is invalid


def read_sources(sources: Iterable[str | Path]) -> Found:
    """Read every run below folders, and in files of ``lrbench db export``.

    Args:
        sources: Folders of runs or sweeps, and ``.jsonl`` or ``.csv`` files.

    Raises:
        DatabaseError: If a source is neither, or contains no run.
    """
    runs: list[StoredRun] = []
    refused: list[Refused] = []
    for source in map(Path, sources):
        records = list(_records(source))
        if not records:
            raise DatabaseError(f"{source}: no run found; run a sweep first, see README.md")
        for where, record in records:
            if isinstance(record, StoredRun):
                runs.append(record)
            else:
                refused.append(Refused(where, record.removeprefix(f"{where}: ")))
    return Found(tuple(runs), tuple(refused))


def _records(source: Path) -> Iterator[_Record]:
    if source.is_dir():
        return _from_folder(source)
    if source.is_file() and source.suffix == ".jsonl":
        return _from_jsonl(source)
    if source.is_file() and source.suffix == ".csv":
        return _from_csv(source)
    raise DatabaseError(f"{source}: expected a folder of runs, or a .jsonl or .csv file of `lrbench db export`")


def _from_folder(folder: Path) -> Iterator[_Record]:
    for path in sorted(folder.rglob(RESULT_FILE)):
        where = str(path.parent)
        try:
            result = RunResult.read(path).to_dict()
            if result["settings"] is None:
                result["settings"] = stored_settings(path.parent)
            yield where, stored_run(result, _read_policy(path.parent / POLICY_FILE))
        except ValueError as error:
            yield where, one_line(error).removeprefix(f"{path}: ")


def _read_policy(path: Path) -> Any:
    """Read a policy as plain data; None without a file."""
    if not os.path.lexists(path):
        return None
    try:
        return read_yaml(path)  # interpolations stay text
    except Exception as error:  # of the YAML parser, of OmegaConf, of the file system
        raise ValueError(f"{POLICY_FILE} cannot be read: {one_line(error)}") from error


def _from_jsonl(path: Path) -> Iterator[_Record]:
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if line.strip():
            yield _parsed(f"{path}:{number}", line, parse_json)


def _from_csv(path: Path) -> Iterator[_Record]:
    reader = csv.DictReader(io.StringIO(_read_text(path)))
    if "policy_config" not in (reader.fieldnames or ()):
        raise DatabaseError(f"{path}: expected the columns of `lrbench db export`, policy_config among them")
    for row in reader:
        yield _parsed(f"{path}:{reader.line_num}", row, _from_cells)


def _read_text(path: Path) -> str:
    try:
        return read_text(path, LARGEST_TABLE)
    except UnreadableError as error:
        raise DatabaseError(f"{path}: {error}") from error


def _parsed(where: str, raw: Any, parse: Callable[[Any], Any]) -> _Record:
    try:
        fields = parse(raw)
        if not isinstance(fields, dict):
            raise ValueError(f"expected a JSON object, got {type(fields).__name__}")
        return where, stored_run(fields, fields.pop("policy_config", None))
    except (ValueError, RecursionError) as error:
        return where, one_line(error)


def _from_cells(cells: Mapping[str | None, Any]) -> dict[str, Any]:
    """Parse a line of CSV; an empty cell is None."""
    if None in cells or None in cells.values():
        raise ValueError("expected as many cells as columns")
    kinds = {**FIELD_TYPES, "policy_config": dict}
    fields: dict[str, Any] = {}
    for name, cell in cells.items():
        kind = kinds.get(str(name), str)
        if cell == "":
            continue
        try:
            fields[str(name)] = from_spreadsheet_cell(cell) if kind is str else parse_json(cell)
        except UnreadableError as error:
            raise ValueError(f"field {name!r} must be {kind.__name__}, got {cell!r}") from error
    return fields


def export(runs: Iterable[StoredRun], form: FileFormat = "jsonl") -> str:
    """Return the records as text that :func:`read_sources` reads: JSON lines or CSV.

    Raises:
        DatabaseError: If the form is another one.

    Example:
        >>> export([], "jsonl"), export([], "csv").split(",")[:3]
        ('', ['run_id', 'policy', 'status'])
    """
    if form not in ("jsonl", "csv"):
        raise DatabaseError(f"--format must be jsonl or csv, got {form!r}")
    rows = [{**run.result.to_dict(), "policy_config": to_config(run.policy)} for run in runs]
    if form == "jsonl":
        return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    names = [*FIELD_TYPES, "policy_config"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str | None:
    if isinstance(value, str):
        return spreadsheet_cell(value)
    return None if value is None else json.dumps(value)
