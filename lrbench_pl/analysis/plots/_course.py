"""The monitor and rates over steps, and who has arrived by when."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lrbench_pl.analysis import curves, statistics
from lrbench_pl.analysis.curves import Band, History
from lrbench_pl.analysis.plots._shared import HIGHLIGHTED, Group, Line, add_lines, add_target, finished, steps_and_hits


@dataclass(frozen=True)
class CourseInfo:
    """How the monitor and the rate went.

    Args:
        values: Median and band of the monitor, of each policy over the checks, in order of rank.
        rate: The rate of each policy, of the run that went on longest, on the same steps.
        target: The target, or None.
        monitor: What was checked.
        relative: Whether rates are shares of the peak, because the peaks differ.
        unread: Runs whose history could not be read.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
    """

    values: tuple[Line, ...]
    rate: tuple[Line, ...]
    target: float | None
    monitor: str
    relative: bool
    unread: int
    mode: str = "max"


def course_info(grouped: Sequence[Group], target: float | None, monitor: str, mode: str = "max") -> CourseInfo | None:
    """Read the histories and summarise them; None if there are none."""
    values, rate, unread = [], [], 0
    peaks = {lr for group in grouped for lr in group.runs["lr"].to_list()}
    relative = len(peaks) > 1
    for group in grouped:
        read = [curves.read_history(folder, monitor) for folder in group.runs["folder"].to_list()]
        histories = [history for history in read if history is not None]
        unread += len(read) - len(histories)
        if not histories:
            continue
        values.append(_band_line(group.name, curves.band(histories)))
        longest = max(histories, key=lambda history: history.rate_steps[-1:] or (0,))
        peak = group.runs["lr"].to_list()[0] if relative else None
        rate.append(_rate_line(group.name, longest, peak))
    if not values:
        return None
    shown = tuple(line for line in rate if line.x)
    return CourseInfo(tuple(values), shown, target, monitor, relative, unread, mode)


def _band_line(name: str, band: Band) -> Line:
    steps, median = curves.thin(band.steps, band.median)
    low, high = (curves.thin(band.steps, edge)[1] for edge in (band.low, band.high))
    return Line(name, steps, median, *((low, high) if band.runs > 1 else (None, None)))


def _rate_line(name: str, history: History, peak: float | None) -> Line:
    steps, rates = curves.thin(history.rate_steps, history.rates)
    return Line(name, steps, tuple(float(f"{rate / (peak or 1.0):.5g}") for rate in rates))


def course_figure(info: CourseInfo) -> go.Figure:
    """The monitor above, the learning rate below, on one axis of steps."""
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.62, 0.38])
    add_lines(figure, info.values, info.monitor, row=1)
    add_lines(figure, info.rate, "rate", row=2, names=[line.name for line in info.values], legend=False)
    if info.target is not None:
        add_target(figure, info.target, row=1)
    figure.update_yaxes(title_text=html.escape(info.monitor), range=_upper_range(info), row=1, col=1)
    figure.update_yaxes(
        title_text="rate / peak" if info.relative else "learning rate", rangemode="tozero", row=2, col=1
    )
    figure.update_xaxes(title_text="optimizer steps", row=2, col=1)
    return finished(figure, 620, legend=True)


def _upper_range(info: CourseInfo) -> list[float] | None:
    """Without the steep beginning, in which all are alike: what is worth seeing is near the best values."""
    last = max(line.x[-1] for line in info.values)
    later = [y for line in info.values for x, y in zip(line.x, line.y, strict=True) if x >= 0.06 * last]
    is_min = info.mode == "min"
    best_edge = [((line.low if is_min else line.high) or line.y, len(line.x) // 4) for line in info.values]
    edges = [value for edge, start in best_edge[:HIGHLIGHTED] for value in edge[start:]]
    values = sorted([*later, *edges, *([info.target] if info.target is not None else [])])
    if len(values) < 3 or (not is_min and info.target is not None and values[-1] > 1):
        return None
    cut = len(values) // 50  # the worst of policies that never learn may be cut
    low, high = (values[0], values[-1 - cut]) if is_min else (values[cut], values[-1])
    margin = 0.06 * (high - low) or 0.01
    return [low - margin, high + margin]


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
    add_lines(figure, info.lines, "arrived", stairs=True)
    figure.update_yaxes(title_text="share of runs at the target", range=[-0.02, 1.04], tickformat=".0%")
    figure.update_xaxes(title_text="optimizer steps", range=[0, info.budget])
    return finished(figure, 430, legend=True)


def rates_figure(names: Sequence[str], tables: Sequence[Sequence[float]]) -> go.Figure:
    """The rates of policies over their budgets."""
    lines = []
    for name, rates in zip(names, tables, strict=True):
        steps, values = curves.thin(range(len(rates)), rates, most=1000)
        lines.append(Line(name, steps, tuple(float(f"{value:.5g}") for value in values)))
    figure = go.Figure()
    add_lines(figure, lines, "rate", highlighted=len(lines))
    figure.update_xaxes(title_text="optimizer steps")
    figure.update_yaxes(title_text="learning rate", rangemode="tozero")
    return finished(figure, 460, legend=True)
