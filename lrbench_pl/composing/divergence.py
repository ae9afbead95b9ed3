"""When a training loss has diverged, by its course alone: a loss shifted by a constant is judged the same."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

_MEMORY = 20  # losses that the running mean looks back over
_NOISE_OF = 50  # differences that the noise looks back over
_FEWEST = 10  # differences that make a noise
_ABOVE = 2.5  # noise by which the mean must stand above the first loss to have diverged, where nothing was learnt
_LEARNT = 5.0  # noise by which the mean must fall below the first loss to have learnt
_LOST = 0.2  # share of that fall below which the mean has lost what was learnt


def noise(losses: Iterable[float]) -> float:
    """Median difference between two losses in a row; 0 for fewer than two.

    The median is robust: neither the step at which a training learns fast nor a single outlier moves it.

    Example:
        >>> noise([2.0, 2.5, 2.0, 90.0, 2.0, 2.5])
        0.5
    """
    return statistics.median([abs(b - a) for a, b in pairwise(losses)] or [0.0])


class LossWatch:
    """Tells from the losses seen so far whether a training has diverged.

    The running mean of the loss is compared with the first loss, that of the untrained network. The training has
    diverged if the mean stands clearly above it, or if it has fallen clearly below and come back to it. What is clear
    is measured in units of the noise of the recent losses and of the fall, never in units of the loss itself.

    Example:
        >>> watch = LossWatch()
        >>> any([watch.see(-3.0 + 0.1 * (t % 3)) for t in range(20)])
        False
        >>> [watch.see(loss) for loss in (0.0, 4.0, 12.0)]
        [False, True, True]
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._mean = 0.0
        self._fall = 0.0  # the deepest that was clear
        self._recent: deque[float] = deque(maxlen=_NOISE_OF + 1)

    def see(self, loss: float) -> bool:
        """Take in the loss of a step; whether the training has diverged. A non-finite loss is not taken in."""
        if not math.isfinite(loss):
            return True
        self._recent.append(loss)
        if self._first is None:
            self._first = self._mean = loss
            return False
        self._mean += (loss - self._mean) / _MEMORY
        if len(self._recent) <= _FEWEST:
            return False
        rise, spread = self._mean - self._first, noise(self._recent)
        if -rise > _LEARNT * spread:
            self._fall = max(self._fall, -rise)
        return rise > (-_LOST * self._fall if self._fall else _ABOVE * spread)

    def go_back(self) -> None:
        """Forget all but the first loss."""
        if self._first is not None:
            self._mean = self._first
        self._fall = 0.0
        self._recent.clear()

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain data."""
        return {"first": self._first, "mean": self._mean, "fall": self._fall, "recent": list(self._recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._first, self._mean, self._fall = state["first"], state["mean"], state["fall"]
        self._recent = deque(state["recent"], maxlen=_NOISE_OF + 1)
