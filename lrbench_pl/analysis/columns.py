"""The columns of a ranking as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from rich.cells import cell_len

from lrbench_pl.words import clean, metric_title

MOST_SEEDS = 100  # a larger number of seeds to add is too uncertain to print
MISSING = "–"

_Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title: Its title, which may break between words.
        cells: Text of each row.
        is_name: Whether the cells are names: aligned to the left, and folded if the table is too narrow.
        drop_order: Columns with the largest number are dropped first if the table is too narrow; 0 is never dropped.
        short: Text of each row without the interval, for a table that is too narrow.
        values: Value of each row, to sort by; None where it is missing.
    """

    title: str
    cells: tuple[str, ...]
    is_name: bool = False
    drop_order: int = 0
    short: tuple[str, ...] | None = None
    values: tuple[Any, ...] = ()

    @property
    def title_width(self) -> int:
        """Width of the longest word of the title."""
        return max(map(cell_len, self.title.split()))

    @property
    def width(self) -> int:
        """Width at which no cell folds and no word of the title breaks."""
        return max(self.title_width, *map(cell_len, self.cells))


def group_keys(ranking: pl.DataFrame) -> list[str]:
    """Return the columns that identify the groups of a ranking."""
    names = ranking.columns
    return names[names.index("tier") + 1 : names.index("runs")]


def columns(ranking: pl.DataFrame, monitor: str | None) -> list[Column]:
    """Return the columns of a ranking for people, in order, without those that are empty."""
    rows = ranking.to_dicts()
    names = ranking.columns
    tiers = tuple(MISSING if row["tier"] is None else str(row["tier"]) for row in rows)
    found: list[Column | None] = [Column("tier", tiers, values=_values(rows, "tier"))]
    found.append(Column("rank", tuple(map(_rank, rows)), values=_values(rows, "rank")) if "rank" in names else None)
    for key in group_keys(ranking):
        cells = tuple(_number(key, row[key]) for row in rows)
        found.append(Column(clean(key), cells, ranking.schema[key] == pl.String, values=_values(rows, key)))
    best, tested = (f"{kind} {metric_title(monitor)}" for kind in ("best", "test"))
    if "reached" in names:
        found += _of_cost(rows, names, best, tested)
    elif "loss_difference" in names:
        found += _of_robustness(rows)
    else:
        found += _of_utility(rows, names, best, tested)
    more = tuple(more_seeds(row.get("more_seeds")) for row in rows)
    needed = Column("more seeds", more, drop_order=3, values=_values(rows, "more_seeds") if any(more) else ())
    found.append(needed if any(more) else None)
    found += [_counts(rows, name) for name in ("diverged", "failed", "stopped")]
    return [column for column in found if column is not None and any(cell != MISSING for cell in column.cells)]


def more_seeds(number: int | None) -> str:
    """Return the seeds to add as text; a large estimate is not printed exactly.

    Example:
        >>> more_seeds(7), more_seeds(16675), more_seeds(None)
        ('7', '> 100', '')
    """
    if number is None:
        return ""
    return str(number) if number <= MOST_SEEDS else f"> {MOST_SEEDS}"


def _of_cost(rows: Sequence[_Row], names: Sequence[str], best: str, tested: str) -> list[Column | None]:
    return [
        Column("reached", tuple(f"{row['reached']}/{row['runs']}" for row in rows), values=_values(rows, "reached")),
        _counts(rows, "open"),
        Column("share", tuple(map(_share, rows)), drop_order=5, values=_values(rows, "share"))
        if "share_low" in names
        else None,
        _interval(rows, "median steps", "median_steps", "median"),
        _interval(rows, "speed-up", "speed_up", "speed_up") if "speed_up" in names else None,
        _value(rows, "expected steps", "expected_steps", 4) if "expected_steps" in names else None,
        _value(rows, "profile", "profile") if "profile" in names else None,
        _value(rows, best, "best_value", 2),
        _value(rows, tested, "test_value", 1) if tested != "test acc." else None,
        _value(rows, "test acc.", "test_accuracy", 1),
    ]


def _of_utility(rows: Sequence[_Row], names: Sequence[str], best: str, tested: str) -> list[Column | None]:
    titles = {"accuracy": "accuracy", "test_value": tested, "best_value": best}
    main = next(name for name in titles if f"{name}_low" in names)
    return [
        _value(rows, "runs", "runs"),
        _interval(rows, titles[main], main, main),
        _value(rows, best, "best_value", 2) if main != "best_value" else None,
        _value(rows, "top 5", "test_top5", 3),
        Column("confidence", tuple(map(_confidence, rows)), drop_order=1, values=_values(rows, "confidence")),
    ]


def _of_robustness(rows: Sequence[_Row]) -> list[Column | None]:
    return [
        _value(rows, "runs", "runs"),
        _interval(rows, "loss test - train", "loss_difference", "loss_difference"),
        _value(rows, "CDAC", "cdac", 1),
        _value(rows, "acc. spread", "accuracy_spread", 2),
    ]


def _value(rows: Sequence[_Row], title: str, name: str, drop_order: int = 0) -> Column:
    cells = tuple(_number(name, row[name]) for row in rows)
    return Column(title, cells, drop_order=drop_order, values=_values(rows, name))


def _interval(rows: Sequence[_Row], title: str, name: str, stem: str) -> Column:
    cells = tuple(_with_interval(name, stem, row) for row in rows)
    short = tuple(_number(name, row[name]) for row in rows)
    return Column(title, cells, short=short if short != cells else None, values=_values(rows, name))


def _counts(rows: Sequence[_Row], name: str) -> Column | None:
    """Return a column of counts; None if all are 0."""
    if not any(row.get(name) for row in rows):
        return None
    return Column(name, tuple(str(row[name] or 0) for row in rows), values=_values(rows, name))


def _values(rows: Sequence[_Row], name: str) -> tuple[Any, ...]:
    return tuple(row[name] for row in rows)


def _rank(row: _Row) -> str:
    low, high = row["rank_low"], row["rank_high"]
    if low is None or (low == high == row["rank"]):
        return str(row["rank"])
    return f"{row['rank']} [{low}, {high}]"


def _share(row: _Row) -> str:
    if row["share"] is None:
        return MISSING
    interval = "" if row["share_low"] is None else f" [{row['share_low']:.2f}, {row['share_high']:.2f}]"
    return f"{row['share']:.2f}{interval}"


def _with_interval(name: str, stem: str, row: _Row) -> str:
    value, low, high = row[name], row[f"{stem}_low"], row[f"{stem}_high"]
    text = _number(name, value)
    if low is None or high is None or (low == high == value):
        return text
    return f"{text} [{_number(name, low)}, {_number(name, high)}]"


def _confidence(row: _Row) -> str:
    if row["confidence"] is None:
        return MISSING
    return f"{row['confidence']:.3f}" + (f" ± {row['confidence_std']:.3f}" if row["confidence_std"] is not None else "")


def _number(name: str, value: Any) -> str:
    if value is None:
        return MISSING
    if not isinstance(value, float) or isinstance(value, bool):
        return clean(str(value))
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if name.endswith(("accuracy", "top5", "spread", "best_value", "test_value")):
        return f"{value:.4f}"
    if name in ("loss_difference", "cdac"):
        return f"{value:.3f}"
    if name in ("speed_up", "profile"):
        return f"{value:.2f}"
    if name in ("median_steps", "expected_steps"):
        return f"{value:.0f}" if value >= 10 else f"{value:.3g}"
    return f"{value:g}"
