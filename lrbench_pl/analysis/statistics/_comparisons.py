"""Two policies, or many, against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import stats

from lrbench_pl.analysis.statistics._estimates import Estimate, median
from lrbench_pl.analysis.statistics._inputs import (
    FEWEST_FOR_INTERVAL,
    FEWEST_FOR_RANK,
    Bools,
    Floats,
    censored,
    checked_level,
    checked_runs,
    checked_values,
)

_EXACT_SPLITS = 10_000  # a permutation test lists all splits up to here, and draws as many beyond


def speed_up(
    baseline_steps: npt.ArrayLike,
    baseline_reached: npt.ArrayLike,
    steps: npt.ArrayLike,
    reached: npt.ArrayLike,
    rng: np.random.Generator | int,
    *,
    paired: bool = False,
    level: float = 0.95,
    resamples: int | None = None,
) -> Estimate:
    """How many times fewer steps a run takes than one of the baseline: the median of such ratios.

    Above 1 the policy is faster. A ratio is infinite where the baseline alone misses, 0 where the policy alone does,
    and left out where both do.

    Paired, there is one ratio per seed, and the interval is that of :func:`median`: 93.75 % with 5 pairs, 94 to 96 %
    with more. Otherwise there is one for each pair of runs (Hodges and Lehmann's estimate, for ratios), and the
    interval holds the percentiles of a bootstrap, taken as far out as Student's distribution stands from the normal:
    plain ones cover 88 % with 5 runs, these 95 to 97 % from 5 runs on, with up to 3 in 10 missing.

    Args:
        baseline_steps: Steps to the target of the baseline's runs, or steps watched in vain.
        baseline_reached: Whether each of them reached it.
        steps: The same of the policy.
        reached: The same of the policy.
        rng: Source of the resampling, or its seed.
        paired: Whether the runs of both stand in the same order of seeds.
        level: Confidence.
        resamples: How many; by default 2,000, fewer for hundreds of runs.

    Returns:
        No value if no ratio can be formed; no interval below 5 runs of each (or 5 pairs).

    Raises:
        ValueError: If the arguments do not fit each other.

    Example:
        >>> arrived = [True] * 5
        >>> speed_up([400, 420, 380, 410, 390], arrived, [200, 230, 190, 210, 180], arrived, rng=0, paired=True)
        Estimate(value=2.0, low=1.826..., high=2.166..., n=5)

    Source: Hodges & Lehmann (1963), doi:10.1214/aoms/1177704172; Hesterberg (2015),
    doi:10.1080/00031305.2015.1089789.
    """
    sides = [checked_runs(baseline_steps, baseline_reached), checked_runs(steps, reached)]
    if min(t.min() for t, _ in sides) <= 0:
        raise ValueError("expected steps above 0, for there is no ratio to 0")
    slow, fast = (np.where(hit, np.log(t), math.inf) for t, hit in sides)
    if paired:
        if len(slow) != len(fast):
            raise ValueError(f"pairs need as many runs on both sides, got {len(slow)} and {len(fast)}")
        with np.errstate(invalid="ignore"):
            gaps = slow - fast
        gaps = gaps[~np.isnan(gaps)]
        if not len(gaps):
            return Estimate(None, None, None, 0)
        middle = median(gaps, level)
        return Estimate(_exp(middle.value), _exp(middle.low), _exp(middle.high), middle.n)
    n = min(len(slow), len(fast))
    (value,) = _median_gap(slow[None], fast[None])
    if math.isnan(value):
        return Estimate(None, None, None, n)
    if n < FEWEST_FOR_INTERVAL:
        return Estimate(_exp(value), None, None, n)
    generator = np.random.default_rng(rng)
    size = len(slow) * len(fast)
    count = resamples or int(np.clip(2e7 / size, 200, 2000))
    draws = [generator.integers(0, len(each), (count, len(each))) for each in (slow, fast)]
    chunk = max(1, 4_000_000 // size)
    drawn = np.concatenate(
        [_median_gap(slow[draws[0][i : i + chunk]], fast[draws[1][i : i + chunk]]) for i in range(0, count, chunk)]
    )
    drawn = np.sort(drawn[~np.isnan(drawn)])
    quantile = stats.t.isf((1 - checked_level(level)) / 2, len(slow) + len(fast) - 2) * math.sqrt(n / (n - 1))
    outside = int(stats.norm.sf(quantile) * len(drawn))
    return Estimate(_exp(value), _exp(drawn[outside]), _exp(drawn[-1 - outside]), n)


def _median_gap(slow: Floats, fast: Floats) -> Floats:
    """Row by row the median of all differences, those of two infinities left out; NaN if none is left."""
    with np.errstate(invalid="ignore"):
        gaps = np.sort((slow[:, :, None] - fast[:, None, :]).reshape(len(slow), -1), axis=1)  # NaN last
    left = (~np.isnan(gaps)).sum(axis=1)
    rows = np.arange(len(gaps))
    low, high = gaps[rows, np.maximum(left - 1, 0) // 2], gaps[rows, np.minimum(left // 2, gaps.shape[1] - 1)]
    with np.errstate(invalid="ignore"):
        middle = np.where(low == high, low, (low + high) / 2)
    return np.where(left > 0, np.where(np.isnan(middle), 0.0, middle), np.nan)  # half of them faster: no difference


def _exp(log: float | None) -> float | None:
    return None if log is None else float(np.exp(log))


def pair_by_seed(seeds: Sequence[int | None], others: Sequence[int | None]) -> tuple[list[int], list[int]] | None:
    """Indices that bring two sets of runs into the same order of seeds, or None if their seeds differ or repeat.

    Example:
        >>> pair_by_seed([0, 1, 2], [2, 0, 1])
        ([0, 1, 2], [1, 2, 0])
        >>> pair_by_seed([0, 1], [1, 2]) is None
        True
    """
    if None in seeds or len(set(seeds)) < len(seeds) or set(seeds) != set(others) or len(seeds) != len(others):
        return None
    place = {seed: index for index, seed in enumerate(others)}
    return list(range(len(seeds))), [place[seed] for seed in seeds]


@dataclass(frozen=True)
class LogRank:
    """Whether two policies differ in steps to the target.

    Args:
        z: Standardised difference; above 0 the first arrives sooner.
        p: Two-sided p-value of the permutation test.
    """

    z: float
    p: float


def log_rank(
    steps: npt.ArrayLike,
    reached: npt.ArrayLike,
    other_steps: npt.ArrayLike,
    other_reached: npt.ArrayLike,
    rng: np.random.Generator | int,
) -> LogRank:
    """Log-rank test with the p-value of its permutation distribution, exact up to 10,000 splits.

    The usual normal approximation rejects too often with few runs; permutations keep the 5 % at any number. With 3 runs
    each the smallest possible p is 0.1, with 4 it is 0.03.

    Args:
        steps: Steps to the target, or steps watched in vain.
        reached: Whether each run reached it.
        other_steps: The same of the other policy.
        other_reached: The same of the other policy.
        rng: Source of the splits beyond 10,000, or its seed.

    Raises:
        ValueError: If the arguments do not fit each other.

    Example:
        >>> arrived = [True] * 4
        >>> log_rank([100, 110, 120, 130], arrived, [200, 210, 220, 230], arrived, rng=0)
        LogRank(z=2.71..., p=0.0285...)

    Source: Mantel (1966); Peto & Peto (1972), doi:10.2307/2344317; Heinze, Gnant, Schemper (2003),
    Biometrics 59(4).
    """
    first, second = checked_runs(steps, reached), checked_runs(other_steps, other_reached)
    t, hit = (np.concatenate(pair) for pair in zip(first, second, strict=True))
    n, total = len(first[0]), len(t)
    if not hit.any():
        return LogRank(0.0, 1.0)
    with np.errstate(invalid="ignore"):  # all arrive at once: 0 / 0
        z = float(stats.logrank(censored(*first), censored(*second)).statistic)
    times = np.unique(t[hit])
    increments = np.array([(hit & (t == time)).sum() / (t >= time).sum() for time in times])
    # observed less expected arrivals of a group is the sum of these over its runs
    scores = hit - (increments * (times <= t[:, None])).sum(axis=1)
    if math.comb(total, n) <= _EXACT_SPLITS:
        sums = scores[np.array(list(combinations(range(total), n)))].sum(axis=1)
        extra = 0
    else:
        generator = np.random.default_rng(rng)
        sums = generator.permuted(np.tile(scores, (_EXACT_SPLITS - 1, 1)), axis=1)[:, :n].sum(axis=1)
        extra = 1  # the split that was observed
    as_far = int((np.abs(sums) >= abs(scores[:n].sum()) - 1e-9).sum())
    return LogRank(0.0 if math.isnan(z) else z, (as_far + extra) / (len(sums) + extra))


def seeds_needed(z: float, n: int, comparisons: int = 1, power: float = 0.8, level: float = 0.95) -> int | None:
    """Runs per policy at which a difference as large as the one seen would be told apart.

    A standardised difference grows with the root of the number of runs, so it takes ``n * ((z_level + z_power) /
    z)**2``, with Guenther's correction for few runs and Bonferroni's for several comparisons. It takes the difference
    seen at its word: half of the time the true one is smaller, and then it takes more.

    Args:
        z: Standardised difference seen.
        n: Runs per policy behind it.
        comparisons: Pairs that are to be told apart at once.
        power: Chance of telling them apart.
        level: Confidence.

    Returns:
        Runs per policy, or None if no difference was seen.

    Raises:
        ValueError: If ``n`` or ``comparisons`` is below 1, or ``power`` not in (0, 1).

    Example:
        >>> seeds_needed(z=1.4, n=5)
        21

    Source: Schoenfeld (1981), doi:10.1093/biomet/68.1.316; Guenther (1981), The American Statistician 35(4).
    """
    if n < 1 or comparisons < 1 or not 0 < power < 1:
        raise ValueError(f"expected n and comparisons >= 1 and power in (0, 1), got {n}, {comparisons} and {power}")
    if z == 0 or not math.isfinite(z):
        return None
    critical = float(stats.norm.isf((1 - checked_level(level)) / 2 / comparisons))
    return math.ceil(n * ((critical + float(stats.norm.ppf(power))) / z) ** 2 + critical**2 / 4)


@dataclass(frozen=True)
class Comparison:
    """Which policies are really better than which others.

    Args:
        low: Best rank of each policy that the runs allow, or None for a policy with fewer than 3 runs.
        high: Worst such rank.
        better: ``better[i, j]``: i is told apart from j as the better one, all pairs judged at once.
        z: ``z[i, j]``: standardised difference, above 0 where i is better; NaN where one has fewer than 3 runs.
    """

    low: tuple[int | None, ...]
    high: tuple[int | None, ...]
    better: Bools
    z: Floats


def compare(
    values: Sequence[npt.ArrayLike], rng: np.random.Generator | int, level: float = 0.95, resamples: int | None = None
) -> Comparison:
    """Rank intervals of policies, and the pairs of them that are told apart.

    Values count by their order alone: pooled over all policies they become ranks, and policies are compared by Welch's
    statistic of their mean ranks. How far it goes by chance, at its largest over many comparisons, comes from a
    bootstrap of the pooled residuals. The interval of a policy ends where others are told apart from it, judged at once
    for this policy; ``better`` judges all pairs at once.

    So equal policies get the whole range of ranks in 93 to 97 % of experiments, from 3 runs each on; distinct ones, and
    runs that tie, are covered more often. Tied values count as if they lay anywhere within the tie. Resampling the
    ranking itself would be simpler, and covers down to 50 % where policies are nearly equal.

    Args:
        values: For each policy one number per run, smaller is better; infinity stands for a miss.
        rng: Source of the resampling, or its seed.
        level: Confidence.
        resamples: How many; by default 2,000 for few policies and fewer for hundreds.

    Raises:
        ValueError: If there is no policy, or one without values, or a value is NaN.

    Example:
        >>> fast, slow, same = [100, 110, 120, 130, 140], [300, 310, 320, 330, 340], [305, 315, 325, 335, 345]
        >>> compared = compare([fast, slow, same], rng=0)
        >>> compared.low, compared.high
        ((1, 2, 2), (1, 3, 3))

    Source: Mogstad, Romano, Shaikh, Wilhelm (2024), doi:10.1093/restud/rdad006; Brunner & Munzel (2000),
    doi:10.1002/(SICI)1521-4036(200001)42:1<17::AID-BIMJ17>3.0.CO;2-U.
    """
    if not values:
        raise ValueError("expected at least one policy, got none")
    groups = [checked_values(each) for each in values]
    k, counts = len(groups), np.array([len(each) for each in groups])
    pooled = np.concatenate(groups)
    _, inverse, ties = np.unique(pooled, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)[:-1]
    ranks = np.split(stats.rankdata(pooled), ends)
    hidden = np.split((ties[inverse] ** 2 - 1) / 12, ends)  # variance within each tie
    means = np.array([each.mean() for each in ranks])
    several = counts >= FEWEST_FOR_RANK
    spread = [each.var(ddof=1) if enough else math.nan for each, enough in zip(ranks, several, strict=True)]
    variances = (np.array(spread) + [each.mean() for each in hidden]) / counts
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (means - means[:, None]) / np.sqrt(variances + variances[:, None])
    z[(means == means[:, None]) & several & several[:, None]] = 0.0
    better = np.zeros((k, k), dtype=bool)
    low: list[int | None] = [None] * k
    high: list[int | None] = [None] * k
    if several.sum() > 1:
        farthest, farthest_of_all = _farthest_by_chance(ranks, hidden, several, np.random.default_rng(rng), resamples)
        # residuals of few runs have lighter tails than the runs: by simulation, this much further out makes up for it
        share = 1 - (1 - checked_level(level)) * (1 - 1 / float(np.median(counts[several])))
        critical = np.quantile(farthest, share, axis=0)
        better = np.nan_to_num(z) > np.quantile(farthest_of_all, share)
        for row, i in enumerate(np.flatnonzero(several).tolist()):
            low[i] = 1 + int((z[:, i] > critical[row]).sum())
            high[i] = k - int((z[i] > critical[row]).sum())
    elif several.any():
        low, high = ([each if many else None for many in several] for each in (1, k))
    return Comparison(tuple(low), tuple(high), better, z)


def _farthest_by_chance(
    ranks: Sequence[Floats], hidden: Sequence[Floats], several: Bools, rng: np.random.Generator, resamples: int | None
) -> tuple[Floats, Floats]:
    """What comes of equal policies: the largest statistic of each with any other (resamples x policies), and of all."""
    chosen: list[int] = np.flatnonzero(several).tolist()
    k = len(chosen)
    n = resamples or int(np.clip(4e7 / k**2, 200, 2000))
    scale = [math.sqrt(len(ranks[i]) / (len(ranks[i]) - 1)) for i in chosen]
    residuals = np.concatenate([(ranks[i] - ranks[i].mean()) * s for i, s in zip(chosen, scale, strict=True)])
    spreads = np.concatenate([np.sqrt(12 * hidden[i]) for i in chosen])  # width of a uniform distribution
    means, variances = np.empty((n, k)), np.empty((n, k))
    for column, i in enumerate(chosen):
        index = rng.integers(0, len(residuals), (n, len(ranks[i])))
        drawn = residuals[index] + spreads[index] * (rng.random(index.shape) - 0.5)
        means[:, column] = drawn.mean(axis=1)
        variances[:, column] = drawn.var(axis=1, ddof=1) / len(ranks[i])
    farthest = np.empty((n, k))
    for column in range(k):
        error = np.sqrt(variances + variances[:, [column]])
        gap = np.abs(means - means[:, [column]])
        farthest[:, column] = np.divide(gap, error, out=np.zeros_like(gap), where=error > 0).max(axis=1)
    return farthest, farthest.max(axis=1)


def tiers(better: npt.ArrayLike) -> list[int]:
    """Tiers of policies in order of rank: a tier ends before the first policy that is told apart from the tier's first.

    So nothing in a tier is told apart from its first as worse, and the first of each tier is told apart from the first
    of the tier above.

    Args:
        better: From :func:`compare`, with rows and columns in order of rank.

    Raises:
        ValueError: If it is no square.

    Example:
        >>> tiers([[False, False, True], [False, False, False], [False, False, False]])
        [1, 1, 2]
    """
    table = np.asarray(better, dtype=bool)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(f"expected a square table, got shape {table.shape}")
    numbers: list[int] = []
    first = 0
    for policy in range(len(table)):
        if table[first, policy]:
            first = policy
            numbers.append(numbers[-1] + 1)
        else:
            numbers.append(numbers[-1] if numbers else 1)
    return numbers
