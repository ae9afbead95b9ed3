"""Check that runs may be ranked together, and separate them by their settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from lrbench_pl.analysis.load import AnalysisError
from lrbench_pl.runs.spec import PARTS, canonical, differing, named, shown

# Columns of the task. Runs that differ in one of them are not comparable.
TASK_COLUMNS = (
    "dataset",
    "model",
    "batch_size",
    "max_steps",
    "monitor",
    "mode",
    "check_on",
    "target",
    "confirmations",
)
_SHOWN = 8  # names that a message lists

_Settings = dict[str, Any]


def check_comparable(runs: pl.DataFrame, keys: Sequence[str]) -> None:
    """Require that the runs of a ranking have one task, apart from the columns that group them.

    Args:
        runs: Table of :func:`lrbench_pl.analysis.load.load_runs`.
        keys: Columns that group the runs, including those added by :func:`with_settings`.

    Raises:
        AnalysisError: If the runs differ in workload, budget, monitor, target or settings, and ``keys`` does not
            separate them.

    Example:
        >>> check_comparable(pl.DataFrame({"max_steps": [100, 200]}), keys=["policy"])
        Traceback (most recent call last):
        ...
        lrbench_pl.analysis.load.AnalysisError: the runs differ in max_steps (100, 200) and cannot be ranked together; \
separate them with --by policy,max_steps or give fewer folders
    """
    for column in TASK_COLUMNS:
        if column in keys or column not in runs.columns:
            continue
        values = runs[column].unique().sort().to_list()
        if len(values) > 1:
            few = ", ".join(str(value) for value in values[:4]) + (", …" if len(values) > 4 else "")
            raise _not_comparable(f"{column} ({few})", [*keys, column])
    if "settings" in runs.columns and "settings" not in keys:
        _check_settings(runs, keys)


def _not_comparable(difference: str, by: Sequence[str]) -> AnalysisError:
    return AnalysisError(
        f"the runs differ in {difference} and cannot be ranked together; "
        f"separate them with --by {','.join(by)} or give fewer folders"
    )


def _check_settings(runs: pl.DataFrame, keys: Sequence[str]) -> None:
    """Require equal settings of all runs that are compared or pooled.

    Settings of the optimizer are compared among runs of one optimizer if it is one of the keys, since optimizers have
    different settings. The same holds for model and data set. Settings of the policy are compared within each policy.
    """
    parts = {prefix: name for prefix, name in PARTS.items() if name in runs.columns}
    names = sorted(set(parts.values()))
    settings_of = _parsed_settings(runs)
    known = {key for settings in settings_of.values() for key in settings}
    scope = [key for key in keys if key in (*TASK_COLUMNS, "precision") or key in known]
    distinct = runs.select(*dict.fromkeys([*scope, *names]), "settings").unique().drop_nulls("settings")
    if distinct["settings"].n_unique() < 2:
        return
    rows = [(row, settings_of[row["settings"]]) for row in distinct.to_dicts()]
    found: dict[str, list[Any]] = {}
    for prefix in (*parts, None):
        name = parts.get(prefix) if prefix is not None else None
        scopes = [*scope, *([name] if name is not None and (name in keys or name == "policy") else [])]
        for differ in _differences(rows, prefix, parts, scopes):
            if name is not None and name not in scopes and distinct[name].n_unique() > 1:
                found[name] = distinct[name].unique().sort().to_list()
                break
            for key, values in differ.items():
                found[key] = list({canonical(value): value for value in (*found.get(key, ()), *values)}.values())
    if found:
        raise _not_comparable(named(list(found.items())), [*keys, *found])


def _differences(
    rows: Sequence[tuple[Mapping[str, Any], _Settings]],
    prefix: str | None,
    parts: Mapping[str, str],
    scopes: Sequence[str],
) -> Iterator[dict[str, list[Any]]]:
    """Yield the settings below a prefix that differ within a group of rows, with their values."""
    groups: dict[tuple[Any, ...], list[_Settings]] = {}
    for row, settings in rows:
        inside = {key: value for key, value in settings.items() if _prefix_of(key, parts) == prefix}
        groups.setdefault(tuple(row[key] for key in scopes), []).append(inside)
    for group in groups.values():
        if differ := differing(group):
            yield differ


def _prefix_of(key: str, parts: Mapping[str, str]) -> str | None:
    return next((prefix for prefix in parts if key.startswith(prefix)), None)


def _parsed_settings(runs: pl.DataFrame) -> dict[str, _Settings]:
    """Return the parsed settings of the runs by their JSON text."""
    if "settings" not in runs.columns:
        return {}
    return {text: json.loads(text) for text in runs["settings"].drop_nulls().unique(maintain_order=True)}


def setting_names(runs: pl.DataFrame) -> set[str]:
    """Return the names of all settings of the runs."""
    return {key for settings in _parsed_settings(runs).values() for key in settings}


def with_settings(runs: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Add a column for each key that is a setting of the runs, such as ``optimizer.weight_decay``.

    Numbers stay numbers, other values become text. A run without the setting has null.

    Raises:
        AnalysisError: If a key is neither a column nor a setting.

    Example:
        >>> runs = pl.DataFrame({"settings": ['{"model.width": 0.1}', '{"model.width": 0}', None]})
        >>> with_settings(runs, ["model.width"])["model.width"].to_list()
        [0.1, 0.0, None]
    """
    missing = [key for key in keys if key not in runs.columns]
    if not missing:
        return runs
    settings = _parsed_settings(runs)
    texts = runs["settings"].to_list() if settings else [None] * runs.height
    known = sorted({key for each in settings.values() for key in each})
    for key in missing:
        if key not in known:
            columns = ", ".join(name for name in runs.columns if name != "settings")
            few = ", ".join(known[:_SHOWN]) + (", …" if len(known) > _SHOWN else "")
            more = f" or settings of the runs ({few})" if known else ""
            raise AnalysisError(f"--by must name columns of the results ({columns}){more}, got {key!r}")
    return runs.with_columns(_column(key, [settings.get(text or "", {}).get(key) for text in texts]) for key in missing)


def _column(name: str, values: Sequence[Any]) -> pl.Series:
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in present):
        kind = pl.Int64 if all(isinstance(value, int) for value in present) else pl.Float64
        return pl.Series(name, values, kind, strict=False)
    return pl.Series(name, [None if value is None else shown(value) for value in values], pl.String)
