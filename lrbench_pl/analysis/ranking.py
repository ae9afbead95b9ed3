"""From a table of runs to a ranking of policies: tables in, tables out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import polars as pl

from lrbench_pl.analysis.load import AnalysisError

# What must agree for two runs to answer the same question.
_QUESTION = (
    "dataset",
    "model",
    "batch_size",
    "max_steps",
    "monitor",
    "check_on",
    "target_accuracy",
)


def default_keys(runs: pl.DataFrame) -> list[str]:
    """The columns that tell policies apart here: the policy, and optimizer and rate where they vary.

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


def check_comparable(runs: pl.DataFrame, keys: Sequence[str]) -> None:
    """Refuse to rank answers to different questions.

    Raises:
        AnalysisError: If the runs differ in workload, budget, monitor or target and ``keys`` do not separate them.

    Example:
        >>> check_comparable(pl.DataFrame({"max_steps": [100, 200]}), keys=["policy"])
        Traceback (most recent call last):
        ...
        lrbench_pl.analysis.load.AnalysisError: the runs differ in max_steps (100, 200), so one ranking of them would \
be wrong; separate them with --by policy,max_steps or give fewer folders
    """
    for column in _QUESTION:
        if column in keys or column not in runs.columns:
            continue
        values = runs[column].unique().sort().to_list()
        if len(values) > 1:
            shown = ", ".join(str(value) for value in values[:4]) + (", …" if len(values) > 4 else "")
            raise AnalysisError(
                f"the runs differ in {column} ({shown}), so one ranking of them would be wrong; "
                f"separate them with --by {','.join([*keys, column])} or give fewer folders"
            )


def rank(runs: pl.DataFrame, by: Sequence[str] | None = None) -> pl.DataFrame:
    """One row per policy: by share of runs that reached the target, then median steps to it, then best accuracy.

    A run that missed or diverged counts as infinitely many steps; one that failed or was stopped says nothing of the
    policy and is only counted. Groups without a run that counts stand last.

    Args:
        runs: The table of :func:`lrbench_pl.analysis.load.load_runs`.
        by: Columns that make a group; by default :func:`default_keys`.

    Returns:
        Columns ``rank``, those of ``by``, ``runs``, ``reached``, ``share``, ``median_steps`` (infinite: half of the
        runs or more missed; null: no run), ``best_accuracy`` and ``test_accuracy`` (medians), ``diverged``, ``failed``,
        ``stopped``. Equal policies share a rank.

    Raises:
        AnalysisError: If a column is unknown, or the runs cannot be compared.

    Example:
        >>> runs = pl.DataFrame({"policy": ["a", "a", "b"], "status": ["reached", "missed", "reached"], "lr": [0.1] * 3,
        ...     "optimizer": ["sgd"] * 3, "steps_to_target": [40, None, 60], "best_accuracy": [0.9, 0.8, 0.9],
        ...     "test_accuracy": [0.9, 0.8, 0.9]})
        >>> rank(runs).select("rank", "policy", "share", "median_steps").rows()
        [(1, 'b', 1.0, 60.0), (2, 'a', 0.5, inf)]
    """
    keys = list(by) if by is not None else default_keys(runs)
    for key in keys:
        if key not in runs.columns:
            raise AnalysisError(f"--by must name columns of the results ({', '.join(runs.columns)}), got {key!r}")
    status = pl.col("status").cast(pl.String)
    counts = ~status.is_in(["failed", "stopped"])
    check_comparable(runs.filter(counts), keys)
    steps = pl.when(status == "reached").then(pl.col("steps_to_target").cast(pl.Float64)).otherwise(math.inf)
    table = runs.group_by(keys, maintain_order=True).agg(
        counts.sum().alias("runs"),
        (status == "reached").sum().alias("reached"),
        steps.filter(counts).median().alias("median_steps"),
        pl.col("best_accuracy").filter(counts).median(),
        pl.col("test_accuracy").filter(counts).median(),
        *((status == name).sum().alias(name) for name in ("diverged", "failed", "stopped")),
    )
    table = table.with_columns(
        pl.when(pl.col("runs") > 0).then(pl.col("reached") / pl.col("runs")).alias("share"),
        pl.when(pl.col("runs") > 0).then(pl.col("median_steps")).alias("median_steps"),
    )
    order = ["share", "median_steps", "best_accuracy"]
    table = table.sort([*order, *keys], descending=[True, False, True, *([False] * len(keys))], nulls_last=True)
    places = pl.struct(order).rle_id()
    table = table.with_row_index("place", offset=1).with_columns(pl.col("place").min().over(places).alias("rank"))
    columns = ["rank", *keys, "runs", "reached", "share", "median_steps", "best_accuracy", "test_accuracy"]
    return table.select(*columns, "diverged", "failed", "stopped")


def equal_policies(runs: pl.DataFrame) -> list[list[str]]:
    """Groups of names whose rates over the budget are the same.

    Example:
        >>> equal_policies(pl.DataFrame({"policy": ["fix", "step", "tri"], "policy_id": ["x", "x", "y"]}))
        [['fix', 'step']]
    """
    known = runs.drop_nulls("policy_id")
    names = known.group_by("policy_id").agg(pl.col("policy").unique().sort())["policy"].to_list()
    return sorted(list(group) for group in names if len(group) > 1)
