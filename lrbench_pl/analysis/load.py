"""From folders of runs to one table, and an account of what could not be read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from lrbench_pl.results import RESULT_FILE, STATUSES, ResultError, RunResult

_STRINGS = {"run_id", "policy", "study", "dataset", "model", "optimizer", "policy_id", "policy_repr", "monitor"}
_STRINGS |= {"check_on", "message", "precision", "device", "git_sha", "shared_with"}
_INTEGERS = {"seed", "max_steps", "batch_size", "steps_to_target", "best_step", "steps_run", "tuning_steps"}


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
        table: One row per run, with the columns of ``RunResult`` (without ``versions``) and ``folder``.
        skipped: What gave no row.
    """

    table: pl.DataFrame
    skipped: tuple[Skipped, ...]


def load_runs(folders: Iterable[str | Path]) -> Runs:
    """Read every run below the folders; a run found twice counts once.

    Args:
        folders: Sweep folders, run folders, or folders of them.

    Raises:
        AnalysisError: If a folder does not exist, or none of them holds a run.
    """
    asked = [Path(folder) for folder in folders]
    for folder in asked:
        if not folder.is_dir():
            raise AnalysisError(f"{folder}: no such folder; expected the folder of a run or of a sweep")
    rows: list[dict[str, object]] = []
    skipped: list[Skipped] = []
    for found in sorted({path.resolve() for folder in asked for path in _run_folders(folder)}, key=_natural):
        if not (found / RESULT_FILE).exists():
            skipped.append(Skipped(found, f"no {RESULT_FILE}: still running, or killed"))
            continue
        try:
            row = RunResult.read(found / RESULT_FILE).to_dict()
        except ResultError as error:
            skipped.append(Skipped(found, str(error).removeprefix(f"{found / RESULT_FILE}: ")))
            continue
        del row["versions"]
        rows.append({**row, "folder": str(found)})
    if not rows:
        names = ", ".join(str(folder) for folder in asked)
        why = (
            f"{len(skipped)} unreadable, the first: {skipped[0].path}: {skipped[0].reason}" if skipped else "none found"
        )
        raise AnalysisError(f"{names}: no run with a readable {RESULT_FILE} ({why}); run a sweep first, see README.md")
    return Runs(pl.DataFrame(rows, schema=_schema()), tuple(skipped))


def _schema() -> dict[str, pl.DataType | type[pl.DataType]]:
    from dataclasses import fields

    kinds: dict[str, pl.DataType | type[pl.DataType]] = {}
    for field in fields(RunResult):
        if field.name in _STRINGS:
            kinds[field.name] = pl.String
        elif field.name in _INTEGERS:
            kinds[field.name] = pl.Int64
        elif field.name == "status":
            kinds[field.name] = pl.Enum(STATUSES)
        elif field.name != "versions":
            kinds[field.name] = pl.Float64
    return {**kinds, "folder": pl.String}


def _run_folders(folder: Path) -> Iterator[Path]:
    """Every folder below that a run wrote into, finished or not."""
    for path, folders, files in os.walk(folder):
        if RESULT_FILE in files or ("run.log" in files and ".hydra" in folders):
            yield Path(path)
        folders[:] = [name for name in folders if not name.startswith(".")]


def _natural(path: Path) -> list[tuple[int, str]]:
    """So that job 10 comes after job 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in path.parts]
