"""Speed-ups over a baseline as functions of the target, with runs that ended early."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lrbench_pl.analysis.statistics._comparisons import speed_up
from lrbench_pl.analysis.statistics._estimates import Estimate, median
from lrbench_pl.analysis.statistics._inputs import checked_runs


@dataclass(frozen=True)
class Bounded:
    """An estimate from runs whose steps are not all known.

    Args:
        times: The estimate if every unknown number of steps is the one that makes it smallest; its upper end is that of
            the largest. No value if the runs do not determine it.
        at_least: Whether another choice would make the value larger.
    """

    times: Estimate
    at_least: bool = False


def bounded_speed_up(
    baseline_steps: npt.ArrayLike,
    baseline_reached: npt.ArrayLike,
    steps: npt.ArrayLike,
    reached: npt.ArrayLike,
    rng: np.random.Generator | int,
    *,
    is_open: Sequence[bool] | None = None,
    paired: bool = False,
) -> Bounded:
    """Estimate the speed-up over a baseline that missed the target in some runs, or did not use its budget there.

    A run of the baseline that did not reach the target needs its observed steps or more. They bound the ratio from
    below, and infinity from above. An open run of the policy ended before its budget and needs more than its observed
    steps: they bound the ratio from above, and a miss from below. Seeds that both missed are left out.

    Args:
        baseline_steps: Steps to the target of the baseline's runs, or steps observed without reaching it.
        baseline_reached: Whether each of them reached the target.
        steps: Steps of the policy's runs.
        reached: Whether each of them reached the target.
        rng: Source of the resampling, or its seed.
        is_open: Whether each run of the policy ended before its budget without reaching the target.
        paired: Whether both are in the same order of seeds.

    Example:
        >>> base = [800, 600, 900, 900, 900], [True, True, True, False, False]
        >>> bounded_speed_up(*base, [400, 300, 400, 500, 450], [True] * 5, rng=0, paired=True)
        Bounded(times=Estimate(value=2.0, low=1.8..., high=inf, n=5), at_least=True)
    """
    base_t, base_hit = checked_runs(baseline_steps, baseline_reached)
    t, hit = checked_runs(steps, reached)
    censored = np.zeros(len(t), bool) if is_open is None else np.asarray(is_open, bool) & ~hit
    early = base_hit | hit if paired and len(hit) == len(base_hit) else np.ones(len(base_hit), bool)
    least = speed_up(base_t, early, t, hit, rng, paired=paired)
    if (
        paired and (both := ~base_hit & censored).any()
    ):  # the policy may still reach it, with the baseline's steps or fewer
        later = speed_up(base_t, early | both, np.where(both, np.maximum(t, base_t), t), hit | both, rng, paired=True)
        least = min(least, later, key=lambda each: math.inf if each.value is None else each.value)
    most = speed_up(base_t, base_hit, t, hit | censored, rng, paired=paired)
    return _bounded(least, most)


def budget_ratio(budget: float, steps: npt.ArrayLike, reached: npt.ArrayLike, is_open: Sequence[bool] = ()) -> Bounded:
    """Estimate how often a budget contains the steps to the target: the median of their ratio; 0 for a miss.

    Args:
        budget: The budget in steps.
        steps: Steps to the target, or steps observed without reaching it.
        reached: Whether each run reached the target.
        is_open: Whether each run ended before its budget without reaching the target; it needs more than its steps.

    Example:
        >>> budget_ratio(1000, [100, 200, 250, 400, 1000], [True, True, True, True, False])
        Bounded(times=Estimate(value=4.0, low=0.0, high=10.0, n=5), at_least=False)
    """
    t, hit = checked_runs(steps, reached)
    censored = np.asarray(is_open, bool) & ~hit if len(is_open) else np.zeros(len(t), bool)
    least, most = (median(np.where(each, budget / np.maximum(t, 1), 0.0)) for each in (hit, hit | censored))
    return _bounded(least, most)


def _bounded(least: Estimate, most: Estimate) -> Bounded:
    if least.value is None or most.value is None:
        return Bounded(Estimate(None, None, None, least.n))
    if least.value == 0 < most.value:  # anything between: most runs are open
        return Bounded(Estimate(None, None, None, least.n))
    return Bounded(Estimate(least.value, least.low, most.high, least.n), least.value != most.value)


def target_grid(
    curves: Sequence[tuple[Sequence[int], Sequence[float]]], number: int, mode: str = "max"
) -> list[tuple[float, float]]:
    """Choose targets that runs reach one after the other, from their first check to their best.

    They are the values of the median of the runs' best values so far, at equal distances of steps. So the easy targets
    of the steep beginning and the hard ones of the flat end have equal shares. Each is rounded to five digits towards
    the easier side.

    Args:
        curves: Steps and values of the checks of each run.
        number: Number of targets, at least 2.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.

    Returns:
        Steps and target, the easiest first; fewer than ``number`` if the values do not differ so often, none without a
        finite value.

    Raises:
        ValueError: If ``number`` is below 2.

    Example:
        >>> target_grid([((10, 20, 30, 40), (0.5, 0.8, 0.7, 0.9))], number=3)
        [(10.0, 0.5), (25.0, 0.825), (40.0, 0.9)]
    """
    if number < 2:
        raise ValueError(f"expected at least 2 targets, got {number}")
    sign = 1.0 if mode == "max" else -1.0
    steps = sorted({step for at, _ in curves for step in at})
    best = np.full((len(curves), len(steps)), -math.inf)
    for row, (at, values) in enumerate(curves):
        if not len(at):
            continue
        so_far = np.maximum.accumulate(np.nan_to_num(sign * np.asarray(values, float), nan=-math.inf))
        index = np.searchsorted(np.asarray(at), steps, side="right") - 1
        best[row] = np.where(index >= 0, so_far[np.maximum(index, 0)], -math.inf)
    middle = (
        np.sort(best, axis=0)[(len(curves) - 1) // 2] if len(steps) else np.array([])
    )  # of an even number the lower
    rises = [i for i in range(len(steps)) if math.isfinite(middle[i]) and (i == 0 or middle[i] > middle[i - 1])]
    if not rises:
        return []
    x, y = np.asarray(steps, float)[rises], middle[rises]
    found: dict[float, float] = {}
    for step in np.linspace(x[0], x[-1], number):
        found.setdefault(_easier(float(np.interp(step, x, y)), sign), round(float(step), 1))
    return [(step, target) for target, step in found.items()]


def _easier(value: float, sign: float) -> float:
    """Return a signed value as a target of five digits that is not harder."""
    if value == 0:
        return 0.0
    scale = 10.0 ** (4 - math.floor(math.log10(abs(value))))
    return sign * float(f"{math.floor(value * scale + 1e-9) / scale:.5g}")
