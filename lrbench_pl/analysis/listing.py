"""What a policy database knows, as a table: one row for each policy on each workload."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from lrbench_pl.analysis.ranking import rank
from lrbench_pl.runs.spec import UNSET, canonical, differing, of_task, shown
from lrbench_pl.words import counted

_WHAT = {
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

_OUTCOME = {
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


def listing(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """One row for each policy on each task, the best first; a seed counts once.

    Args:
        rows: Rows as :meth:`lrbench_pl.runs.result.RunResult.to_dict` gives them.

    Returns:
        Columns of the task, ``policy``, ``lr``, and those of :func:`lrbench_pl.analysis.ranking.rank`; the rank is that
        among the policies of its task. Of the settings only those that tell tasks apart which are alike in all else.

    Example:
        >>> row = {"dataset": "digits", "model": "mlp", "optimizer": "momentum", "batch_size": 64, "max_steps": 100,
        ...     "target": 0.9, "policy": "tri", "status": "reached", "seed": 0, "steps_to_target": 40}
        >>> table = listing([row, {**row, "seed": 1, "steps_to_target": 60}, row])
        >>> table.select("policy", "runs", "median_steps").rows()
        [('tri', 2, 50.0)]
    """
    schema = _WHAT | _OUTCOME
    known = [{**row, "settings": _text(row.get("settings"))} for row in rows]
    table = pl.DataFrame([{name: row.get(name) for name in schema} for row in known], schema=schema)
    table = table.with_columns(pl.col("mode").fill_null("max"))  # rows of before it was kept
    keys = [*_WHAT, "policy", "lr", "policy_id"]
    ranked = rank(table.unique([*keys, "seed"], maintain_order=True, keep="first"), by=keys)
    return _with_differences(ranked).sort([*_WHAT, "rank"], nulls_last=True, maintain_order=True).drop("policy_id")


def _text(settings: Mapping[str, Any] | None) -> str | None:
    return None if settings is None else canonical(of_task(settings))


def _with_differences(table: pl.DataFrame) -> pl.DataFrame:
    """Of the settings only those that tell tasks apart which are alike in all else."""
    others = [name for name in _WHAT if name != "settings"]
    parts = table.with_row_index("row").partition_by(others, maintain_order=True)
    said: dict[int, str | None] = {}
    for part in parts:
        texts = part["settings"].to_list()
        known = {text: json.loads(text) for text in texts if text is not None}
        keys = list(differing(known.values()))
        for row, text in zip(part["row"].to_list(), texts, strict=True):
            words = [f"{key}={shown(known[text].get(key, UNSET))}" for key in keys] if text is not None else []
            said[row] = ", ".join(words) or (None if text is not None or not known else "settings unknown")
    return table.with_columns(pl.Series("settings", [said[row] for row in range(table.height)], pl.String))


def sections(table: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """The table of :func:`listing` cut by workload and budget: a heading and the policies of each.

    Example:
        >>> row = {"dataset": "digits", "model": "mlp", "optimizer": "momentum", "batch_size": 64, "max_steps": 100,
        ...     "target": 0.9, "policy": "tri", "status": "missed", "seed": 0, "monitor": "val/accuracy"}
        >>> [heading for heading, rows in sections(listing([row]))]
        ['digits, mlp, momentum, batch 64: val/accuracy 0.9 within 100 steps']
    """
    for rows in table.partition_by(list(_WHAT), maintain_order=True):
        at = rows.row(0, named=True)
        target = "no target" if at["target"] is None else f"{at['target']:g}"
        on = " (test)" if at["check_on"] == "test" else ""
        where = f"{at['dataset']}, {at['model']}, {at['optimizer']}, batch {at['batch_size']}"
        where += f", {at['settings']}" if at["settings"] else ""
        low = " (smaller is better)" if at["mode"] == "min" else ""
        row = f" at {at['confirmations']} checks in a row" if (at["confirmations"] or 1) > 1 else ""
        within = f"within {counted(at['max_steps'] or 0, 'step')}{low}"
        yield f"{where}: {at['monitor']}{on} {target}{row} {within}", rows.drop(list(_WHAT))
