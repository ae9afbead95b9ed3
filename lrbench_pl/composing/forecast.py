"""Forecasts from the checks of a training: trend, standstill, frozen values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_RECENT = 2.0  # the trend uses the checks after the last step divided by this
_MIN_CHECKS = 4  # checks that a trend needs
PATIENCE = 2  # consecutive branches without a gain that are a standstill
FROZEN = 5  # consecutive checks with exactly the same value that show a dead or memorised network


@dataclass(frozen=True)
class Trend:
    """Forecast of a value.

    Args:
        value: Forecast value.
        slope: Gain per e-fold of steps.
        spread: Standard deviation of the values around the fitted line.
    """

    value: float
    slope: float
    spread: float


def trend(seen: Sequence[tuple[int, float]], at: float) -> Trend | None:
    """Extrapolate the recent values linearly over the logarithm of their steps.

    Args:
        seen: Steps and values, in order. Recent are those in the last half of the steps.
        at: Step of the forecast.

    Returns:
        The forecast; None if fewer than four values are recent.

    Example:
        >>> from math import log
        >>> forecast = trend([(t, log(t)) for t in (60, 70, 80, 90, 100)], at=200)
        >>> round(forecast.value - log(200), 6), round(forecast.slope, 6), round(forecast.spread, 6)
        (0.0, 1.0, 0.0)
        >>> trend([(80, 0.4), (90, 0.5), (100, 0.6)], at=200) is None
        True
    """
    recent = [(math.log(t), value) for t, value in seen if t > seen[-1][0] / _RECENT]
    if len(recent) < _MIN_CHECKS:
        return None
    xs, ys = zip(*recent, strict=True)
    slope, intercept = statistics.linear_regression(xs, ys)
    spread = math.sqrt(math.fsum((y - slope * x - intercept) ** 2 for x, y in recent) / (len(recent) - 2))
    return Trend(slope * math.log(at) + intercept, slope, spread)


def is_standstill(ends: Sequence[float], min_gain: float) -> bool:
    """Return whether the last two branches brought no gain.

    Args:
        ends: Best value of each branch, in order; larger is better.
        min_gain: Gain that must be exceeded.

    Example:
        >>> is_standstill([0.5, 0.4], 0.0), is_standstill([0.5, 0.4, 0.5], 0.0), is_standstill([0.5, 0.4, 0.6], 0.0)
        (False, True, False)
    """
    return len(ends) > PATIENCE and max(ends[-PATIENCE:]) - max(ends[:-PATIENCE]) <= min_gain


def is_frozen(values: Sequence[float]) -> bool:
    """Return whether the last five checks are identical (a dead network).

    The same happens if the network has memorised its training data.

    Example:
        >>> is_frozen([0.8, 0.9, 0.9, 0.9, 0.9, 0.9]), is_frozen([0.9, 0.9, 0.9, 0.9, 0.91])
        (True, False)
    """
    return len(values) >= FROZEN and len(set(values[-FROZEN:])) == 1
