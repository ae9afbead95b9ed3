"""Read the checks of a run, and judge finished runs at another target without training again."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from lrbench_pl.analysis.load import METRICS_FILE, AnalysisError, Runs, Skipped
from lrbench_pl.reading import LARGEST_TABLE, UnreadableError, read_bytes, read_json
from lrbench_pl.verdict import check_target, plain_number
from lrbench_pl.words import counted

_FORECAST = 1.0  # value of check/averaged for a check that cannot reach the target

TUNING_FILE = "tuning.json"


class HistoryError(ValueError):
    """Raised if a history cannot be read or does not match its result; the message says why."""


@dataclass(frozen=True)
class History:
    """The checks of one run, in order.

    Args:
        steps: Optimizer steps before each check.
        values: Monitored metric at each check.
        seconds: Training seconds before each check; None where the history does not contain them.
        resets: Indices of checks at which counting confirmations starts again, since training went back.
        diverged: Indices of checks of a diverged segment, which cannot reach a target.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]
    seconds: tuple[float | None, ...]
    resets: frozenset[int] = field(default_factory=frozenset)
    diverged: frozenset[int] = field(default_factory=frozenset)

    def first_confirmed(self, target: float, mode: str = "max", confirmations: int = 1) -> int | None:
        """Return the index of the first of ``confirmations`` consecutive checks that meet the target, or None.

        Example:
            >>> history = History((100, 200, 300), (0.96, 0.98, 0.97), (1.0, 2.0, 3.0))
            >>> history.first_confirmed(0.97), history.first_confirmed(0.97, confirmations=3)
            (1, None)
        """
        consecutive: list[int] = []
        for index, value in enumerate(self.values):
            if index in self.resets:
                consecutive = []
            met = index not in self.diverged and (value >= target if mode == "max" else value <= target)
            consecutive = [*consecutive, index] if met else []
            if len(consecutive) == confirmations:
                return consecutive[0]
        return None


def read_history(folder: str | Path, monitor: str, *targets: float | None) -> History:
    """Read the checks in the ``metrics.csv`` of a run.

    Lightning logs a check with ``global_step - 1``. The step is that of the column ``check/step``, or ``step + 1``
    without it. An incomplete last line is left out. Of a composition, checks in the range test are left out, and so are
    those of averaged weights unless they could reach the target.

    Args:
        folder: Folder of the run.
        monitor: Name of the monitored metric.
        *targets: Targets that the checks are compared with, see :func:`lrbench_pl.verdict.plain_number`.

    Raises:
        HistoryError: If the file or column is missing, or not numeric.
    """
    table = _checks(_read_metrics(folder), monitor)
    steps = table["at"].to_list()
    if any(step is None for step in steps):
        raise HistoryError(f"{METRICS_FILE} has a check without its step")
    values = [plain_number(value, *targets) for value in table["value"].to_list()]
    forecasts = set(table.with_row_index("row").filter(pl.col("averaged") == _FORECAST)["row"].to_list())
    resets, diverged, range_test = _segments(folder, steps, is_marked=not table["averaged"].is_null().all())
    resets |= {index + 1 for index in forecasts}
    kept = [index for index in range(len(steps)) if index not in range_test | forecasts]
    return History(
        tuple(steps[index] for index in kept),
        tuple(values[index] for index in kept),
        tuple(table["seconds"][index] for index in kept),
        frozenset(number for number, index in enumerate(kept) if index in resets),
        frozenset(number for number, index in enumerate(kept) if index in diverged),
    )


def _read_metrics(folder: str | Path) -> bytes:
    """Read the complete lines of the ``metrics.csv`` of a run."""
    try:
        data = read_bytes(os.path.join(folder, METRICS_FILE), LARGEST_TABLE)
    except FileNotFoundError:
        raise HistoryError(f"no {METRICS_FILE}; train with logger=csv to analyse other targets") from None
    except (OSError, UnreadableError) as error:
        raise HistoryError(f"{METRICS_FILE} cannot be read ({error})") from error
    return data[: data.rfind(b"\n") + 1]


def _checks(data: bytes, monitor: str) -> pl.DataFrame:
    """Return the checks in a ``metrics.csv``: columns ``at``, ``value``, ``seconds`` and ``averaged``."""
    try:
        table = pl.read_csv(io.BytesIO(data), infer_schema=False, truncate_ragged_lines=True)
        if monitor not in table.columns or "step" not in table.columns:
            raise HistoryError(f"{METRICS_FILE} must have the columns step and {monitor!r}, got {_names(table)}")
        names = ("check/step", "check/seconds", "check/averaged", "step", monitor)
        wanted = [name for name in names if name in table.columns]
        table = table.select(pl.col(wanted).cast(pl.Float64)).filter(pl.col(monitor).is_not_null())
        exact, seconds, averaged = (
            pl.col(name) if name in wanted else pl.lit(None, pl.Float64)
            for name in ("check/step", "check/seconds", "check/averaged")
        )
        return table.select(
            exact.fill_null(pl.col("step") + 1).cast(pl.Int64).alias("at"),
            pl.col(monitor).alias("value"),
            seconds.alias("seconds"),
            averaged.alias("averaged"),
        )
    except pl.exceptions.PolarsError as error:
        raise HistoryError(f"{METRICS_FILE} is not numeric ({' '.join(str(error).split())[:80]})") from error


def _names(table: pl.DataFrame) -> str:
    return ", ".join(table.columns[:8]) + (", …" if table.width > 8 else "")


def _segments(folder: str | Path, steps: Sequence[int], is_marked: bool) -> tuple[set[int], set[int], set[int]]:
    """Return the indices of checks that reset confirmations, that diverged, and that were made in a range test.

    All are empty for a policy that was not composed while training. If the checks are not marked, those of averaged
    weights are among the last.
    """
    resets: set[int] = set()
    diverged: set[int] = set()
    range_test: set[int] = set()
    try:
        segments = read_json(os.path.join(folder, TUNING_FILE))
        at = 0
        for segment in segments:
            begin, end = segment["spent"], segment["spent"] + segment["steps"]
            inside = [index for index, step in enumerate(steps) if begin < step <= end]
            if segment["policy_step"] != at:
                resets.update(inside[:1])
            at = segment["policy_step"] + segment["steps"]
            if segment["kind"] == "range" or (segment.get("averaged") and not is_marked):
                range_test.update(inside)
            elif segment["why"] == "diverged":
                diverged.update(index for index in inside if steps[index] == end)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise HistoryError(f"{TUNING_FILE} cannot be read ({error!r})") from error
    return resets, diverged, range_test


def at_target(runs: Runs, target: float) -> Runs:
    """Judge the runs at another target, from the checks in their histories.

    Monitor, mode and confirmations are those of each run. The steps of ``lr_policy=auto`` include abandoned branches. A
    run that stopped at its own target, before the budget, cannot answer a harder one: it is ``missed`` with ``open``
    true, observed for ``steps_run`` steps. A history that does not reproduce the result of its run is not used.

    Args:
        runs: From :func:`lrbench_pl.analysis.load.load_runs`.
        target: The other target, in units of the monitor.

    Returns:
        The runs with the column ``open``. Runs without a usable history are in ``skipped``.

    Raises:
        AnalysisError: If a monitor cannot reach ``target``, or no run has a usable history.
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
            rows.append(_at_target(row, target))
        except HistoryError as error:
            skipped.append(Skipped(Path(row["folder"]), str(error)))
    if not any(row["status"] not in ("failed", "stopped") for row in rows):
        why = f"; the first: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
        raise AnalysisError(f"--target {target:g} needs a run with a usable history, got none{why}")
    table = pl.DataFrame(rows, schema={**runs.table.schema, "open": pl.Boolean}, orient="row")
    return Runs(table, (*runs.skipped, *skipped))


def _at_target(row: Mapping[str, Any], target: float) -> dict[str, Any]:
    if row["monitor"] is None:
        raise HistoryError("its result does not contain the monitor")
    history = read_history(row["folder"], row["monitor"], target, row["target"])
    rule = (row["mode"] or "max", row["confirmations"] or 1)
    check_history(row, history, rule)
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


def check_history(row: Mapping[str, Any], history: History, rule: tuple[str, int]) -> None:
    """Require that a history reproduces the result of its run; it may be incomplete or of another run."""
    # a result has no NaN: such a check is missing there
    last = history.values[-1] if history.values and math.isfinite(history.values[-1]) else None
    final = row["final_value"]
    if (last is None) != (final is None) or (last is not None and not math.isclose(last, final, rel_tol=1e-6)):
        end = f"ends at step {history.steps[-1]} with {history.values[-1]:g}" if history.values else "has no check"
        stored = "None" if final is None else f"{final:g}"
        raise HistoryError(f"{METRICS_FILE} {end}, but final_value is {stored}: incomplete, or of another run")
    if row["target"] is None:
        return
    hit = history.first_confirmed(row["target"], *rule)
    step = None if hit is None else history.steps[hit]
    if step != row["steps_to_target"]:
        own = f"{METRICS_FILE} reaches {row['target']:g} at {_at(step)}"
        raise HistoryError(f"{own}, its result at {_at(row['steps_to_target'])}")


def _at(step: int | None) -> str:
    return "no check" if step is None else f"step {step}"
