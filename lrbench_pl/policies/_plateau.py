"""Adaptive policy of LRBench, which changes on a plateau of the metric."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lrbench_pl.policies import _checks as check
from lrbench_pl.policies._compose import Policy, Sequential


@dataclass
class PlateauPolicy:
    """Changes to a larger policy on an early plateau, to a smaller one on a late one.

    A check is an improvement if it is better than the best previous one by more than ``threshold``. After ``patience``
    consecutive checks without an improvement, outside the cooldown, the policy changes: to the next larger one before
    ``switch_fraction`` of the budget, to the next smaller one after it. At either end of the list it does not change.
    Each policy starts at its own step 0.

    Args:
        policies: Plain policies, from the smallest rate to the largest.
        start: Index of the policy to start with.
        patience: Consecutive checks without an improvement that count as a plateau, at least 1.
        threshold: Gain that an improvement must exceed, in units of the metric, at least 0.
        cooldown: Checks after a change that do not count, at least 0.
        switch_fraction: Share of the budget, in [0, 1], before which the policy changes to larger ones.
        max_steps: Budget in optimizer steps.
        mode: Whether a larger (``max``) or a smaller (``min``) metric is better.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> from lrbench_pl.policies import Constant
        >>> policy = PlateauPolicy((Constant(0.01), Constant(0.1)), start=1, patience=2, threshold=0.0, cooldown=0,
        ...                        switch_fraction=0.0, max_steps=100)
        >>> for t, accuracy in ((10, 0.90), (20, 0.89), (30, 0.90)):
        ...     policy.observe(t, accuracy)
        >>> policy(29), policy(30)
        (0.1, 0.01)
        >>> policy.realised()
        Sequential(policies=(Constant(lr=0.1), Constant(lr=0.01)), milestones=(30,))

    Source: the public reference code of LRBench (``ChangeLROnPlateau``).
    """

    policies: Sequence[Policy]
    start: int
    patience: int
    threshold: float
    cooldown: int
    switch_fraction: float = 0.8
    max_steps: int = field(kw_only=True)
    mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        # Sequential validates the policies
        self.policies = Sequential(tuple(self.policies), tuple(range(1, len(self.policies)))).policies
        check.count("start", self.start, least=0)
        if self.start >= len(self.policies):
            raise ValueError(f"start must be an index of policies, below {len(self.policies)}, got {self.start}")
        check.count("patience", self.patience)
        check.rate("threshold", self.threshold)
        check.count("cooldown", self.cooldown, least=0)
        check.number("switch_fraction", self.switch_fraction, "lie in [0, 1]", lambda v: 0 <= v <= 1)
        check.count("max_steps", self.max_steps)
        if self.mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {self.mode!r}")
        self.reset()

    def reset(self) -> None:
        """Reset to the initial state, for a new training."""
        self._starts = [0]  # first step of each applied policy
        self._applied = [self.start]  # index of each applied policy
        self._best: float | None = None
        self._standing = 0  # consecutive checks without an improvement
        self._cooling = 0  # remaining checks of the cooldown

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t``, given the observations so far."""
        part = bisect_right(self._starts, t) - 1
        return self.policies[self._applied[part]](t - self._starts[part])

    def observe(self, t: int, value: float) -> None:
        """Observe the metric of a check before step ``t``; NaN is not an improvement."""
        gain = None if self._best is None else (value - self._best if self.mode == "max" else self._best - value)
        improved = value == value and (gain is None or gain > self.threshold)
        if improved:
            self._best = value
        if self._cooling > 0:
            self._cooling -= 1
            self._standing = 0
            return
        self._standing = 0 if improved else self._standing + 1
        if self._standing >= self.patience and t > self._starts[-1]:
            self._change(t)

    def _change(self, t: int) -> None:
        step = 1 if t < self.switch_fraction * self.max_steps else -1
        index = self._applied[-1] + step
        if not 0 <= index < len(self.policies):
            return
        self._starts.append(t)
        self._applied.append(index)
        self._standing = 0
        self._cooling = self.cooldown

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "starts": list(self._starts),
            "applied": list(self._applied),
            "best": self._best,
            "standing": self._standing,
            "cooling": self._cooling,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned."""
        self._starts = list(state["starts"])
        self._applied = list(state["applied"])
        self._best = state["best"]
        self._standing = state["standing"]
        self._cooling = state["cooling"]

    def realised(self) -> Policy:
        """Return the schedule applied so far, as a plain policy."""
        applied = tuple(self.policies[index] for index in self._applied)
        return applied[0] if len(applied) == 1 else Sequential(applied, tuple(self._starts[1:]))
