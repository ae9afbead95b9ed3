"""Planner of a composition, as a generator of segments. No torch, no Lightning."""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Literal

from lrbench_pl.composing import forecast
from lrbench_pl.composing.comparison import ComparingPlanner
from lrbench_pl.composing.forecast import Trend, has_fallen, is_frozen, is_standstill, trend
from lrbench_pl.composing.planner import Conditions, Planner
from lrbench_pl.composing.range_test import MARGIN, RateRamp, analyse, range_passes
from lrbench_pl.composing.segments import Segment, SegmentResult
from lrbench_pl.composing.settings import BRANCH_DECAYS, Settings
from lrbench_pl.composing.state import Branch, Composition, Observed, StablePhase, joined
from lrbench_pl.policies import Constant
from lrbench_pl.words import counted

Rules = Literal["comparison", "holding", "range test"]

_SHORT_SHARE = 0.1  # a budget is short if 100 steps, in whole intervals, take this share of it or more
_FIRST_STEPS = 240  # largest steps of the decay before the stable phase
_HELD = 1.5  # factor of the peak of that decay, at which the stable phase holds
_PASSES = 2  # passes of a range test that earlier versions chose themselves
_LEAST_PEAK = 0.1  # least peak of that range test, in multiples of the optimizer's own rate
_PASS_STEPS = 50  # minimum steps of one pass of the range test
_RANGE_SHARE = 0.15  # largest share of the budget for the range test; if it needs more, there is none
_MIN_DISTANCE = 1.2  # minimum factor between the starts of two branches that a forecast starts
_TAIL_RATE = 0.1  # rate after the decay of a branch, as a share of the rate at its start
_TAIL_SHARE = 1.0  # largest length of that tail, as a share of the steps of the decay


def rules_for(settings: Settings, is_adaptive: bool, max_steps: int, interval: int) -> Rules:
    """Return the rules by which a composition is planned.

    Args:
        settings: Its settings.
        is_adaptive: Whether the optimizer divides its steps by the size of the gradients, as Adam does.
        max_steps: Optimizer steps in total.
        interval: Steps between two checks.

    Example:
        >>> rules_for(Settings(), False, 1000, 20), rules_for(Settings(), False, 4000, 20)
        ('comparison', 'holding')
        >>> rules_for(Settings(), True, 4000, 20), rules_for(Settings(repeats=2), True, 4000, 20)
        ('comparison', 'range test')
    """
    if settings.repeats is not None:
        return "range test"
    return "comparison" if is_adaptive or is_short(max_steps, interval) else "holding"


def is_short(max_steps: int, interval: int) -> bool:
    """Return whether a budget is short: up to 1,000 steps, or more if checks are far apart."""
    return _round_up(100, interval) >= _SHORT_SHARE * max_steps


def plan_segments(
    settings: Settings,
    lr: float,
    max_steps: int,
    interval: int,
    target: float | None = None,
    mode: Literal["max", "min"] = "max",
    rules: Rules | None = None,
) -> Generator[Segment, SegmentResult, Composition]:
    """Plan a composition: find a peak rate, then train stable phases and decays to zero.

    The caller trains each segment and sends its result. It ends the training at a check that meets the target; the
    policy of that segment is then the composed policy. If the budget is used, the snapshot of the best branch is
    restored.

    Args:
        settings: Settings of the composition.
        lr: The optimizer's own rate, the centre of a range test.
        max_steps: Optimizer steps in total, abandoned branches included.
        interval: Steps between two checks. Each segment ends at a check, except those of a range test.
        target: Value to reach; None spends the budget on one policy.
        mode: ``max`` if larger values are better, ``min`` if smaller ones are.
        rules: ``comparison``: as :class:`~lrbench_pl.composing.comparison.ComparingPlanner` describes. ``holding``: a
            short decay from three times the own rate, then a stable phase at 4.5 times, with decay branches. ``range
            test``: the stable phase at the peak that a range test finds. None: those for SGD.
    """
    given = Conditions(lr, max_steps, interval, target, mode)
    rules = rules or rules_for(settings, False, max_steps, interval)
    planner: Planner = ComparingPlanner(settings, given) if rules == "comparison" else _Planner(settings, given, rules)
    segments, reported = planner.segments(), 0
    segment = next(segments)
    while True:
        result = yield replace(segment, avoided=tuple(planner.found.avoided[reported:]))
        reported = len(planner.found.avoided)
        try:
            segment = segments.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Outlook:
    """Next steps of the stable phase, and the branch after them."""

    stable_steps: int
    branch_steps: int
    is_last: bool  # no other branch fits into the budget


class _Planner(Planner):
    """Plans stable phases and decay branches, after a short decay or a range test."""

    def __init__(self, settings: Settings, given: Conditions, rules: Rules) -> None:
        super().__init__(settings, given)
        self.rules, self.opening = rules, ComparingPlanner(settings, given)
        self.is_guarded = settings.repeats is None  # the peak needs proof, and falling values are watched
        self.repeats = _PASSES if settings.repeats is None else settings.repeats
        self.tuning_steps = 0  # steps that are not part of the policy
        self.first_branch = self._whole_intervals(settings.first_branch * given.max_steps)
        warmup_steps = max(1, min(given.interval, self.first_branch // 5))
        self.stable = StablePhase(list(settings.stable), given.lr, self.first_branch, warmup_steps, Constant(given.lr))
        self.observed = Observed()
        self.snapshot, self.snapshot_step = "start", 0  # last good state, and its step of the policy
        self.best_step = 0  # step of the best policy at its end

    def segments(self) -> Generator[Segment, SegmentResult, Composition]:
        """Yield all segments of the composition."""
        if self.rules == "holding":
            yield from self._begin()
        else:
            yield Segment("snapshot", Constant(self.own_lr), 0, 0, save="start")
            yield from self._find_peak()
            self.stable.restart()
        while self.spent < self.max_steps:
            outlook = self._outlook()
            if outlook.stable_steps > 0:
                most = self.first_branch if self.rules == "holding" else self.max_steps  # each end is guarded
                steps = min(outlook.stable_steps, most)
                has_gone_back = yield from self._train_stable(steps, forecasts=not outlook.is_last)
                if has_gone_back or not outlook.is_last or steps < outlook.stable_steps:
                    continue
            if self.snapshot_step != self.stable.t or self.snapshot != "stable":
                yield self._take_snapshot(restore=self.restore)
            steps = min(outlook.branch_steps, self.max_steps - self.spent)
            if steps <= 0:
                break
            yield from self._train_branch(steps)
        if self.found.policy is not None:
            yield Segment("snapshot", self.found.policy, 0, 0, restore="best")
        return self.found

    def _begin(self) -> Generator[Segment, SegmentResult, None]:
        """Train a short decay, which an easy target needs no more than, then rise to the rate of the stable phase."""
        opening, stable = self.opening, self.stable
        if self.target is None:
            yield Segment("snapshot", opening.policy, 0, 0, save="start")
        else:
            yield from opening.first_decay(_FIRST_STEPS, gives_up=True)
        self.found, self.spent, self.restore = opening.found, opening.spent, opening.restore
        self.tuning_steps = opening.spent - opening.t
        self.snapshot, _, self.snapshot_step = opening.good
        self.best_step = opening.t
        self.observed.values = opening.values
        has_diverged = opening.t == 0 and opening.spent > 0
        stable.peak = opening.peak if has_diverged else _HELD * opening.peak
        if len(opening.values) > 1 and opening.values[-1] <= opening.values[0]:
            self._restart(f"no gain over {counted(opening.t, 'step')}", opening.peak)
            return
        has_decayed = opening.policy(opening.t) < opening.peak / 2
        warmup_steps = max(1, min(self.interval, opening.t // 5)) if has_decayed else 0
        stable.begin_after(opening.policy, opening.t, warmup_steps)
        if self.snapshot_step != opening.t:  # it was given up
            yield self._take_snapshot()

    def _find_peak(self) -> Generator[Segment, SegmentResult, None]:
        """Run the range test, if the budget allows one."""
        settings, repeats = self.settings, self.repeats
        steps = _round_up(_PASS_STEPS * repeats, self.interval)
        if not repeats or steps > _RANGE_SHARE * self.max_steps:
            return
        ramp = RateRamp(self.own_lr / settings.span, self.own_lr * settings.span, steps // repeats)
        curves, self.spent = yield from range_passes(ramp, repeats, restore="start", steps=steps)
        self.tuning_steps, self.restore = self.spent, "start"
        try:
            tested = analyse(ramp, curves, settings.margin or MARGIN)
        except ValueError as error:
            if not self.is_guarded:
                raise
            self.found.avoided.append(f"a peak from the range test: {error}; the peak is {self.own_lr:.3g}")
            return
        self.found.range = replace(tested, steps=self.spent)
        self.stable.peak = max(tested.peak, _LEAST_PEAK * self.own_lr if self.is_guarded else 0.0)
        if tested.diverged_at is not None:
            self.found.avoided.append(f"rates of {tested.diverged_at:.3g} and above: the range test diverged")

    # -- when the next branch starts ------------------------------------------------------------------------

    def _outlook(self) -> _Outlook:
        """Decide how long the stable phase continues before the next branch."""
        settings, interval, t = self.settings, self.interval, self.stable.t
        left = self.max_steps - self.spent
        steps = min(self._whole_intervals(settings.decay_fraction * max(t, self.first_branch)), left)
        room = _round_down(left - steps, interval)
        is_affordable = self.tuning_steps + steps <= settings.tuning_budget * self.max_steps
        if self.target is None or room < interval or not is_affordable:
            share = settings.decay_fraction / (1 + settings.decay_fraction)
            steps = min(self._whole_intervals(share * (t + left)), left)
            return _Outlook(_round_down(left - steps, interval), steps, is_last=True)
        if t < self._earliest_start():
            ahead = min(self._earliest_start() - t, room)
        elif self._is_time():
            ahead = 0
        elif settings.average:
            ahead = interval
        else:
            ahead = min(self._latest_start(interval) - t, room)
        return _Outlook(ahead, steps, is_last=False)

    def _earliest_start(self) -> int:
        """Return the step before which no branch starts."""
        return self.stable.begun + self.first_branch

    def _latest_start(self, interval: int) -> int:
        """Return the step at which a branch starts regardless of the forecast."""
        settings, branches = self.settings, self.observed.branches
        if branches:
            last = float(branches[-1][0])
        else:
            last = self._earliest_start() if settings.average else self._earliest_start() / settings.growth
        latest = min(settings.growth * last, float(self.max_steps))
        return max(self._whole_intervals(latest), self._earliest_start())

    def _is_time(self) -> bool:
        """Return whether a branch starts now: it is due, or expected to succeed."""
        t, branches = self.stable.t, self.observed.branches
        if t >= self._latest_start(1):
            return True
        expected = self._forecast()
        if expected is None or (branches and t < _MIN_DISTANCE * branches[-1][0]):
            return False
        mean_gain = statistics.fmean(gain for _, gain in branches) if branches else 0.0
        # with reuse, a branch that misses the target costs little, so that the forecast may be optimistic
        least = 0.0 if self.settings.reuse else -expected.spread
        return expected.value + max(least, mean_gain) >= self.goal

    def _forecast(self) -> Trend | None:
        """Return the forecast of a branch that starts now."""
        return trend(self.observed.averaged, self.stable.t * (1 + self.settings.decay_fraction))

    # -- stable phase ---------------------------------------------------------------------------------------

    def _train_stable(self, steps: int, forecasts: bool) -> Generator[Segment, SegmentResult, bool]:
        """Continue the stable phase; return whether training goes back."""
        stable = self.stable
        averaged = forecasts and bool(self.settings.average) and stable.t >= self._earliest_start()
        note = f"peak {stable.peak:.3g}"
        result = yield Segment(
            "stable", stable.policy, stable.t, steps, restore=self.restore, save="stable", averaged=averaged, note=note
        )
        self.spent, self.restore = result.spent, None
        if result.diverged:
            self._go_back(result.steps)
            return True
        stable.t += result.steps
        self.snapshot, self.snapshot_step = "stable", stable.t
        if result.value is not None:
            is_finite = math.isfinite(result.value)
            if is_finite:
                self.observed.values.append(self.sign * result.value)
            if self.is_guarded and self._is_lost(result.has_learned):
                return True
            if averaged and is_finite:
                self.observed.averaged.append((stable.t, self.sign * result.value))
        return False

    def _is_lost(self, has_learned: bool) -> bool:
        """Return whether the peak proved too high without a divergence; then train again from a good snapshot."""
        stable, observed = self.stable, self.observed
        if stable.peak > self.own_lr and stable.t >= 2 * self.first_branch and not has_learned:
            self._restart("the loss is still that of the start")
        elif not has_fallen(observed.values):
            return False
        elif self.found.policy is None:
            self._restart("the values of the checks fell")
        else:
            self.found.avoided.append(f"continuing at {stable.peak:.3g}: the values of the checks fell")
            stable.peak /= 2
            self.tuning_steps += max(0, stable.t - self.best_step)
            self.restore = self.snapshot = "best"
            stable.t = self.snapshot_step = self.best_step
            stable.follow(self.found.policy)
            observed.averaged, observed.values = [], []
        return True

    def _go_back(self, lost_steps: int) -> None:
        """Return to the last snapshot, at half the peak: the stable phase diverged."""
        stable = self.stable
        self.tuning_steps += lost_steps
        self.found.avoided.append(f"stable phase at {stable.peak:.3g}: diverged after policy step {stable.t}")
        stable.peak /= 2
        stable.t, self.restore = self.snapshot_step, self.snapshot
        stable.follow(stable.policy)
        self.observed.averaged = []

    def _take_snapshot(self, restore: str | None = None) -> Segment:
        """Return the segment that takes a snapshot of the current state."""
        self.snapshot, self.snapshot_step, self.restore = "stable", self.stable.t, None
        return Segment("snapshot", self.stable.policy, self.stable.t, 0, restore=restore, save="stable")

    # -- decay branches -------------------------------------------------------------------------------------

    def _train_branch(self, steps: int) -> Generator[Segment, SegmentResult, None]:
        """Decay to zero, hold a small rate while the target is near, and move on."""
        t, rate = self.stable.t, self.stable.policy(self.stable.t)
        policy = joined(self.stable.policy, t, BRANCH_DECAYS[self.settings.decay](rate, steps))
        branch = Branch(policy, t, t, self._forecast())
        note = f"decays from {rate:.3g} over {counted(steps, 'step')}"
        result = yield Segment("branch", policy, t, steps, restore=self.restore, note=note)
        yield from self._observe(branch, result)
        latest_end = branch.end + max(self.interval, self._whole_intervals(_TAIL_SHARE * steps))
        while self._is_worth_holding(branch, latest_end):
            branch.policy = joined(branch.policy, branch.end, Constant(_TAIL_RATE * rate))
            steps = min(self.interval, self.max_steps - self.spent)
            note = f"held at {_TAIL_RATE * rate:.3g}: {result.value:.4g} is near the target"
            result = yield Segment("branch", branch.policy, branch.end, steps, note=note)
            yield from self._observe(branch, result)
        yield from self._continue_after(branch)

    def _observe(self, branch: Branch, result: SegmentResult) -> Generator[Segment, SegmentResult, None]:
        """Record a result of a branch, with a snapshot if it is the best so far."""
        branch.end += result.steps
        branch.diverged = result.diverged
        self.spent = result.spent
        if result.value is None or result.diverged or not math.isfinite(result.value):
            branch.value = None
            return
        branch.value = value = self.sign * result.value
        branch.reached = value if branch.reached is None else max(branch.reached, value)
        self.observed.values.append(value)
        if self.found.best is None or value > self.sign * self.found.best:
            self.found.best, self.found.policy, self.best_step = result.value, branch.policy, branch.end
            yield Segment("snapshot", branch.policy, branch.end, 0, save="best")

    def _is_worth_holding(self, branch: Branch, latest_end: int) -> bool:
        """Return whether a branch continues at a small rate after its decay."""
        has_room = branch.end < latest_end and self.spent < self.max_steps
        return has_room and branch.is_near(self.goal) and not is_frozen(self.observed.values)

    def _continue_after(self, branch: Branch) -> Generator[Segment, SegmentResult, None]:
        """Decide where training continues after a branch that missed the target."""
        self.observed.branches.append((branch.start, branch.gain))
        if branch.reached is not None:
            self.observed.ends.append(branch.reached)
        if is_frozen(self.observed.values) and self.spent < self.max_steps:
            self._restart(f"{forecast.FROZEN} identical checks in a row")
            return
        if self.settings.reuse and not branch.diverged:
            self.stable.t = branch.end
            self.stable.follow(branch.policy)
            yield self._take_snapshot()
        else:
            self.tuning_steps += branch.end - branch.start
            self.restore = "stable"
        if is_standstill(self.observed.ends, self.settings.min_gain):
            self._change_shape()

    def _restart(self, why: str, peak: float | None = None) -> None:
        """Restart at half the peak, but at most at the optimizer's own rate; ``peak`` for the record, if another."""
        stable = self.stable
        tried = stable.peak if peak is None else peak
        self.found.avoided.append(f"continuing at {tried:.3g}: {why}; training restarted")
        stable.peak = min(stable.peak / 2, self.own_lr)
        stable.restart()
        self.tuning_steps, self.restore, self.snapshot, self.snapshot_step = self.spent, "start", "start", 0
        self.observed = Observed()

    def _change_shape(self) -> None:
        """Continue with the next shape at half the peak: there is no gain."""
        stable, observed = self.stable, self.observed
        self.found.avoided.append(
            f"continuing at {stable.peak:.3g} ({stable.shapes[0]}): no gain in {forecast.PATIENCE} branches"
        )
        stable.change_shape()
        observed.averaged, observed.ends = observed.averaged[-1:], [max(observed.ends)]


def _round_down(steps: int, interval: int) -> int:
    return steps // interval * interval


def _round_up(steps: int, interval: int) -> int:
    return -(-steps // interval) * interval
