"""The planner for short budgets, on a training that is a formula and on recorded checks."""

import math

import pytest

from lrbench_pl.composing.divergence import LossWatch
from lrbench_pl.composing.forecast import has_fallen
from lrbench_pl.composing.plan import plan_segments
from lrbench_pl.composing.segments import Segment, SegmentResult
from lrbench_pl.composing.settings import Settings
from lrbench_pl.policies import Constant, to_config

OWN = 0.1


class Training:
    """A state that follows the rates, with snapshots: a slow error that falls with the rate, and noise above it.

    Args:
        best: Rate with the fastest progress; a rate above twice of it makes the error rise.
        limit: Training diverges at a rate above it.
        script: Returns the value of a check by the step of the training, in place of the formula.
    """

    def __init__(self, best=OWN, limit=math.inf, script=None):
        self.best, self.limit, self.script = best, limit, script
        self.error, self.rate, self.spent, self.kept = 1.0, 0.0, 0, {}

    def value(self):
        return self.script(self.spent) if self.script else 1 - self.error - 0.2 * self.rate / self.best

    def train(self, segment, steps):
        has_diverged = False
        for t in range(steps):
            self.rate = segment.policy(segment.start + t)
            has_diverged |= self.rate > self.limit
            ratio = self.rate / self.best
            self.error = min(1.0, self.error * (1 - 0.01 * ratio * (2 - ratio)))
            self.spent += 1
        return SegmentResult(steps, self.value(), has_diverged, (), self.spent)

    def compose(self, max_steps=1000, interval=20, target=2.0, mode="max", **settings):
        """Run a plan as the composer does; return its segments with steps, the step of the target and what it found."""
        plan = plan_segments(Settings(**settings), OWN, max_steps, interval, target, mode)
        segments, result, reached = [], None, None
        while True:
            try:
                segment = plan.send(result)
            except StopIteration as end:
                return segments, reached, end.value
            if segment.restore is not None:
                self.error, self.rate = self.kept[segment.restore]
            if segment.steps:
                segments.append(segment)
            result = self.train(segment, min(segment.steps, max_steps - self.spent))
            if segment.save is not None and not result.diverged:
                self.kept[segment.save] = self.error, self.rate
            if segment.steps and result.value >= (target or math.inf):
                return segments, self.spent, None


def trials(segments):
    return [segment for segment in segments if segment.note.startswith("trial")]


@pytest.mark.parametrize(("best", "tried", "chosen"), [(1, 2, 1), (3, 3, 3), (9, 4, 9), (27, 4, 27)])
def test_the_peak_is_the_best_of_those_compared(best, tried, chosen):
    segments, _, found = Training(best=best * OWN).compose()
    compared = trials(segments)
    assert [segment.policy(segment.start) for segment in compared] == pytest.approx(
        [OWN * factor for factor in (1, 3, 9, 27)][:tried]
    )
    assert len({(segment.start, segment.steps) for segment in compared}) == 1
    assert [segment.restore for segment in compared] == [None] + ["stable"] * (tried - 1)
    after = segments[segments.index(compared[-1]) + 1]
    assert after.policy(after.start) == pytest.approx(chosen * OWN)
    assert after.restore == (None if chosen == 27 else "best")
    winner = compared[(1, 3, 9, 27).index(chosen)]
    assert [after.policy(t) for t in range(after.start)] == [winner.policy(t) for t in range(after.start)]
    assert len(found.avoided) == (chosen != 27)


def test_an_easy_target_costs_what_it_costs_at_the_own_rate():
    plain = Training()
    value = -math.inf
    while value < 0.3:
        plain.train(Segment("stable", Constant(OWN), 0, 20), 20)
        at, value = plain.spent, plain.value()
    segments, reached, _ = Training().compose(target=0.3)
    assert reached == at
    assert {segment.kind for segment in segments} == {"stable"}
    assert {segment.policy(t) for segment in segments for t in range(100)} == {OWN}


def test_no_check_uses_averaged_weights():
    assert not any(segment.averaged for segment in Training().compose()[0])


@pytest.mark.parametrize("budget", [10, 20, 50, 130, 995, 1000])
def test_it_spends_the_budget_and_no_more(budget):
    training = Training()
    segments, _, found = training.compose(max_steps=budget, interval=10)
    assert training.spent == budget
    if budget >= 50:
        assert found.policy is not None
    if budget >= 130:
        last = segments[-1]
        assert last.policy(last.start + last.steps) == pytest.approx(0.0)
        start = next(segment.start for segment in segments if segment.note == last.note)
        assert last.start + last.steps - start >= 0.2 * budget
    assert all(to_config(segment.policy) for segment in segments)


def test_a_trial_that_diverges_is_not_chosen():
    segments, _, found = Training(best=9 * OWN, limit=2 * OWN).compose()
    assert len(trials(segments)) == 2
    assert found.avoided[0] == "a peak of 0.3: diverged in a trial of 40 steps"
    assert max(segment.policy(segment.start) for segment in segments[-20:]) <= OWN * (1 + 1e-9)


def test_the_own_rate_is_lowered_where_it_diverges():
    segments, _, found = Training(best=OWN / 9, limit=OWN / 5).compose()
    assert [segment.note for segment in segments[:4]] == ["peak 0.1", "peak 0.0333", "peak 0.0111", "peak 0.0111"]
    assert [segment.restore for segment in segments[:4]] == [None, "start", "start", None]
    assert found.avoided[0] == "continuing at 0.1: diverged after policy step 0"
    assert found.best > 0.9


def test_a_value_that_is_no_number_is_never_the_best():
    """The first trial ends with NaN."""
    _, _, found = Training(script=lambda spent: math.nan if spent in (140, 180) else 1 - 1 / (1 + spent)).compose()
    assert math.isfinite(found.best)


def test_falling_values_send_it_back_to_the_last_good_snapshot_at_a_third_of_the_rate():
    def script(spent):
        return 0.2 + 0.01 * (spent // 20 % 2) if spent in (300, 320) else min(0.2 + spent / 250, 0.6) + 1e-6 * spent

    segments, _, found = Training(script=script).compose()
    fallen = [message for message in found.avoided if "fell" in message]
    assert len(fallen) == 1
    peak = float(fallen[0].split()[2].rstrip(":"))
    at = next(index for index, segment in enumerate(segments) if segment.restore == "best")
    before, after = segments[at - 1], segments[at]
    assert after.policy(after.start) == pytest.approx(peak / 3, rel=0.01)
    assert after.start < before.start


def test_identical_checks_of_a_whole_decay_restart_the_training():
    segments, _, found = Training(script=lambda spent: 0.1).compose()
    restarted = [segment for segment in segments if segment.restore == "start"]
    assert restarted
    assert restarted[0].policy(0) == pytest.approx(OWN / 3)
    assert "identical checks throughout; training restarted" in found.avoided[-1]


def test_without_a_target_one_decay_follows_the_trials():
    segments, _, _ = Training().compose(target=None)
    decays = {segment.note for segment in segments if segment.note.startswith("decays")}
    assert len(decays) == 1


def test_the_tuning_budget_bounds_the_trials():
    assert len(trials(Training(best=27 * OWN).compose(tuning_budget=0.05)[0])) == 2
    assert not trials(Training(best=27 * OWN).compose(tuning_budget=0.0)[0])


# Recorded checks at the own rate, every 20 steps; the target; whether the default policy reached it within 200 steps.
RECORDED = {
    "digits, momentum": ([0.3875, 0.735, 0.8931, 0.922, 0.9354], 0.9599, "max", True),
    "noisy classes, AdamW": ([0.3507, 0.3787, 0.4427, 0.4573, 0.492], 0.5627, "max", False),
    "two classes, RMSprop": ([0.776, 0.8093, 0.84, 0.8667, 0.8573], 0.9067, "max", False),
    "friedman2, SGD": ([0.04131, 0.02491, 0.0193, 0.01576, 0.01383], 0.00814, "min", False),
}


@pytest.mark.parametrize("name", RECORDED)
def test_peaks_are_compared_at_once_unless_the_first_checks_promise_the_target(name):
    values, target, mode, is_soon = RECORDED[name]
    plan = plan_segments(Settings(), OWN, 1000, 20, target, mode)
    segment = next(plan)
    seen = 0
    while not segment.note.startswith(("trial", "decays")):
        result = SegmentResult(0, spent=20 * seen)
        if segment.steps:
            seen += 1
            result = SegmentResult(20, values[seen - 1], spent=20 * seen)
        segment = plan.send(result)
    assert seen == len(values)
    assert segment.note.startswith("decays" if is_soon else "trial")


def test_the_watch_knows_a_training_that_has_not_learned():
    constant, learned = LossWatch(), LossWatch()
    for t in range(100):
        noise = 0.1 * (-1) ** t
        constant.update(1.609 + noise)
        learned.update(1.609 * 0.98**t + noise)
    assert not constant.has_learned
    assert learned.has_learned


def test_a_fall_needs_two_checks_and_more_than_the_usual_change():
    noisy = [0.2, 0.5, 0.3, 0.55, 0.35, 0.6, 0.3, 0.35]
    assert not has_fallen(noisy)
    assert not has_fallen([0.2, 0.2, 0.2, 0.2, 0.2, 0.2])
    assert not has_fallen([0.95, 0.96, 0.96, 0.97, 0.98, 0.96, 0.96])
    assert has_fallen([-1.0, -0.7, -0.5, -0.4, -0.3, -1.2, -1.1])
