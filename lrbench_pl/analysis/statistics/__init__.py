"""Statistics for few seeds: estimates with intervals, comparisons, rank intervals.

``steps`` holds the optimizer steps to the target where ``reached`` is true. Where it is false the run is right-censored
and ``steps`` holds the steps it was observed for (the budget for a miss). Functions that resample take ``rng``.
Intervals are 95 % unless ``level`` is given. Coverage was measured on 2,000 simulated experiments per case; each
docstring gives it with the smallest number of runs it holds for.
"""

from lrbench_pl.analysis.statistics._comparisons import (
    Comparison,
    LogRank,
    compare,
    log_rank,
    pair_by_seed,
    seeds_needed,
    speed_up,
    tiers,
)
from lrbench_pl.analysis.statistics._estimates import (
    Estimate,
    SurvivalCurve,
    expected_steps,
    kaplan_meier,
    median,
    median_steps,
    success_rate,
)
from lrbench_pl.analysis.statistics._inputs import FEWEST_FOR_INTERVAL, FEWEST_FOR_RANK, Bools, Floats
from lrbench_pl.analysis.statistics._profiles import Profile, Sensitivity, performance_profile, sensitivity
from lrbench_pl.analysis.statistics._targets import Bounded, bounded_speed_up, budget_ratio, target_grid

__all__ = [
    "FEWEST_FOR_INTERVAL",
    "FEWEST_FOR_RANK",
    "Bools",
    "Bounded",
    "Comparison",
    "Estimate",
    "Floats",
    "LogRank",
    "Profile",
    "Sensitivity",
    "SurvivalCurve",
    "bounded_speed_up",
    "budget_ratio",
    "compare",
    "expected_steps",
    "kaplan_meier",
    "log_rank",
    "median",
    "median_steps",
    "pair_by_seed",
    "performance_profile",
    "seeds_needed",
    "sensitivity",
    "speed_up",
    "success_rate",
    "target_grid",
    "tiers",
]
