"""Constant and decaying policies: FIX, STEP, NSTEP, EXP, INV, POLY and SIG."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from lrbench_pl.policies._fields import (
    Factor,
    FactorPerStep,
    Horizon,
    Interval,
    Milestones,
    Moment,
    NonNegative,
    PerStep,
    Positive,
    Rate,
    SignedPerStep,
    register_policy,
)


@register_policy
@dataclass(frozen=True)
class Constant:
    """Constant learning rate (FIX).

    lr(t) = lr

    Args:
        lr: Learning rate, at least 0.

    Raises:
        ValueError: If ``lr`` is negative or not finite.

    Example:
        >>> Constant(0.1)(0), Constant(0.1)(10**9)
        (0.1, 0.1)

    Source: Wu & Liu, ACM TIST 2023, arXiv 2210.12936.
    """

    lr: Rate

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t``."""
        return self.lr


@register_policy
@dataclass(frozen=True)
class Step:
    """Multiplies the rate by ``gamma`` every ``step_size`` steps (STEP).

    lr(t) = init_lr * gamma ** floor(t / step_size)

    Args:
        init_lr: Learning rate at t = 0 (k0).
        gamma: Factor of each drop, in (0, 1].
        step_size: Steps between two drops (l), at least 1.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> policy = Step(init_lr=1.0, gamma=0.5, step_size=100)
        >>> [policy(t) for t in (0, 99, 100, 200)]
        [1.0, 1.0, 0.5, 0.25]

    Source: Wu & Liu, ACM TIST 2023, arXiv 2210.12936.
    """

    init_lr: Rate
    gamma: Factor
    step_size: Interval

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t``."""
        return self.init_lr * float(self.gamma) ** (t // self.step_size)


@register_policy
@dataclass(frozen=True)
class MultiStep:
    """Multiplies the rate by ``gamma`` at each milestone (NSTEP).

    lr(t) = init_lr * gamma ** i, where i is the number of milestones <= t

    Args:
        init_lr: Learning rate at t = 0 (k0).
        gamma: Factor of each drop, in (0, 1].
        milestones: Steps of the drops, positive and strictly increasing.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> policy = MultiStep(init_lr=1.0, gamma=0.5, milestones=[10, 15])
        >>> [policy(t) for t in (9, 10, 14, 15)]
        [1.0, 0.5, 0.5, 0.25]

    Source: Wu & Liu, ACM TIST 2023, arXiv 2210.12936.
    """

    init_lr: Rate
    gamma: Factor
    milestones: Milestones

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t``."""
        return self.init_lr * float(self.gamma) ** bisect_right(self.milestones, t)


@register_policy
@dataclass(frozen=True)
class Exponential:
    """Multiplies the rate by ``gamma`` at every step (EXP).

    lr(t) = init_lr * gamma ** t

    Args:
        init_lr: Learning rate at t = 0 (k0).
        gamma: Factor per step, in (0, 1], usually close to 1: 0.9999 leaves 37 % of the rate after 10,000 steps.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> policy = Exponential(init_lr=1.0, gamma=0.5)
        >>> [policy(t) for t in (0, 1, 2)]
        [1.0, 0.5, 0.25]

    Source: Wu & Liu, ACM TIST 2023, arXiv 2210.12936.
    """

    init_lr: Rate
    gamma: FactorPerStep

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t``."""
        return self.init_lr * float(self.gamma) ** t


@register_policy
@dataclass(frozen=True)
class InverseTime:
    """Inverse-time decay (INV; Caffe's default for LeNet).

    lr(t) = init_lr / (1 + gamma * t) ** power

    Args:
        init_lr: Learning rate at t = 0 (k0).
        gamma: Speed of the decay per step, at least 0.
        power: Exponent (p), at least 0.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> policy = InverseTime(init_lr=1.0, gamma=1.0, power=2.0)
        >>> [policy(t) for t in (0, 1, 3)]
        [1.0, 0.25, 0.0625]

    Source: Wu & Liu, ACM TIST 2023, arXiv 2210.12936.
    """

    init_lr: Rate
    gamma: PerStep
    power: NonNegative

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t``."""
        # exp(-p log(1 + x)) does not overflow for large t
        return self.init_lr * math.exp(-self.power * math.log1p(self.gamma * t))


@register_policy
@dataclass(frozen=True)
class Polynomial:
    """Polynomial decay to ``end_lr``, then constant (POLY; linear for ``power=1``).

    lr(t) = end_lr + (init_lr - end_lr) * (1 - min(t, decay_steps) / decay_steps) ** power

    Args:
        init_lr: Learning rate at t = 0 (k0). If it is below ``end_lr``, the rate rises, as in a warm-up.
        decay_steps: Steps until ``end_lr`` is reached (l), at least 1.
        power: Exponent (p), above 0.
        end_lr: Learning rate from ``decay_steps`` on.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> policy = Polynomial(init_lr=1.0, decay_steps=10, power=2)
        >>> [policy(t) for t in (0, 5, 10, 11)]
        [1.0, 0.25, 0.0, 0.0]

    Source: Wu & Liu, ACM TIST 2023, arXiv 2210.12936.
    """

    init_lr: Rate
    decay_steps: Horizon
    power: Positive = 1.0
    end_lr: Rate = 0.0

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t``."""
        if t >= self.decay_steps:
            return self.end_lr
        return self.end_lr + (self.init_lr - self.end_lr) * math.pow(1 - t / self.decay_steps, self.power)


@register_policy
@dataclass(frozen=True)
class SqrtDecay:
    """Decay by ``1 - sqrt(t)`` to ``end_lr``, then constant: the "1 - sqrt" cooldown.

    lr(t) = end_lr + (init_lr - end_lr) * (1 - sqrt(min(t, decay_steps) / decay_steps))

    Args:
        init_lr: Learning rate at t = 0.
        decay_steps: Steps until ``end_lr`` is reached, at least 1.
        end_lr: Learning rate from ``decay_steps`` on.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> policy = SqrtDecay(init_lr=1.0, decay_steps=100)
        >>> [policy(t) for t in (0, 25, 100, 101)]
        [1.0, 0.5, 0.0, 0.0]

    Source: Hägele et al. 2024, arXiv 2405.18392.
    """

    init_lr: Rate
    decay_steps: Horizon
    end_lr: Rate = 0.0

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t``."""
        if t >= self.decay_steps:
            return self.end_lr
        return self.end_lr + (self.init_lr - self.end_lr) * (1 - math.sqrt(t / self.decay_steps))


@register_policy
@dataclass(frozen=True)
class Sigmoid:
    """Sigmoid decay around ``midpoint`` (SIG).

    lr(t) = init_lr / (1 + exp(-gamma * (t - midpoint)))

    Args:
        init_lr: Upper asymptote (k0).
        gamma: Steepness per step. Negative, as in LRBench: the rate falls from ``init_lr`` to 0. Positive: it rises.
        midpoint: Step at which the rate is half of ``init_lr`` (l).

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> policy = Sigmoid(init_lr=1.0, gamma=-0.1, midpoint=50)
        >>> [round(policy(t), 3) for t in (0, 50, 100, 10**9)]
        [0.993, 0.5, 0.007, 0.0]

    Source: the public reference code of LRBench; Caffe's "sigmoid".
    """

    init_lr: Rate
    gamma: SignedPerStep
    midpoint: Moment

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t``."""
        x = self.gamma * (t - self.midpoint)
        if x >= 0:
            return self.init_lr / (1 + math.exp(-x))
        e = math.exp(x)  # mirrored form: the exponent is never positive, so it cannot overflow
        return self.init_lr * e / (1 + e)
