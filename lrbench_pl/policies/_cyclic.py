"""Cyclic policies: a wave between two bounds, for 27 of LRBench's functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from lrbench_pl.policies import _checks as check
from lrbench_pl.policies._fields import FactorPerStep, Period, Rate, phase_of, register_policy

Wave = Literal["triangle", "sine", "cosine", "sawtooth", "quarter_sine", "half_cosine"]
Decay = Literal["none", "halving", "exponential"]

# Height of the wave, as a share of the range, at the phase u in [0, 1) of the cycle.
_WAVES: dict[str, Callable[[float], float]] = {
    "triangle": lambda u: 1 - abs(2 * u - 1),
    "sine": lambda u: math.sin(math.pi * u),
    "cosine": lambda u: (1 + math.cos(2 * math.pi * u)) / 2,
    "sawtooth": lambda u: 1 - u,
    "quarter_sine": lambda u: math.cos(math.pi * u / 2),
    "half_cosine": lambda u: (1 + math.cos(math.pi * u)) / 2,
}


@register_policy
@dataclass(frozen=True)
class Cyclic:
    """Rate that cycles between two bounds: the TRI, SIN, COS and RSW families.

    lr(t) = base_lr + (max_lr - base_lr) * wave(u) * decay(t),  u = fractional part of (t + phase) / period

    ============== ============================ ==========================
    wave           of u in [0, 1)               starts a cycle at
    ============== ============================ ==========================
    triangle       1 - abs(2 u - 1)             ``base_lr``
    sine           sin(pi u)                    ``base_lr``
    cosine         (1 + cos(2 pi u)) / 2        ``max_lr``
    sawtooth       1 - u                        ``max_lr``, and restarts
    quarter_sine   cos(pi u / 2)                ``max_lr``, and restarts
    half_cosine    (1 + cos(pi u)) / 2          ``max_lr``, and restarts
    ============== ============================ ==========================

    Args:
        base_lr: Lower bound, at least 0. It does not decay.
        max_lr: Upper bound, at least ``base_lr``.
        period: Steps of a full cycle, at least 1 (LRBench's ``l`` is half of it for the first three waves).
        wave: Shape of the cycle.
        decay: Decay of the height: ``none``; ``halving``, once per cycle (for the cosine at each minimum);
            ``exponential``, by ``gamma ** t``.
        gamma: Factor per step of the exponential decay, in (0, 1]; must be 1 with any other decay.
        phase: Steps by which the wave is shifted ahead; negative values shift it back.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> tri2 = Cyclic(base_lr=0.0, max_lr=1.0, period=4, wave="triangle", decay="halving")
        >>> [tri2(t) for t in range(9)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25, 0.0]

    Source: Wu & Liu, ACM TIST 2023, arXiv 2210.12936; Smith 2017 (TRI); Loshchilov & Hutter 2017 (half_cosine).
    """

    base_lr: Rate
    max_lr: Rate
    period: Period
    wave: Wave
    decay: Decay = "none"
    gamma: FactorPerStep = 1.0
    phase: Annotated[int, phase_of("period")] = 0

    def __post_init__(self) -> None:
        check.number("max_lr", self.max_lr, f"be at least base_lr ({self.base_lr})", lambda v: v >= self.base_lr)
        if self.decay != "exponential" and self.gamma != 1:
            raise ValueError(f"gamma must be 1 unless decay is 'exponential', got {self.gamma!r}")

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t``."""
        cycle, within = divmod(t + self.phase, self.period)  # integer arithmetic: exact at every boundary
        height = _WAVES[self.wave](within / self.period)
        if self.decay == "halving":
            # the cosine has its minimum in the middle of the cycle and is halved there
            halvings = cycle + (self.wave == "cosine" and 2 * within >= self.period)
            height = math.ldexp(height, -max(0, halvings))  # with a negative phase the first cycle is not doubled
        elif self.decay == "exponential":
            height *= float(self.gamma) ** t
        return self.base_lr + (self.max_lr - self.base_lr) * height
