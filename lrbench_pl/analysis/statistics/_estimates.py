"""Estimates from the runs of one policy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from lrbench_pl.analysis.statistics._inputs import (
    FEWEST_FOR_INTERVAL,
    censored,
    checked_level,
    checked_runs,
    checked_values,
)


@dataclass(frozen=True)
class Estimate:
    """An estimate with its confidence interval.

    Args:
        value: The estimate; None if the runs do not determine it.
        low: Lower end of the interval; None with too few runs.
        high: Upper end of the interval, possibly infinite.
        n: Number of runs.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


def success_rate(reached: int, runs: int, level: float = 0.95) -> Estimate:
    """Estimate the share of runs that reach the target, with Wilson's score interval.

    Coverage is 95 % on average over true rates, from 5 runs. At single rates near 0 or 1 it varies between 83 and 99 %,
    as for every interval of a count.

    Args:
        reached: Number of runs that reached the target.
        runs: Number of runs, at least 1.
        level: Confidence level.

    Raises:
        ValueError: If ``runs`` is below 1 or ``reached`` is not between 0 and ``runs``.

    Example:
        >>> success_rate(4, 5)
        Estimate(value=0.8, low=0.3755..., high=0.9637..., n=5)

    Source: Wilson (1927), doi:10.1080/01621459.1927.10502953; Brown, Cai, DasGupta (2001), doi:10.1214/ss/1009213286.
    """
    if not 0 <= reached <= runs or runs < 1:
        raise ValueError(f"expected 0 <= reached <= runs and at least 1 run, got {reached} of {runs}")
    interval = stats.binomtest(reached, runs).proportion_ci(checked_level(level), method="wilson")
    return Estimate(reached / runs, float(interval.low), float(interval.high), runs)


@dataclass(frozen=True)
class SurvivalCurve:
    """Share of runs that have not reached the target, as a right-continuous step function from 1.

    Args:
        steps: Steps at which a run reached the target or was censored.
        survival: Value from each of these steps on.
        low: Lower end of the pointwise interval.
        high: Upper end of the pointwise interval.
        n: Number of runs.
    """

    steps: tuple[float, ...]
    survival: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int


def kaplan_meier(steps: npt.ArrayLike, reached: npt.ArrayLike, level: float = 0.95) -> SurvivalCurve:
    """Estimate the survival curve of the runs, with log-log Greenwood intervals.

    Coverage is 95 % from 10 runs, on average over steps; it varies at single steps. Before the first run reaches the
    target the interval is [1, 1]; after the last one its upper end stays constant.

    Args:
        steps: Steps to the target, or steps observed without reaching it.
        reached: Whether each run reached the target.
        level: Confidence level.

    Raises:
        ValueError: If lengths differ, there is no run, or a step is negative or not finite.

    Example:
        >>> curve = kaplan_meier([100, 200, 300, 300], [True, True, True, False])
        >>> curve.steps, curve.survival
        ((100.0, 200.0, 300.0), (0.75, 0.5, 0.25))

    Source: Kaplan & Meier (1958), doi:10.1080/01621459.1958.10501452; Kalbfleisch & Prentice (2002).
    """
    t, hit = checked_runs(steps, reached)
    curve = stats.ecdf(censored(t, hit)).sf
    with warnings.catch_warnings():  # scipy has no log-log interval at 0 and 1; both are set below
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = curve.confidence_interval(checked_level(level), method="log-log")
    low = np.where(curve.probabilities >= 1, 1.0, np.nan_to_num(interval.low.probabilities, nan=0.0))
    high = np.where(curve.probabilities >= 1, 1.0, interval.high.probabilities)
    for index in np.flatnonzero(np.isnan(high)):
        high[index] = high[index - 1] if index else 1.0
    columns = [tuple(each.tolist()) for each in (curve.quantiles, curve.probabilities, low, high)]
    return SurvivalCurve(columns[0], columns[1], columns[2], columns[3], len(t))


def median_steps(steps: npt.ArrayLike, reached: npt.ArrayLike, budget: float, level: float = 0.95) -> Estimate:
    """Estimate the median steps to the target; a miss counts as infinity.

    If every run was observed up to the budget, the interval is the exact one of order statistics, interpolated between
    neighbours. It covers 93.75 % with 5 runs (their range), 94 to 96 % with more, for any distribution, and more with
    tied steps. There is none below 5 runs. If a run was censored before the budget, the interval is that of the
    Kaplan-Meier curve (log-log, for 10 runs or more).

    There is no value if half of the runs neither reached the target nor were observed up to the budget.

    Args:
        steps: Steps to the target, or steps observed without reaching it.
        reached: Whether each run reached the target.
        budget: Steps of a full run; a run that did not reach the target is a miss there and open before.
        level: Confidence level.

    Raises:
        ValueError: If lengths differ, there is no run, or a step is negative or not finite.

    Example:
        >>> median_steps([120, 100, 160, 140, 500], [True, True, True, True, False], budget=500)
        Estimate(value=140.0, low=100.0, high=inf, n=5)

    Source: Hettmansperger & Sheather (1986), doi:10.1016/0167-7152(86)90021-0; Brookmeyer & Crowley (1982),
    doi:10.2307/2530286.
    """
    t, hit = checked_runs(steps, reached)
    if (~hit & (t < budget)).any():
        return _median_of_curve(kaplan_meier(t, hit, level), budget)
    return median(np.where(hit, t, math.inf), level)


def median(values: npt.ArrayLike, level: float = 0.95) -> Estimate:
    """Estimate the median of values that may be infinite, with an order-statistics interval.

    The median between a finite and an infinite value is the infinite one, between infinities of both signs 0.

    Args:
        values: One value per run.
        level: Confidence level.

    Raises:
        ValueError: If there is no value or one is NaN.

    Example:
        >>> median([0.5, 0.3, 0.4])
        Estimate(value=0.4, low=None, high=None, n=3)
        >>> median([0.5, float("-inf")]).value
        -inf

    Source: see :func:`median_steps`.
    """
    x = np.sort(checked_values(values))
    n = len(x)
    below, above = float(x[(n - 1) // 2]), float(x[n // 2])
    value = below if below == above else 0.0 if below == -above else (below + above) / 2
    if n < FEWEST_FOR_INTERVAL:
        return Estimate(value, None, None, n)
    # [x_d, x_(n+1-d)] covers 1 - 2 P(Binomial(n, 1/2) < d)
    d = max(1, int(stats.binom.ppf((1 - checked_level(level)) / 2, n, 0.5)))
    wide, narrow = (1 - 2 * stats.binom.cdf(k - 1, n, 0.5) for k in (d, d + 1))
    share = max(0.0, (wide - level) / (wide - narrow))
    weight = (n - d) * share / (d + (n - 2 * d) * share)
    low, high = _between(x[d - 1], x[d], weight, x[d - 1]), _between(x[n - d], x[n - d - 1], weight, x[n - d])
    return Estimate(value, low, high, n)


def _between(a: float, b: float, weight: float, otherwise: float) -> float:
    """Interpolate from ``a`` to ``b``; return ``otherwise`` if they differ and one is infinite."""
    if a == b:
        return float(a)
    return float((1 - weight) * a + weight * b) if math.isfinite(a) and math.isfinite(b) else float(otherwise)


def _median_of_curve(curve: SurvivalCurve, budget: float) -> Estimate:
    """Return the median of a Kaplan-Meier curve."""

    def first(values: Sequence[float]) -> float:
        return next((step for step, value in zip(curve.steps, values, strict=True) if value <= 0.5), math.inf)

    value = first(curve.survival)
    if math.isinf(value) and curve.steps[-1] < budget:
        return Estimate(None, None, None, curve.n)
    if curve.n < FEWEST_FOR_INTERVAL:
        return Estimate(value, None, None, curve.n)
    return Estimate(value, first(curve.low), first(curve.high), curve.n)


def expected_steps(steps: npt.ArrayLike, reached: npt.ArrayLike) -> float:
    """Compute the expected steps to a success if a miss is restarted with a new seed (ERT).

    This is the total number of steps, misses included, over the number of successes; infinite without a success.

    Raises:
        ValueError: If lengths differ, there is no run, or a step is negative or not finite.

    Example:
        >>> expected_steps([100, 200, 300], [True, True, False])
        300.0

    Source: Auger & Hansen (2005) at CEC; Hansen et al. (2021),
    doi:10.1080/10556788.2020.1808977.
    """
    t, hit = checked_runs(steps, reached)
    return float(t.sum() / hit.sum()) if hit.any() else math.inf
