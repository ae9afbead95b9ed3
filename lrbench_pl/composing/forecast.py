"""Forecasts from the checks of a training: trend, standstill, frozen values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_RECENT = 2.0  # the trend uses the checks after the last step divided by this
_MIN_CHECKS = 4  # checks that a trend needs
PATIENCE = 2  # consecutive branches without a gain that are a standstill
_CLEAR = 3.0  # a fall of the values is significant if it exceeds this multiple of their usual changes
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


def trend(
    seen: Sequence[tuple[int, float]], at: float, recent: float = _RECENT, least: int = _MIN_CHECKS
) -> Trend | None:
    """Extrapolate the recent values linearly over the logarithm of their steps.

    Args:
        seen: Steps and values, in order.
        at: Step of the forecast.
        recent: Values after the last step divided by this are recent.
        least: Recent values that a forecast needs, at least three.

    Returns:
        The forecast; None if there are fewer recent values, or if they are too large for a fit.

    Example:
        >>> from math import log
        >>> forecast = trend([(t, log(t)) for t in (60, 70, 80, 90, 100)], at=200)
        >>> round(forecast.value - log(200), 6), round(forecast.slope, 6), round(forecast.spread, 6)
        (0.0, 1.0, 0.0)
        >>> trend([(80, 0.4), (90, 0.5), (100, 0.6)], at=200) is None
        True
    """
    used = [(math.log(t), value) for t, value in seen if t > seen[-1][0] / recent]
    if len(used) < least:
        return None
    xs, ys = zip(*used, strict=True)
    try:
        slope, intercept = statistics.linear_regression(xs, ys)
        spread = math.sqrt(math.fsum((y - slope * x - intercept) ** 2 for x, y in used) / (len(used) - 2))
    except OverflowError:
        return None
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


def has_fallen(values: Sequence[float]) -> bool:
    """Return whether the last two checks lost most of what was gained.

    Both are nearer to the first value than to the best one, and the fall exceeds three times the usual change between
    checks: the median change, the largest earlier fall and the smallest change that was seen.

    Args:
        values: Values of consecutive checks; larger is better.

    Example:
        >>> gained = [0.2, 0.35, 0.45, 0.55, 0.56]
        >>> has_fallen([*gained, 0.19, 0.21]), has_fallen([*gained, 0.19]), has_fallen([*gained, 0.5, 0.53])
        (True, False, False)
    """
    if len(values) < FROZEN:
        return False
    earlier, last = values[:-2], max(values[-2:])
    best = max(earlier)
    changes = [after - before for before, after in pairwise(earlier)]
    sizes = [abs(change) for change in changes]
    usual = max(statistics.median(sizes), -min(changes), min((size for size in sizes if size), default=0.0))
    return last - values[0] < best - last and best - last > _CLEAR * usual
