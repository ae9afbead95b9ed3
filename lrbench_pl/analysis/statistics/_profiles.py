"""Summaries of a policy over several workloads or several learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lrbench_pl.analysis.statistics._inputs import Floats


@dataclass(frozen=True)
class Profile:
    """Share of workloads that each policy solves within a factor of the best policy.

    Args:
        factors: Factors at which a share changes, from 1 to ``r_max``.
        shares: Shares of each policy at these factors.
        scores: Mean share of each policy over the factors from 1 to ``r_max``, in [0, 1].
    """

    factors: tuple[float, ...]
    shares: dict[str, tuple[float, ...]]
    scores: dict[str, float]


def performance_profile(cost: Mapping[str, Sequence[float]], r_max: float = 4.0) -> Profile:
    """Compute Dolan and Moré's performance profile, scored as in AlgoPerf.

    Args:
        cost: Cost of each policy on each workload, above 0; infinity for a workload it does not solve.
        r_max: Largest factor considered.

    Raises:
        ValueError: If there is no policy, the numbers of workloads differ, a cost is not above 0, or ``r_max`` is
            not above 1.

    Example:
        >>> profile = performance_profile({"tri": [100, 300], "fix": [200, 200]})
        >>> profile.factors, profile.shares["fix"], round(profile.scores["fix"], 3)
        ((1.0, 1.5, 2.0, 4.0), (0.5, 0.5, 1.0, 1.0), 0.833)

    Source: Dolan & Moré (2002), doi:10.1007/s101070100263; Dahl et al. (2023), arXiv:2306.07179.
    """
    if len({len(costs) for costs in cost.values()}) != 1 or not next(iter(cost.values())):
        sizes = {name: len(costs) for name, costs in cost.items()}
        raise ValueError(f"expected one cost per policy and workload, got {sizes}")
    table = np.array([list(costs) for costs in cost.values()], dtype=float)
    if not (table > 0).all():
        raise ValueError(f"expected costs above 0 (infinity for an unsolved workload), got {table.min()}")
    if not 1 < r_max < math.inf:
        raise ValueError(f"r_max must be a finite number above 1, got {r_max}")
    best = table.min(axis=0)
    ratios = np.divide(table, best, out=np.full_like(table, math.inf), where=np.isfinite(table))
    factors = np.unique([1.0, *ratios[ratios <= r_max], r_max])
    shares = (ratios[:, :, None] <= factors * (1 + 1e-12)).mean(axis=1)
    scores = (shares[:, :-1] * np.diff(factors)).sum(axis=1) / (r_max - 1)
    return Profile(
        tuple(map(float, factors)),
        {name: tuple(map(float, row)) for name, row in zip(cost, shares, strict=True)},
        {name: float(score) for name, score in zip(cost, scores, strict=True)},
    )


@dataclass(frozen=True)
class Sensitivity:
    """Range of learning rates within which a policy stays close to its best cost.

    Args:
        low: Lower end of the range.
        high: Upper end of the range.
        octaves: Width of the range, ``log2(high / low)``.
        low_is_edge: Whether ``low`` is the lowest rate tried, so that the range may be wider.
        high_is_edge: Whether ``high`` is the highest rate tried.
    """

    low: float
    high: float
    octaves: float
    low_is_edge: bool
    high_is_edge: bool


def sensitivity(lr: Sequence[float], cost: Sequence[float], factor: float = 1.5) -> Sensitivity | None:
    """Compute the range of learning rates with a cost within a factor of the best.

    Between the rates tried, log cost is interpolated linearly in log rate. Next to a rate with infinite cost, the range
    ends at the last rate with a finite one.

    Args:
        lr: Rates tried, above 0, without repetition.
        cost: Cost at each rate, such as the median steps; infinity where the target was missed.
        factor: Costs up to ``factor`` times the best are within the range; at least 1.

    Returns:
        None if every cost is infinite.

    Raises:
        ValueError: If lengths differ, a rate or cost is not above 0, a rate repeats, or ``factor`` is below 1.

    Example:
        >>> found = sensitivity([0.01, 0.02, 0.04, 0.08], [400, 100, 100, 400], factor=2)
        >>> round(found.octaves, 6), found.low_is_edge
        (2.0, False)

    Source: after Sivaprasad et al. (2020), arXiv:1910.11758: tunability as the share of settings near the best.
    """
    rates, costs = np.asarray(lr, dtype=float), np.asarray(cost, dtype=float)
    if rates.ndim != 1 or rates.shape != costs.shape or not len(rates):
        raise ValueError(f"expected as many costs as rates and at least one, got {rates.shape} and {costs.shape}")
    if not (rates > 0).all() or len(set(rates.tolist())) < len(rates):
        raise ValueError(f"expected rates above 0 without repetition, got {rates.tolist()}")
    if not (costs > 0).all() or not factor >= 1:
        raise ValueError(f"expected costs above 0 and a factor of at least 1, got {costs.min()} and {factor}")
    if not np.isfinite(costs).any():
        return None
    order = np.argsort(rates)
    x, y = np.log2(rates[order]), np.log2(costs[order])
    best = int(np.argmin(y))
    limit = y[best] + math.log2(factor) + 1e-12
    (low, low_is_edge), (high, high_is_edge) = _end(x, y, limit, best, -1), _end(x, y, limit, best, 1)
    return Sensitivity(float(2**low), float(2**high), high - low, low_is_edge, high_is_edge)


def _end(x: Floats, y: Floats, limit: float, at: int, direction: int) -> tuple[float, bool]:
    """Return where the curve first exceeds the limit on one side, and whether it never does."""
    while 0 <= at + direction < len(x):
        following = at + direction
        if y[following] > limit:
            if math.isinf(y[following]):
                return float(x[at]), False
            part = max(0.0, (limit - 1e-12 - y[at]) / (y[following] - y[at]))
            return float(x[at] + part * (x[following] - x[at])), False
        at = following
    return float(x[at]), True
