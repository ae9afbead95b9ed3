"""What a few seeds can and cannot say: estimates with intervals, comparisons, ranks.

Throughout, ``steps`` are optimizer steps to the target where ``reached`` is true, and the steps up to which a run was
watched in vain where it is false (right-censored: the budget for a miss). Randomness is an argument. Intervals are 95 %
unless ``level`` says otherwise; how well each covers was measured on 2,000 simulated experiments per case, and its
docstring says down to how many runs.
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
    penalised_mean,
    restricted_mean,
    success_rate,
)
from lrbench_pl.analysis.statistics._inputs import FEWEST_FOR_INTERVAL, FEWEST_FOR_RANK, Bools, Floats
from lrbench_pl.analysis.statistics._profiles import Profile, Sensitivity, performance_profile, sensitivity

__all__ = [
    "FEWEST_FOR_INTERVAL",
    "FEWEST_FOR_RANK",
    "Bools",
    "Comparison",
    "Estimate",
    "Floats",
    "LogRank",
    "Profile",
    "Sensitivity",
    "SurvivalCurve",
    "compare",
    "expected_steps",
    "kaplan_meier",
    "log_rank",
    "median",
    "median_steps",
    "pair_by_seed",
    "penalised_mean",
    "performance_profile",
    "restricted_mean",
    "seeds_needed",
    "sensitivity",
    "speed_up",
    "success_rate",
    "tiers",
]
