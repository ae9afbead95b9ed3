"""Figure of a composition: all segments, and which became the policy."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lrbench_pl.analysis.plots._shared import COLOURS, add_target, finished, plain_text


@dataclass(frozen=True)
class SegmentInfo:
    """One segment of a composition.

    Args:
        kind: ``range``, ``stable`` or ``branch``.
        kept: Whether it is part of the composed policy.
        begin: Steps of the training at its start.
        end: Steps of the training at its end.
        rates: Rates at equal distances, from the first to the last; two or more.
        value: Monitored value at its end, or None.
        why: Note on the segment, or how it ended.
        averaged: Whether the value is a forecast from averaged weights.
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
    """Composition of a run.

    Args:
        title: Name of the run.
        segments: Segments in the order of the training.
        target: The target, or None.
        monitor: The monitored metric.
    """

    title: str
    segments: tuple[SegmentInfo, ...]
    target: float | None = None
    monitor: str = "val/accuracy"


def tuning_info(
    records: Sequence[Mapping[str, Any]], title: str, target: float | None = None, monitor: str = "val/accuracy"
) -> TuningInfo:
    """Read a composition from the records in ``tuning.json``, of any version.

    Example:
        >>> record = {"kind": "stable", "policy_step": 0, "spent": 160, "steps": 80, "rates": [0.01, 0.2],
        ...     "value": 0.96, "kept": True, "why": "peak 0.2"}
        >>> tuning_info([record], "seed 0").segments[0].end
        240
    """
    segments = tuple(
        SegmentInfo(
            kind=_FORMER_KINDS.get(record["kind"], str(record["kind"])),
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
    return TuningInfo(title, segments, target, monitor)


_FORMER_KINDS = {"trunk": "stable"}
_STYLES = {  # name in the legend, colour and dash, by kind and whether it is part of the policy
    ("stable", True): ("stable phase", COLOURS[0], "solid"),
    ("branch", True): ("decay branch, kept", COLOURS[2], "solid"),
    ("branch", False): ("decay branch, abandoned", COLOURS[1], "dash"),
    ("stable", False): ("stable phase, abandoned", COLOURS[3], "dash"),
    ("range", False): ("range test", "#888888", "dot"),
}


def tuning_figure(info: TuningInfo) -> go.Figure:
    """Draw the values and, below, the rates of the segments over the steps."""
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.5, 0.5])
    for (kind, kept), (label, colour, dash) in _STYLES.items():
        segments = [segment for segment in info.segments if (segment.kind, segment.kept) == (kind, kept)]
        if segments:
            _add_values(figure, segments, label, colour)
            _add_rates(figure, segments, label, colour, dash)
    if info.target is not None:
        add_target(figure, info.target, row=1)
    figure.update_yaxes(title_text=html.escape(info.monitor), row=1, col=1)
    figure.update_yaxes(title_text="rate", type="log", exponentformat="power", row=2, col=1)
    figure.update_xaxes(title_text="optimizer steps of the training", rangemode="tozero", row=2, col=1)
    return finished(figure, 460, legend=True)


def _add_values(figure: go.Figure, segments: Sequence[SegmentInfo], label: str, colour: str) -> None:
    checked = [segment for segment in segments if segment.value is not None and segment.kind != "range"]
    symbols = [_symbol(segment) for segment in checked]
    notes = [plain_text(f"averaged weights, {each.why}" if each.averaged else each.why) for each in checked]
    figure.add_scatter(
        x=[segment.end for segment in checked],
        y=[segment.value for segment in checked],
        mode="markers",
        marker={"color": colour, "size": 9, "symbol": symbols, "line": {"width": 2}},
        customdata=notes,
        hovertemplate="%{y:.4g} after %{x} steps: %{customdata}<extra></extra>",
        name=label,
        legendgroup=label,
        showlegend=False,
        row=1,
        col=1,
    )


def _add_rates(figure: go.Figure, segments: Sequence[SegmentInfo], label: str, colour: str, dash: str) -> None:
    x: list[float | None] = []
    y: list[float | None] = []
    notes: list[str] = []
    for segment in segments:
        x += [*np.linspace(segment.begin, segment.end, len(segment.rates)).tolist(), None]  # None interrupts the line
        y += [*segment.rates, None]
        notes += [plain_text(segment.why)] * (len(segment.rates) + 1)
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": colour, "dash": dash, "width": 2.5},
        customdata=notes,
        hovertemplate="%{y:.3g} at %{x:.0f}: %{customdata}<extra></extra>",
        name=label,
        legendgroup=label,
        row=2,
        col=1,
    )


def _symbol(segment: SegmentInfo) -> str:
    return "diamond-open" if segment.averaged else "circle" if segment.kept else "circle-open"
