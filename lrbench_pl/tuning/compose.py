"""Composing a policy while training: the plan, as a generator of legs. No torch, no Lightning."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Literal

from lrbench_pl.policies import Constant, Cyclic, Policy, Polynomial, Sequential, SqrtDecay, warmup
from lrbench_pl.policies import _checks as check
from lrbench_pl.tuning.legs import Leg, Outcome
from lrbench_pl.tuning.range_test import RangeTest, Sweep, range_test

Trunk = Literal["constant", "triangle", "sine"]
Decay = Literal["linear", "cosine", "sqrt"]

_SWEEP_STEPS = 50  # of a range test, at least
_RANGE_SHARE = 0.15  # of the budget, at most; in a smaller one the optimizer's own rate is the peak

# A trunk function at a peak rate; the cycles take as many steps as the first branch point.
_TRUNKS: dict[str, Callable[[float, int], Policy]] = {
    "constant": lambda peak, period: Constant(peak),
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
        first_branch: Share of the budget, in (0, 1), after which the first branch leaves the trunk.
        growth: Factor from one branch point to the next, above 1.
        decay_fraction: Steps of a branch as a share of the steps before it, in (0, 1].
        min_gain: Gain of the metric from one branch to the next below which the trunk changes.
        span: The range test covers the optimizer's own rate divided and multiplied by this, above 1.
        repeats: Sweeps of the range test; 0 takes the optimizer's own rate as the peak.
        tuning_budget: Share of the budget that range test and dead ends may take, in [0, 1].

    Raises:
        ValueError: If a field is out of its range.
    """

    trunks: tuple[Trunk, ...] = ("constant", "triangle")
    decay: Decay = "linear"
    first_branch: float = 0.05
    growth: float = 1.5
    decay_fraction: float = 1 / 3
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
    settings: Settings, lr: float, max_steps: int, interval: int, mode: Literal["max", "min"] = "max"
) -> Generator[Leg, Outcome, Composition]:
    """The plan: range test, trunk, branches that decay to zero, back to the trunk, adapt; at last the best is kept.

    Whoever runs the legs ends the training at a check that meets the target: the policy is then that of the leg.

    Args:
        settings: How to compose.
        lr: The optimizer's own rate, the centre of the range test.
        max_steps: Optimizer steps in all, dead ends included.
        interval: Steps between two checks; every leg ends at one.
        mode: Whether a larger or a smaller value is better.
    """
    found = Composition()
    sign = 1.0 if mode == "max" else -1.0
    spent = tuning = 0
    yield Leg("keep", Constant(lr), 0, 0, save="start")

    peak = lr
    sweep_steps = interval * -(-_SWEEP_STEPS // interval)
    if settings.repeats and sweep_steps * settings.repeats <= _RANGE_SHARE * max_steps:
        sweep = Sweep(lr / settings.span, lr * settings.span, max(2, sweep_steps))
        found.range = yield from range_test(sweep, settings.repeats, restore="start")
        peak, spent = found.range.peak, found.range.steps
        tuning = spent
        if found.range.diverged_at is not None:
            found.avoided.append(f"rates of {found.range.diverged_at:.3g} and above: the range test diverged")

    first = _whole(settings.first_branch * max_steps, interval)
    functions = list(settings.trunks)
    t = 0
    trunk: Policy = _rising(functions[0], peak, first, interval)
    snapshot, at = "start", 0
    point = first
    last: float | None = None
    back: str | None = "start" if spent else None
    while spent < max_steps:
        left = max_steps - spent
        decay_steps = _whole(settings.decay_fraction * max(t, point), interval)
        least = interval if t and left > interval else 0  # a second branch from one point would repeat the first
        decay_steps = min(decay_steps, left - least)
        ahead = max(least, min(max(0, point - t), _floor(left - decay_steps, interval)))
        dead_end = ahead + decay_steps < left  # there is budget to go on after it
        if dead_end and tuning + decay_steps > settings.tuning_budget * max_steps:
            decay_steps = min(
                _whole(settings.decay_fraction * (t + left) / (1 + settings.decay_fraction), interval), left
            )
            ahead = _floor(left - decay_steps, interval)
        if ahead > 0:
            outcome = yield Leg("trunk", trunk, t, ahead, restore=back, save="trunk", note=f"peak {peak:.3g}")
            spent = outcome.spent
            back = None
            if outcome.diverged:
                tuning += outcome.steps
                found.avoided.append(f"a trunk at {peak:.3g}: diverged after policy step {t}")
                peak /= 2
                t, back = at, snapshot
                trunk = _changed(trunk, t, functions[0], peak, first, interval)
                continue
            t += outcome.steps
            snapshot, at = "trunk", t
        elif at != t or snapshot == "start":
            yield Leg("keep", trunk, t, 0, restore=back, save="trunk")
            snapshot, at, back = "trunk", t, None
        left = max_steps - spent
        decay_steps = min(decay_steps, left)
        if decay_steps <= 0:
            break
        branch = _then(trunk, t, _DECAYS[settings.decay](trunk(t), decay_steps))
        note = f"decays from {trunk(t):.3g} over {decay_steps} steps"
        outcome = yield Leg("branch", branch, t, decay_steps, restore=back, note=note)
        spent = outcome.spent
        tuning += outcome.steps
        back = "trunk"
        value = outcome.value
        if value is not None and not outcome.diverged:
            if found.best is None or sign * value > sign * found.best:
                found.best, found.policy = value, branch
                yield Leg("keep", branch, t + outcome.steps, 0, save="best")
            if last is not None and sign * (value - last) <= settings.min_gain:
                found.avoided.append(f"going on at {peak:.3g} ({functions[0]}): {last:.4g} became {value:.4g}")
                functions.append(functions.pop(0))
                peak /= 2
                trunk = _changed(trunk, t, functions[0], peak, first, interval)
            last = value
        point = max(t + interval, _whole(t * settings.growth, interval))
    if found.policy is not None:
        yield Leg("keep", found.policy, 0, 0, restore="best")
    return found


def _whole(steps: float, interval: int) -> int:
    """The nearest number of whole intervals, at least one."""
    return interval * max(1, round(steps / interval))


def _floor(steps: int, interval: int) -> int:
    return steps // interval * interval


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
