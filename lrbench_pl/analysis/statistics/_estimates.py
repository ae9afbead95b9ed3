"""What the runs of one policy say."""

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
    """A number and how sure it is.

    Args:
        value: The estimate, or None if the runs give none.
        low: Lower end of its interval, or None if the runs are too few for one.
        high: Upper end, may be infinite.
        n: Runs behind it.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


def success_rate(reached: int, runs: int, level: float = 0.95) -> Estimate:
    """Share of runs that reached the target, with Wilson's score interval.

    Covers 95 % on average over true rates from 5 runs on; at single rates near 0 or 1 between 83 and 99 %, as every
    interval for a count must swing.

    Args:
        reached: Runs that reached it.
        runs: Runs in all, at least 1.
        level: Confidence.

    Raises:
        ValueError: If the counts make no share.

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
    """Share of runs still short of the target, as a right-continuous staircase that begins with 1 at step 0.

    Args:
        steps: Where it goes down, or where watching a run ended.
        survival: Its value from there on.
        low: Lower end of its pointwise interval.
        high: Upper end.
        at_risk: Runs watched just before.
        n: Runs in all.
    """

    steps: tuple[float, ...]
    survival: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    at_risk: tuple[int, ...]
    n: int

    def at(self, step: float) -> float:
        """The share still short of the target at ``step``."""
        index = int(np.searchsorted(self.steps, step, side="right")) - 1
        return 1.0 if index < 0 else self.survival[index]


def kaplan_meier(steps: npt.ArrayLike, reached: npt.ArrayLike, level: float = 0.95) -> SurvivalCurve:
    """The curve of runs still short of the target, misses censored, with log-log Greenwood intervals.

    The intervals cover 95 % from 10 runs on, on average over steps; at single steps counts make it swing. Where no run
    has arrived they are [1, 1] in name only, and after the last arrival the upper end stays where it was.

    Args:
        steps: Steps to the target, or steps watched in vain.
        reached: Whether each run reached it.
        level: Confidence.

    Raises:
        ValueError: If the two do not fit each other.

    Example:
        >>> curve = kaplan_meier([100, 200, 300, 300], [True, True, True, False])
        >>> curve.steps, curve.survival
        ((100.0, 200.0, 300.0), (0.75, 0.5, 0.25))
        >>> curve.at(150)
        0.75

    Source: Kaplan & Meier (1958), doi:10.1080/01621459.1958.10501452; Kalbfleisch & Prentice (2002).
    """
    t, hit = checked_runs(steps, reached)
    curve = stats.ecdf(censored(t, hit)).sf
    with warnings.catch_warnings():  # scipy says that 0 and 1 have no log-log interval; they get one below
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = curve.confidence_interval(checked_level(level), method="log-log")
    low = np.where(curve.probabilities >= 1, 1.0, np.nan_to_num(interval.low.probabilities, nan=0.0))
    high = np.where(curve.probabilities >= 1, 1.0, interval.high.probabilities)
    for index in np.flatnonzero(np.isnan(high)):
        high[index] = high[index - 1] if index else 1.0
    at_risk = (t >= curve.quantiles[:, None]).sum(axis=1)
    columns = [tuple(each.tolist()) for each in (curve.quantiles, curve.probabilities, low, high, at_risk)]
    return SurvivalCurve(columns[0], columns[1], columns[2], columns[3], columns[4], len(t))


def median_steps(steps: npt.ArrayLike, reached: npt.ArrayLike, budget: float, level: float = 0.95) -> Estimate:
    """Median of the steps to the target; a miss counts as infinitely many.

    Where every run was watched to its end the interval is the exact one of order statistics, interpolated between
    neighbours: it covers 93.75 % with 5 runs (their range) and 94 to 96 % with more, for any distribution, and more
        where steps tie. Fewer than 5 runs give none. Where watching a run ended before the budget, it is that of the
        Kaplan-Meier curve (log-log, 10 runs or more).

    There is no value where half of the runs neither arrived nor were watched to the budget.

    Args:
        steps: Steps to the target, or steps watched in vain.
        reached: Whether each run reached it.
        budget: Steps up to which a run is watched; a run not reached before that is a miss, earlier it is open.
        level: Confidence.

    Raises:
        ValueError: If the arguments do not fit each other.

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
    """Median of any values, infinite ones included, with the interval of interpolated order statistics.

    Between a finite and an infinite value it is the infinite one, between infinities of both signs 0.

    Args:
        values: One per run.
        level: Confidence.

    Raises:
        ValueError: If there is no value, or one is NaN.

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
    """``a`` moved towards ``b``, or ``otherwise`` where one of them is infinite and they differ."""
    if a == b:
        return float(a)
    return float((1 - weight) * a + weight * b) if math.isfinite(a) and math.isfinite(b) else float(otherwise)


def _median_of_curve(curve: SurvivalCurve, budget: float) -> Estimate:
    def first(values: Sequence[float]) -> float:
        return next((step for step, value in zip(curve.steps, values, strict=True) if value <= 0.5), math.inf)

    value = first(curve.survival)
    if math.isinf(value) and curve.steps[-1] < budget:
        return Estimate(None, None, None, curve.n)
    if curve.n < FEWEST_FOR_INTERVAL:
        return Estimate(value, None, None, curve.n)
    return Estimate(value, first(curve.low), first(curve.high), curve.n)


def restricted_mean(steps: npt.ArrayLike, reached: npt.ArrayLike, horizon: float, level: float = 0.95) -> Estimate:
    """Mean steps within a horizon: the area under the Kaplan-Meier curve up to it.

    With every run watched to the horizon it is the mean of ``min(steps, horizon)`` with Student's interval; earlier
    ends widen it by Greenwood's formula. Covers 93 to 95 % from 5 runs on where all arrive (lognormal steps, sigma up
    to 0.3). Where a tenth of the runs misses it covers 88 % with 5 runs and 92 % with 20: take the median instead.

    Args:
        steps: Steps to the target, or steps watched in vain.
        reached: Whether each run reached it.
        horizon: Steps up to which the mean is taken, above 0.
        level: Confidence.

    Returns:
        No value if watching ended before the horizon for all that had not arrived; no interval for one run.

    Raises:
        ValueError: If the arguments do not fit each other.

    Example:
        >>> restricted_mean([100, 200, 300, 400], [True, True, True, False], horizon=400)
        Estimate(value=250.0, low=44.5..., high=455.4..., n=4)

    Source: Royston & Parmar (2013), doi:10.1186/1471-2288-13-152.
    """
    t, hit = checked_runs(steps, reached)
    if not horizon > 0:
        raise ValueError(f"horizon must be above 0, got {horizon}")
    hit, t = hit & (t <= horizon), np.minimum(t, horizon)
    n = len(t)
    times = np.unique(t[hit])
    events = np.array([(hit & (t == time)).sum() for time in times], dtype=float)
    at_risk = np.array([(t >= time).sum() for time in times], dtype=float)
    survival = np.cumprod(1 - events / at_risk) if len(times) else np.ones(0)
    if t.max() < horizon and (not len(times) or survival[-1] > 0):
        return Estimate(None, None, None, n)
    widths = np.diff(np.concatenate([[0.0], times, [horizon]]))
    areas = widths * np.concatenate([[1.0], survival])
    value = float(areas.sum())
    if n < 2:
        return Estimate(value, None, None, n)
    beyond = np.cumsum(areas[::-1])[::-1][1:]  # area right of each event
    left = at_risk > events
    variance = np.sum(beyond[left] ** 2 * events[left] / (at_risk * (at_risk - events))[left]) * n / (n - 1)
    margin = float(stats.t.ppf(0.5 + checked_level(level) / 2, n - 1) * math.sqrt(variance))
    return Estimate(value, value - margin, value + margin, n)


def expected_steps(steps: npt.ArrayLike, reached: npt.ArrayLike) -> float:
    """Expected steps to a success when a run that missed is started again with another seed (ERT).

    All steps spent, misses with theirs, over the number of successes; infinite without one.

    Raises:
        ValueError: If the two do not fit each other.

    Example:
        >>> expected_steps([100, 200, 300], [True, True, False])
        300.0

    Source: Auger & Hansen (2005) at CEC; Hansen et al. (2021),
    doi:10.1080/10556788.2020.1808977.
    """
    t, hit = checked_runs(steps, reached)
    return float(t.sum() / hit.sum()) if hit.any() else math.inf


def penalised_mean(steps: npt.ArrayLike, reached: npt.ArrayLike, budget: float, factor: float = 2.0) -> float:
    """Mean steps with a miss counted as ``factor`` budgets (PAR2 for a factor of 2).

    Raises:
        ValueError: If the arguments do not fit each other.

    Example:
        >>> penalised_mean([100, 200, 300], [True, True, False], budget=300)
        300.0

    Source: Hutter et al. (2009), doi:10.1613/jair.2861.
    """
    t, hit = checked_runs(steps, reached)
    if not (budget > 0 and factor >= 1):
        raise ValueError(f"expected a budget above 0 and a factor of at least 1, got {budget} and {factor}")
    return float(np.where(hit, t, factor * budget).mean())
