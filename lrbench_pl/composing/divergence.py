"""Detection of divergence from the course of the loss, whatever its level."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

_WINDOW = 20  # window of the running mean of the loss
_NOISE_WINDOW = 50  # differences that the noise is measured from
_MIN_DIFFERENCES = 10  # differences that a measurement of the noise needs
_RISE = 2.5  # multiple of the noise by which the mean exceeds the first loss in a divergence without learning
_LEARNED = 5.0  # multiple of the noise by which the mean falls below the first loss in a training that learned
_MEMORISED = 0.02  # share of the first loss below which the training data are memorised
_LOST = 0.2  # share of that fall below which what was learned is lost


def noise(losses: Iterable[float]) -> float:
    """Return the median absolute difference of consecutive losses; 0 without one.

    The median is robust: fast learning in a few steps or an outlier does not change it.

    Example:
        >>> noise([2.0, 2.5, 2.0, 90.0, 2.0, 2.5])
        0.5
    """
    return statistics.median([abs(b - a) for a, b in pairwise(losses)] or [0.0])


class LossWatch:
    """Detects divergence from the losses so far.

    The running mean of the loss is compared with the first loss, that of the untrained network. The training has
    diverged if the mean is significantly above it, or has returned to it after a significant fall. Significance is
    measured in units of the noise of the recent losses and of that fall, never in units of the loss.

    Example:
        >>> watch = LossWatch()
        >>> any([watch.update(-3.0 + 0.1 * (t % 3)) for t in range(20)])
        False
        >>> [watch.update(loss) for loss in (0.0, 4.0, 12.0)]
        [False, True, True]
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._mean: float | None = None  # None: the next loss starts it
        self._fall = 0.0  # largest significant fall of the mean
        self._recent: deque[float] = deque(maxlen=_NOISE_WINDOW + 1)

    def update(self, loss: float) -> bool:
        """Add the loss of a step and return whether the training has diverged.

        A non-finite loss is a divergence and does not change the state.
        """
        if not math.isfinite(loss):
            return True
        self._recent.append(loss)
        if self._first is None:
            self._first = self._mean = loss
            return False
        self._mean = loss if self._mean is None else self._mean + (loss - self._mean) / _WINDOW
        if len(self._recent) <= _MIN_DIFFERENCES:
            return False
        rise, spread = self._mean - self._first, noise(self._recent)
        if -rise > _LEARNED * spread:
            self._fall = max(self._fall, -rise)
        return rise > (-_LOST * self._fall if self._fall else _RISE * spread)

    @property
    def has_learned(self) -> bool:
        """Return whether the running mean is below the first loss by more than the noise.

        True as long as there are too few losses for a mean.
        """
        if self._first is None or self._mean is None or len(self._recent) < _WINDOW:
            return True
        return self._first - self._mean > noise(self._recent)

    @property
    def has_memorised(self) -> bool:
        """Return whether the running mean is below a fiftieth of the first loss.

        Of a loss that is zero for perfect predictions hardly anything is left to learn then.
        """
        if self._first is None or self._mean is None or len(self._recent) < _WINDOW:
            return False
        return self._first > 0 and self._mean < _MEMORISED * self._first

    def reset(self) -> None:
        """Forget all losses but the first, when training goes back."""
        self._mean = None
        self._fall = 0.0
        self._recent.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {"first": self._first, "mean": self._mean, "fall": self._fall, "recent": list(self._recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned."""
        self._first, self._mean, self._fall = state["first"], state["mean"], state["fall"]
        self._recent = deque(state["recent"], maxlen=_NOISE_WINDOW + 1)
