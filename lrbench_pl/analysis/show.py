"""Render a ranking as a table, CSV, JSON or Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import polars as pl
from rich.console import Console

from lrbench_pl.analysis.columns import Column, columns
from lrbench_pl.analysis.terminal import draw, fitted
from lrbench_pl.words import clean, spreadsheet_cell

Format = Literal["table", "csv", "json", "markdown"]
FORMATS: tuple[Format, ...] = get_args(Format)
MONITOR = "val/accuracy"  # of results that do not contain the monitor


def render(ranking: pl.DataFrame, form: Format, width: int | None = None, monitor: str | None = None) -> str:
    """Render a ranking as text.

    A table drops columns that do not fit its width, least important first, and lists them in a line below.

    Args:
        ranking: From :func:`lrbench_pl.analysis.ranking.rank` or :func:`lrbench_pl.analysis.listing.listing`.
        form: ``table`` for a terminal, or ``csv``, ``json``, ``markdown``.
        width: Width of the table in characters; by default that of the terminal.
        monitor: Name of the monitored metric for the titles; None if there are several (see :func:`the_monitor`).

    Example:
        >>> ranking = pl.DataFrame({"rank": [1], "rank_low": [1], "rank_high": [2], "tier": [1], "policy": ["tri"],
        ...     "runs": [5], "reached": [5], "median_steps": [240.0], "median_low": [220.0], "median_high": [300.0],
        ...     "best_value": [0.983], "test_accuracy": [0.97]})
        >>> print(render(ranking, "markdown", monitor="val/accuracy"))
        | tier | rank | policy | reached | median steps | best acc. | test acc. |
        |---|---|---|---|---|---|---|
        | 1 | 1 [1, 2] | tri | 5/5 | 240 [220, 300] | 0.9830 | 0.9700 |
    """
    if form in ("csv", "json"):
        return render_rows(ranking, form)
    if form == "markdown":
        return markdown(columns(ranking, monitor))
    width = width or Console().width
    text, left_out = render_table(ranking, width, monitor)
    return f"{text}\n\n{left_out_note(left_out, width)}" if left_out else text


def render_rows(table: pl.DataFrame, form: Literal["csv", "json"]) -> str:
    """Render any table for programs."""
    if form == "csv":
        return for_spreadsheets(table).write_csv().rstrip("\n")
    rows = [{name: _json(value) for name, value in row.items()} for row in table.to_dicts()]
    return json.dumps(rows, indent=2, allow_nan=False)


def render_table(ranking: pl.DataFrame, width: int | None = None, monitor: str | None = None) -> tuple[str, list[str]]:
    """Render a ranking as a table; return it with the titles of the columns that do not fit the width."""
    found = columns(ranking, monitor)
    kept, left_out = fitted(found, width or Console().width)
    return draw(kept, ranking), left_out


def left_out_note(titles: list[str], width: int | None = None) -> str:
    """Return the note that names the columns a table does not show, wrapped to a width.

    Example:
        >>> print(left_out_note(["share", "expected steps"], width=60))
        not shown: share, expected steps; use a wider terminal or
        --format csv
    """
    import textwrap

    text = f"not shown: {', '.join(titles)}; use a wider terminal or --format csv"
    return "\n".join(textwrap.wrap(text, width or Console().width, break_on_hyphens=False))


def for_spreadsheets(table: pl.DataFrame) -> pl.DataFrame:
    """Return a table for CSV: its text is safe to show, and no cell or title is a formula.

    Example:
        >>> for_spreadsheets(pl.DataFrame({"policy": ["=1+1", "tri"], "rank": [-1, 2]})).rows()
        [("'=1+1", -1), ('tri', 2)]
    """
    texts = [name for name, kind in table.schema.items() if kind == pl.String]
    cells = [
        pl.Series(name, [None if text is None else spreadsheet_cell(clean(text)) for text in table[name]], pl.String)
        for name in texts
    ]
    return table.with_columns(cells).rename({name: spreadsheet_cell(clean(name)) for name in table.columns})


def markdown(found: Sequence[Column]) -> str:
    """Render columns as a table in Markdown."""
    rows = [[column.title for column in found], *zip(*(column.cells for column in found), strict=True)]
    lines = [f"| {' | '.join(map(_markdown_cell, row))} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(found) + "|", *lines[1:]])


def _markdown_cell(text: str) -> str:
    r"""Return a cell that ends no column and is neither HTML nor a link.

    Example:
        >>> print(_markdown_cell("a|<b>[c](d)"))
        a\|&lt;b>[c\](d)
    """
    return text.replace("|", "\\|").replace("<", "&lt;").replace("](", "\\](")


def the_monitor(runs: pl.DataFrame) -> str | None:
    """Return the metric that all runs monitored; None if there are several.

    Results of earlier versions without it monitored the accuracy.

    Example:
        >>> the_monitor(pl.DataFrame({"monitor": ["val/loss", "val/loss"]})), the_monitor(pl.DataFrame({"seed": [0]}))
        ('val/loss', 'val/accuracy')
    """
    if "monitor" not in runs.columns:
        return MONITOR
    found = {monitor or MONITOR for monitor in runs["monitor"].to_list()}
    return found.pop() if len(found) == 1 else None


def _json(value: Any) -> Any:
    """Return None for an infinite number, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
