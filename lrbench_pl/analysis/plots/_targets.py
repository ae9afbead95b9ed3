"""Figure of speed-ups over a baseline by target."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lrbench_pl.analysis.by_target import ByTarget
from lrbench_pl.analysis.plots._shared import COLOURS, HIGHLIGHTED, Line, add_lines, finished, name_of, plain_text

_TICKS = 7
_BANDS = 2  # policies with an interval


@dataclass(frozen=True)
class TargetsInfo:
    """Speed-ups by target.

    Args:
        speed_ups: The baseline's steps over those of each policy, in order of rank.
        budget_ratios: The baseline's budget over the steps of each policy, the baseline included.
        at_least: Points of each line of ``speed_ups`` that are lower bounds.
        steps: Steps at which the baseline reached each target: positions on the axis.
        targets: The targets there.
        baseline: Name of the baseline.
    """

    speed_ups: tuple[Line, ...]
    budget_ratios: tuple[Line, ...]
    at_least: tuple[tuple[bool, ...], ...]
    steps: tuple[float, ...]
    targets: tuple[float, ...]
    baseline: str


def targets_info(found: ByTarget) -> TargetsInfo | None:
    """Return the lines of both counts; None without another policy or a target."""
    groups = found.table.partition_by(found.keys, as_dict=True, maintain_order=True)
    if len(groups) < 2:
        return None
    speed_ups, ratios, bounds = [], [], []
    seen: Counter[object] = Counter()
    for key, rows in groups.items():
        policy = dict(zip(found.keys, key, strict=True)).get("policy", key)
        variant = seen[policy]
        seen[policy] += 1
        both = []
        for name in ("speed_up", "budget_ratio"):
            known = rows.filter(rows[name].is_not_null() & rows[name].is_finite())
            values = tuple(round(y, 4) for y in known[name])
            line = Line(name_of(key), tuple(known["step"]), values, variant=variant)
            if known[f"{name}_low"].is_not_null().any():
                low, high = (known[f"{name}_{end}"].fill_null(known[name]) for end in ("low", "high"))
                line = replace(line, low=tuple(low), high=tuple(high))
            both.append((line, tuple(known[f"{name}_at_least"])))
        ratios.append(both[1][0])
        if key != found.baseline:
            speed_ups.append(both[0][0])
            bounds.append(both[0][1])
    base = groups[found.baseline]
    return TargetsInfo(
        tuple(speed_ups),
        tuple(ratios),
        tuple(bounds),
        tuple(base["step"]),
        tuple(base["target"]),
        name_of(found.baseline),
    )


def targets_figure(info: TargetsInfo) -> go.Figure:
    """Draw the speed-up at the same target above the ratio of the baseline's budget to a policy's steps."""
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.09, row_heights=[0.55, 0.45])
    order = [line.name for line in info.budget_ratios]
    top = 1.15 * max((y for line in info.speed_ups for y in line.y), default=1.0)
    axis = f"steps of {plain_text(info.baseline)}"
    lines = [_clipped(line, top) for line in info.speed_ups[:_BANDS]]
    lines += [replace(line, low=None, high=None) for line in info.speed_ups[_BANDS:]]  # more would hide each other
    add_lines(figure, lines, "speed-up", row=1, names=order, legend=False, axis=axis)
    for line, bounds in zip(info.speed_ups, info.at_least, strict=True):
        number = order.index(line.name)
        if number < HIGHLIGHTED and any(bounds):
            figure.add_scatter(
                x=[x for x, bound in zip(line.x, bounds, strict=True) if bound],
                y=[y for y, bound in zip(line.y, bounds, strict=True) if bound],
                mode="markers",
                marker={"symbol": "triangle-up-open", "size": 8, "color": COLOURS[number % len(COLOURS)]},
                legendgroup=f"{number}",
                showlegend=False,
                hoverinfo="skip",
                row=1,
                col=1,
            )
    most = 1.15 * max((y for line in info.budget_ratios for y in line.y[len(line.y) // 4 :]), default=1.0)
    add_lines(figure, info.budget_ratios, "budget ratio", row=2, names=order, bands=False, axis=axis)
    figure.add_hline(y=1, line={"dash": "dot", "width": 1.5, "color": "#888888"}, row=1, col=1)
    places = sorted({round(i * (len(info.steps) - 1) / (_TICKS - 1)) for i in range(_TICKS)})
    figure.update_xaxes(range=[info.steps[0], info.steps[-1] + 0.01 * (info.steps[-1] - info.steps[0])])
    figure.update_xaxes(tickvals=[info.steps[i] for i in places], ticktext=[f"{info.targets[i]:.4g}" for i in places])
    figure.update_xaxes(title_text=f"target (distances: {axis})", row=2, col=1)
    figure.update_yaxes(title_text="speed-up", range=[0, top], row=1, col=1)
    figure.update_yaxes(title_text="budget ratio", range=[0, most], row=2, col=1)
    return finished(figure, 640, legend=True)


def _clipped(line: Line, top: float) -> Line:
    """Return a line with a band that ends at the top of the axis."""
    if line.low is None or line.high is None:
        return line
    return replace(line, high=tuple(top * 1.1 if math.isinf(high) else high for high in line.high))
