"""From the histories of runs to curves: checks and rates over steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lrbench_pl.analysis import history
from lrbench_pl.analysis.load import METRICS_FILE


@dataclass(frozen=True)
class History:
    """What a run's ``metrics.csv`` says of its way.

    Args:
        steps: Optimizer steps before each check.
        values: The monitor there.
        rate_steps: Steps whose rate was kept.
        rates: The learning rate there.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]
    rate_steps: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Band:
    """Several runs at each check.

    Args:
        steps: Optimizer steps of the checks.
        median: Median of the runs there.
        low: Lower quartile; the least of fewer than four runs.
        high: Upper quartile; the largest of fewer than four runs.
        runs: How many there are in all.
    """

    steps: tuple[int, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    runs: int


def read_history(folder: str | Path, monitor: str) -> History | None:
    """The history of a run, as far as it is written; None if there is none or it cannot be read.

    Its checks are those by which a target is judged: of a composition neither those of its range test nor those of
    averaged weights. Its rates are not those of a range test either, which go far beyond the others.

    Args:
        folder: Folder of the run.
        monitor: The metric that was checked.
    """
    try:
        judged = history.read_history(folder, monitor)
        table = pl.read_csv(Path(folder) / METRICS_FILE, infer_schema=False, truncate_ragged_lines=True)
    except (OSError, history.HistoryError, pl.exceptions.PolarsError):
        return None
    rates = _numbers(table, "step", "lr")
    for leg in read_tuning(folder) or ():
        if leg["kind"] == "range":
            rates = rates[(rates[:, 0] < leg["spent"]) | (rates[:, 0] >= leg["spent"] + leg["steps"])]
    checks = {step: value for step, value in zip(judged.steps, judged.values, strict=True) if math.isfinite(value)}
    if not checks:
        return None
    steps = sorted(checks)  # a resumed run repeats some
    return History(
        tuple(steps),
        tuple(checks[step] for step in steps),
        tuple(int(step) for step in rates[:, 0]),
        tuple(rates[:, 1].tolist()),
    )


def _numbers(table: pl.DataFrame, *columns: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The rows in which all these columns are finite numbers, by the first; a column that is not there has none."""
    if not set(columns) <= set(table.columns):
        return np.empty((0, len(columns)))
    numbers = table.select(pl.col(columns).cast(pl.Float64, strict=False)).drop_nulls()
    finite = numbers.filter(pl.all_horizontal(pl.all().is_finite()))
    return finite.unique(columns[0], keep="last").sort(columns[0]).to_numpy()  # a resumed run repeats some steps


def band(histories: Sequence[History]) -> Band:
    """Median and quartiles over runs at each check that any of them made.

    A run that ended before others (it was stopped at its target, or diverged) keeps its last value, so that no curve
    changes because its best run is missing.

    Raises:
        ValueError: If there is no history.

    Example:
        >>> band([History((10, 20), (0.5, 0.9)), History((10,), (0.7,))]).median
        (0.6, 0.8)
    """
    if not histories:
        raise ValueError("expected at least one history, got none")
    steps = sorted({step for one in histories for step in one.steps})
    values = np.full((len(histories), len(steps)), math.nan)
    for row, one in enumerate(histories):
        at = np.searchsorted(one.steps, steps, side="right") - 1
        known = at >= 0
        values[row, known] = np.asarray(one.values)[at[known]]
    edges = (0.0, 1.0) if len(histories) < 4 else (0.25, 0.75)
    low, median, high = np.nanquantile(values, [edges[0], 0.5, edges[1]], axis=0)
    middle, least, most = (tuple(np.round(each, 6).tolist()) for each in (median, low, high))
    return Band(tuple(steps), middle, least, most, len(histories))


def thin(steps: Sequence[int], values: Sequence[float], most: int = 300) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """At most so many points of a curve, the first and the last among them.

    Example:
        >>> thin(range(1000), [0.0] * 1000, most=3)[0]
        (0, 500, 999)
    """
    if len(steps) <= most:
        return tuple(steps), tuple(values)
    kept = np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int)).tolist()
    return tuple(steps[index] for index in kept), tuple(values[index] for index in kept)


def read_tuning(folder: str | Path) -> list[dict[str, Any]] | None:
    """The legs of a composition, as its run wrote them; None if there are none or they cannot be read."""
    try:
        records = json.loads((Path(folder) / history.TUNING_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    needed = {"kind", "spent", "steps", "rates"}
    if not isinstance(records, list) or not all(isinstance(leg, Mapping) and needed <= leg.keys() for leg in records):
        return None
    return [dict(leg) for leg in records] or None
