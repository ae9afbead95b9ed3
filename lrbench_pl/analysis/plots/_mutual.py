"""Figures of cost by policy and optimizer, and by learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import polars as pl

from lrbench_pl.analysis import statistics
from lrbench_pl.analysis.plots._shared import Line, add_lines, finished, plain_text, steps_and_hits


@dataclass(frozen=True)
class HeatInfo:
    """Expected steps to the target by policy and optimizer.

    Args:
        policies: Rows, best first.
        optimizers: Columns, best first.
        steps: Expected steps, infinite if every run missed; None without a run.
        words: Text of each cell.
    """

    policies: tuple[str, ...]
    optimizers: tuple[str, ...]
    steps: tuple[tuple[float | None, ...], ...]
    words: tuple[tuple[str, ...], ...]


def heat_info(runs: pl.DataFrame) -> HeatInfo | None:
    """Compute expected steps by policy and optimizer; None with one optimizer, one policy or no run at the target."""
    counts = runs.filter(~pl.col("status").cast(pl.String).is_in(["failed", "stopped"]))
    counts = counts.drop_nulls(["policy", "optimizer", "max_steps", "target"])
    if counts["policy"].n_unique() < 2 or counts["optimizer"].n_unique() < 2:
        return None
    cells: dict[tuple[str, str], tuple[float, str]] = {}
    for (policy, optimizer), part in counts.group_by(["policy", "optimizer"]):
        steps, hits = steps_and_hits(part)
        cells[str(policy), str(optimizer)] = statistics.expected_steps(steps, hits), f"{sum(hits)}/{len(hits)}"
    if not any(math.isfinite(steps) for steps, _ in cells.values()):
        return None

    def order(names: set[str], at: int) -> list[str]:
        def worth(name: str) -> tuple[int, float, str]:
            steps = [value for key, (value, _) in cells.items() if key[at] == name]
            reached = [value for value in steps if math.isfinite(value)]
            return len(steps) - len(reached), sum(reached) / max(1, len(reached)), name

        return sorted(names, key=worth)

    policies, optimizers = order({key[0] for key in cells}, 0), order({key[1] for key in cells}, 1)
    table = [[cells.get((policy, optimizer)) for optimizer in optimizers] for policy in policies]
    return HeatInfo(
        tuple(policies),
        tuple(optimizers),
        tuple(tuple(cell and round(cell[0], 1) for cell in row) for row in table),
        tuple(tuple(_cell(*cell) if cell else "" for cell in row) for row in table),
    )


def _cell(steps: float, reached: str) -> str:
    return f"{steps:.0f} ({reached})" if math.isfinite(steps) else f"∞ ({reached})"


_DARK, _LIGHT = (0x10, 0x36, 0x6B), (0xDC, 0xE9, 0xF8)  # fast and slow


def heat_figure(info: HeatInfo) -> go.Figure:
    """Draw a heat map, dark is fast; each cell contains the expected steps and the runs that reached the target."""
    logs = [[math.log(s) if s is not None and math.isfinite(s) and s > 0 else None for s in row] for row in info.steps]
    known = [log for row in logs for log in row if log is not None]
    low, high = min(known), max(max(known), min(known) + 1e-9)
    figure = go.Figure(
        go.Heatmap(
            z=logs,
            x=[plain_text(name) for name in info.optimizers],
            y=[plain_text(name) for name in info.policies],
            zmin=low,
            zmax=high,
            text=info.words,
            hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
            hoverongaps=False,
            colorscale=[[0, _hex(_DARK)], [1, _hex(_LIGHT)]],
            showscale=False,
            xgap=2,
            ygap=2,
        )
    )
    for row, name in enumerate(info.policies):
        for column, optimizer in enumerate(info.optimizers):
            log = logs[row][column]
            font = {} if log is None else {"color": contrasting(_between((log - low) / (high - low)))}
            place = {"x": plain_text(optimizer), "y": plain_text(name), "showarrow": False}
            figure.add_annotation(text=info.words[row][column], font=font, **place)
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_xaxes(side="top", showgrid=False, type="category")
    return finished(figure, 110 + 27 * len(info.policies))


def _between(share: float) -> tuple[int, int, int]:
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(_DARK, _LIGHT, strict=True))
    return red, green, blue


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def contrasting(colour: tuple[int, int, int]) -> str:
    """Return black or white, whichever has the larger contrast to a colour; it is at least 4.5 : 1.

    Example:
        >>> contrasting((0x10, 0x36, 0x6B)), contrasting((0xDC, 0xE9, 0xF8))
        ('#ffffff', '#000000')

    Source: WCAG 2.2, relative luminance and contrast ratio.
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (each / 255 for each in colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#ffffff"


@dataclass(frozen=True)
class SensitivityInfo:
    """Expected steps to the target over the peak learning rate.

    Args:
        lines: One per policy: ``x`` the rates that reached the target, ``y`` the expected steps.
        octaves: For each line, the width of the range of rates near its best cost, in words.
    """

    lines: tuple[Line, ...]
    octaves: tuple[str, ...]


def sensitivity_info(runs: pl.DataFrame, order: Sequence[str] = (), factor: float = 1.5) -> SensitivityInfo | None:
    """Compute expected steps by rate for policies with three rates or more, per optimizer; None without any.

    Args:
        runs: Table of runs.
        order: Names of policies in the order of the lines; others follow.
        factor: Costs up to this times the best are near it.
    """
    counts = runs.filter(~pl.col("status").cast(pl.String).is_in(["failed", "stopped"]))
    counts = counts.drop_nulls(["policy", "lr", "max_steps", "target"])
    keys = ["policy", *(["optimizer"] if counts["optimizer"].n_unique() > 1 else [])]
    found: list[tuple[Line, str]] = []
    for key, part in sorted(counts.group_by(keys), key=lambda item: str(item[0])):
        rates, costs = [], []
        for (lr,), runs_at in sorted(part.group_by(["lr"]), key=lambda item: item[0]):
            steps, hits = steps_and_hits(runs_at)
            rates.append(float(lr))
            costs.append(statistics.expected_steps(steps, hits))
        if len(rates) < 3:
            continue
        width = statistics.sensitivity(rates, costs, factor)
        known = [(lr, cost) for lr, cost in zip(rates, costs, strict=True) if math.isfinite(cost)]
        line = Line(", ".join(map(str, key)), tuple(lr for lr, _ in known), tuple(cost for _, cost in known))
        found.append((line, _octaves(width)))
    if not found:
        return None
    rank = {name: place for place, name in enumerate(order)}
    found.sort(key=lambda item: rank.get(item[0].name, len(rank)))
    return SensitivityInfo(tuple(line for line, _ in found), tuple(words for _, words in found))


def _octaves(width: statistics.Sensitivity | None) -> str:
    if width is None:
        return "never reached"
    least = "≥ " if width.low_is_edge or width.high_is_edge else ""
    return f"{least}{width.octaves:.1f} octaves"


def sensitivity_figure(info: SensitivityInfo) -> go.Figure:
    """Draw cost over the logarithm of the rate."""
    named = [
        Line(f"{line.name}: {words}", line.x, line.y) for line, words in zip(info.lines, info.octaves, strict=True)
    ]
    figure = go.Figure()
    add_lines(figure, named, "steps", markers=True)
    figure.update_xaxes(type="log", title_text="peak learning rate")
    figure.update_yaxes(title_text="expected steps", rangemode="tozero")
    return finished(figure, 430, legend=True)
