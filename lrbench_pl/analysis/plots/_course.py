"""Figures over steps: monitor and learning rate, and the share of runs at the target."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lrbench_pl.analysis import curves, statistics
from lrbench_pl.analysis.curves import Band, RunCurves
from lrbench_pl.analysis.plots._shared import HIGHLIGHTED, Group, Line, add_lines, add_target, finished, steps_and_hits


@dataclass(frozen=True)
class CourseInfo:
    """Monitor and learning rate over steps.

    Args:
        values: Median and band of the monitor for each policy, in order of rank.
        rate: Learning rate of each policy, from its longest run.
        target: The target, or None.
        monitor: Name of the monitored metric.
        relative: Whether rates are divided by their peak, since the peaks differ.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
    """

    values: tuple[Line, ...]
    rate: tuple[Line, ...]
    target: float | None
    monitor: str
    relative: bool
    mode: str = "max"


def course_info(grouped: Sequence[Group], target: float | None, monitor: str, mode: str = "max") -> CourseInfo | None:
    """Read and summarise the curves of all runs; None if there are none."""
    values, rate = [], []
    peaks = {lr for group in grouped for lr in group.runs["lr"].to_list()}
    relative = len(peaks) > 1
    for group in grouped:
        read = [curves.read_curves(folder, monitor) for folder in group.runs["folder"].to_list()]
        found = [each for each in read if each is not None]
        if not found:
            continue
        values.append(replace(_band_line(group.name, curves.band(found)), variant=group.variant))
        longest = max(found, key=lambda each: each.rate_steps[-1:] or (0,))
        peak = group.runs["lr"].to_list()[0] if relative else None
        rate.append(replace(_rate_line(group.name, longest, peak), variant=group.variant))
    if not values:
        return None
    shown = tuple(line for line in rate if line.x)
    return CourseInfo(tuple(values), shown, target, monitor, relative, mode)


def _band_line(name: str, band: Band) -> Line:
    steps, median = curves.thin(band.steps, band.median)
    low, high = (curves.thin(band.steps, edge)[1] for edge in (band.low, band.high))
    return Line(name, steps, median, *((low, high) if band.runs > 1 else (None, None)))


def _rate_line(name: str, run: RunCurves, peak: float | None) -> Line:
    steps, rates = curves.thin(run.rate_steps, run.rates)
    return Line(name, steps, tuple(float(f"{rate / (peak or 1.0):.5g}") for rate in rates))


def course_figure(info: CourseInfo) -> go.Figure:
    """Draw the monitor above the learning rate, on one axis of steps."""
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
    """Return the range of values after the steep beginning, where the policies differ."""
    last = max(line.x[-1] for line in info.values)
    later = [y for line in info.values for x, y in zip(line.x, line.y, strict=True) if x >= 0.06 * last]
    is_min = info.mode == "min"
    best_edge = [((line.low if is_min else line.high) or line.y, len(line.x) // 4) for line in info.values]
    edges = [value for edge, start in best_edge[:HIGHLIGHTED] for value in edge[start:]]
    values = sorted([*later, *edges, *([info.target] if info.target is not None else [])])
    if len(values) < 3 or (not is_min and info.target is not None and values[-1] > 1):
        return None
    cut = len(values) // 50  # leaves out the worst values, of policies that do not learn
    low, high = (values[0], values[-1 - cut]) if is_min else (values[cut], values[-1])
    margin = 0.06 * (high - low) or 0.01
    return [low - margin, high + margin]


@dataclass(frozen=True)
class ArrivalsInfo:
    """Share of runs at the target over steps.

    Args:
        lines: One per policy, with the Kaplan-Meier interval.
        budget: Steps of a full run.
    """

    lines: tuple[Line, ...]
    budget: int


def arrivals_info(grouped: Sequence[Group], target: float | None) -> ArrivalsInfo | None:
    """Compute one minus the Kaplan-Meier curves; None without a target or a run that reached it."""
    if target is None or not any((group.runs["status"] == "reached").any() for group in grouped):
        return None
    budget = max(int(group.runs["max_steps"].max()) for group in grouped)  # type: ignore[arg-type]
    lines = []
    for group in grouped:
        curve = statistics.kaplan_meier(*steps_and_hits(group.runs))
        steps, share = [0.0, *curve.steps], [0.0, *(1 - each for each in curve.survival)]
        low, high = [0.0, *(1 - each for each in curve.high)], [0.0, *(1 - each for each in curve.low)]
        if steps[-1] < budget:
            for values in (share, low, high):
                values.append(values[-1])
            steps.append(float(budget))
        middle, least, most = (tuple(round(each, 5) for each in values) for values in (share, low, high))
        lines.append(Line(group.name, tuple(steps), middle, least, most, group.variant))
    return ArrivalsInfo(tuple(lines), budget)


def arrivals_figure(info: ArrivalsInfo) -> go.Figure:
    """Draw the share of runs at the target as step functions."""
    figure = go.Figure()
    add_lines(figure, info.lines, "at the target", stairs=True)
    figure.update_yaxes(title_text="share of runs at the target", range=[-0.02, 1.04], tickformat=".0%")
    figure.update_xaxes(title_text="optimizer steps", range=[0, info.budget])
    return finished(figure, 430, legend=True)


def rates_figure(names: Sequence[str], tables: Sequence[Sequence[float]], title: str = "learning rate") -> go.Figure:
    """Draw the learning rates of policies, or another setting, over their budgets."""
    lines = []
    for name, rates in zip(names, tables, strict=True):
        steps, values = curves.thin(range(len(rates)), rates, most=1000)
        lines.append(Line(name, steps, tuple(float(f"{value:.5g}") for value in values)))
    figure = go.Figure()
    add_lines(figure, lines, "rate", highlighted=len(lines))
    figure.update_xaxes(title_text="optimizer steps")
    figure.update_yaxes(title_text=title, rangemode="tozero" if title == "learning rate" else "normal")
    return finished(figure, 460, legend=True)
