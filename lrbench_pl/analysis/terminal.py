"""Fit a table into the width of a terminal and draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import polars as pl
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lrbench_pl.analysis.columns import Column

_GAP = 2  # characters between columns
_NAME = 24  # width of a name before other columns are dropped to make room for it
_SHORT_NAME = 12  # ... before intervals are left out
_SHORTEST_NAME = 8  # names are never narrower

Sized = list[tuple[Column, int]]  # columns with their widths


def fitted(columns: Sequence[Column], width: int) -> tuple[Sized, list[str]]:
    """Drop columns, fold names and leave out intervals until the table fits, and choose the widths.

    Returns:
        The columns with their widths, and what was left out.
    """
    kept, left_out = list(columns), []
    while _room(_least_widths(kept, _NAME), width) < 0 and any(column.drop_order for column in kept):
        kept.remove(dropped := max(kept, key=lambda column: column.drop_order))
        left_out.append(dropped)
    titles = [column.title for column in columns if column in left_out]
    for index, column in enumerate(kept):
        if _room(_least_widths(kept, _SHORT_NAME), width) < 0 and column.short is not None:
            kept[index] = replace(column, cells=column.short)
            titles.append(f"intervals of {column.title}")
    widths = _least_widths(kept, _NAME)
    for least in (_least_widths(kept, _SHORT_NAME), [_SHORTEST_NAME] * len(kept)):
        _shrink_names(kept, widths, least, width)
    _use_room(kept, widths, width)
    return list(zip(kept, widths, strict=True)), titles


def _least_widths(columns: Sequence[Column], name: int) -> list[int]:
    """Return the widths with titles broken between words, and names folded to a width or that of their title."""
    return [max(column.title_width, min(column.width, name)) if column.is_name else column.width for column in columns]


def _room(widths: Sequence[int], width: int) -> int:
    return width - sum(widths) - _GAP * (len(widths) - 1)


def _shrink_names(columns: Sequence[Column], widths: list[int], least: Sequence[int], width: int) -> None:
    """Fold names, the widest first, until the table fits or all have the least width."""
    while _room(widths, width) < 0:
        wide = [i for i, column in enumerate(columns) if column.is_name and widths[i] > least[i]]
        if not wide:
            return
        widths[max(wide, key=lambda i: widths[i])] -= 1


def _use_room(columns: Sequence[Column], widths: list[int], width: int) -> None:
    """Widen names, then columns whose title would break."""
    for index in sorted(range(len(columns)), key=lambda i: not columns[i].is_name):
        wanted = max(columns[index].width, cell_len(columns[index].title)) - widths[index]
        room = _room(widths, width)
        if columns[index].is_name:
            widths[index] += max(0, min(wanted, room))
        elif wanted <= room:
            widths[index] += wanted


def draw(columns: Sized, ranking: pl.DataFrame) -> str:
    """Draw the table, with an empty line between tiers and between the rankings of several tasks."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column, width in columns:
        table.add_column(column.title, justify="left" if column.is_name else "right", overflow="fold", width=width)
    ranks = ranking["rank"] if "rank" in ranking.columns else [0] * ranking.height  # a listing has none
    places = list(zip(ranking["tier"], ranks, strict=True))
    for index, row in enumerate(zip(*(column.cells for column, _ in columns), strict=True)):
        here, below = places[index], places[min(index + 1, len(places) - 1)]
        ends = here[0] != below[0] or here[1] > below[1]
        table.add_row(*[escape(cell) for cell in row], end_section=ends)
    console = Console(width=sum(width for _, width in columns) + (_GAP + 1) * len(columns))
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
