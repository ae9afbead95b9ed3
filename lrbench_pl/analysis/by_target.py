"""Speed-ups over a baseline at many targets, from the histories of finished runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from lrbench_pl.analysis import statistics as st
from lrbench_pl.analysis.columns import MISSING, Column
from lrbench_pl.analysis.history import History, HistoryError, check_history, read_history
from lrbench_pl.analysis.load import AnalysisError, Runs, Skipped
from lrbench_pl.analysis.ranking import task_keys
from lrbench_pl.analysis.show import left_out_note
from lrbench_pl.analysis.terminal import draw, fitted
from lrbench_pl.words import clean

STEPS_NOTE = (
    "speed-up: the baseline's steps to the target divided by the policy's, median over seeds, paired if the baseline "
    "has all seeds of the policy; a baseline that missed counts with the steps it trained, which ≥ marks"
)
BUDGET_NOTE = (
    "budget ratio: the baseline's whole budget divided by the policy's steps to the target, median over seeds; also "
    "above 1 for a policy that is no faster, the baseline itself included"
)

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Course:
    """The checks of one run, as far as it was observed.

    Args:
        seed: Its seed.
        history: Its checks.
        steps_run: Steps it was observed for.
        is_complete: Whether it used its budget or diverged; a run that ended early is open beyond its last check.
    """

    seed: int | None
    history: History
    steps_run: int
    is_complete: bool = True

    def outcome(self, target: float, mode: str, confirmations: int) -> tuple[float, bool, bool]:
        """Return the steps to a target, or the steps observed; whether it was reached; and whether that is open."""
        hit = self.history.first_confirmed(target, mode, confirmations)
        if hit is not None:
            return float(self.history.steps[hit]), True, False
        return float(self.steps_run), False, not self.is_complete


@dataclass(frozen=True)
class ByTarget:
    """Speed-ups of policies over a baseline at many targets.

    Args:
        table: One row for each target and group, the easiest target and the best group first. ``step`` is that at which
            the baseline's median reached the target.
        keys: Columns that identify the groups.
        baseline: Values of these columns of the baseline.
        skipped: Runs without a usable history.
    """

    table: pl.DataFrame
    keys: tuple[str, ...]
    baseline: Key
    skipped: tuple[Skipped, ...] = ()


def by_target(runs: Runs, ranking: pl.DataFrame, keys: Sequence[str], baseline: str, number: int = 30) -> ByTarget:
    """Compare every policy with a baseline at targets from the baseline's first check to its best.

    A run that was stopped, or that ended at its own target, is open at the targets that it did not reach: its steps are
    censored.

    Args:
        runs: From :func:`lrbench_pl.analysis.load.load_runs`, with the columns that group them.
        ranking: Their ranking, which gives the order.
        keys: Columns that group the runs.
        baseline: Name of the policy to compare with, or all values of ``keys`` joined by commas. Of several groups of
            this name it is the best.
        number: Number of targets.

    Raises:
        AnalysisError: If the runs have several tasks, ``number`` is below 2, no group has the baseline's name, or none
            of its runs has a usable history.
    """
    if number < 2:
        raise AnalysisError(f"--targets must be at least 2, got {number}")
    table = runs.table.filter(pl.col("status").cast(pl.String) != "failed")
    if several := task_keys(table, keys):
        raise AnalysisError(
            f"--targets needs runs of one task, got several of {', '.join(several)}; give fewer folders"
        )
    groups: dict[Key, list[Course]] = {row: [] for row in ranking.select(keys).rows()}
    skipped: list[Skipped] = []
    for row in table.to_dicts():
        try:
            groups[tuple(row[key] for key in keys)].append(_course(row))
        except HistoryError as error:
            skipped.append(Skipped(Path(row["folder"]), str(error)))
    base = next((key for key in groups if baseline in (_text(key), *map(str, key))), None)
    if base is None:
        raise AnalysisError(f"--baseline must name one of {', '.join(map(_text, list(groups)[:8]))}, got {baseline!r}")
    if not groups[base]:
        why = f"; the first: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
        raise AnalysisError(f"--targets needs the histories of {_text(base)}, got none{why}")
    first = table.row(0, named=True)
    rule = (first["mode"] or "max", first["confirmations"] or 1)
    rows = compare(groups, base, float(table["max_steps"].max() or 0), *rule, number)  # type: ignore[arg-type]
    schema = {"target": pl.Float64, "step": pl.Float64, **{key: table.schema[key] for key in keys}, **_COLUMNS}
    named = [{**dict(zip(keys, row.pop("group"), strict=True)), **row} for row in rows]
    return ByTarget(pl.DataFrame(named, schema=schema), tuple(keys), base, tuple(skipped))


_COUNTS = ("runs", "reached", "open", "baseline_runs", "baseline_reached")
_COLUMNS: dict[str, Any] = {
    **dict.fromkeys(_COUNTS, pl.Int64),
    **{
        f"{name}{part}": pl.Boolean if part == "_at_least" else pl.Float64
        for name in ("speed_up", "budget_ratio")
        for part in ("", "_low", "_high", "_at_least")
    },
}


def _text(key: Key) -> str:
    return ",".join(map(str, key))


def _course(row: Mapping[str, Any]) -> Course:
    if row["monitor"] is None:
        raise HistoryError("its result does not contain the monitor")
    history = read_history(row["folder"], row["monitor"], row["target"])
    check_history(row, history, (row["mode"] or "max", row["confirmations"] or 1))
    last = history.steps[-1] if history.steps else 0
    complete = row["status"] == "diverged" or (row["steps_run"] or last) >= (row["max_steps"] or 0)
    return Course(row["seed"], history, row["steps_run"] or last, complete)


def compare(
    groups: Mapping[Key, Sequence[Course]],
    baseline: Key,
    budget: float,
    mode: str = "max",
    confirmations: int = 1,
    number: int = 30,
) -> list[dict[str, Any]]:
    """Compare the courses of each group with those of a baseline at many targets; the arithmetic of :func:`by_target`.

    Args:
        groups: Courses of each group, the best group first.
        baseline: Key of the baseline.
        budget: The baseline's whole budget in steps.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        confirmations: Consecutive checks that must meet a target.
        number: Number of targets.

    Returns:
        One row for each target and group.
    """
    base = groups[baseline]
    rows = []
    for step, target in st.target_grid([(run.history.steps, run.history.values) for run in base], number, mode):
        outcomes = {key: [run.outcome(target, mode, confirmations) for run in runs] for key, runs in groups.items()}
        for key, runs in groups.items():
            if not runs:
                continue
            steps, reached, is_open = (list(each) for each in zip(*outcomes[key], strict=True))
            row: dict[str, Any] = {"target": target, "step": step, "group": key, "runs": len(runs)}
            row |= {"reached": sum(reached), "open": sum(is_open), "baseline_runs": len(base)}
            row["baseline_reached"] = sum(hit for _, hit, _ in outcomes[baseline])
            if key == baseline:
                gain = st.Bounded(st.Estimate(1.0, None, None, len(base)))
            else:
                partners = _partners(base, runs)
                sides = [outcomes[baseline][i] for i in (range(len(base)) if partners is None else partners)]
                base_steps, base_reached = [side[0] for side in sides], [side[1] for side in sides]
                gain = st.bounded_speed_up(
                    base_steps, base_reached, steps, reached, rng=0, is_open=is_open, paired=partners is not None
                )
            row |= _of_estimate("speed_up", gain)
            row |= _of_estimate("budget_ratio", st.budget_ratio(budget, steps, reached, is_open))
            rows.append(row)
    return rows


def _partners(base: Sequence[Course], runs: Sequence[Course]) -> list[int] | None:
    """Return the place of the baseline's run with the seed of each run; None if a seed is missing or repeats."""
    seeds, others = [run.seed for run in runs], [run.seed for run in base]
    if None in seeds or len(set(seeds)) < len(seeds) or len(set(others)) < len(others) or not set(seeds) <= set(others):
        return None
    return [others.index(seed) for seed in seeds]


def _of_estimate(name: str, found: st.Bounded) -> dict[str, Any]:
    times = found.times
    return {name: times.value, f"{name}_low": times.low, f"{name}_high": times.high, f"{name}_at_least": found.at_least}


def render_by_target(found: ByTarget, width: int) -> str:
    """Render both counts as tables: one line for each target, one column for each policy.

    Columns that do not fit the width are left out, those of the last policies first, and named below.
    """
    base = clean(_text(found.baseline))
    blocks = []
    for name, title in (
        ("speed_up", f"speed-up over {base}"),
        ("budget_ratio", f"budget of {base} over the steps of each policy"),
    ):
        kept, left_out = fitted(columns_by_target(found, name), width)
        one_tier = pl.DataFrame({"tier": [1] * found.table["target"].n_unique()})
        blocks += [f"{title}, by target", draw(kept, one_tier)]
        blocks += [left_out_note(left_out, width)] if left_out else []
    return "\n\n".join(blocks)


def columns_by_target(found: ByTarget, name: str) -> list[Column]:
    """Return the columns of one count: the targets, the baseline's successes, and a column for each other group."""
    table = found.table
    targets = table["target"].unique(maintain_order=True).to_list()
    by_group = table.partition_by(found.keys, as_dict=True, maintain_order=True)
    base = by_group[found.baseline]
    shown = [Column("target", tuple(f"{target:g}" for target in targets), values=tuple(targets))]
    counts = tuple(f"{row['reached']}/{row['runs']}" for row in base.to_dicts())
    shown.append(Column(f"reached by {clean(_text(found.baseline))}", counts, values=tuple(base["reached"])))
    others = {key: rows for key, rows in by_group.items() if key != found.baseline or name != "speed_up"}
    for place, (key, rows) in enumerate(others.items()):
        cells = tuple(_cell(row, name) for row in rows.to_dicts())
        short = tuple(_cell(row, name, with_interval=False) for row in rows.to_dicts())
        shown.append(Column(clean(_text(key)), cells, drop_order=place, short=short, values=tuple(rows[name])))
    return shown


def _cell(row: Mapping[str, Any], name: str, with_interval: bool = True) -> str:
    """Format an estimate.

    Example:
        >>> row = {"speed_up": 2.0, "speed_up_low": 1.5, "speed_up_high": float("inf"), "speed_up_at_least": True}
        >>> _cell(row, "speed_up"), _cell({**row, "speed_up": None}, "speed_up")
        ('≥ 2.00 [1.50, ∞]', '–')
    """
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if value is None:
        return MISSING
    text = ("≥ " if row[f"{name}_at_least"] else "") + _number(value)
    if not with_interval or low is None or (math.isclose(low, value) and math.isclose(high, value)):
        return text
    return f"{text} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.2f}"
