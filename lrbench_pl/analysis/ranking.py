"""Rank policies by their runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from lrbench_pl.analysis import statistics as st
from lrbench_pl.analysis.baseline import add_speed_ups
from lrbench_pl.analysis.comparable import TASK_COLUMNS, check_comparable, setting_names, with_settings
from lrbench_pl.analysis.groups import METRICS, TESTED, UNCOUNTED, UTILITY, Group, Metric, utility_column, with_interval
from lrbench_pl.analysis.load import AnalysisError, Source, as_table
from lrbench_pl.runs.result import FIELD_TYPES

_MOST_GROUPS = 2000  # all pairs of groups are compared


def default_keys(runs: pl.DataFrame) -> list[str]:
    """Return the columns that identify a policy: its name, and optimizer and rate if they vary.

    Example:
        >>> default_keys(pl.DataFrame({"policy": ["a", "b"], "optimizer": ["sgd", "adam"], "lr": [0.1, 0.01]}))
        ['policy', 'optimizer']
    """
    keys = ["policy"]
    if runs["optimizer"].n_unique() > 1:
        keys.append("optimizer")
    if runs.group_by(keys).agg(pl.col("lr").n_unique())["lr"].max() > 1:  # type: ignore[operator]
        keys.append("lr")
    return keys


def rank(
    runs: Source,
    by: Sequence[str] | None = None,
    metric: Metric = "cost",
    baseline: str | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Rank policies, best first, with rank intervals and tiers.

    A diverged run is a miss. A run that failed or was stopped gives no evidence and is only counted; groups without any
    other run come last. If ``by`` separates tasks (see :data:`~lrbench_pl.analysis.comparable.TASK_COLUMNS`), each task
    has its own ranks.

    ``cost`` orders by the share of runs that reached the target, then by median steps to it (a miss is infinite), then
    by best value of the monitor. ``utility`` orders by median accuracy on the test set, or by best value of the monitor
    without a test set. ``robustness`` orders by median difference between test and training loss, smallest first.

    Rank intervals and tiers come from :func:`~lrbench_pl.analysis.statistics.compare`. For ``cost`` a run is better if
    it took fewer steps; of two misses, the one with the better best value.

    Args:
        runs: One folder or several, or what :func:`~lrbench_pl.analysis.load.load_runs` returns, or its table.
        by: Columns, and settings such as ``optimizer.weight_decay``, that group the runs; by default
            :func:`default_keys`.
        metric: ``cost``, ``utility`` or ``robustness``.
        baseline: For ``cost``, the policy to compare the others with: its name, or all values of ``by`` joined by
            commas. A name stands for the group that agrees in the other columns of ``by``.
        seed: Seed of the resampling.

    Returns:
        One row per group. Columns are ``rank`` (ties share one), ``rank_low`` and ``rank_high`` (95 % interval, null
        below 3 runs), ``tier``, those of ``by``, ``runs``, those of the metric, ``more_seeds`` (runs to add until the
        difference to the tier's first is significant at 80 % power; null for the first, and where the first is not
        ahead), ``diverged``, ``failed``, ``stopped`` and ``separated`` (whether it is significantly worse than the
        first of all). Columns ``…_low`` and ``…_high`` are intervals, null below 5
        runs except for ``share``.

        ``cost``: ``reached``, ``open`` (runs that ended before the budget without reaching the target), ``share``,
        ``median_steps`` (infinite if half of the runs or more missed), ``expected_steps`` (with restarts), and the
        medians ``best_value``, ``test_value`` and ``test_accuracy``. With a baseline, ``speed_up`` and ``log_rank_p``.
        With several data sets or models, ``profile``: the score of the performance profile.

        ``utility``: ``accuracy`` (or ``test_value``, or ``best_value``), and the medians ``best_value``,
        ``test_value``, ``test_accuracy``, ``test_top5``, ``confidence`` and ``confidence_std``.

        ``robustness``: the medians ``loss_difference`` and ``cdac``, and ``accuracy_spread``, the standard deviation
        over runs.

    Raises:
        AnalysisError: If a column, the metric or the baseline is unknown, the runs are not comparable, or none of them
            has the metric.

    Example:
        >>> runs = pl.DataFrame({"policy": ["a", "a", "b"], "status": ["reached", "missed", "reached"], "lr": [0.1] * 3,
        ...     "optimizer": ["sgd"] * 3, "steps_to_target": [40, None, 60], "best_value": [0.9, 0.8, 0.9],
        ...     "test_accuracy": [0.9, 0.8, 0.9], "max_steps": [100] * 3, "seed": [0, 1, 0]})
        >>> rank(runs).select("rank", "policy", "share", "median_steps", "tier", "rank_low").rows()
        [(1, 'b', 1.0, 60.0, 1, None), (2, 'a', 0.5, inf, 1, None)]
    """
    if metric not in METRICS:
        raise AnalysisError(f"--metric must be {', '.join(METRICS[:-1])} or {METRICS[-1]}, got {metric!r}")
    if baseline is not None and metric != "cost":
        raise AnalysisError(f"--baseline needs --metric cost, got {metric}: only steps are compared with a baseline")
    table = as_table(runs)
    keys = list(by) if by is not None else default_keys(table)
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise AnalysisError(f"--by must name each column once, got {repeated[0]!r} twice")
    table = with_settings(table, keys).with_columns(pl.col("status").cast(pl.String))
    counted = table.filter(~pl.col("status").is_in(UNCOUNTED))
    check_comparable(counted, keys)
    tasks = task_keys(counted, keys)
    parts = table.sort(tasks, maintain_order=True).partition_by(tasks, maintain_order=True) if tasks else [table]
    ranked = pl.concat(
        [_rank_task(part, keys, tasks, metric, baseline, seed) for part in parts], how="vertical_relaxed"
    )
    return _with_profile(ranked, keys) if metric == "cost" else ranked


def task_keys(counted: pl.DataFrame, keys: Sequence[str]) -> list[str]:
    """Return the columns that separate tasks, each of which has its own ranks.

    Args:
        counted: The runs that give evidence.
        keys: Columns that group the runs; settings of optimizer and policy are compared within a task.

    Example:
        >>> task_keys(pl.DataFrame({"policy": ["a", "b"], "dataset": ["x", "y"]}), ["policy", "dataset"])
        ['dataset']
    """
    compared = ("optimizer.", "lr_policy.")
    others = [key for key in keys if key not in FIELD_TYPES]
    settings = setting_names(counted) if others else set()  # other columns are the caller's
    of_task = {key for key in others if key in settings and not key.startswith(compared)}
    of_task |= {*TASK_COLUMNS, "settings"}
    return [key for key in keys if key in of_task and counted[key].n_unique() > 1]


def _rank_task(
    runs: pl.DataFrame, keys: Sequence[str], tasks: Sequence[str], metric: Metric, baseline: str | None, seed: int
) -> pl.DataFrame:
    """Rank the runs of one task."""
    if (n := runs.select(keys).n_unique()) > _MOST_GROUPS:
        raise AnalysisError(f"--by {','.join(keys)} must give at most {_MOST_GROUPS} groups, got {n}; name fewer keys")
    utility = utility_column(runs)
    grouped = runs.group_by(keys, maintain_order=True)
    groups = [Group(dict(zip(keys, key, strict=True)), part, utility) for key, part in grouped]
    rows = [group.row(metric) for group in groups]
    order, ranks = _ranks(rows, [group.order(metric, row) for group, row in zip(groups, rows, strict=True)], keys)
    groups, rows = [groups[i] for i in order], [rows[i] for i in order]
    for row, number in zip(rows, ranks, strict=True):
        row["rank"] = number
    compared = [i for i, group in enumerate(groups) if group.n(metric)]
    if metric != "cost" and not compared:
        needed = "test_accuracy or best_value" if metric == "utility" else "loss_difference"
        raise AnalysisError(f"--metric {metric} needs runs with {needed}, got none; take --metric cost")
    if compared:
        _add_intervals([groups[i] for i in compared], [rows[i] for i in compared], metric, seed)
    if baseline is not None:
        add_speed_ups(baseline, groups, rows, [key for key in keys if key not in tasks], seed)
    schema = _schema(runs, keys, metric, baseline is not None, groups[0].utility)
    return pl.DataFrame(rows, schema=schema, orient="row")


def _ranks(
    rows: Sequence[Mapping[str, Any]], orders: Sequence[tuple[float, ...]], keys: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Return the order of the rows and their ranks in it; ties share the first rank."""
    worth = [(row["runs"] == 0, order) for row, order in zip(rows, orders, strict=True)]
    names = [[(row[key] is None, row[key]) for key in keys] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (worth[i], names[i]))
    ranks: list[int] = []
    for position, index in enumerate(order):
        tied = position > 0 and worth[index] == worth[order[position - 1]]
        ranks.append(ranks[-1] if tied else position + 1)
    return order, ranks


def _add_intervals(groups: Sequence[Group], rows: Sequence[dict[str, Any]], metric: Metric, seed: int) -> None:
    """Add rank intervals, tiers, and the seeds to add until a difference to the tier's first is significant."""
    values = _scores(groups) if metric == "cost" else [group.values(metric) for group in groups]
    found = st.compare(values, np.random.default_rng(seed))
    pairs = max(1, len(groups) * (len(groups) - 1) // 2)
    first = 0
    for i, (row, tier) in enumerate(zip(rows, st.tiers(found.better), strict=True)):
        low, high = found.low[i], found.high[i]
        row["tier"] = tier
        row["separated"] = bool(found.better[0, i])
        if low is not None and high is not None:
            row |= {"rank_low": min(low, row["rank"]), "rank_high": max(high, row["rank"])}
        if i == 0 or tier > rows[i - 1]["tier"]:
            first = i
        elif (z := float(found.z[first, i])) > 0:
            n = min(len(values[first]), len(values[i]))
            needed = st.seeds_needed(z, n, pairs)
            row["more_seeds"] = None if needed is None else max(1, needed - n)


def _scores(groups: Sequence[Group]) -> list[st.Floats]:
    """Return one number per run, smaller is better: by steps, misses by their best value.

    An open run is worse than all runs that reached the target before it ended, and in the middle of the others.
    """
    steps = np.concatenate([np.where(group.reached, group.steps, math.inf) for group in groups])
    losses = np.concatenate([np.where(group.reached, -math.inf, group.losses) for group in groups])
    losses = np.where(np.isnan(losses), math.inf, losses)
    _, codes = np.unique(np.column_stack([steps, losses]), axis=0, return_inverse=True)
    scores = codes.reshape(-1).astype(float)
    is_open = np.concatenate([group.open for group in groups])
    if is_open.any():
        ends = np.concatenate([group.steps for group in groups])
        worst = scores.max() + 1
        for index in np.flatnonzero(is_open):
            earlier = scores[~is_open & (steps <= ends[index])]
            scores[index] = ((earlier.max() if len(earlier) else -1) + worst) / 2
    return np.split(scores, np.cumsum([len(group.reached) for group in groups])[:-1])


def _with_profile(table: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Add the score of each policy's performance profile if there are several workloads."""
    workload = [key for key in keys if key in ("dataset", "model")]
    others = [key for key in keys if key not in workload]
    if not workload or not others or table.select(workload).unique().height < 2:
        return table
    costs: dict[tuple[Any, ...], dict[tuple[Any, ...], float]] = {}
    for row in table.to_dicts():
        steps = row["median_steps"]
        name, where = tuple(row[key] for key in others), tuple(row[key] for key in workload)
        costs.setdefault(name, {})[where] = math.inf if steps is None else steps
    workloads = sorted({where for cost in costs.values() for where in cost}, key=str)
    names = {str(number): name for number, name in enumerate(costs)}
    profile = st.performance_profile(
        {number: [costs[name].get(where, math.inf) for where in workloads] for number, name in names.items()}
    )
    scores = {name: profile.scores[number] for number, name in names.items()}
    column = [scores[tuple(row[key] for key in others)] for row in table.to_dicts()]
    return table.with_columns(pl.Series("profile", column))


def _schema(
    runs: pl.DataFrame, keys: Sequence[str], metric: Metric, has_baseline: bool, utility: str
) -> dict[str, pl.DataType | type[pl.DataType]]:
    """Return the columns of a ranking and their types."""
    columns: dict[str, pl.DataType | type[pl.DataType]] = dict.fromkeys(
        ("rank", "rank_low", "rank_high", "tier"), pl.Int64
    )
    columns |= {key: runs.schema[key] for key in keys}
    columns["runs"] = pl.Int64
    if metric == "cost":
        columns |= dict.fromkeys(("reached", "open"), pl.Int64)
        names = [*with_interval("share"), *with_interval("median_steps"), "expected_steps"]
        names += ["best_value", *TESTED]
        names += [*with_interval("speed_up"), "log_rank_p"] if has_baseline else []
    elif metric == "utility":
        names = [*with_interval(utility), *UTILITY]
    else:
        names = [*with_interval("loss_difference"), "cdac", "accuracy_spread"]
    columns |= dict.fromkeys(names, pl.Float64)
    return columns | dict.fromkeys(("more_seeds", "diverged", *UNCOUNTED), pl.Int64) | {"separated": pl.Boolean}


def equal_policies(runs: pl.DataFrame) -> list[list[str]]:
    """Return groups of policy names with the same rates over the budget.

    Example:
        >>> equal_policies(pl.DataFrame({"policy": ["fix", "step", "tri"], "policy_id": ["x", "x", "y"]}))
        [['fix', 'step']]
    """
    known = runs.drop_nulls("policy_id")
    names = known.group_by("policy_id").agg(pl.col("policy").unique().sort())["policy"].to_list()
    return sorted(list(group) for group in names if len(group) > 1)
