"""Planner that compares peaks: decays to zero of growing length, the second at a higher peak. No torch."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

from lrbench_pl.composing.forecast import has_fallen, is_frozen
from lrbench_pl.composing.planner import Conditions, Planner
from lrbench_pl.composing.segments import Segment, SegmentKind, SegmentResult
from lrbench_pl.composing.settings import BRANCH_DECAYS, Settings
from lrbench_pl.composing.state import Composition, joined
from lrbench_pl.policies import Constant, Policy, Polynomial
from lrbench_pl.words import counted

_PEAK = 3.0  # first peak, in multiples of the optimizer's own rate
_RISE = 3.0  # factor of the peak of the second decay, which is compared with the first peak
_FIRST = 0.06  # steps of the first decay, as a share of the budget
_WARMUP = 0.1  # share of the steps of a decay in which the rate rises to the peak
_HOLD = 0.3  # share of them after which the rate falls
_CLEAR = 0.6  # a gain at the higher peak is clear at this share of the gain before it, or of what lacks to the target
_GROWTH = 2.0  # the next decay ends at this multiple of the steps so far, if no two ends give a forecast
_LEAST_GROWTH, _MOST_GROWTH = 1.5, 3.0  # limits of that multiple with a forecast
_SAFETY = 2.0  # multiple of the expected gain that is planned for
_LAST = 0.25  # least share of the budget for the last decay
_LOWER = 1 / 3  # factor of the peak after a divergence, a fall of the values or a decay without a gain
_LEAST_PEAK = 0.1  # a decay without a gain lowers the peak at most to this multiple of the own rate


class ComparingPlanner(Planner):
    """Plans the segments of a composition with an adaptive optimizer, or on a short budget.

    1. A short decay to zero starts at three times the optimizer's own rate.
    2. From its end, the same number of steps follow at nine times the own rate. If they bring no gain, training returns
       to the end of the first decay. If their gain is not clear, the same steps are trained at the lower peak too.
       Training continues from the better end, at its peak.
    3. Longer decays follow. They end at twice the steps before them, or at 1.5 to 3 times if the values at the last two
       ends forecast the target there. The last one takes at least a quarter of the budget. After a decay without a
       gain, training returns to the best end at a third of the peak.

    Each decay begins with a warm-up. Every check uses the plain weights and may reach the target. If the loss diverges
    or the values fall, training returns to the last good snapshot at a third of the peak. If five consecutive checks
    are identical while the loss is still that of the start, it restarts at a third of the own rate; if the network has
    memorised its training data, at the own rate.

    Args:
        settings: Settings of the composition; ``decay`` and ``tuning_budget`` apply.
        given: Its conditions; without a target one decay takes all steps after the comparison, which a
            ``tuning_budget`` of 0 leaves out.
    """

    def __init__(self, settings: Settings, given: Conditions) -> None:
        super().__init__(settings, given)
        self.peak = _PEAK * given.lr
        self.t = 0  # step of the policy
        self.policy: Policy = Constant(self.peak)
        self.values: list[float] = []  # signed values of the checks since training last went back
        self.same: list[float] = []  # consecutive checks with the last value, those before a return included
        self.ends: list[tuple[int, float]] = []  # steps and signed values at the ends of decays since then
        self.gives_up = False  # whether a decay ends when the target is out of its reach
        self.reached = -math.inf  # best signed value at the end of a decay since the start
        self.good: tuple[str, Policy, int] = ("start", self.policy, 0)  # last good snapshot, its policy and its step

    def segments(self) -> Generator[Segment, SegmentResult, Composition]:
        """Yield all segments of the composition."""
        yield from self.first_decay()
        if self.ends:
            yield from self._compare()
        while self.spent < self.max_steps:
            steps = (self._growth() - 1) * self.t if self.t else _FIRST * self.max_steps
            yield from self._decay(self._whole_intervals(steps))
        if self.found.policy is not None:
            yield Segment("snapshot", self.found.policy, 0, 0, restore="best")
        return self.found

    def first_decay(
        self, most_steps: float = math.inf, gives_up: bool = False
    ) -> Generator[Segment, SegmentResult, None]:
        """Yield the segments of the first decay.

        Args:
            most_steps: Its largest length; it has a check at least.
            gives_up: Whether it ends at a check after which the target is out of its reach.
        """
        yield Segment("snapshot", self.policy, 0, 0, save="start")
        self.gives_up = gives_up
        yield from self._decay(self._whole_intervals(min(_FIRST * self.max_steps, most_steps)))
        self.gives_up = False

    # -- comparison of two peaks ----------------------------------------------------------------------------

    def _compare(self) -> Generator[Segment, SegmentResult, None]:
        """Train the steps of the first decay again, at a higher peak, and in doubt at the same one too."""
        steps, first = self.t, self.reached
        affordable = min(self.settings.tuning_budget, 1 - _LAST) * self.max_steps
        if steps > min(affordable, self.max_steps - self.spent - steps):
            return
        low, gained = self.peak, first - self.values[0]
        self.peak *= _RISE
        high = yield from self._train_decay(steps)
        if high is None:
            return
        over = f"over {counted(steps, 'step')}"
        if high <= first:
            self.found.avoided.append(f"a peak of {self.peak:.3g}: no gain {over}")
            self._return_to_good(low)
            return
        is_clear = high - first >= _CLEAR * min(gained, self.goal - first)
        if is_clear or 2 * steps > min(affordable, self.max_steps - self.spent):
            yield from self._observe_end(high)
            return
        trial = self.policy, self.t, self.values
        yield Segment("snapshot", self.policy, self.t, 0, save="trial")
        self._return_to_good(low)
        value = yield from self._train_decay(steps)
        if value is not None and value > high:
            self.found.avoided.append(f"a peak of {_RISE * low:.3g}: no better than {low:.3g} {over}")
            yield from self._observe_end(value)
            return
        self.found.avoided.append(f"a peak of {low:.3g}: no better than {_RISE * low:.3g} {over}")
        self.peak, self.restore = _RISE * low, "trial"
        self.policy, self.t, self.values = trial
        self.ends = [(steps, first)]
        yield from self._observe_end(high)

    # -- decays ---------------------------------------------------------------------------------------------

    def _decay(self, steps: int) -> Generator[Segment, SegmentResult, None]:
        """Train the next decay, and continue from its end if it brought a gain."""
        left = self.max_steps - self.spent
        is_last = self.target is None and self.spent > 0
        if is_last or left - steps < _LAST * self.max_steps:
            steps = left
        value = yield from self._train_decay(steps)
        if value is not None:
            yield from self._observe_end(value)

    def _growth(self) -> float:
        """Return the multiple of the steps so far at which the next decay ends.

        The values at the ends of decays are taken as linear in the logarithm of their steps.
        """
        if len(self.ends) < 2:
            return _GROWTH
        (before, former), (t, value) = self.ends[-2:]
        if value <= former or t <= before:
            return _GROWTH
        e_folds = _SAFETY * (self.goal - value) * math.log(t / before) / (value - former)
        return math.exp(min(max(e_folds, math.log(_LEAST_GROWTH)), math.log(_MOST_GROWTH)))

    def _train_decay(self, steps: int) -> Generator[Segment, SegmentResult, float | None]:
        """Train a decay and return the signed value at its end; None if it was given up, or went back."""
        start, end = self.t, self.t + steps
        warmup_steps = max(1, round(_WARMUP * steps))
        hold_end = max(round(_HOLD * steps / self.interval) * self.interval, warmup_steps)
        policy = joined(self.policy, start, Polynomial(self.peak / (warmup_steps + 1), warmup_steps, end_lr=self.peak))
        if hold_end > warmup_steps:
            policy = joined(policy, start + warmup_steps, Constant(self.peak))
        if hold_end < steps:
            policy = joined(policy, start + hold_end, BRANCH_DECAYS[self.settings.decay](self.peak, steps - hold_end))
        note = f"decays from {self.peak:.3g} over {counted(steps - hold_end, 'step')}"
        seen: list[float] = []
        while self.t < end:
            length = min(self.interval, end - self.t)
            restore, self.restore = self.restore, None
            kind: SegmentKind = "stable" if self.t + length <= start + hold_end else "branch"
            result = yield Segment(kind, policy, self.t, length, restore=restore, note=note)
            self.spent = result.spent
            if result.diverged:
                self._go_back("diverged", _LOWER * self.peak)
                return None
            self.t += result.steps
            if result.value is None or not math.isfinite(result.value):
                if self.t >= end:
                    self._go_back("no finite value at the end of a decay", self._lower_peak())
                    return None
                continue
            seen.append(self.sign * result.value)
            self.values.append(seen[-1])
            self.same = [*(value for value in self.same if value == seen[-1]), seen[-1]]
            if has_fallen(self.values):
                self._go_back("the values of the checks fell", _LOWER * self.peak)
                return None
            if self.gives_up and self._is_out_of_reach(seen, end):
                self.policy = policy
                return None
        self.policy = policy
        is_dead = is_frozen(self.same) and not result.has_learned and self.peak > self.own_lr
        if is_dead or (is_frozen(seen) and len(set(seen)) == 1):
            self._restart(_LOWER * min(self.peak, self.own_lr))
            return None
        if is_frozen(self.same) and result.has_memorised:
            self._restart(self.own_lr if self.peak > self.own_lr else self._lower_peak())
            return None
        return seen[-1]

    def _is_out_of_reach(self, seen: Sequence[float], end: int) -> bool:
        """Return whether not even twice the gain that the last two checks forecast for the end meets the target."""
        if len(seen) < 2 or seen[-1] <= seen[-2] or self.t >= end:
            return False
        slope = (seen[-1] - seen[-2]) / math.log(self.t / (self.t - self.interval))
        return seen[-1] + _SAFETY * slope * math.log(end / self.t) < self.goal

    def _observe_end(self, value: float) -> Generator[Segment, SegmentResult, None]:
        """Continue from the end of a decay if it brought a gain, otherwise from the best end at a lower peak."""
        self.ends.append((self.t, value))
        if value > self.reached:
            self.reached = value
            is_best = self.found.best is None or value > self.sign * self.found.best
            if is_best:
                self.found.best, self.found.policy = self.sign * value, self.policy
            restore, self.restore = self.restore, None
            self.good = "best" if is_best else "stable", self.policy, self.t
            yield Segment("snapshot", self.policy, self.t, 0, restore=restore, save=self.good[0])
        elif self.spent < self.max_steps:
            self.found.avoided.append(f"continuing at {self.peak:.3g}: no gain up to policy step {self.t}")
            self._return_to_good(self._lower_peak())

    # -- what went wrong ------------------------------------------------------------------------------------

    def _go_back(self, what: str, peak: float) -> None:
        """Return to the last good snapshot at a lower peak."""
        self.found.avoided.append(f"continuing at {self.peak:.3g}: {what} after policy step {self.t}")
        self._return_to_good(peak)

    def _lower_peak(self) -> float:
        """Return a third of the peak, or the least one."""
        return max(_LOWER * self.peak, min(self.peak, _LEAST_PEAK * self.own_lr))

    def _restart(self, peak: float) -> None:
        """Start again: the checks no longer differ."""
        self.found.avoided.append(f"continuing at {self.peak:.3g}: identical checks throughout; training restarted")
        self.reached, self.same = -math.inf, []
        self._return_to("start", self.policy, 0, peak)

    def _return_to_good(self, peak: float) -> None:
        self._return_to(*self.good, peak)

    def _return_to(self, name: str, policy: Policy, t: int, peak: float) -> None:
        self.restore, self.t, self.peak = name, t, peak
        self.values, self.ends = [], [(t, self.reached)] if t else []
        self.policy = policy if t else Constant(peak)
        self.good = name, self.policy, t
