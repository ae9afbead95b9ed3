"""Summarise a policy database as a table: one row per policy and task."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from lrbench_pl.analysis.ranking import rank
from lrbench_pl.runs.spec import UNSET, canonical, differing, of_task, shown
from lrbench_pl.words import counted

_TASK = {
    "dataset": pl.String,
    "model": pl.String,
    "optimizer": pl.String,
    "batch_size": pl.Int64,
    "max_steps": pl.Int64,
    "target": pl.Float64,
    "monitor": pl.String,
    "mode": pl.String,
    "check_on": pl.String,
    "confirmations": pl.Int64,
    "settings": pl.String,
}

_RUN = {
    "policy": pl.String,
    "policy_id": pl.String,
    "lr": pl.Float64,
    "status": pl.String,
    "seed": pl.Int64,
    "steps_to_target": pl.Int64,
    "best_value": pl.Float64,
    "test_value": pl.Float64,
    "test_accuracy": pl.Float64,
}


def listing(results: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Rank the policies of each task; a seed counts once.

    Args:
        results: Results as :meth:`lrbench_pl.runs.result.RunResult.to_dict` returns them.

    Returns:
        One row per policy and task, with the columns of the task, ``policy``, ``lr`` and those of
        :func:`lrbench_pl.analysis.ranking.rank`. Ranks are within the task. ``settings`` contains only settings that
        distinguish tasks which are equal otherwise.

    Example:
        >>> result = {"dataset": "digits", "model": "mlp", "optimizer": "momentum", "batch_size": 64, "max_steps": 100,
        ...     "target": 0.9, "policy": "tri", "status": "reached", "seed": 0, "steps_to_target": 40}
        >>> table = listing([result, {**result, "seed": 1, "steps_to_target": 60}, result])
        >>> table.select("policy", "runs", "median_steps").rows()
        [('tri', 2, 50.0)]
    """
    schema = _TASK | _RUN
    rows = [{**result, "settings": _text(result.get("settings"))} for result in results]
    table = pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)
    table = table.with_columns(pl.col("mode").fill_null("max"))  # results of earlier versions do not contain it
    keys = [*_TASK, "policy", "lr", "policy_id"]
    ranked = rank(table.unique([*keys, "seed"], maintain_order=True, keep="first"), by=keys)
    return _with_differences(ranked).sort([*_TASK, "rank"], nulls_last=True, maintain_order=True).drop("policy_id")


def _text(settings: Mapping[str, Any] | None) -> str | None:
    return None if settings is None else canonical(of_task(settings))


def _with_differences(table: pl.DataFrame) -> pl.DataFrame:
    """Reduce the settings to those that distinguish tasks which are equal otherwise."""
    others = [name for name in _TASK if name != "settings"]
    parts = table.with_row_index("row").partition_by(others, maintain_order=True)
    words: dict[int, str | None] = {}
    for part in parts:
        texts = part["settings"].to_list()
        known = {text: json.loads(text) for text in texts if text is not None}
        keys = list(differing(known.values()))
        for row, text in zip(part["row"].to_list(), texts, strict=True):
            own = [f"{key}={shown(known[text].get(key, UNSET))}" for key in keys] if text is not None else []
            words[row] = ", ".join(own) or (None if text is not None or not known else "settings unknown")
    return table.with_columns(pl.Series("settings", [words[row] for row in range(table.height)], pl.String))


def sections(table: pl.DataFrame) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """Split the table of :func:`listing` by task; yield a heading, the monitor and the policies of each.

    Example:
        >>> result = {"dataset": "digits", "model": "mlp", "optimizer": "momentum", "batch_size": 64, "max_steps": 100,
        ...     "target": 0.9, "policy": "tri", "status": "missed", "seed": 0, "monitor": "val/accuracy"}
        >>> [heading for heading, monitor, rows in sections(listing([result]))]
        ['digits, mlp, momentum, batch 64: val/accuracy 0.9 within 100 steps']
    """
    for rows in table.partition_by(list(_TASK), maintain_order=True):
        task = rows.row(0, named=True)
        target = "no target" if task["target"] is None else f"{task['target']:g}"
        on = " (test)" if task["check_on"] == "test" else ""
        where = f"{task['dataset']}, {task['model']}, {task['optimizer']}, batch {task['batch_size']}"
        where += f", {task['settings']}" if task["settings"] else ""
        low = " (smaller is better)" if task["mode"] == "min" else ""
        confirmed = f" at {task['confirmations']} consecutive checks" if (task["confirmations"] or 1) > 1 else ""
        within = f"within {counted(task['max_steps'] or 0, 'step')}{low}"
        heading = f"{where}: {task['monitor']}{on} {target}{confirmed} {within}"
        yield heading, task["monitor"], rows.drop(list(_TASK))
