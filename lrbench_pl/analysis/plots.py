"""The figures of reports. What they show is computed by ``*_info`` functions; ``*_figure`` functions only draw it.

Colours of text, grid and background are left to the template, so that a page can change them for the dark.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from lrbench_pl.analysis import curves, statistics
from lrbench_pl.analysis.curves import Band, History

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


# -- the ranking --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """One row of the ranking. What the runs do not say is None.

    Args:
        name: The policy.
        steps: Median steps to the target, infinite if half of the runs or more missed.
        low: Lower end of its interval.
        high: Upper end, may be infinite.
        reached: Runs that reached the target.
        runs: Runs that count.
        rank: Its rank.
        rank_low: The best rank that the runs allow.
        rank_high: The worst.
        tier: Its tier, from 1.
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
        target: The target, or None if there was none: then steps say nothing.
    """

    places: tuple[Place, ...]
    budget: float
    target: float | None


def ranking_info(ranking: pl.DataFrame, keys: Sequence[str], budget: float, target: float | None) -> RankingInfo | None:
    """What the figure of a ranking by cost shows; None without a row that counts.

    Args:
        ranking: From :func:`lrbench_pl.analysis.ranking.rank`.
        keys: The columns that make its rows.
        budget: Steps up to which runs were watched.
        target: The target.
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
    return RankingInfo(places, budget, target) if places else None


def ranking_figure(info: RankingInfo) -> go.Figure:
    """Steps with their interval on the left, the rank with its on the right; a colour and a line for each tier."""
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.04, column_widths=[0.62, 0.38])
    tiers = list(dict.fromkeys(place.tier or 0 for place in info.places))
    for tier in tiers:
        places = [place for place in info.places if (place.tier or 0) == tier]
        colour = COLOURS[tiers.index(tier) % len(COLOURS)]
        label = f"tier {tier}" if tier else "no tier"
        _add_intervals(
            figure,
            [_text(place.name) for place in places],
            [(place.steps, place.low, place.high) for place in places],
            colour,
            label,
            info.budget,
            [f"{place.reached}/{place.runs} reached" for place in places],
            column=1,
        )
        ranks = [(place.rank, place.rank_low, place.rank_high) for place in places]
        words = ["rank" if place.rank_low is not None else "rank, too few runs for an interval" for place in places]
        _add_intervals(figure, [_text(place.name) for place in places], ranks, colour, label, math.inf, words, column=2)
    names = [_text(place.name) for place in info.places]
    for number, (above, below) in enumerate(itertools.pairwise(info.places)):
        if above.tier != below.tier:
            figure.add_hline(y=number + 0.5, line={"color": "#888888", "width": 1, "dash": "dot"})
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=names, range=[len(names) - 0.4, -0.6], showgrid=False
    )
    figure.update_xaxes(
        title_text="median steps to the target", range=[0, 1.04 * info.budget], side="top", row=1, col=1
    )
    figure.update_xaxes(title_text="rank", range=[0, len(names) + 1], side="top", row=1, col=2)
    figure.update_layout(meta={"rows": len(names)})
    return _finished(figure, 110 + 22 * len(names) + 24, legend=True)


def _add_intervals(
    figure: go.Figure,
    names: Sequence[str],
    estimates: Sequence[tuple[float | None, float | None, float | None]],
    colour: str,
    label: str,
    edge: float,
    words: Sequence[str],
    column: int,
) -> None:
    """Dots with whiskers; what is infinite is an open mark at ``edge``."""
    x: list[float] = []
    y: list[str] = []
    symbols, above, below, said = [], [], [], []
    for name, (value, low, high), word in zip(names, estimates, words, strict=True):
        if value is None:
            continue
        dot = min(value, edge)
        x.append(dot)
        y.append(name)
        symbols.append("circle" if math.isfinite(value) else "x-thin-open")
        above.append(0.0 if high is None else max(0.0, min(high, edge) - dot))
        below.append(0.0 if low is None else max(0.0, dot - min(low, edge)))
        said.append([f"{value:g}" if math.isfinite(value) else "∞", _interval(low, high), word])
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers",
        marker={"color": colour, "size": 9, "symbol": symbols},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": above,
            "arrayminus": below,
            "color": colour,
            "thickness": 2,
            "width": 3,
        },
        customdata=said,
        hovertemplate="%{y}: %{customdata[0]}%{customdata[1]}, %{customdata[2]}<extra></extra>",
        name=label,
        legendgroup=label,
        showlegend=column == 1,
        row=1,
        col=column,
    )


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f" [{low:g} to {high:g}]" if math.isfinite(high) else f" [{low:g} to ∞]" if math.isfinite(low) else " [∞]"


# -- accuracy and rate over steps ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class CourseInfo:
    """How accuracy and rate went.

    Args:
        accuracy: Median and band of each policy over the checks, in order of rank.
        rate: The rate of each policy, of the run that went on longest, on the same steps.
        target: The target, or None.
        monitor: What was checked.
        relative: Whether rates are shares of the peak, because the peaks differ.
        unread: Runs whose history could not be read.
    """

    accuracy: tuple[Line, ...]
    rate: tuple[Line, ...]
    target: float | None
    monitor: str
    relative: bool
    unread: int


def course_info(grouped: Sequence[Group], target: float | None, monitor: str) -> CourseInfo | None:
    """Read the histories and summarise them; None if there are none."""
    accuracy, rate, unread = [], [], 0
    peaks = {lr for group in grouped for lr in group.runs["lr"].to_list()}
    relative = len(peaks) > 1
    for group in grouped:
        read = [curves.read_history(folder, monitor) for folder in group.runs["folder"].to_list()]
        histories = [history for history in read if history is not None]
        unread += len(read) - len(histories)
        if not histories:
            continue
        accuracy.append(_band_line(group.name, curves.band(histories)))
        longest = max(histories, key=lambda history: history.rate_steps[-1:] or (0,))
        peak = group.runs["lr"].to_list()[0] if relative else None
        rate.append(_rate_line(group.name, longest, peak))
    if not accuracy:
        return None
    shown = tuple(line for line in rate if line.x)
    return CourseInfo(tuple(accuracy), shown, target, monitor, relative, unread)


def _band_line(name: str, band: Band) -> Line:
    steps, median = curves.thin(band.steps, band.median)
    low, high = (curves.thin(band.steps, edge)[1] for edge in (band.low, band.high))
    return Line(name, steps, median, *((low, high) if band.runs > 1 else (None, None)))


def _rate_line(name: str, history: History, peak: float | None) -> Line:
    steps, rates = curves.thin(history.rate_steps, history.rates)
    return Line(name, steps, tuple(float(f"{rate / (peak or 1.0):.5g}") for rate in rates))


def course_figure(info: CourseInfo) -> go.Figure:
    """Accuracy above, the learning rate below, on one axis of steps."""
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.62, 0.38])
    _add_lines(figure, info.accuracy, info.monitor, row=1)
    _add_lines(figure, info.rate, "rate", row=2, names=[line.name for line in info.accuracy], legend=False)
    if info.target is not None:
        _target_line(figure, info.target, row=1)
    figure.update_yaxes(title_text=html.escape(info.monitor), range=_upper_range(info), row=1, col=1)
    figure.update_yaxes(
        title_text="rate / peak" if info.relative else "learning rate", rangemode="tozero", row=2, col=1
    )
    figure.update_xaxes(title_text="optimizer steps", row=2, col=1)
    return _finished(figure, 620, legend=True)


def _upper_range(info: CourseInfo) -> list[float] | None:
    """Without the first steep rise, in which all are alike: what is worth seeing is near the top."""
    last = max(line.x[-1] for line in info.accuracy)
    later = [y for line in info.accuracy for x, y in zip(line.x, line.y, strict=True) if x >= 0.06 * last]
    edges = [edge for line in info.accuracy[:HIGHLIGHTED] for edge in (line.high or line.y)[len(line.x) // 4 :]]
    values = sorted([*later, *edges, *([info.target] if info.target is not None else [])])
    if len(values) < 3 or (info.target is not None and values[-1] > 1):
        return None
    low, high = values[len(values) // 50], values[-1]  # the lowest of policies that never learn may be cut
    margin = 0.06 * (high - low) or 0.01
    return [low - margin, high + margin]


# -- who has arrived ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArrivalsInfo:
    """Share of runs that have reached the target, over steps.

    Args:
        lines: One per policy, with the Kaplan-Meier interval.
        budget: Steps up to which runs were watched.
        target: The target.
    """

    lines: tuple[Line, ...]
    budget: int
    target: float


def arrivals_info(grouped: Sequence[Group], target: float | None) -> ArrivalsInfo | None:
    """The Kaplan-Meier curves, turned upwards; None without a target or a run that reached it."""
    if target is None or not any((group.runs["status"] == "reached").any() for group in grouped):
        return None
    budget = max(int(group.runs["max_steps"].max()) for group in grouped)  # type: ignore[arg-type]
    lines = []
    for group in grouped:
        curve = statistics.kaplan_meier(*steps_and_hits(group.runs))
        steps, arrived = [0.0, *curve.steps], [0.0, *(1 - each for each in curve.survival)]
        low, high = [0.0, *(1 - each for each in curve.high)], [0.0, *(1 - each for each in curve.low)]
        if steps[-1] < budget:
            for values in (arrived, low, high):
                values.append(values[-1])
            steps.append(float(budget))
        rounded = [tuple(round(each, 5) for each in values) for values in (arrived, low, high)]
        lines.append(Line(group.name, tuple(steps), *rounded))
    return ArrivalsInfo(tuple(lines), budget, target)


def arrivals_figure(info: ArrivalsInfo) -> go.Figure:
    """Stairs that rise as runs arrive."""
    figure = go.Figure()
    _add_lines(figure, info.lines, "arrived", stairs=True)
    figure.update_yaxes(title_text="share of runs at the target", range=[-0.02, 1.04], tickformat=".0%")
    figure.update_xaxes(title_text="optimizer steps", range=[0, info.budget])
    return _finished(figure, 430, legend=True)


# -- policy x optimizer -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeatInfo:
    """Mean steps of each policy with each optimizer, a miss counted as the whole budget.

    Args:
        policies: Rows, the best first.
        optimizers: Columns, the best first.
        steps: Restricted mean; None where nothing ran.
        words: What each cell says.
    """

    policies: tuple[str, ...]
    optimizers: tuple[str, ...]
    steps: tuple[tuple[float | None, ...], ...]
    words: tuple[tuple[str, ...], ...]


def heat_info(runs: pl.DataFrame) -> HeatInfo | None:
    """Restricted mean steps by policy and optimizer; None for one optimizer, one policy or no target."""
    counts = runs.filter(~pl.col("status").cast(pl.String).is_in(["failed", "stopped"]))
    counts = counts.drop_nulls(["policy", "optimizer", "max_steps", "target_accuracy"])
    if counts["policy"].n_unique() < 2 or counts["optimizer"].n_unique() < 2:
        return None
    cells: dict[tuple[str, str], tuple[float, str]] = {}
    for (policy, optimizer), part in counts.group_by(["policy", "optimizer"]):
        steps, hits = steps_and_hits(part)
        mean = sum(steps) / len(steps)
        cells[str(policy), str(optimizer)] = mean, f"{sum(hits)}/{len(hits)}"

    def order(names: set[str], at: int) -> list[str]:
        means = {name: [mean for key, (mean, _) in cells.items() if key[at] == name] for name in names}
        return sorted(names, key=lambda name: (sum(means[name]) / len(means[name]), name))

    policies, optimizers = order({key[0] for key in cells}, 0), order({key[1] for key in cells}, 1)
    table = [[cells.get((policy, optimizer)) for optimizer in optimizers] for policy in policies]
    return HeatInfo(
        tuple(policies),
        tuple(optimizers),
        tuple(tuple(cell and round(cell[0], 1) for cell in row) for row in table),
        tuple(tuple(f"{cell[0]:.0f} ({cell[1]})" if cell else "" for cell in row) for row in table),
    )


def heat_figure(info: HeatInfo) -> go.Figure:
    """Dark is fast; the number and the runs that reached the target stand in each cell."""
    figure = go.Figure(
        go.Heatmap(
            z=info.steps,
            x=[_text(name) for name in info.optimizers],
            y=[_text(name) for name in info.policies],
            text=info.words,
            texttemplate="%{text}",
            hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
            colorscale="Viridis",
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": "steps"}, "thickness": 10, "outlinewidth": 0},
        )
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_xaxes(side="top", showgrid=False, type="category")
    return _finished(figure, 110 + 27 * len(info.policies))


# -- how exactly the rate must be met -----------------------------------------------------------------------------


@dataclass(frozen=True)
class SensitivityInfo:
    """Steps to the target over the peak rate.

    Args:
        lines: One per shape: ``x`` the rates, ``y`` the mean steps, a miss counted as the whole budget.
        octaves: For each line the width in which it stays within ``factor`` of its best, in words.
        factor: That factor.
    """

    lines: tuple[Line, ...]
    octaves: tuple[str, ...]
    factor: float


def sensitivity_info(runs: pl.DataFrame, order: Sequence[str] = (), factor: float = 1.5) -> SensitivityInfo | None:
    """Mean steps by rate for each policy (and optimizer, where several) with three rates or more; None without any.

    Args:
        runs: The table of runs.
        order: Names of policies in the order in which lines shall come; others follow.
        factor: Costs up to this times the best count as near it.
    """
    counts = runs.filter(~pl.col("status").cast(pl.String).is_in(["failed", "stopped"]))
    counts = counts.drop_nulls(["policy", "lr", "max_steps", "target_accuracy"])
    keys = ["policy", *(["optimizer"] if counts["optimizer"].n_unique() > 1 else [])]
    found: list[tuple[Line, str]] = []
    for key, part in sorted(counts.group_by(keys), key=lambda item: str(item[0])):
        rates, costs = [], []
        for (lr,), runs_at in sorted(part.group_by(["lr"]), key=lambda item: item[0]):
            steps, hits = steps_and_hits(runs_at)
            rates.append(float(lr))
            costs.append(sum(steps) / len(steps) if any(hits) else math.inf)
        if len(rates) < 3:
            continue
        width = statistics.sensitivity(rates, costs, factor)
        budget = float(part["max_steps"].max())  # type: ignore[arg-type]
        line = Line(", ".join(map(str, key)), tuple(rates), tuple(min(cost, budget) for cost in costs))
        found.append((line, _octaves(width)))
    if not found:
        return None
    rank = {name: place for place, name in enumerate(order)}
    found.sort(key=lambda item: rank.get(item[0].name, len(rank)))
    return SensitivityInfo(tuple(line for line, _ in found), tuple(words for _, words in found), factor)


def _octaves(width: statistics.Sensitivity | None) -> str:
    if width is None:
        return "never reached"
    least = "≥ " if width.low_is_edge or width.high_is_edge else ""
    return f"{least}{width.octaves:.1f} octaves"


def sensitivity_figure(info: SensitivityInfo) -> go.Figure:
    """Cost over the logarithm of the rate: a wide valley forgives a wrong rate."""
    named = [
        Line(f"{line.name}: {words}", line.x, line.y) for line, words in zip(info.lines, info.octaves, strict=True)
    ]
    figure = go.Figure()
    _add_lines(figure, named, "steps", markers=True)
    figure.update_xaxes(type="log", title_text="peak learning rate")
    figure.update_yaxes(title_text="mean steps, a miss as the budget", rangemode="tozero")
    return _finished(figure, 430, legend=True)


# -- rates before any training ------------------------------------------------------------------------------------


def rates_figure(names: Sequence[str], tables: Sequence[Sequence[float]]) -> go.Figure:
    """The rates of policies over their budgets."""
    lines = []
    for name, rates in zip(names, tables, strict=True):
        steps, values = curves.thin(range(len(rates)), rates, most=1000)
        lines.append(Line(name, steps, tuple(float(f"{value:.5g}") for value in values)))
    figure = go.Figure()
    _add_lines(figure, lines, "rate", highlighted=len(lines))
    figure.update_xaxes(title_text="optimizer steps")
    figure.update_yaxes(title_text="learning rate", rangemode="tozero")
    return _finished(figure, 460, legend=True)


# -- a policy composed while it trained ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Leg:
    """One stretch of a composition.

    Args:
        kind: ``range``, ``trunk`` or ``branch``.
        kept: Whether it is part of the composed policy.
        begin: Steps spent before it.
        end: Steps spent after it.
        rates: Its rates at equal distances, from the first to the last; two or more.
        value: The monitor at its end, or None.
        why: What came of it.
        averaged: Whether its value is that of averaged weights, a forecast.
    """

    kind: str
    kept: bool
    begin: int
    end: int
    rates: tuple[float, ...]
    value: float | None
    why: str
    averaged: bool = False


@dataclass(frozen=True)
class TuningInfo:
    """A composition.

    Args:
        title: Which run.
        legs: In the order in which they were trained.
        target: The target, or None.
        monitor: What was checked.
    """

    title: str
    legs: tuple[Leg, ...]
    target: float | None = None
    monitor: str = "val/accuracy"


def tuning_info(
    records: Sequence[Mapping[str, Any]], title: str, target: float | None = None, monitor: str = "val/accuracy"
) -> TuningInfo:
    """A composition from the records in ``tuning.json``.

    Example:
        >>> record = {"kind": "trunk", "policy_step": 0, "spent": 160, "steps": 80, "rates": [0.01, 0.2],
        ...     "value": 0.96, "kept": True, "why": "peak 0.2"}
        >>> tuning_info([record], "seed 0").legs[0].end
        240
    """
    legs = tuple(
        Leg(
            kind=str(record["kind"]),
            kept=bool(record.get("kept")),
            begin=int(record["spent"]),
            end=int(record["spent"]) + int(record["steps"]),
            rates=tuple(map(float, record["rates"])),
            value=record.get("value"),
            why=str(record.get("why") or ""),
            averaged=bool(record.get("averaged")),
        )
        for record in records
    )
    return TuningInfo(title, legs, target, monitor)


_LEGS = {  # name in the legend, colour and dash by kind and whether it was kept
    ("trunk", True): ("trunk", COLOURS[0], "solid"),
    ("branch", True): ("branch, kept", COLOURS[2], "solid"),
    ("branch", False): ("branch, given up", COLOURS[1], "dash"),
    ("trunk", False): ("trunk, given up", COLOURS[3], "dash"),
    ("range", False): ("range test", "#888888", "dot"),
}


def tuning_figure(info: TuningInfo) -> go.Figure:
    """What was tried over the steps spent: values at the ends of legs above, their rates below."""
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.5, 0.5])
    for (kind, kept), (label, colour, dash) in _LEGS.items():
        legs = [leg for leg in info.legs if (leg.kind, leg.kept) == (kind, kept)]
        if not legs:
            continue
        ended = [leg for leg in legs if leg.value is not None and kind != "range"]
        figure.add_scatter(
            x=[leg.end for leg in ended],
            y=[leg.value for leg in ended],
            mode="markers",
            marker={"color": colour, "size": 9, "symbol": [_symbol(leg) for leg in ended], "line": {"width": 2}},
            customdata=[_text(f"averaged weights, {leg.why}" if leg.averaged else leg.why) for leg in ended],
            hovertemplate="%{y:.4g} after %{x} steps: %{customdata}<extra></extra>",
            name=label,
            legendgroup=label,
            showlegend=False,
            row=1,
            col=1,
        )
        x = [each for leg in legs for each in (*np.linspace(leg.begin, leg.end, len(leg.rates)).tolist(), None)]
        y = [each for leg in legs for each in (*leg.rates, None)]
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": colour, "dash": dash, "width": 2.5},
            customdata=[_text(leg.why) for leg in legs for _ in range(len(leg.rates) + 1)],
            hovertemplate="%{y:.3g} at %{x:.0f}: %{customdata}<extra></extra>",
            name=label,
            legendgroup=label,
            row=2,
            col=1,
        )
    if info.target is not None:
        _target_line(figure, info.target, row=1)
    figure.update_yaxes(title_text=html.escape(info.monitor), row=1, col=1)
    figure.update_yaxes(title_text="rate", type="log", exponentformat="power", row=2, col=1)
    figure.update_xaxes(title_text="optimizer steps spent", rangemode="tozero", row=2, col=1)
    return _finished(figure, 460, legend=True)


def _symbol(leg: Leg) -> str:
    return "diamond-open" if leg.averaged else "circle" if leg.kept else "circle-open"


# -- what they share ----------------------------------------------------------------------------------------------


def _text(words: object) -> str:
    """Words as plotly shows them: it reads a little HTML."""
    return html.escape(str(words), quote=False)


def _add_lines(
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
            name=_text(line.name) if loud else f"the {len(lines) - coloured} others",
            legendgroup=group,
            legendrank=1000 + number,
            showlegend=legend and (loud or others == 1),
            meta={"group": number, "name": _text(line.name), "grey": not loud},
            hovertemplate="%{meta.name}<br>%{x} steps: %{y:.4g} " + what.replace("%", "") + "<extra></extra>",
            **place,
        )


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{_BAND})"


def _target_line(figure: go.Figure, target: float, row: int) -> None:
    figure.add_hline(
        y=target,
        line={"dash": "dot", "width": 1.5, "color": "#888888"},
        annotation={"text": f"target {target:g}", "font": {"size": 11}},
        annotation_position="bottom right",
        row=row,
        col=1,
    )


def _finished(figure: go.Figure, height: int, legend: bool = False) -> go.Figure:
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
