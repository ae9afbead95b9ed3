"""What the figures share: groups of runs, curves, colours, the finish."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import polars as pl

COLOURS = ("#3576c4", "#d9822b", "#23936b", "#c9466b", "#8455c9", "#1797ad")  # on white and on dark
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")  # told apart without colour too
GREY = "rgba(128,128,128,0.38)"
HIGHLIGHTED = len(COLOURS)  # curves with a colour; the others are grey until asked for
_BAND = 0.16


@dataclass(frozen=True)
class Group:
    """The runs of one row of the ranking.

    Args:
        name: What tells it from the others, such as ``tri, adam``.
        runs: The rows of its runs that count.
    """

    name: str
    runs: pl.DataFrame


@dataclass(frozen=True)
class Line:
    """One curve.

    Args:
        name: Whose it is.
        x: Optimizer steps.
        y: Its values.
        low: Lower edge of a band around it.
        high: Upper edge.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


def groups(runs: pl.DataFrame, ranking: pl.DataFrame, keys: Sequence[str]) -> list[Group]:
    """The groups of a ranking in its order, those without a run that counts left out.

    Args:
        runs: The table of :func:`lrbench_pl.analysis.load.load_runs`.
        ranking: What :func:`lrbench_pl.analysis.ranking.rank` made of it.
        keys: The columns that make a row of the ranking.
    """
    counts = runs.filter(~pl.col("status").cast(pl.String).is_in(["failed", "stopped"]))
    parts = {tuple(key): part for key, part in counts.group_by(list(keys), maintain_order=True)}
    found = []
    for row in ranking.select(list(keys)).rows():
        if row in parts:
            found.append(Group(name_of(row), parts[row]))
    return found


def name_of(values: Sequence[object]) -> str:
    """What a group is called.

    Example:
        >>> name_of(["tri", "adam", 0.002])
        'tri, adam, 0.002'
    """
    return ", ".join(_say(value) for value in values)


def _say(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)


def steps_and_hits(runs: pl.DataFrame) -> tuple[list[float], list[bool]]:
    """Steps to the target, or the budget for a miss; and whether each run reached it.

    Example:
        >>> steps_and_hits(pl.DataFrame({"status": ["reached", "missed"], "steps_to_target": [40, None],
        ...     "max_steps": [100, 100]}))
        ([40.0, 100.0], [True, False])
    """
    hits = [status == "reached" for status in runs["status"].to_list()]
    both = zip(runs["steps_to_target"].to_list(), runs["max_steps"].to_list(), hits, strict=True)
    return [float(steps if hit else budget or 0) for steps, budget, hit in both], hits


def plain_text(words: object) -> str:
    """Words as plotly shows them: it reads a little HTML."""
    return html.escape(str(words), quote=False)


def add_lines(
    figure: go.Figure,
    lines: Sequence[Line],
    what: str,
    *,
    row: int | None = None,
    names: Sequence[str] | None = None,
    legend: bool = True,
    bands: bool = True,
    stairs: bool = False,
    markers: bool = False,
    highlighted: int = HIGHLIGHTED,
) -> None:
    """Curves in order of rank: the first in colours, the others in grey behind them, as one entry of the legend."""
    place = {"row": row, "col": 1} if row is not None else {}
    order = list(names) if names is not None else [line.name for line in lines]
    coloured = len(lines) if len(lines) <= highlighted else highlighted
    shape = "hv" if stairs else "linear"
    others = 0
    for line in reversed(lines):  # the best on top
        number = order.index(line.name)
        loud = number < coloured
        colour = COLOURS[number % len(COLOURS)] if loud else GREY
        group = f"{number}" if loud else "others"
        if loud and bands and not stairs and line.low is not None and line.high is not None:
            figure.add_scatter(
                x=[*line.x, *reversed(line.x)],
                y=[*line.high, *reversed(line.low)],
                fill="toself",
                fillcolor=_faint(colour),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                legendgroup=group,
                showlegend=False,
                meta={"band": number},
                **place,
            )
        others += not loud
        figure.add_scatter(
            x=line.x,
            y=line.y,
            mode="lines+markers" if markers else "lines",
            line={
                "color": colour,
                "width": 2.2 if loud else 1.2,
                "dash": DASHES[number // len(COLOURS) % len(DASHES)] if loud else "solid",
                "shape": shape,
            },
            name=plain_text(line.name) if loud else f"the {len(lines) - coloured} others",
            legendgroup=group,
            legendrank=1000 + number,
            showlegend=legend and (loud or others == 1),
            meta={"group": number, "name": plain_text(line.name), "grey": not loud},
            hovertemplate="%{meta.name}<br>%{x} steps: %{y:.4g} " + what.replace("%", "") + "<extra></extra>",
            **place,
        )


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{_BAND})"


def add_target(figure: go.Figure, target: float, row: int) -> None:
    figure.add_hline(
        y=target,
        line={"dash": "dot", "width": 1.5, "color": "#888888"},
        annotation={"text": f"target {target:g}", "font": {"size": 11}},
        annotation_position="bottom right",
        row=row,
        col=1,
    )


def finished(figure: go.Figure, height: int, legend: bool = False) -> go.Figure:
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
