"""Validation of the arrays and levels that the statistics take."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FEWEST_FOR_INTERVAL = 5  # below, even the range covers the median in less than 93 % of experiments
FEWEST_FOR_RANK = 3  # two runs give no usable estimate of their variance


def checked_runs(steps: npt.ArrayLike, reached: npt.ArrayLike) -> tuple[Floats, Bools]:
    """Return both as arrays; raise ValueError if they are not runs."""
    t, hit = np.asarray(steps, dtype=float), np.asarray(reached, dtype=bool)
    if t.ndim != 1 or t.shape != hit.shape or not len(t):
        raise ValueError(
            f"expected steps and reached of one length and at least one run, got {t.shape} and {hit.shape}"
        )
    if not (np.isfinite(t) & (t >= 0)).all():
        raise ValueError(
            f"expected finite steps of at least 0, got {t[~(np.isfinite(t) & (t >= 0))][0]}; for a miss give the steps "
            "it was observed for and reached=False"
        )
    return t, hit


def checked_values(values: npt.ArrayLike) -> Floats:
    """Return the values as an array; raise ValueError if there is none or one is NaN."""
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or not len(x) or np.isnan(x).any():
        raise ValueError(f"expected at least one number and no NaN, got {x.tolist()}")
    return x


def checked_level(level: float) -> float:
    """Return the level; raise ValueError if it is outside of (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    return level


def censored(t: Floats, hit: Bools) -> Any:
    """Return the runs as right-censored data of scipy."""
    return stats.CensoredData(uncensored=t[hit], right=t[~hit])
