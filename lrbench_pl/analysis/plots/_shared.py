"""Shared parts of the figures: groups of runs, curves, colours, layout."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import polars as pl

COLOURS = ("#3576c4", "#d9822b", "#23936b", "#c9466b", "#8455c9", "#1797ad")  # readable on white and on dark
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")  # distinguishable without colour
GREY = "rgba(128,128,128,0.38)"
HIGHLIGHTED = len(COLOURS)  # curves with a colour; the others are grey until highlighted
_BAND = 0.16


@dataclass(frozen=True)
class Group:
    """The runs of one row of the ranking.

    Args:
        name: Its name, such as ``tri, adam``.
        runs: Table of its runs, without failed and stopped ones.
        variant: Number of groups of the same policy before it, such as those with other optimizers.
    """

    name: str
    runs: pl.DataFrame
    variant: int = 0


@dataclass(frozen=True)
class Line:
    """A curve.

    Args:
        name: Name of the group or policy.
        x: Optimizer steps, or learning rates.
        y: Values.
        low: Lower edge of the band around the curve.
        high: Upper edge of the band.
        variant: That of its group: lines of one policy may coincide, so each gets a dash of its own.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    variant: int = 0


def groups(runs: pl.DataFrame, ranking: pl.DataFrame, keys: Sequence[str]) -> list[Group]:
    """Return the groups of a ranking in its order, without those whose runs all failed or stopped.

    Args:
        runs: Table of :func:`lrbench_pl.analysis.load.load_runs`.
        ranking: Its ranking, from :func:`lrbench_pl.analysis.ranking.rank`.
        keys: Columns that group the runs.
    """
    counts = runs.filter(~pl.col("status").cast(pl.String).is_in(["failed", "stopped"]))
    parts = {tuple(key): part for key, part in counts.group_by(list(keys), maintain_order=True)}
    found = []
    seen: Counter[object] = Counter()
    for row in ranking.select(list(keys)).rows():
        if row in parts:
            policy = dict(zip(keys, row, strict=True)).get("policy", row)
            found.append(Group(name_of(row), parts[row], seen[policy]))
            seen[policy] += 1
    return found


def name_of(values: Sequence[object]) -> str:
    """Return the name of a group.

    Example:
        >>> name_of(["tri", "adam", 0.002])
        'tri, adam, 0.002'
    """
    return ", ".join(_text(value) for value in values)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)


def steps_and_hits(runs: pl.DataFrame) -> tuple[list[float], list[bool]]:
    """Return steps to the target (the budget for a miss) and whether each run reached it.

    Example:
        >>> steps_and_hits(pl.DataFrame({"status": ["reached", "missed"], "steps_to_target": [40, None],
        ...     "max_steps": [100, 100]}))
        ([40.0, 100.0], [True, False])
    """
    hits = [status == "reached" for status in runs["status"].to_list()]
    both = zip(runs["steps_to_target"].to_list(), runs["max_steps"].to_list(), hits, strict=True)
    return [float(steps if hit else budget or 0) for steps, budget, hit in both], hits


def plain_text(words: object) -> str:
    """Escape text for plotly, which interprets some HTML."""
    return html.escape(str(words), quote=False)


def add_lines(
    figure: go.Figure,
    lines: Sequence[Line],
    quantity: str,
    *,
    row: int | None = None,
    names: Sequence[str] | None = None,
    legend: bool = True,
    bands: bool = True,
    stairs: bool = False,
    markers: bool = False,
    highlighted: int = HIGHLIGHTED,
    axis: str = "steps",
) -> None:
    """Add curves in order of rank: the first in colour, the others in grey behind them with one legend entry."""
    place = {"row": row, "col": 1} if row is not None else {}
    order = list(names) if names is not None else [line.name for line in lines]
    coloured = min(len(order), highlighted)
    grey, others = sum(order.index(line.name) >= coloured for line in lines), 0
    # the best on top, but a dashed line above the solid one that it may coincide with
    for line in sorted(reversed(lines), key=lambda line: line.variant if order.index(line.name) < coloured else -1):
        number = order.index(line.name)
        is_coloured = number < coloured
        style = _style(number, is_coloured, line.variant) | {"shape": "hv" if stairs else "linear"}
        group = f"{number}" if is_coloured else "others"
        if is_coloured and bands and not stairs:
            _add_band(figure, line, number, place)
        others += not is_coloured
        figure.add_scatter(
            x=line.x,
            y=line.y,
            mode="lines+markers" if markers else "lines",
            line=style,
            name=plain_text(line.name) if is_coloured else f"the {grey} others",
            legendgroup=group,
            legendrank=1000 + number,
            showlegend=legend and (is_coloured or others == 1),
            meta={"group": number, "name": plain_text(line.name), "grey": not is_coloured},
            hovertemplate="%{meta.name}<br>%{x} "
            + axis
            + ": %{y:.4g} "
            + quantity.replace("%", "")
            + "<extra></extra>",
            **place,
        )


def _style(number: int, is_coloured: bool, variant: int) -> dict[str, object]:
    if not is_coloured:
        return {"color": GREY, "width": 1.2, "dash": "solid"}
    dash = DASHES[(number // len(COLOURS) + variant) % len(DASHES)]
    return {"color": COLOURS[number % len(COLOURS)], "width": 2.2, "dash": dash}


def _add_band(figure: go.Figure, line: Line, number: int, place: dict[str, int]) -> None:
    """Add the band around a curve, if it has one."""
    if line.low is None or line.high is None:
        return
    figure.add_scatter(
        x=[*line.x, *reversed(line.x)],
        y=[*line.high, *reversed(line.low)],
        fill="toself",
        fillcolor=_faint(COLOURS[number % len(COLOURS)]),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=f"{number}",
        showlegend=False,
        meta={"band": number},
        **place,
    )


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{_BAND})"


def add_target(figure: go.Figure, target: float, row: int) -> None:
    """Add a line at the target."""
    figure.add_hline(
        y=target,
        line={"dash": "dot", "width": 1.5, "color": "#888888"},
        annotation={"text": f"target {target:g}", "font": {"size": 11}},
        annotation_position="bottom right",
        row=row,
        col=1,
    )


def finished(figure: go.Figure, height: int, legend: bool = False) -> go.Figure:
    """Apply the layout that all figures share."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 8, "r": 12, "t": 12, "b": 8},
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13},
        showlegend=legend,
        legend={
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "x": 0,
            "xref": "container",
            "groupclick": "togglegroup",
        },
        hovermode="closest",
        hoverlabel={"namelength": -1},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)
    return figure
