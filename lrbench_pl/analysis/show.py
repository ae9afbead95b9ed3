"""A ranking for people and for programs."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Format = Literal["table", "csv", "json", "markdown"]
_COUNTS = ("diverged", "failed", "stopped")
_TITLES = {
    "rank": "",
    "median_steps": "median steps",
    "best_accuracy": "best acc.",
    "test_accuracy": "test acc.",
}


def render(ranking: pl.DataFrame, form: Format, width: int | None = None) -> str:
    """The ranking as text.

    Args:
        ranking: From :func:`lrbench_pl.analysis.ranking.rank`.
        form: ``table`` for a terminal, or ``csv``, ``json``, ``markdown``.
        width: Characters per line of the table; by default those of the terminal.

    Example:
        >>> ranking = pl.DataFrame({"rank": [1], "policy": ["tri"], "runs": [2], "reached": [2], "share": [1.0],
        ...     "median_steps": [240.0], "best_accuracy": [0.983], "test_accuracy": [None], "diverged": [0],
        ...     "failed": [0], "stopped": [0]})
        >>> print(render(ranking, "markdown"))
        |  | policy | reached | median steps | best acc. | test acc. |
        |---|---|---|---|---|---|
        | 1 | tri | 2/2 | 240 | 0.9830 | – |
    """
    if form == "csv":
        return ranking.write_csv().rstrip("\n")
    if form == "json":
        rows = [{name: _json(value) for name, value in row.items()} for row in ranking.to_dicts()]
        return json.dumps(rows, indent=2, allow_nan=False)
    names = _columns(ranking)
    titles = [_TITLES.get(name, name) for name in names]
    cells = [[_cell(name, row) for name in names] for row in ranking.to_dicts()]
    if form == "markdown":
        lines = [titles, ["---"] * len(titles), *[[cell.replace("|", "\\|") for cell in row] for row in cells]]
        return "\n".join(
            "|" + "|".join(line) + "|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines
        )
    table = Table(box=None, header_style="bold", pad_edge=False)
    text = {name for name, kind in ranking.schema.items() if kind == pl.String}
    for name, title in zip(names, titles, strict=True):
        table.add_column(title, justify="left" if name in text else "right", overflow="fold")
    for row in cells:
        table.add_row(*[escape(cell) for cell in row])
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _columns(ranking: pl.DataFrame) -> list[str]:
    """What a person wants to see: counts only where there is something to count."""
    hidden = {"runs", "share"} | {name for name in _COUNTS if not ranking[name].sum()}
    return [name for name in ranking.columns if name not in hidden]


def _cell(name: str, row: dict[str, Any]) -> str:
    value = row[name]
    if name == "reached":
        return f"{value}/{row['runs']}"
    if value is None:
        return "–"
    if name.endswith("accuracy") and name != "target_accuracy":
        return f"{value:.4f}"
    if isinstance(value, float):
        return "∞" if math.isinf(value) else f"{value:g}"
    return str(value)


def _json(value: Any) -> Any:
    """JSON knows no infinity: a median of misses is null, which ``share`` explains."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
