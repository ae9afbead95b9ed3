"""The same runs at another target: read from their histories, without training again."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from lrbench_pl.analysis.load import METRICS_FILE, AnalysisError, Runs, Skipped
from lrbench_pl.verdict import check_target
from lrbench_pl.words import counted

TUNING_FILE = "tuning.json"


class HistoryError(ValueError):
    """A history that cannot answer; the message says why."""


@dataclass(frozen=True)
class History:
    """The checks of one run, in order.

    Args:
        steps: Optimizer steps before each check.
        values: The monitored metric there.
        seconds: Training seconds there, None where the history does not say.
        again: Indices of checks with which checks in a row begin anew, for the training went back before.
        apart: Indices of checks that cannot meet a target, those of a leg that diverged.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]
    seconds: tuple[float | None, ...]
    again: frozenset[int] = field(default_factory=frozenset)
    apart: frozenset[int] = field(default_factory=frozenset)

    def first_confirmed(self, target: float, mode: str = "max", confirmations: int = 1) -> int | None:
        """Index of the first check of the first ``confirmations`` in a row that meet the target, or None.

        Example:
            >>> history = History((100, 200, 300), (0.96, 0.98, 0.97), (1.0, 2.0, 3.0))
            >>> history.first_confirmed(0.97), history.first_confirmed(0.97, confirmations=3)
            (1, None)
        """
        row: list[int] = []
        for index, value in enumerate(self.values):
            if index in self.again:
                row = []
            met = index not in self.apart and (value >= target if mode == "max" else value <= target)
            row = [*row, index] if met else []
            if len(row) == confirmations:
                return row[0]
        return None


def read_history(folder: str | Path, monitor: str) -> History:
    """The checks in a run's ``metrics.csv``.

    Lightning numbers the row of a check one step too low (``global_step - 1``): the step is that of the column
    ``check/step`` where there is one, else that of ``step`` plus 1. A last line that is not ended is left out. So are
    checks of a composed policy that were none of its own: in its range test, and of averaged weights.

    Args:
        folder: Folder of the run.
        monitor: The metric that was checked.

    Raises:
        HistoryError: If there is no such file or column, or it is no table of numbers.
    """
    path = os.path.join(folder, METRICS_FILE)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise HistoryError(f"no {METRICS_FILE}; train with logger=csv for answers at other targets") from None
    except OSError as error:
        raise HistoryError(f"{METRICS_FILE} cannot be read ({error})") from error
    data = data[: data.rfind(b"\n") + 1]
    try:
        table = pl.read_csv(io.BytesIO(data), infer_schema=False, truncate_ragged_lines=True)
        if monitor not in table.columns or "step" not in table.columns:
            raise HistoryError(f"{METRICS_FILE} has no column {monitor!r} or none that says the step")
        names = ("check/step", "check/seconds", "check/averaged", "step", monitor)
        wanted = [name for name in names if name in table.columns]
        table = table.select(pl.col(wanted).cast(pl.Float64)).filter(pl.col(monitor).is_not_null())
    except pl.exceptions.PolarsError as error:
        raise HistoryError(f"{METRICS_FILE} is no table of numbers ({' '.join(str(error).split())[:80]})") from error
    counted = pl.col("step") + 1
    exact, seconds, averaged = (
        pl.col(name) if name in wanted else pl.lit(None, pl.Float64)
        for name in ("check/step", "check/seconds", "check/averaged")
    )
    table = table.select(
        exact.fill_null(counted).cast(pl.Int64).alias("at"),
        pl.col(monitor).alias("value"),
        seconds.alias("seconds"),
        (averaged.fill_null(0.0) > 0).alias("averaged"),
    )
    steps = table["at"].to_list()
    if any(step is None for step in steps):
        raise HistoryError(f"{METRICS_FILE} has a check without its step")
    # seven digits are what float32 can tell apart, as in the callback: 19 of 20 right is 0.95, not 0.949999988
    values = [float(f"{value:.7g}") for value in table["value"].to_list()]
    forecasts = set(table.with_row_index("row").filter("averaged")["row"].to_list())
    again, apart, left_out = _legs(folder, steps)
    again |= {index + 1 for index in forecasts}  # they break a row of checks
    kept = [index for index in range(len(steps)) if index not in left_out | forecasts]
    return History(
        tuple(steps[index] for index in kept),
        tuple(values[index] for index in kept),
        tuple(table["seconds"][index] for index in kept),
        frozenset(place for place, index in enumerate(kept) if index in again),
        frozenset(place for place, index in enumerate(kept) if index in apart),
    )


def _legs(folder: str | Path, steps: Sequence[int]) -> tuple[set[int], set[int], set[int]]:
    """Of a policy composed while it trained: checks that begin anew, that diverged, and that were in a range test."""
    again: set[int] = set()
    apart: set[int] = set()
    left_out: set[int] = set()
    try:
        with open(os.path.join(folder, TUNING_FILE), encoding="utf-8") as file:
            legs = json.load(file)
        at = 0
        for leg in legs:
            begin, end = leg["spent"], leg["spent"] + leg["steps"]
            inside = [index for index, step in enumerate(steps) if begin < step <= end]
            if leg["policy_step"] != at:
                again.update(inside[:1])
            at = leg["policy_step"] + leg["steps"]
            if leg["kind"] == "range" or leg.get("averaged"):
                left_out.update(inside)
            elif leg["why"] == "diverged":
                apart.update(index for index in inside if steps[index] == end)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise HistoryError(f"{TUNING_FILE} cannot be read ({error!r})") from error
    return again, apart, left_out


def at_target(runs: Runs, target: float) -> Runs:
    """The runs as if ``target`` had been theirs, from the checks in their histories.

    Monitor, mode and confirmations are each run's own; the steps of ``lr_policy=auto`` are all it took, dead ends
    included. A run that had stopped at its own target, before the budget, cannot answer a harder one beyond its end: it
    is ``missed`` with ``open`` true, and watched up to ``steps_run`` only. A history that does not lead to its run's
    own row is not believed.

    Args:
        runs: From :func:`lrbench_pl.analysis.load.load_runs`.
        target: The other target, in units of the monitor.

    Returns:
        The same columns and ``open``; runs without a history they can be judged by are among ``skipped``.

    Raises:
        AnalysisError: If ``target`` is none that a run's monitor can reach, or no run has a history.
    """
    for monitor, mode in runs.table.select("monitor", "mode").unique(maintain_order=True).rows():
        try:
            check_target(target, monitor or "", mode or "max", name="--target")
        except ValueError as error:
            raise AnalysisError(str(error)) from error
    rows: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    for row in runs.table.to_dicts():
        if row["status"] in ("failed", "stopped"):
            rows.append({**row, "target": target, "open": False})
            continue
        try:
            rows.append(_judged(row, target))
        except HistoryError as error:
            skipped.append(Skipped(Path(row["folder"]), str(error)))
    if not any(row["status"] not in ("failed", "stopped") for row in rows):
        why = f"; the first: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
        raise AnalysisError(f"no run has a history that answers --target {target:g}{why}")
    table = pl.DataFrame(rows, schema={**runs.table.schema, "open": pl.Boolean}, orient="row")
    return Runs(table, (*runs.skipped, *skipped))


def _judged(row: Mapping[str, Any], target: float) -> dict[str, Any]:
    if row["monitor"] is None:
        raise HistoryError("its row does not say what was monitored")
    history = read_history(row["folder"], row["monitor"])
    rule = (row["mode"] or "max", row["confirmations"] or 1)
    _check_own(row, history, rule)
    hit = history.first_confirmed(target, *rule)
    judged = {**row, "target": target, "open": False, "steps_to_target": None, "seconds_to_target": None}
    if hit is not None:
        at = {"steps_to_target": history.steps[hit], "seconds_to_target": history.seconds[hit]}
        return {**judged, **at, "status": "reached", "message": f"reached {target:g} at step {history.steps[hit]}"}
    if row["status"] != "reached":
        return judged
    message = f"missed {target:g} within {counted(row['steps_run'] or 0, 'step')}"
    stopped = row["steps_run"] is not None and row["max_steps"] is not None and row["steps_run"] < row["max_steps"]
    return {**judged, "status": "missed", "open": stopped, "message": message}


def _check_own(row: Mapping[str, Any], history: History, rule: tuple[str, int]) -> None:
    """Refuse a history that is cut off or another run's: it must lead to what the row says."""
    # a row knows no NaN: such a check is missing there
    last = history.values[-1] if history.values and math.isfinite(history.values[-1]) else None
    own = row["final_value"]
    if (last is None) != (own is None) or (last is not None and not math.isclose(last, own, rel_tol=1e-6)):
        end = f"ends at step {history.steps[-1]} with {history.values[-1]:g}" if history.values else "has no check"
        said = "none" if own is None else f"{own:g}"
        raise HistoryError(f"{METRICS_FILE} {end}, but the last check of its row is {said}: cut off, or another run's")
    if row["target"] is None:
        return
    hit = history.first_confirmed(row["target"], *rule)
    step = None if hit is None else history.steps[hit]
    if step != row["steps_to_target"]:
        own = f"{METRICS_FILE} reaches {row['target']:g} at {_at(step)}"
        raise HistoryError(f"{own}, its row at {_at(row['steps_to_target'])}")


def _at(step: int | None) -> str:
    return "no check" if step is None else f"step {step}"
