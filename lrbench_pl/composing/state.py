"""State of a composition: stable phase, decay branch and observations."""

from __future__ import annotations

from dataclasses import dataclass, field

from lrbench_pl.composing.forecast import Trend
from lrbench_pl.composing.range_test import RangeTest
from lrbench_pl.composing.settings import STABLE_SHAPES
from lrbench_pl.policies import Policy, Polynomial, Sequential, warmup

_NEAR = 2.0  # a value is near the target if it is within this many spreads of the trend


@dataclass
class Composition:
    """Result of a composition.

    Args:
        policy: Best policy so far; None before the end of the first branch.
        best: Value of that policy at the end of its decay.
        range: The range test, if there was one.
        avoided: Choices that turned out to be bad, as messages.
    """

    policy: Policy | None = None
    best: float | None = None
    range: RangeTest | None = None
    avoided: list[str] = field(default_factory=list)


@dataclass
class StablePhase:
    """Stable phase of the composed policy.

    Args:
        shapes: Shapes, the current one first.
        peak: Peak rate.
        first_branch: Step of the first possible branch.
        warmup_steps: Steps of the warm-up.
        policy: The policy, which equals the rates applied so far before step ``t``.
        t: Current step of the policy.
        begun: Step of the policy at which the phase began.
    """

    shapes: list[str]
    peak: float
    first_branch: int
    warmup_steps: int
    policy: Policy
    t: int = 0
    begun: int = 0

    def restart(self) -> None:
        """Start again at step 0, with a warm-up."""
        self.t = self.begun = 0
        self.policy = warmup(self._shape(), self.warmup_steps)

    def begin_after(self, policy: Policy, t: int, warmup_steps: int) -> None:
        """Begin at step ``t`` of a policy, with a warm-up of its own or none; at step 0 as after a restart."""
        if t == 0:
            self.restart()
            return
        self.t = self.begun = t
        if warmup_steps:
            policy = joined(policy, t, Polynomial(self.peak / (warmup_steps + 1), warmup_steps, end_lr=self.peak))
        self.policy = joined(policy, t + warmup_steps, self._shape())

    def follow(self, policy: Policy) -> None:
        """Continue with the current shape and peak after the applied ``policy``."""
        if self.t:
            self.policy = joined(policy, self.t, self._shape())
        else:
            self.restart()

    def change_shape(self) -> None:
        """Continue with the next shape, at half the peak."""
        self.shapes.append(self.shapes.pop(0))
        self.peak /= 2
        self.follow(self.policy)

    def _shape(self) -> Policy:
        return STABLE_SHAPES[self.shapes[0]](self.peak, self.first_branch)


@dataclass
class Observed:
    """Observations since training last started; values are signed.

    Args:
        averaged: Steps and values of the checks of averaged weights.
        branches: Start of each branch, and its gain over the forecast.
        ends: Best value of each branch of the current shape.
        values: Values of all checks.
    """

    averaged: list[tuple[int, float]] = field(default_factory=list)
    branches: list[tuple[int, float]] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass
class Branch:
    """Decay branch, with the tail that may follow its decay.

    Args:
        policy: The policy up to the end of the branch.
        start: Step of the policy at which it left the stable phase.
        end: Step of the policy at its end.
        forecast: Forecast of its value; None without a trend.
        value: Signed value at its last check; None if that check diverged or measured nothing.
        reached: Best signed value at its checks.
        diverged: Whether it diverged.
    """

    policy: Policy
    start: int
    end: int
    forecast: Trend | None
    value: float | None = None
    reached: float | None = None
    diverged: bool = False

    @property
    def gain(self) -> float:
        """Best value minus forecast; 0 if one of them is unknown."""
        return 0.0 if self.reached is None or self.forecast is None else self.reached - self.forecast.value

    def is_near(self, goal: float) -> bool:
        """Return whether the last value is near the goal and not falling."""
        if self.value is None or self.reached is None or self.forecast is None:
            return False
        is_far = self.value + _NEAR * self.forecast.spread < goal
        has_fallen = self.value < self.reached - self.forecast.spread
        return not is_far and not has_fallen


def joined(policy: Policy, t: int, following: Policy) -> Policy:
    """Return ``policy`` before step ``t``, followed by ``following``."""
    if t == 0:
        return following
    if not isinstance(policy, Sequential):
        return Sequential((policy, following), (t,))
    parts = [(part, start) for part, start in zip(policy.policies, (0, *policy.milestones), strict=True) if start < t]
    return Sequential((*(part for part, _ in parts), following), (*(start for _, start in parts[1:]), t))
