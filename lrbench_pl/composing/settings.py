"""Settings of a composition, and the shapes of its phases and branches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lrbench_pl.policies import Constant, Cyclic, InverseTime, Policy, Polynomial, Sequential, SqrtDecay
from lrbench_pl.policies import _checks as check

# Settings that earlier versions had not, with the value that changes nothing.
ADDED = {"accept_average": False}

StableShape = Literal["constant", "inverse_sqrt", "triangle", "sine"]
BranchDecay = Literal["linear", "cosine", "sqrt"]

# Shapes of the stable phase, by peak rate and the step of the first possible branch, which is the period of a cycle.
STABLE_SHAPES: dict[str, Callable[[float, int], Policy]] = {
    "constant": lambda peak, period: Constant(peak),
    "inverse_sqrt": lambda peak, period: InverseTime(peak, 1 / period, 0.5),
    "triangle": lambda peak, period: Cyclic(peak / 4, peak, period, "triangle", phase=period // 2),
    "sine": lambda peak, period: Cyclic(peak / 4, peak, period, "sine", phase=period // 2),
}
# Decays of a branch, by its first rate and its steps.
BRANCH_DECAYS: dict[str, Callable[[float, int], Policy]] = {
    "linear": lambda lr, steps: Polynomial(lr, steps),
    "cosine": lambda lr, steps: Sequential((Cyclic(0.0, lr, steps, "half_cosine"), Constant(0.0)), (steps,)),
    "sqrt": lambda lr, steps: SqrtDecay(lr, steps),
}


@dataclass(frozen=True)
class Settings:
    """Settings of an online composition.

    Args:
        stable: Shapes of the stable phase, in the order in which they are tried.
        decay: Decay of the branches.
        first_branch: Share of the budget, in (0, 1), before which no branch starts.
        growth: A branch starts at the latest at this multiple, above 1, of the step at which the last one started.
        decay_fraction: Steps of a branch as a share of the steps before it, in (0, 1].
        average: Window of the averaged weights as a share, in [0, 1), of the policy's steps. After ``first_branch`` the
            checks of the stable phase evaluate these weights. Their trend forecasts what a branch would reach, without
            training one; a branch starts when the forecast meets the target. 0: no forecast, branches start at
            multiples of ``growth``.
        reuse: Whether training continues from the end of a branch that missed the target, so that its steps are not
            lost (WSD-S of Wen et al. 2024, arXiv 2410.05192). If false, it goes back to the start of the branch.
        accept_average: Whether a check of the averaged weights may reach the target. They are then the trained model.
        min_gain: Gain of the metric over two branches at or below which the shape of the stable phase changes.
        span: The range test covers the optimizer's own rate divided and multiplied by this, above 1.
        margin: Largest usable rate of the range test over the peak, at least 1. None: 3, or 9 for optimizers of the
            Adam family.
        repeats: Passes of a range test that finds the peak; 0 takes the optimizer's own rate. None: no range test. The
            peak is then 4.5 times the own rate with SGD on a budget above about 1,000 steps, and otherwise peaks are
            compared, where of the other fields only ``decay`` and ``tuning_budget`` apply.
        tuning_budget: Share of the budget, in [0, 1], that a range test, the comparison of peaks and abandoned branches
            may take.

    Raises:
        ValueError: If a field is out of range.
    """

    stable: tuple[StableShape, ...] = ("constant", "triangle")
    decay: BranchDecay = "linear"
    first_branch: float = 0.05
    growth: float = 3.0
    decay_fraction: float = 0.25
    average: float = 0.1
    reuse: bool = True
    accept_average: bool = False
    min_gain: float = 0.0
    span: float = 100.0
    margin: float | None = None
    repeats: int | None = None
    tuning_budget: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "stable", tuple(self.stable))
        if not isinstance(self.accept_average, bool):
            raise ValueError(f"accept_average must be true or false, got {self.accept_average!r}")
        if self.accept_average and not self.average:
            raise ValueError("accept_average needs averaged weights, got average=0; give a window above 0")
        for shape in self.stable or ("",):
            if shape not in STABLE_SHAPES:
                raise ValueError(f"stable must be a list of {', '.join(STABLE_SHAPES)}, got {list(self.stable)}")
        if self.decay not in BRANCH_DECAYS:
            raise ValueError(f"decay must be one of {', '.join(BRANCH_DECAYS)}, got {self.decay!r}")
        check.number("first_branch", self.first_branch, "lie in (0, 1)", lambda v: 0 < v < 1)
        check.number("growth", self.growth, "be a finite number above 1", lambda v: v > 1)
        check.number("decay_fraction", self.decay_fraction, "lie in (0, 1]", lambda v: 0 < v <= 1)
        check.number("average", self.average, "lie in [0, 1)", lambda v: 0 <= v < 1)
        check.rate("min_gain", self.min_gain)
        check.number("span", self.span, "be a finite number above 1", lambda v: v > 1)
        if self.margin is not None:
            check.number("margin", self.margin, "be a finite number of at least 1", lambda v: v >= 1)
        if self.repeats is not None:
            check.count("repeats", self.repeats, least=0)
        check.number("tuning_budget", self.tuning_budget, "lie in [0, 1]", lambda v: 0 <= v <= 1)
