"""Curves of runs over their optimizer steps: checks and learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lrbench_pl.analysis import history
from lrbench_pl.analysis.load import METRICS_FILE, Source, as_table
from lrbench_pl.reading import read_json

_RUN = ("folder", "dataset", "model", "optimizer", "policy", "lr", "seed", "monitor")


@dataclass(frozen=True)
class RunCurves:
    """The checks and learning rates of one run.

    Args:
        steps: Optimizer steps before each check.
        values: Monitored metric at each check.
        rate_steps: Steps at which the learning rate was logged.
        rates: Learning rate at these steps.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]
    rate_steps: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Band:
    """Summary of several runs at each check.

    Args:
        steps: Optimizer steps of the checks.
        median: Median of the runs.
        low: Lower quartile; the minimum of fewer than four runs.
        high: Upper quartile; the maximum of fewer than four runs.
        runs: Number of runs.
    """

    steps: tuple[int, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    runs: int


def curves(runs: Source) -> pl.DataFrame:
    """Read the checks of every run; runs without a readable history are left out.

    Args:
        runs: One folder or several, or what :func:`~lrbench_pl.analysis.load.load_runs` returns, or its table.

    Returns:
        One row per check: ``folder``, ``dataset``, ``model``, ``optimizer``, ``policy``, ``lr``, ``seed`` and
        ``monitor`` of the run, ``step`` and ``value``.

    Raises:
        AnalysisError: If a folder does not exist, or no run has a readable result.
    """
    table = as_table(runs)
    schema: dict[str, Any] = {name: table.schema[name] for name in _RUN} | {"step": pl.Int64, "value": pl.Float64}
    rows: list[tuple[Any, ...]] = []
    for run in table.select(_RUN).rows(named=True):
        found = None if run["monitor"] is None else read_curves(run["folder"], run["monitor"])
        if found is not None:
            rows += [(*run.values(), *check) for check in zip(found.steps, found.values, strict=True)]
    return pl.DataFrame(rows, schema=schema, orient="row")


def read_curves(folder: str | Path, monitor: str) -> RunCurves | None:
    """Read the curves of a run as far as they are written; None without a readable check.

    Of a composition, checks in the range test and of averaged weights are left out, and so are rates of the range test.

    Args:
        folder: Folder of the run.
        monitor: Name of the monitored metric.
    """
    try:
        found = history.read_history(folder, monitor)
        table = pl.read_csv(Path(folder) / METRICS_FILE, infer_schema=False, truncate_ragged_lines=True)
    except (OSError, history.HistoryError, pl.exceptions.PolarsError):
        return None
    rates = _numbers(table, "step", "lr")
    for segment in read_tuning(folder) or ():
        if segment["kind"] == "range":
            end = segment["spent"] + segment["steps"]
            rates = rates[(rates[:, 0] < segment["spent"]) | (rates[:, 0] >= end)]
    checks = {step: value for step, value in zip(found.steps, found.values, strict=True) if math.isfinite(value)}
    if not checks:
        return None
    steps = sorted(checks)  # a resumed run repeats some
    return RunCurves(
        tuple(steps),
        tuple(checks[step] for step in steps),
        tuple(int(step) for step in rates[:, 0]),
        tuple(rates[:, 1].tolist()),
    )


def _numbers(table: pl.DataFrame, *columns: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the rows in which all columns are finite numbers, sorted by the first; none if a column is missing."""
    if not set(columns) <= set(table.columns):
        return np.empty((0, len(columns)))
    numbers = table.select(pl.col(columns).cast(pl.Float64, strict=False)).drop_nulls()
    finite = numbers.filter(pl.all_horizontal(pl.all().is_finite()))
    return finite.unique(columns[0], keep="last").sort(columns[0]).to_numpy()  # a resumed run repeats some steps


def band(runs: Sequence[RunCurves]) -> Band:
    """Compute median and quartiles over runs at each check of any of them.

    A run that ended before the others, at its target or by divergence, keeps its last value.

    Raises:
        ValueError: If there is no run.

    Example:
        >>> band([RunCurves((10, 20), (0.5, 0.9)), RunCurves((10,), (0.7,))]).median
        (0.6, 0.8)
    """
    if not runs:
        raise ValueError("expected at least one run, got none")
    steps = sorted({step for one in runs for step in one.steps})
    values = np.full((len(runs), len(steps)), math.nan)
    for row, one in enumerate(runs):
        at = np.searchsorted(one.steps, steps, side="right") - 1
        known = at >= 0
        values[row, known] = np.asarray(one.values)[at[known]]
    edges = (0.0, 1.0) if len(runs) < 4 else (0.25, 0.75)
    low, median, high = np.nanquantile(values, [edges[0], 0.5, edges[1]], axis=0)
    middle, least, most = (tuple(np.round(each, 6).tolist()) for each in (median, low, high))
    return Band(tuple(steps), middle, least, most, len(runs))


def thin(steps: Sequence[int], values: Sequence[float], most: int = 300) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Reduce a curve to at most ``most`` points; the first and the last one are kept.

    Example:
        >>> thin(range(1000), [0.0] * 1000, most=3)[0]
        (0, 500, 999)
    """
    if len(steps) <= most:
        return tuple(steps), tuple(values)
    kept = np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int)).tolist()
    return tuple(steps[index] for index in kept), tuple(values[index] for index in kept)


def read_tuning(folder: str | Path) -> list[dict[str, Any]] | None:
    """Read the segments of a composition; None if there are none or they cannot be read."""
    try:
        records = read_json(Path(folder) / history.TUNING_FILE)
    except (OSError, ValueError):
        return None
    if not isinstance(records, list) or not all(map(_is_segment, records)):
        return None
    return [dict(segment) for segment in records] or None


def _is_segment(record: Any) -> bool:
    """Return whether a record has the fields that are drawn, of the right types."""
    if not isinstance(record, Mapping) or not isinstance(record.get("rates"), list):
        return False
    numbers = [record.get("spent"), record.get("steps"), *record["rates"]]
    value = record.get("value")
    return (
        isinstance(record.get("kind"), str) and all(map(_is_number, numbers)) and (value is None or _is_number(value))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63
