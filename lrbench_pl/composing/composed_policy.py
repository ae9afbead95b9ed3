"""Adaptive policy whose rates and schedule come from a composition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lrbench_pl.policies import Policy


class ComposedPolicy:
    """Rates of a composition by the step of the training; an ``AdaptivePolicy``.

    The composer observes the checks and stores the state itself.

    Args:
        rate: Returns the learning rate of a step of the training.
        realised: Returns the composed policy.
    """

    def __init__(self, rate: Callable[[int], float], realised: Callable[[], Policy]) -> None:
        self._rate, self._realised = rate, realised

    def __repr__(self) -> str:
        return f"composed: {self.realised()!r}"

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t`` of the training."""
        return self._rate(t)

    def observe(self, t: int, value: float) -> None:
        """Do nothing: the composer observes every check."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: the composer stores it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: the composer loads the state."""

    def realised(self) -> Policy:
        """Return the composed policy as a plain policy."""
        return self._realised()
