"""Summarise the runs of one policy for a ranking."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from lrbench_pl.analysis import statistics as st
from lrbench_pl.words import is_accuracy

Metric = Literal["cost", "utility", "robustness"]
METRICS: tuple[Metric, ...] = get_args(Metric)

UNCOUNTED = ("failed", "stopped")  # statuses that give no evidence about a policy
TESTED = ("test_value", "test_accuracy")
UTILITY = ("best_value", *TESTED, "test_top5", "confidence", "confidence_std")


class Group:
    """The runs of one policy as arrays.

    Args:
        key: Values of the columns that identify the group.
        runs: Its runs.
        utility: Column of the utility: ``accuracy``, ``test_value`` or ``best_value``.
    """

    def __init__(self, key: Mapping[str, Any], runs: pl.DataFrame, utility: str = "accuracy") -> None:
        self.key = key
        self.utility = utility
        self._status = runs["status"].to_numpy()
        self._runs = runs.filter(~pl.col("status").is_in(UNCOUNTED))
        self.seeds: list[int | None] = self._runs["seed"].to_list() if "seed" in runs.columns else []
        status = self._runs["status"].to_numpy()
        self.reached: st.Bools = status == "reached"
        self._diverged: st.Bools = status == "diverged"
        budgets = numbers(self._runs, "max_steps")
        self.budget = float(np.nanmax(budgets)) if np.isfinite(budgets).any() else math.nan
        self.open: st.Bools = np.zeros(len(status), bool)
        if "open" in runs.columns:
            self.open = self._runs["open"].to_numpy().astype(bool)
        observed = np.where(self.open, numbers(self._runs, "steps_run"), self.budget)
        self.steps = np.where(self.reached, numbers(self._runs, "steps_to_target"), observed)
        smaller_is_better = "mode" in runs.columns and self._runs["mode"].to_list()[:1] == ["min"]
        self._sign = 1.0 if smaller_is_better else -1.0

    @property
    def losses(self) -> st.Floats:
        """Best value of each run, signed so that smaller is better."""
        return self._sign * numbers(self._runs, "best_value")

    @property
    def _utility_sign(self) -> float:
        """1 if a smaller utility is better, else -1."""
        return -1.0 if self.utility == "accuracy" else self._sign

    def values(self, metric: Metric) -> st.Floats:
        """Return utility or robustness of each run, smaller is better; a diverged run is the worst."""
        if metric == "robustness":
            values = numbers(self._runs, "loss_difference")
        elif self.utility == "accuracy":
            accuracy = numbers(self._runs, "test_accuracy")
            stands_in = np.array(_monitor_is_accuracy(self._runs), bool) & np.isnan(accuracy)
            values = -np.where(stands_in, numbers(self._runs, "best_value"), accuracy)
        else:
            values = self._sign * numbers(self._runs, self.utility)
        values = np.where(self._diverged, math.inf, values)
        return values[~np.isnan(values)]

    def n(self, metric: Metric) -> int:
        """Return the number of runs that count."""
        return len(self.reached) if metric == "cost" else len(self.values(metric))

    def row(self, metric: Metric) -> dict[str, Any]:
        """Return the columns of the ranking that depend on this group alone."""
        row = {**self.key, "runs": self.n(metric)}
        row |= {name: int((self._status == name).sum()) for name in ("diverged", *UNCOUNTED)}
        if metric == "cost":
            return row | self._cost()
        names = {"utility": UTILITY, "robustness": ("cdac",)}[metric]
        row |= {name: self._median(name) for name in names}
        main, sign = (self.utility, self._utility_sign) if metric == "utility" else ("loss_difference", 1.0)
        values = self.values(metric)
        if len(values):
            found = st.median(values)
            ends = [found.value, *((found.low, found.high) if sign > 0 else (found.high, found.low))]
            row |= dict(zip(with_interval(main), [None if x is None else sign * x for x in ends], strict=True))
        if metric == "robustness":
            accuracy = numbers(self._runs, "test_accuracy")
            accuracy = accuracy[~np.isnan(accuracy)]
            row["accuracy_spread"] = float(accuracy.std(ddof=1)) if len(accuracy) > 1 else None
        return row

    def _cost(self) -> dict[str, Any]:
        n, reached = len(self.reached), int(self.reached.sum())
        row: dict[str, Any] = {"reached": reached, "open": int(self.open.sum())}
        row |= {name: self._median(name) for name in ("best_value", *TESTED)}
        if not n:
            return row
        if self.open.any():
            curve = st.kaplan_meier(self.steps, self.reached)
            followed = curve.survival[-1] == 0 or curve.steps[-1] >= self.budget
            row["share"] = 1 - curve.survival[-1] if followed else None
        else:
            row |= estimate("share", st.success_rate(reached, n))
        if math.isnan(self.budget):  # the results do not contain it
            return row | estimate("median_steps", st.median(np.where(self.reached, self.steps, math.inf)))
        row |= estimate("median_steps", st.median_steps(self.steps, self.reached, self.budget))
        if not self.open.any():
            row["expected_steps"] = st.expected_steps(self.steps, self.reached)
        return row

    def _median(self, column: str) -> float | None:
        values = numbers(self._runs, column)
        values = values[~np.isnan(values)]
        return float(np.median(values)) if len(values) else None

    def order(self, metric: Metric, row: Mapping[str, Any]) -> tuple[float, ...]:
        """Return the sort key of the group, smallest first; missing values come last."""
        found: dict[str, list[tuple[float | None, float]]] = {
            "cost": [(row.get("share"), -1), (row.get("median_steps"), 1), (row.get("best_value"), self._sign)],
            "utility": [(row.get(self.utility), self._utility_sign)],
            "robustness": [(row.get("loss_difference"), 1)],
        }
        return tuple(math.inf if value is None else sign * value for value, sign in found[metric])


def utility_column(runs: pl.DataFrame) -> str:
    """Return the column of the utility: accuracy if there is one, else the monitor on the test set, else its best."""
    if all(_monitor_is_accuracy(runs)) or np.isfinite(numbers(runs, "test_accuracy")).any():
        return "accuracy"
    return "test_value" if np.isfinite(numbers(runs, "test_value")).any() else "best_value"


def _monitor_is_accuracy(runs: pl.DataFrame) -> list[bool]:
    """Return per run whether its monitor is an accuracy, as it is in results that do not contain the monitor."""
    if "monitor" not in runs.columns:
        return [True] * runs.height
    return [monitor is None or is_accuracy(monitor) for monitor in runs["monitor"].to_list()]


def numbers(table: pl.DataFrame, column: str) -> st.Floats:
    """Return a column as floats; missing values, or all values of a missing column, are NaN."""
    if column not in table.columns:
        return np.full(table.height, math.nan)
    values: st.Floats = table[column].cast(pl.Float64).fill_null(math.nan).to_numpy()
    return values


def with_interval(name: str) -> tuple[str, str, str]:
    """Return the names of the columns of an estimate and its interval.

    Example:
        >>> with_interval("median_steps")
        ('median_steps', 'median_low', 'median_high')
    """
    stem = name.removesuffix("_steps") if name == "median_steps" else name
    return name, f"{stem}_low", f"{stem}_high"


def estimate(name: str, found: st.Estimate) -> dict[str, float | None]:
    """Return the columns of an estimate."""
    return dict(zip(with_interval(name), (found.value, found.low, found.high), strict=True))
