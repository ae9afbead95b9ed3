"""Figure of a ranking: steps to the target and ranks, with intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from lrbench_pl.analysis.plots._shared import COLOURS, finished, name_of, plain_text

_WHISKER = {"type": "data", "thickness": 2, "width": 3}


@dataclass(frozen=True)
class Place:
    """One row of the ranking; missing values are None.

    Args:
        name: Name of the policy.
        steps: Median steps to the target, infinite if half of the runs or more missed.
        low: Lower end of its interval.
        high: Upper end of its interval, possibly infinite.
        reached: Number of runs that reached the target.
        runs: Number of runs.
        rank: Rank.
        rank_low: Lower end of the rank interval.
        rank_high: Upper end of the rank interval.
        tier: Tier, from 1.
    """

    name: str
    steps: float | None
    low: float | None
    high: float | None
    reached: int
    runs: int
    rank: int
    rank_low: int | None
    rank_high: int | None
    tier: int | None


@dataclass(frozen=True)
class RankingInfo:
    """A ranking, best first.

    Args:
        places: Its rows.
        budget: Steps at which a miss is drawn.
    """

    places: tuple[Place, ...]
    budget: float


def ranking_info(ranking: pl.DataFrame, keys: Sequence[str], budget: float) -> RankingInfo | None:
    """Return the rows of a ranking by cost; None if all runs failed or stopped.

    Args:
        ranking: From :func:`lrbench_pl.analysis.ranking.rank`.
        keys: Columns that group the runs.
        budget: Steps of a full run.
    """
    places = tuple(
        Place(
            name=name_of([row[key] for key in keys]),
            steps=row["median_steps"],
            low=row["median_low"],
            high=row["median_high"],
            reached=row["reached"],
            runs=row["runs"],
            rank=row["rank"],
            rank_low=row["rank_low"],
            rank_high=row["rank_high"],
            tier=row["tier"],
        )
        for row in ranking.to_dicts()
        if row["runs"]
    )
    return RankingInfo(places, budget) if places else None


def ranking_figure(info: RankingInfo) -> go.Figure:
    """Draw median steps, runs that reached the target, and ranks, with intervals and one colour per tier."""
    figure = make_subplots(cols=3, shared_yaxes=True, horizontal_spacing=0.02, column_widths=[0.56, 0.1, 0.34])
    names = [plain_text(place.name) for place in info.places]
    tiers = list(dict.fromkeys(place.tier or 0 for place in info.places))
    for tier in tiers:
        places = [place for place in info.places if (place.tier or 0) == tier]
        colour = COLOURS[tiers.index(tier) % len(COLOURS)]
        label = f"tier {tier}" if tier else "no tier"
        _add_intervals(
            figure,
            [plain_text(place.name) for place in places],
            [(place.steps, place.low, place.high) for place in places],
            colour,
            label,
            info.budget,
            [f"{place.reached}/{place.runs} reached" for place in places],
            column=1,
            is_whole=[place.reached == place.runs for place in places],
        )
        ranks = [(place.rank, place.rank_low, place.rank_high) for place in places]
        words = ["rank" if place.rank_low is not None else "rank, too few runs for an interval" for place in places]
        _add_intervals(
            figure, [plain_text(place.name) for place in places], ranks, colour, label, math.inf, words, column=3
        )
        marker = {"color": colour, "size": 9, "symbol": "circle"}  # of the legend: the first policy may have another
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=label, legendgroup=label)
    figure.add_scatter(
        x=[0.5] * len(names),
        y=names,
        mode="text",
        text=[_share(place) for place in info.places],
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=2,
    )
    for number, (above, below) in enumerate(itertools.pairwise(info.places)):
        if above.tier != below.tier:
            figure.add_hline(y=number + 0.5, line={"color": "#888888", "width": 1, "dash": "dot"})
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=names, range=[len(names) - 0.4, -0.6], showgrid=False
    )
    figure.update_xaxes(side="top", nticks=5)
    figure.update_xaxes(title_text="median steps", range=[0, 1.04 * info.budget], row=1, col=1)
    figure.update_xaxes(
        title_text="reached", range=[0, 1], tickvals=[0.5], ticktext=[" "], showgrid=False, row=1, col=2
    )
    figure.update_xaxes(title_text="rank", range=[0, len(names) + 1], row=1, col=3)
    figure.update_layout(meta={"rows": len(names), "names": names})
    return finished(figure, 110 + 22 * len(names) + 24, legend=True)


def _share(place: Place) -> str:
    """Return the runs that reached the target over all, in bold if some missed it.

    Example:
        >>> _share(Place("tri", 90.0, None, None, 4, 5, 1, None, None, 1))
        '<b>4/5</b>'
    """
    share = f"{place.reached}/{place.runs}"
    return share if place.reached == place.runs else f"<b>{share}</b>"


def _add_intervals(
    figure: go.Figure,
    names: Sequence[str],
    estimates: Sequence[tuple[float | None, float | None, float | None]],
    colour: str,
    label: str,
    edge: float,
    words: Sequence[str],
    column: int,
    is_whole: Sequence[bool] = (),
) -> None:
    """Add dots with whiskers, open where ``is_whole`` is false; an infinite value is a cross at ``edge``."""
    x: list[float] = []
    y: list[str] = []
    symbols, above, below, hover = [], [], [], []
    whole = is_whole or [True] * len(names)
    for name, (value, low, high), word, full in zip(names, estimates, words, whole, strict=True):
        if value is None:
            continue
        dot = min(value, edge)
        x.append(dot)
        y.append(name)
        symbols.append("x-thin-open" if math.isinf(value) else "circle" if full else "circle-open")
        above.append(0.0 if high is None else max(0.0, min(high, edge) - dot))
        below.append(0.0 if low is None else max(0.0, dot - min(low, edge)))
        hover.append([f"{value:g}" if math.isfinite(value) else "∞", _interval(low, high), word])
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers",
        marker={"color": colour, "size": 9, "symbol": symbols, "line": {"color": colour, "width": 2}},
        error_x={"symmetric": False, "array": above, "arrayminus": below, **_WHISKER, "color": colour},
        customdata=hover,
        hovertemplate="%{y}: %{customdata[0]}%{customdata[1]}, %{customdata[2]}<extra></extra>",
        name=label,
        legendgroup=label,
        showlegend=False,
        row=1,
        col=column,
    )


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f" [{low:g} to {high:g}]" if math.isfinite(high) else f" [{low:g} to ∞]" if math.isfinite(low) else " [∞]"
