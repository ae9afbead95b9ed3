"""Composing a policy while training: the plan, as a generator of legs. No torch, no Lightning."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lrbench_pl.policies import Constant, Cyclic, InverseTime, Policy, Polynomial, Sequential, SqrtDecay, warmup
from lrbench_pl.policies import _checks as check
from lrbench_pl.tuning.legs import Leg, Outcome
from lrbench_pl.tuning.range_test import RangeTest, Sweep, range_test

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
    yield Leg("keep", Constant(lr), 0, 0, save="start")
    found = Composition()
    peak, spent = lr, 0
    sweeps_steps = _up(_SWEEP_STEPS * settings.repeats, interval)
    if settings.repeats and sweeps_steps <= _RANGE_SHARE * max_steps:
        sweep = Sweep(lr / settings.span, lr * settings.span, sweeps_steps // settings.repeats)
        found.range = yield from range_test(sweep, settings.repeats, restore="start", steps=sweeps_steps)
        peak, spent = found.range.peak, found.range.steps
        if found.range.diverged_at is not None:
            found.avoided.append(f"rates of {found.range.diverged_at:.3g} and above: the range test diverged")

    sign = 1.0 if mode == "max" else -1.0
    first = _whole(settings.first_branch * max_steps, interval)
    functions = list(settings.trunks)
    trunk: Policy = _rising(functions[0], peak, first, interval)
    t = 0
    tuning = spent
    back: str | None = "start" if spent else None
    snapshot, at = "start", 0  # the last good state
    seen: list[tuple[int, float]] = []  # steps of the trunk and value of its averaged weights; larger is better
    branches: list[tuple[int, float]] = []  # where they left, and what they brought beyond the forecast
    ends: list[float] = []  # what the branches of this trunk reached; larger is better
    values: list[float] = []  # of every check since the training last began; larger is better
    goal = math.inf if target is None else sign * target
    while spent < max_steps:
        left = max_steps - spent
        # how long a branch would be here, and whether it is the last that fits
        steps = min(_whole(settings.decay_fraction * max(t, first), interval), left)
        final = (
            _floor(left - steps, interval) < interval
            or target is None
            or (tuning + steps > settings.tuning_budget * max_steps)
        )
        if final:
            share = settings.decay_fraction / (1 + settings.decay_fraction)
            steps = min(_whole(share * (t + left), interval), left)
            ahead = _floor(left - steps, interval)
        elif t < first:
            ahead = min(first - t, _floor(left - steps, interval))
        else:
            ahead = 0 if _is_time(settings, t, first, seen, branches, goal) else interval
            if not settings.average and ahead:
                ahead = min(_due(settings, first, branches, interval) - t, _floor(left - steps, interval))
        if ahead > 0:
            averaged = bool(settings.average) and t >= first and not final
            note = f"peak {peak:.3g}"
            outcome = yield Leg("trunk", trunk, t, ahead, restore=back, save="trunk", averaged=averaged, note=note)
            spent, back = outcome.spent, None
            if outcome.diverged:
                tuning += outcome.steps
                found.avoided.append(f"a trunk at {peak:.3g}: diverged after policy step {t}")
                peak /= 2
                t, back = at, snapshot
                trunk, seen = _changed(trunk, t, functions[0], peak, first, interval), []
                continue
            t += outcome.steps
            snapshot, at = "trunk", t
            if outcome.value is not None:
                values.append(sign * outcome.value)
                if averaged and math.isfinite(outcome.value):
                    seen.append((t, sign * outcome.value))
            if not final:
                continue
        if at != t or snapshot == "start":
            yield Leg("keep", trunk, t, 0, restore=back, save="trunk")
            snapshot, at, back = "trunk", t, None
        steps = min(steps, max_steps - spent)
        if steps <= 0:
            break
        rate = trunk(t)
        branch = _then(trunk, t, _DECAYS[settings.decay](rate, steps))
        note = f"decays from {rate:.3g} over {steps} steps"
        outcome = yield Leg("branch", branch, t, steps, restore=back, note=note)
        end, diverged = t + outcome.steps, outcome.diverged
        last = end + max(interval, _whole(_TAIL_SHARE * steps, interval))
        forecast = trend(seen, t * (1 + settings.decay_fraction))
        reached: float | None = None
        while True:
            spent, diverged = outcome.spent, outcome.diverged
            if outcome.value is None or outcome.diverged:
                break
            value = sign * outcome.value
            values.append(value)
            reached = value if reached is None else max(reached, value)
            if found.best is None or value > sign * found.best:
                found.best, found.policy = outcome.value, branch
                yield Leg("keep", branch, end, 0, save="best")
            if forecast is None or value + _NEAR * forecast.spread < goal or value < reached - forecast.spread:
                break  # too far, or falling
            if end >= last or spent >= max_steps or _is_frozen(values):
                break
            branch = _then(branch, end, Constant(_TAIL * rate))
            held = min(interval, max_steps - spent)
            note = f"held at {_TAIL * rate:.3g}: {outcome.value:.4g} is near the target"
            outcome = yield Leg("branch", branch, end, held, note=note)
            end += outcome.steps
        branches.append((t, 0.0 if reached is None or forecast is None else reached - forecast.value))
        if reached is not None:
            ends.append(reached)
        if _is_frozen(values) and spent < max_steps:
            found.avoided.append(f"going on at {peak:.3g}: {_FROZEN} checks in a row brought the same; begun anew")
            peak /= 2
            t, tuning, back, snapshot, at = 0, spent, "start", "start", 0
            trunk = _rising(functions[0], peak, first, interval)
            seen, branches, ends, values = [], [], [], []
            continue
        if settings.reuse and not diverged:
            trunk, t = _changed(branch, end, functions[0], peak, first, interval), end
            yield Leg("keep", trunk, t, 0, save="trunk")
            at, back = t, None
        else:
            tuning += end - t
            back = "trunk"
        if _stands_still(ends, settings.min_gain):
            found.avoided.append(f"going on at {peak:.3g} ({functions[0]}): no gain in {_PATIENCE} branches")
            functions.append(functions.pop(0))
            peak /= 2
            trunk, seen, ends = _changed(trunk, t, functions[0], peak, first, interval), seen[-1:], [max(ends)]
    if found.policy is not None:
        yield Leg("keep", found.policy, 0, 0, restore="best")
    return found


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


def _rising(function: str, peak: float, period: int, interval: int) -> Policy:
    return warmup(_TRUNKS[function](peak, period), max(1, min(interval, period // 5)))


def _changed(trunk: Policy, t: int, function: str, peak: float, period: int, interval: int) -> Policy:
    """The trunk up to ``t``, then another function or rate."""
    return _then(trunk, t, _TRUNKS[function](peak, period)) if t else _rising(function, peak, period, interval)


def _then(policy: Policy, t: int, following: Policy) -> Policy:
    """One policy up to ``t``, another from there on."""
    if t == 0:
        return following
    if not isinstance(policy, Sequential):
        return Sequential((policy, following), (t,))
    kept = [(part, start) for part, start in zip(policy.policies, (0, *policy.milestones), strict=True) if start < t]
    return Sequential((*(part for part, _ in kept), following), (*(start for _, start in kept[1:]), t))
