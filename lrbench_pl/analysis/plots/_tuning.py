"""A policy composed while it trained."""

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
            customdata=[plain_text(f"averaged weights, {leg.why}" if leg.averaged else leg.why) for leg in ended],
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
            customdata=[plain_text(leg.why) for leg in legs for _ in range(len(leg.rates) + 1)],
            hovertemplate="%{y:.3g} at %{x:.0f}: %{customdata}<extra></extra>",
            name=label,
            legendgroup=label,
            row=2,
            col=1,
        )
    if info.target is not None:
        add_target(figure, info.target, row=1)
    figure.update_yaxes(title_text=html.escape(info.monitor), row=1, col=1)
    figure.update_yaxes(title_text="rate", type="log", exponentformat="power", row=2, col=1)
    figure.update_xaxes(title_text="optimizer steps spent", rangemode="tozero", row=2, col=1)
    return finished(figure, 460, legend=True)


def _symbol(leg: Leg) -> str:
    return "diamond-open" if leg.averaged else "circle" if leg.kept else "circle-open"
