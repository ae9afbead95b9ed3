"""What comes in: arrays, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FEWEST_FOR_INTERVAL = 5  # the range of fewer runs covers less than 93 % of medians
FEWEST_FOR_RANK = 3  # two runs know too little of their own spread


def checked_runs(steps: npt.ArrayLike, reached: npt.ArrayLike) -> tuple[Floats, Bools]:
    t, hit = np.asarray(steps, dtype=float), np.asarray(reached, dtype=bool)
    if t.ndim != 1 or t.shape != hit.shape or not len(t):
        raise ValueError(
            f"expected steps and reached of one length and at least one run, got {t.shape} and {hit.shape}"
        )
    if not (np.isfinite(t) & (t >= 0)).all():
        raise ValueError("expected finite steps of at least 0; a miss has the steps it was watched, and reached=False")
    return t, hit


def checked_values(values: npt.ArrayLike) -> Floats:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or not len(x) or np.isnan(x).any():
        raise ValueError(f"expected a row of at least one number and no NaN, got {x.tolist()}")
    return x


def checked_level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    return level


def censored(t: Floats, hit: Bools) -> Any:
    return stats.CensoredData(uncensored=t[hit], right=t[~hit])
