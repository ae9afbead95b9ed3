"""Planner for short budgets: peaks are compared from one snapshot, then the decays grow. No torch."""

from __future__ import annotations

import math
from collections.abc import Generator

from lrbench_pl.composing.forecast import has_fallen, is_frozen, trend
from lrbench_pl.composing.planner import Conditions, Planner
from lrbench_pl.composing.segments import Segment, SegmentResult
from lrbench_pl.composing.settings import BRANCH_DECAYS, Settings
from lrbench_pl.composing.state import Composition, joined
from lrbench_pl.policies import Constant, Policy
from lrbench_pl.words import counted

_START = 0.1  # share of the budget at the optimizer's own rate before peaks are compared
_TRIAL = 0.05  # steps of a trial, as a share of the budget
_TRIAL_SHARE = 0.25  # and at least this share of the steps before it
_FACTORS = (1.0, 3.0, 9.0, 27.0)  # peaks of the trials, in multiples of the optimizer's own rate
_HOLD = 0.3  # share of a segment between two ends in which the peak is held before the decay
_GROWTH = 3.0  # a decay ends at most at this multiple of the step at which the peak was reached again
_LEAST_GROWTH = 1.3  # and at least at this multiple
_SAFETY = 2.0  # multiple of the expected gain that is planned for
_LAST = 0.25  # least share of the budget for the last decay
_ON_COURSE = 1.3  # peaks are not compared yet if the own rate is expected to reach the target at this multiple
_ON_COURSE_GROWTH = 2.0  # end of the decay that is trained instead, as a multiple of its start
_LOWER = 1 / 3  # factor of the peak after a divergence or a fall of the values


class ComparingPlanner(Planner):
    """Plans the segments of a composition on a budget that is too short for a range test.

    1. Training starts at the optimizer's own rate, so that an easy target costs what it costs without a composition.
    2. If its checks promise the target soon, a decay follows. Otherwise, or if that decay misses, a snapshot is taken.
       Short decays to zero start from it, at the own rate and at 3, 9 and 27 times that rate, until one is no better
       than the one before. Training continues from the best of them.
    3. Longer decays to zero follow from the best peak, which is held for a while before. Their ends are at most at
       three times the steps before them, and sooner if the values at the last two ends promise the target sooner. The
       last decay takes at least a quarter of the budget.

    Every check uses the plain weights and may reach the target. If the loss diverges or the values fall, training
    returns to the last good snapshot at a third of the peak.

    Args:
        settings: Settings of the composition; ``decay`` and ``tuning_budget`` apply.
        given: Its conditions; without a target one decay takes all steps after the trials.
    """

    def __init__(self, settings: Settings, given: Conditions) -> None:
        super().__init__(settings, given)
        self.peak = given.lr
        self.t = 0  # step of the policy
        self.policy: Policy = Constant(given.lr)
        self.values: list[float] = []  # signed values of the checks since training last went back
        self.ends: list[tuple[int, float]] = []  # steps and signed values at the ends of decays since then
        self.good: tuple[str, Policy, int] = ("start", self.policy, 0)  # last good snapshot, its policy and its step

    def segments(self) -> Generator[Segment, SegmentResult, Composition]:
        """Yield all segments of the composition."""
        yield Segment("snapshot", self.policy, 0, 0, save="start")
        yield from self._train_at_own_rate()
        if self._is_on_course():
            yield from self._decay(self._next_steps(_ON_COURSE_GROWTH))
            yield self._take_snapshot("stable")
        yield from self._compare()
        while self.spent < self.max_steps:
            yield from self._decay(self._next_steps(self._expected_growth()))
        if self.found.policy is not None:
            yield Segment("snapshot", self.found.policy, 0, 0, restore="best")
        return self.found

    # -- the optimizer's own rate ---------------------------------------------------------------------------

    def _train_at_own_rate(self) -> Generator[Segment, SegmentResult, None]:
        """Hold the optimizer's own rate, lower after a divergence, up to the comparison."""
        end = self._whole_intervals(_START * self.max_steps)
        while self.t < end and self.spent < self.max_steps:
            steps = min(self.interval, self.max_steps - self.spent)
            note = f"peak {self.peak:.3g}"
            result = yield Segment("stable", self.policy, self.t, steps, restore=self._take_restore(), note=note)
            if self._is_lost(result):
                self._go_back(result)
            else:
                self.t += result.steps
                yield self._take_snapshot("stable")

    def _is_on_course(self) -> bool:
        """Return whether the checks at the own rate promise the target soon."""
        last = self.interval * len(self.values)
        if self.target is None or last != self.t:  # training went back
            return False
        seen = [(self.interval * number, value) for number, value in enumerate(self.values, 1)]
        expected = trend(seen, _ON_COURSE * self.t, recent=3.0, least=3)
        return expected is not None and expected.value >= self.goal

    # -- comparison of peaks --------------------------------------------------------------------------------

    def _compare(self) -> Generator[Segment, SegmentResult, None]:
        """Train a short decay from each peak, and continue from the best."""
        start, base, centre = self.t, self.policy, self.peak
        steps = self._whole_intervals(max(_TRIAL * self.max_steps, _TRIAL_SHARE * start))
        affordable = self.settings.tuning_budget * self.max_steps
        if steps > affordable:
            return
        best: tuple[float, Policy, float] | None = None  # value, policy and peak
        spent, is_last_best, kept = self.spent, True, "best"
        restore = self._take_restore()
        for number, factor in enumerate(_FACTORS):
            if self.spent + 2 * steps > self.max_steps or number * steps > affordable:
                break
            peak = factor * centre
            policy = joined(base, start, BRANCH_DECAYS[self.settings.decay](peak, steps))
            note = f"trial: decays from {peak:.3g} over {counted(steps, 'step')}"
            restore = restore if number == 0 else "stable"
            result = yield Segment("branch", policy, start, steps, restore=restore, note=note)
            self.spent = result.spent
            value = self._value(result)
            if value is None or (best is not None and value <= best[0]):
                why = "diverged" if best is None or value is None else f"no better than {best[2]:.3g}"
                self.found.avoided.append(f"a peak of {peak:.3g}: {why} in a trial of {counted(steps, 'step')}")
                is_last_best = False
                break
            best = value, policy, peak
            kept = "best" if self._is_best(value) else "trial"
            if kept == "best":
                self.found.best, self.found.policy = result.value, policy
            yield Segment("snapshot", policy, start + result.steps, 0, save=kept)
        if best is None:
            if self.spent > spent:
                self.peak, self.restore = centre * _LOWER, "stable"
            return
        _, self.policy, self.peak = best
        self.t = start + steps
        self.good = kept, self.policy, self.t
        self.values.append(best[0])
        self.ends.append((self.t, best[0]))
        self.restore = None if is_last_best else kept

    # -- decays ---------------------------------------------------------------------------------------------

    def _next_steps(self, growth: float) -> int:
        """Return the steps until the end of the next decay; the last one takes all that is left."""
        left = self.max_steps - self.spent
        steps = self._whole_intervals((growth - 1) * max(self.t, self.interval))
        return steps if self.target is not None and left - steps >= _LAST * self.max_steps else left

    def _expected_growth(self) -> float:
        """Return the multiple of the steps so far at which a decay is expected to reach the target.

        The values at the ends of decays are taken as linear in the logarithm of their steps.
        """
        if len(self.ends) < 2 or self.ends[-1][1] <= self.ends[-2][1]:
            return _GROWTH
        (before, former), (t, value) = self.ends[-2:]
        slope = (value - former) / math.log(t / before)
        e_folds = _SAFETY * (self.goal - value) / slope
        return math.exp(min(max(e_folds, math.log(_LEAST_GROWTH)), math.log(_GROWTH)))

    def _decay(self, steps: int) -> Generator[Segment, SegmentResult, None]:
        """Hold the peak, decay to zero, and take a snapshot of the end if it is the best so far."""
        start, end = self.t, self.t + steps
        is_last = steps == self.max_steps - self.spent
        held = 0 if is_last or steps < 2 * self.interval else round(_HOLD * steps / self.interval) * self.interval
        policy = joined(self.policy, start, Constant(self.peak)) if held else self.policy
        policy = joined(policy, start + held, BRANCH_DECAYS[self.settings.decay](self.peak, steps - held))
        note = f"decays from {self.peak:.3g} over {counted(steps - held, 'step')}"
        checked = len(self.values)
        value: float | None = None
        while self.t < end:
            length = min(self.interval, end - self.t)
            result = yield Segment("branch", policy, self.t, length, restore=self._take_restore(), note=note)
            if self._is_lost(result):
                self._go_back(result)
                return
            self.t += result.steps
            value = result.value
        self.policy = policy
        if is_frozen(self.values[checked:]) and len(set(self.values[checked:])) == 1:
            self._restart()
        elif value is not None:
            yield from self._observe_end(value)

    def _observe_end(self, value: float) -> Generator[Segment, SegmentResult, None]:
        """Record the value at the end of a decay: it may be the best so far."""
        self.ends.append((self.t, self.sign * value))
        if self._is_best(self.sign * value):
            self.found.best, self.found.policy = value, self.policy
            self.good = "best", self.policy, self.t
            yield Segment("snapshot", self.policy, self.t, 0, save="best")

    def _is_best(self, value: float) -> bool:
        """Return whether a signed value is better than that of the best policy so far."""
        return self.found.best is None or value > self.sign * self.found.best

    # -- what went wrong ------------------------------------------------------------------------------------

    def _value(self, result: SegmentResult) -> float | None:
        """Return the signed value of a result; None after a divergence or without a finite value."""
        if result.diverged or result.value is None or not math.isfinite(result.value):
            return None
        return self.sign * result.value

    def _is_lost(self, result: SegmentResult) -> bool:
        """Record a check, and return whether training diverged or its values fall."""
        self.spent = result.spent
        if (value := self._value(result)) is None:
            return True
        self.values.append(value)
        return has_fallen(self.values)

    def _go_back(self, result: SegmentResult) -> None:
        """Return to the last good snapshot at a third of the peak."""
        what = "diverged" if self._value(result) is None else "the values of the checks fell"
        self.found.avoided.append(f"continuing at {self.peak:.3g}: {what} after policy step {self.t}")
        self.peak *= _LOWER
        self._return_to(*self.good)

    def _restart(self) -> None:
        """Start anew at a third of the peak, at most of the own rate: no check of a whole decay differed."""
        self.found.avoided.append(f"continuing at {self.peak:.3g}: identical checks throughout; training restarted")
        self.peak = _LOWER * min(self.peak, self.own_lr)
        self._return_to("start", self.policy, 0)

    def _return_to(self, name: str, policy: Policy, t: int) -> None:
        self.restore, self.t, self.values, self.ends = name, t, [], []
        self.policy = joined(policy, t, Constant(self.peak))
        self.good = name, self.policy, t

    def _take_snapshot(self, name: str) -> Segment:
        self.good = name, self.policy, self.t
        return Segment("snapshot", self.policy, self.t, 0, restore=self._take_restore(), save=name)

    def _take_restore(self) -> str | None:
        restore, self.restore = self.restore, None
        return restore
