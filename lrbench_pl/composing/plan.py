"""Composing a policy while training: the plan, as a generator of legs. No torch, no Lightning."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lrbench_pl.composing.range_test import MARGIN, RangeTest, Sweep, range_test
from lrbench_pl.composing.segments import Leg, Outcome
from lrbench_pl.policies import Constant, Cyclic, InverseTime, Policy, Polynomial, Sequential, SqrtDecay, warmup
from lrbench_pl.policies import _checks as check
from lrbench_pl.words import counted

Trunk = Literal["constant", "inverse_sqrt", "triangle", "sine"]
Decay = Literal["linear", "cosine", "sqrt"]

_SWEEP_STEPS = 50  # of one sweep of the range test, at least
_RANGE_SHARE = 0.15  # of the budget, at most; in a smaller one the optimizer's own rate is the peak
_APART = 1.2  # factor between two branch points, at least
_RECENT = 2.0  # the trend is that of the checks since the policy's steps divided by this
_FEWEST = 4  # checks that make a trend
_PATIENCE = 2  # branches in a row without a gain that change the trunk
_TAIL = 0.1  # of the rate at which a branch left, where it is held on after its decay
_TAIL_SHARE = 1.0  # of the steps of the branch that it may be held on
_FROZEN = 5  # checks in a row that bring the very same value: the network answers as before, whatever it is taught
_NEAR = 2.0  # spreads of the trend within which a value is near the target

# A trunk function at a peak rate; the cycles take as many steps as the first branch point.
_TRUNKS: dict[str, Callable[[float, int], Policy]] = {
    "constant": lambda peak, period: Constant(peak),
    "inverse_sqrt": lambda peak, period: InverseTime(peak, 1 / period, 0.5),
    "triangle": lambda peak, period: Cyclic(peak / 4, peak, period, "triangle", phase=period // 2),
    "sine": lambda peak, period: Cyclic(peak / 4, peak, period, "sine", phase=period // 2),
}
_DECAYS: dict[str, Callable[[float, int], Policy]] = {
    "linear": lambda lr, steps: Polynomial(lr, steps),
    "cosine": lambda lr, steps: Sequential((Cyclic(0.0, lr, steps, "half_cosine"), Constant(0.0)), (steps,)),
    "sqrt": lambda lr, steps: SqrtDecay(lr, steps),
}


@dataclass(frozen=True)
class Settings:
    """How a policy is composed.

    Args:
        trunks: Functions of the trunk, in the order in which they are tried.
        decay: Function of the branches.
        first_branch: Share of the budget, in (0, 1), before which no branch leaves the trunk.
        growth: A branch leaves the trunk at the latest at this multiple, above 1, of the point where the last one did.
        decay_fraction: Steps of a branch as a share of the steps before it, in (0, 1].
        average: After ``first_branch`` the checks of the trunk look at its weights averaged over about this share, in
            [0, 1), of the policy's steps. Their trend forecasts, at no step, what a branch would reach: one leaves when
            the forecast meets the target. 0: no forecast; branches leave at multiples of ``growth``.
        reuse: Whether a trunk goes on from where a branch ended that missed, so that its steps are not lost (WSD-S of
            Wen et al. 2024, arXiv 2410.05192); otherwise from where the branch left.
        min_gain: Gain of the metric over two branches at or below which the trunk is changed.
        span: The range test covers the optimizer's own rate divided and multiplied by this, above 1.
        margin: Largest usable rate of the range test over the peak, at least 1; None for 3, with Adam and its kin 9.
        repeats: Sweeps of the range test; 0 takes the optimizer's own rate as the peak.
        tuning_budget: Share of the budget that range test and dead ends may take, in [0, 1].

    Raises:
        ValueError: If a field is out of its range.
    """

    trunks: tuple[Trunk, ...] = ("constant", "triangle")
    decay: Decay = "linear"
    first_branch: float = 0.05
    growth: float = 3.0
    decay_fraction: float = 0.25
    average: float = 0.1
    reuse: bool = True
    min_gain: float = 0.0
    span: float = 100.0
    margin: float | None = None
    repeats: int = 2
    tuning_budget: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "trunks", tuple(self.trunks))
        for trunk in self.trunks or ("",):
            if trunk not in _TRUNKS:
                raise ValueError(f"trunks must be a list of {', '.join(_TRUNKS)}, got {list(self.trunks)}")
        if self.decay not in _DECAYS:
            raise ValueError(f"decay must be one of {', '.join(_DECAYS)}, got {self.decay!r}")
        check.number("first_branch", self.first_branch, "lie in (0, 1)", lambda v: 0 < v < 1)
        check.number("growth", self.growth, "be a finite number above 1", lambda v: v > 1)
        check.number("decay_fraction", self.decay_fraction, "lie in (0, 1]", lambda v: 0 < v <= 1)
        check.number("average", self.average, "lie in [0, 1)", lambda v: 0 <= v < 1)
        check.rate("min_gain", self.min_gain)
        check.number("span", self.span, "be a finite number above 1", lambda v: v > 1)
        if self.margin is not None:
            check.number("margin", self.margin, "be a finite number of at least 1", lambda v: v >= 1)
        check.count("repeats", self.repeats, least=0)
        check.number("tuning_budget", self.tuning_budget, "lie in [0, 1]", lambda v: 0 <= v <= 1)


@dataclass
class Composition:
    """What has been composed.

    Args:
        policy: The best policy so far; None before the first branch ended.
        best: Its value after its decay.
        range: The range test, if there was one.
        avoided: Choices that were found bad, in words.
    """

    policy: Policy | None = None
    best: float | None = None
    range: RangeTest | None = None
    avoided: list[str] = field(default_factory=list)


def compose(
    settings: Settings,
    lr: float,
    max_steps: int,
    interval: int,
    target: float | None = None,
    mode: Literal["max", "min"] = "max",
) -> Generator[Leg, Outcome, Composition]:
    """The plan: range test, trunk, a branch that decays to zero, trunk again, …, adapt; at last the best is kept.

    Whoever runs the legs ends the training at a check that meets the target: the policy is then that of the leg.

    Args:
        settings: How to compose.
        lr: The optimizer's own rate, the centre of the range test.
        max_steps: Optimizer steps in all, dead ends included.
        interval: Steps between two checks; every leg ends at one, but for the sweeps of a range test.
        target: Value to reach; None spends the budget on one policy.
        mode: Whether a larger or a smaller value is better.
    """
    plan = _Plan(settings, lr, max_steps, interval, target, mode)
    legs, told = plan.legs(), 0
    leg = next(legs)
    while True:
        outcome = yield replace(leg, avoided=tuple(plan.found.avoided[told:]))
        told = len(plan.found.avoided)
        try:
            leg = legs.send(outcome)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


class _Plan:
    """Where a composition stands, and what it does next; values are signed so that larger is better."""

    def __init__(
        self,
        settings: Settings,
        lr: float,
        max_steps: int,
        interval: int,
        target: float | None,
        mode: Literal["max", "min"],
    ) -> None:
        self.settings, self.max_steps, self.interval = settings, max_steps, interval
        self.sign = 1.0 if mode == "max" else -1.0
        self.target = target
        self.goal = math.inf if target is None else self.sign * target
        self.first = _whole(settings.first_branch * max_steps, interval)  # before it no branch leaves
        self.found = Composition()
        self.spent = self.tuning = 0  # steps in all, and in vain
        self.functions = list(settings.trunks)  # of the trunk, the present one first
        self.own = self.peak = lr
        self.trunk: Policy = Constant(lr)
        self.t = 0  # steps of the trunk
        self.snapshot, self.at = "start", 0  # the last good state, and its step of the trunk
        self.back: str | None = None  # the state to which the next leg goes back
        self.seen: list[tuple[int, float]] = []  # steps of the trunk and value of its averaged weights
        self.branches: list[tuple[int, float]] = []  # where they left, and what they brought beyond the forecast
        self.ends: list[float] = []  # what the branches of this trunk reached
        self.values: list[float] = []  # of every check since the training last began

    def legs(self) -> Generator[Leg, Outcome, Composition]:
        yield Leg("keep", Constant(self.peak), 0, 0, save="start")
        yield from self._find_peak()
        self.trunk = self._risen()
        while self.spent < self.max_steps:
            ahead, steps, final = self._outlook()
            if ahead > 0:
                diverged = yield from self._follow_trunk(ahead, averaged=not final)
                if diverged or not final:
                    continue
            if self.at != self.t or self.snapshot == "start":
                yield self._kept(self.trunk, restore=self.back)
            steps = min(steps, self.max_steps - self.spent)
            if steps <= 0:
                break
            yield from self._take_branch(steps)
        if self.found.policy is not None:
            yield Leg("keep", self.found.policy, 0, 0, restore="best")
        return self.found

    def _find_peak(self) -> Generator[Leg, Outcome, None]:
        """The range test, where the budget allows one."""
        settings, lr = self.settings, self.peak
        steps = _up(_SWEEP_STEPS * settings.repeats, self.interval)
        if not settings.repeats or steps > _RANGE_SHARE * self.max_steps:
            return
        sweep = Sweep(lr / settings.span, lr * settings.span, steps // settings.repeats)
        self.found.range = tested = yield from range_test(
            sweep, settings.repeats, restore="start", steps=steps, margin=settings.margin or MARGIN
        )
        self.peak, self.spent, self.tuning = tested.peak, tested.steps, tested.steps
        self.back = "start" if tested.steps else None
        if tested.diverged_at is not None:
            self.found.avoided.append(f"rates of {tested.diverged_at:.3g} and above: the range test diverged")

    def _outlook(self) -> tuple[int, int, bool]:
        """Steps that the trunk goes on, those of the branch then, and whether that branch is the last that fits."""
        settings, interval, t, first = self.settings, self.interval, self.t, self.first
        left = self.max_steps - self.spent
        steps = min(_whole(settings.decay_fraction * max(t, first), interval), left)
        if (
            self.target is None
            or _floor(left - steps, interval) < interval
            or self.tuning + steps > settings.tuning_budget * self.max_steps
        ):
            share = settings.decay_fraction / (1 + settings.decay_fraction)
            steps = min(_whole(share * (t + left), interval), left)
            return _floor(left - steps, interval), steps, True
        room = _floor(left - steps, interval)
        if t < first:
            return min(first - t, room), steps, False
        if _is_time(settings, t, first, self.seen, self.branches, self.goal):
            return 0, steps, False
        if settings.average:
            return interval, steps, False
        return min(_due(settings, first, self.branches, interval) - t, room), steps, False

    def _follow_trunk(self, steps: int, averaged: bool) -> Generator[Leg, Outcome, bool]:
        """Go on; whether the trunk diverged, and goes on from the last good state at half the peak."""
        averaged = averaged and bool(self.settings.average) and self.t >= self.first
        note = f"peak {self.peak:.3g}"
        outcome = yield Leg(
            "trunk", self.trunk, self.t, steps, restore=self.back, save="trunk", averaged=averaged, note=note
        )
        self.spent, self.back = outcome.spent, None
        if outcome.diverged:
            self.tuning += outcome.steps
            self.found.avoided.append(f"a trunk at {self.peak:.3g}: diverged after policy step {self.t}")
            self.peak /= 2
            self.t, self.back = self.at, self.snapshot
            self.trunk, self.seen = self._changed(self.trunk), []
            return True
        self.t += outcome.steps
        self.snapshot, self.at = "trunk", self.t
        if outcome.value is not None:
            self.values.append(self.sign * outcome.value)
            if averaged and math.isfinite(outcome.value):
                self.seen.append((self.t, self.sign * outcome.value))
        return False

    def _take_branch(self, steps: int) -> Generator[Leg, Outcome, None]:
        """Decay to zero, hold on while the target is near, and go on from there or from where the branch left."""
        t, rate = self.t, self.trunk(self.t)
        forecast = trend(self.seen, t * (1 + self.settings.decay_fraction))
        branch = _then(self.trunk, t, _DECAYS[self.settings.decay](rate, steps))
        note = f"decays from {rate:.3g} over {counted(steps, 'step')}"
        outcome = yield Leg("branch", branch, t, steps, restore=self.back, note=note)
        end = t + outcome.steps
        last = end + max(self.interval, _whole(_TAIL_SHARE * steps, self.interval))
        reached: float | None = None
        while True:
            self.spent = outcome.spent
            if outcome.value is None or outcome.diverged:
                break
            value = self.sign * outcome.value
            self.values.append(value)
            reached = value if reached is None else max(reached, value)
            if self.found.best is None or value > self.sign * self.found.best:
                self.found.best, self.found.policy = outcome.value, branch
                yield Leg("keep", branch, end, 0, save="best")
            if forecast is None or value + _NEAR * forecast.spread < self.goal or value < reached - forecast.spread:
                break  # too far, or falling
            if end >= last or self.spent >= self.max_steps or _is_frozen(self.values):
                break
            branch = _then(branch, end, Constant(_TAIL * rate))
            held = min(self.interval, self.max_steps - self.spent)
            note = f"held at {_TAIL * rate:.3g}: {outcome.value:.4g} is near the target"
            outcome = yield Leg("branch", branch, end, held, note=note)
            end += outcome.steps
        self.branches.append((t, 0.0 if reached is None or forecast is None else reached - forecast.value))
        if reached is not None:
            self.ends.append(reached)
        if _is_frozen(self.values) and self.spent < self.max_steps:
            self._begin_anew()
            return
        if self.settings.reuse and not outcome.diverged:
            self.t = end
            self.trunk = self._changed(branch)
            yield self._kept(self.trunk)
        else:
            self.tuning += end - t
            self.back = "trunk"
        if _stands_still(self.ends, self.settings.min_gain):
            self._change_trunk()

    def _kept(self, trunk: Policy, restore: str | None = None) -> Leg:
        """Keep the present state as the last good one."""
        self.snapshot, self.at, self.back = "trunk", self.t, None
        return Leg("keep", trunk, self.t, 0, restore=restore, save="trunk")

    def _begin_anew(self) -> None:
        """From the first weights, at half the peak or the own rate, if that is less: nothing is learnt any more."""
        self.found.avoided.append(
            f"going on at {self.peak:.3g}: {_FROZEN} checks in a row brought the same; begun anew"
        )
        self.peak = min(self.peak / 2, self.own)
        self.t, self.tuning, self.back, self.snapshot, self.at = 0, self.spent, "start", "start", 0
        self.trunk = self._risen()
        self.seen, self.branches, self.ends, self.values = [], [], [], []

    def _change_trunk(self) -> None:
        """The next function, at half the peak: the present one brings no gain."""
        self.found.avoided.append(f"going on at {self.peak:.3g} ({self.functions[0]}): no gain in {_PATIENCE} branches")
        self.functions.append(self.functions.pop(0))
        self.peak /= 2
        self.trunk, self.seen, self.ends = self._changed(self.trunk), self.seen[-1:], [max(self.ends)]

    def _risen(self) -> Policy:
        """A trunk from its beginning, warmed up."""
        return warmup(self._function(), max(1, min(self.interval, self.first // 5)))

    def _changed(self, policy: Policy) -> Policy:
        """A policy up to the present step, then the present function at the present peak."""
        return _then(policy, self.t, self._function()) if self.t else self._risen()

    def _function(self) -> Policy:
        return _TRUNKS[self.functions[0]](self.peak, self.first)


@dataclass(frozen=True)
class Trend:
    """Where a value is heading.

    Args:
        value: What it will be.
        slope: Gain per e-fold of steps.
        spread: Standard deviation of the values around their line.
    """

    value: float
    slope: float
    spread: float


def trend(seen: Sequence[tuple[int, float]], at: float) -> Trend | None:
    """The line through the recent values over the logarithm of their steps, continued.

    Args:
        seen: Steps and values, in order; those of the last half of the steps are recent.
        at: The step to look at.

    Returns:
        None if fewer than four values are recent.

    Example:
        >>> from math import log
        >>> ahead = trend([(t, log(t)) for t in (60, 70, 80, 90, 100)], at=200)
        >>> round(ahead.value - log(200), 6), round(ahead.slope, 6), round(ahead.spread, 6)
        (0.0, 1.0, 0.0)
        >>> trend([(80, 0.4), (90, 0.5), (100, 0.6)], at=200) is None
        True
    """
    recent = [(math.log(t), value) for t, value in seen if t > seen[-1][0] / _RECENT]
    if len(recent) < _FEWEST:
        return None
    xs, ys = zip(*recent, strict=True)
    slope, intercept = statistics.linear_regression(xs, ys)
    spread = math.sqrt(math.fsum((y - slope * x - intercept) ** 2 for x, y in recent) / (len(recent) - 2))
    return Trend(slope * math.log(at) + intercept, slope, spread)


def _due(settings: Settings, first: int, branches: list[tuple[int, float]], interval: int) -> int:
    """The policy step at which a branch leaves whatever the forecast says."""
    last = branches[-1][0] if branches else first if settings.average else first / settings.growth
    return max(_whole(settings.growth * last, interval), first)


def _is_time(
    settings: Settings,
    t: int,
    first: int,
    seen: list[tuple[int, float]],
    branches: list[tuple[int, float]],
    goal: float,
) -> bool:
    """Whether a branch leaves the trunk at ``t``: it is due, or the forecast says that it will reach the target."""
    if t >= _due(settings, first, branches, 1):
        return True
    forecast = trend(seen, t * (1 + settings.decay_fraction))
    if forecast is None or (branches and t < _APART * branches[-1][0]):
        return False
    learned = statistics.fmean(gain for _, gain in branches) if branches else 0.0
    least = 0.0 if settings.reuse else -forecast.spread  # a branch that misses is no great loss where the trunk goes on
    return forecast.value + max(least, learned) >= goal


def _stands_still(ends: Sequence[float], min_gain: float) -> bool:
    """Whether the last branches are no better than one before them.

    Example:
        >>> _stands_still([0.5, 0.4], 0.0), _stands_still([0.5, 0.4, 0.5], 0.0), _stands_still([0.5, 0.4, 0.6], 0.0)
        (False, True, False)
    """
    return len(ends) > _PATIENCE and max(ends[-_PATIENCE:]) - max(ends[:-_PATIENCE]) <= min_gain


def _is_frozen(values: Sequence[float]) -> bool:
    """Whether the network answers as before, whatever it is taught: it has died, or has learnt its data by heart.

    Example:
        >>> _is_frozen([0.8, 0.9, 0.9, 0.9, 0.9, 0.9]), _is_frozen([0.9, 0.9, 0.9, 0.9, 0.91])
        (True, False)
    """
    return len(values) >= _FROZEN and len(set(values[-_FROZEN:])) == 1


def _whole(steps: float, interval: int) -> int:
    """The nearest number of whole intervals, at least one."""
    return interval * max(1, round(steps / interval))


def _floor(steps: int, interval: int) -> int:
    return steps // interval * interval


def _up(steps: int, interval: int) -> int:
    return -(-steps // interval) * interval


def _then(policy: Policy, t: int, following: Policy) -> Policy:
    """One policy up to ``t``, another from there on."""
    if t == 0:
        return following
    if not isinstance(policy, Sequential):
        return Sequential((policy, following), (t,))
    kept = [(part, start) for part, start in zip(policy.policies, (0, *policy.milestones), strict=True) if start < t]
    return Sequential((*(part for part, _ in kept), following), (*(start for _, start in kept[1:]), t))
