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
    """Mean steps by policy and optimizer; a miss counts as the whole budget.

    Args:
        policies: Rows, best first.
        optimizers: Columns, best first.
        steps: Mean steps; None without a run.
        words: Text of each cell.
    """

    policies: tuple[str, ...]
    optimizers: tuple[str, ...]
    steps: tuple[tuple[float | None, ...], ...]
    words: tuple[tuple[str, ...], ...]


def heat_info(runs: pl.DataFrame) -> HeatInfo | None:
    """Compute mean steps by policy and optimizer; None with one optimizer, one policy or no target."""
    counts = runs.filter(~pl.col("status").cast(pl.String).is_in(["failed", "stopped"]))
    counts = counts.drop_nulls(["policy", "optimizer", "max_steps", "target"])
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
    """Draw a heat map, dark is fast; each cell contains the mean steps and the runs that reached the target."""
    figure = go.Figure(
        go.Heatmap(
            z=info.steps,
            x=[plain_text(name) for name in info.optimizers],
            y=[plain_text(name) for name in info.policies],
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
    return finished(figure, 110 + 27 * len(info.policies))


@dataclass(frozen=True)
class SensitivityInfo:
    """Mean steps to the target over the peak learning rate.

    Args:
        lines: One per policy: ``x`` the rates, ``y`` the mean steps; a miss counts as the whole budget.
        octaves: For each line, the width of the range of rates near its best cost, in words.
    """

    lines: tuple[Line, ...]
    octaves: tuple[str, ...]


def sensitivity_info(runs: pl.DataFrame, order: Sequence[str] = (), factor: float = 1.5) -> SensitivityInfo | None:
    """Compute mean steps by rate for policies with three rates or more, per optimizer; None without any.

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
    figure.update_yaxes(title_text="mean steps, a miss as the budget", rangemode="tozero")
    return finished(figure, 430, legend=True)
