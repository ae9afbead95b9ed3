"""The planner for short budgets, on a training that is a formula and on recorded checks."""

import math

import pytest

from lrbench_pl.composing.comparison import ComparingPlanner
from lrbench_pl.composing.divergence import LossWatch
from lrbench_pl.composing.forecast import has_fallen
from lrbench_pl.composing.plan import plan_segments
from lrbench_pl.composing.planner import Conditions
from lrbench_pl.composing.segments import SegmentResult
from lrbench_pl.composing.settings import Settings
from lrbench_pl.policies import to_config

OWN = 0.1


class Training:
    """A state that follows the rates, with snapshots: a slow error that falls with the rate, and noise above it.

    Args:
        best: Rate with the fastest progress; a rate above twice of it makes the error rise.
        limit: Training diverges at a rate above it.
        script: Returns the value of a check by the step of the training, in place of the formula.
        learns: Whether the loss falls.
        memorises: Whether it falls to zero.
    """

    def __init__(self, best=OWN, limit=math.inf, script=None, learns=True, memorises=False):
        self.best, self.limit, self.script, self.learns, self.memorises = best, limit, script, learns, memorises
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
        return SegmentResult(steps, self.value(), has_diverged, (), self.spent, self.learns, self.memorises)

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


def decays(segments):
    """Return steps, length and peak of each decay, with its warm-up, and the snapshot from which it starts."""
    found = []
    for segment in segments:
        if not found or segment.policy != found[-1]["policy"] or segment.restore is not None:
            found.append({"policy": segment.policy, "start": segment.start, "steps": 0, "restore": segment.restore})
        found[-1]["steps"] += segment.steps
    for each in found:
        end = each["start"] + each["steps"]
        each["peak"] = max(each["policy"](t) for t in range(each["start"], end)) / OWN
        each["last"] = each["policy"](end)
    return found


@pytest.mark.parametrize(("best", "chosen"), [(3, 3), (9, 9), (27, 9)])
def test_the_higher_peak_is_chosen_if_it_is_better(best, chosen):
    first, second, *others = decays(Training(best=best * OWN).compose()[0])
    assert [first["peak"], second["peak"]] == pytest.approx([3, 9])
    assert second["start"] == first["steps"] >= second["steps"]
    assert second["restore"] is None
    assert others[0]["peak"] == pytest.approx(chosen)
    assert first["last"] == others[0]["last"] == pytest.approx(0.0)


def test_each_decay_begins_with_a_warm_up_and_holds_the_peak():
    segment = Training(best=9 * OWN).compose()[0][0]
    rates = [segment.policy(t) / OWN for t in range(61)]
    assert rates[:6] == sorted(rates[:6])
    assert 0 < rates[0] < 1
    assert rates[6:21] == pytest.approx([3.0] * 15)
    assert rates[21:] == sorted(rates[21:], reverse=True)
    assert rates[60] == 0.0


def test_the_hold_is_a_stable_phase_and_the_fall_a_branch():
    segments = Training(best=9 * OWN).compose()[0]
    for segment in segments:
        falls = segment.policy(segment.start + segment.steps) < segment.policy(segment.start + segment.steps // 2)
        assert segment.kind == ("branch" if falls else "stable")


def test_no_check_uses_averaged_weights():
    assert not any(segment.averaged for segment in Training().compose()[0])


@pytest.mark.parametrize("best", [OWN, 9 * OWN])
@pytest.mark.parametrize("budget", [10, 20, 50, 130, 995, 1000])
def test_it_spends_the_budget_and_no_more(budget, best):
    training = Training(best=best)
    segments, _, found = training.compose(max_steps=budget, interval=10)
    assert training.spent == budget
    assert found.policy is not None
    if budget >= 130:
        last = decays(segments)[-1]
        assert last["last"] == pytest.approx(0.0)
        assert last["steps"] >= 0.25 * budget
    assert all(to_config(segment.policy) for segment in segments)


def test_a_peak_that_diverges_is_not_chosen():
    segments, _, found = Training(best=9 * OWN, limit=4 * OWN).compose()
    first, second, *others = decays(segments)
    assert second["peak"] == pytest.approx(9)
    assert found.avoided[0] == "continuing at 0.9: diverged after policy step 60"
    assert others[0]["restore"] == "best"
    assert others[0]["start"] == first["steps"]
    assert max(each["peak"] for each in others) == pytest.approx(3)


def test_the_own_rate_is_lowered_where_it_diverges():
    segments, _, found = Training(best=OWN / 9, limit=OWN / 5).compose()
    first = decays(segments)[:4]
    assert [each["peak"] for each in first] == pytest.approx([3, 1, 1 / 3, 1 / 9], rel=0.1)
    assert [each["restore"] for each in first] == [None, "start", "start", "start"]
    assert found.avoided[0] == "continuing at 0.3: diverged after policy step 0"
    assert found.best > 0.9


def test_a_value_that_is_no_number_is_never_the_best():
    """The first two decays end with NaN."""
    _, _, found = Training(script=lambda spent: math.nan if spent in (60, 120) else 1 - 1 / (1 + spent)).compose()
    assert math.isfinite(found.best)


def test_early_checks_without_a_number_change_nothing():
    segments, _, found = Training(script=lambda spent: math.nan if spent < 60 else 1 - 1 / (1 + spent)).compose()
    known, _, _ = Training(script=lambda spent: 1 - 1 / (1 + spent)).compose()
    assert [(each["start"], each["peak"]) for each in decays(segments)][:2] == [
        (each["start"], each["peak"]) for each in decays(known)
    ][:2]
    assert found.policy is not None


def test_without_any_number_the_rate_stays_within_reason():
    segments, _, found = Training(script=lambda spent: math.nan).compose()
    assert min(each["peak"] for each in decays(segments)) == pytest.approx(0.1)
    assert found.policy is None
    assert found.avoided[0] == "continuing at 0.3: no finite value at the end of a decay after policy step 60"


@pytest.mark.parametrize("learns", [False, True])
def test_a_dead_network_is_restarted_once_two_decays_changed_nothing(learns):
    """Each decay has three checks. One that learns may have a hold-out so small that its checks do not differ."""
    segments, _, _ = Training(script=lambda spent: 0.1, learns=learns).compose()
    restarted = [each for each in decays(segments) if each["restore"] == "start"]
    assert bool(restarted) != learns
    if not learns:
        assert decays(segments)[2] == restarted[0]
        assert restarted[0]["peak"] == pytest.approx(1 / 3)


def test_memorised_data_restart_the_training_at_the_own_rate():
    """All checks are equal, whatever the rate; without the restart every later decay would repeat them."""
    segments, _, found = Training(script=lambda spent: 0.95, memorises=True).compose()
    restarted = [each for each in decays(segments) if each["restore"] == "start"]
    assert decays(segments)[2] == restarted[0]
    assert [each["peak"] for each in restarted[:3]] == pytest.approx([1, 1 / 3, 1 / 9])
    assert found.avoided[0] == "continuing at 0.9: identical checks throughout; training restarted"


def test_falling_values_send_it_back_to_the_last_good_snapshot_at_a_third_of_the_rate():
    def script(spent):
        return 0.2 + 0.01 * (spent // 20 % 2) if spent in (300, 320) else min(0.2 + spent / 250, 0.6) + 1e-6 * spent

    segments, _, found = Training(script=script).compose()
    assert len([message for message in found.avoided if "fell" in message]) == 1
    tried = decays(segments)
    at = next(index for index, each in enumerate(tried) if each["restore"] == "best")
    assert tried[at]["peak"] == pytest.approx(tried[at - 1]["peak"] / 3)
    assert tried[at]["start"] == tried[at - 1]["start"]


def test_a_decay_without_a_gain_sends_it_back_to_the_best_end_at_a_third_of_the_rate():

    def script(spent):
        return 0.2 + spent / 1000 if spent <= 120 else 0.3 + 0.01 * (spent // 20 % 2)

    segments, _, found = Training(script=script).compose()
    tried = decays(segments)
    peaks = [each["peak"] for each in tried]
    assert peaks[:5] == pytest.approx([3, 9, 9, 3, 1])
    assert {each["start"] for each in tried[2:]} == {120}
    assert {each["restore"] for each in tried[3:]} == {"best"}
    assert min(peaks) >= 0.1
    assert found.avoided[0] == "continuing at 0.9: no gain up to policy step 360"


def test_identical_checks_of_a_whole_decay_restart_the_training():
    segments, _, found = Training(script=lambda spent: 0.1 + 0.1 * min(spent, 120)).compose(target=50)
    restarted = next(each for each in decays(segments) if each["restore"] == "start")
    assert restarted["peak"] == pytest.approx(1 / 3)
    assert any("identical checks throughout; training restarted" in message for message in found.avoided)


def test_without_a_target_one_decay_follows_the_comparison():
    tried = decays(Training(best=9 * OWN).compose(target=None)[0])
    assert [each["peak"] for each in tried] == pytest.approx([3, 9, 9])
    assert sum(each["steps"] for each in tried) == 1000


def test_the_tuning_budget_bounds_the_comparison():
    """The values hardly grow after the first decay, so that both peaks are compared."""
    script = {"script": lambda spent: 0.01 * min(spent, 60) + 1e-4 * spent}
    assert [each["start"] for each in decays(Training(**script).compose()[0])][:3] == [0, 60, 60]
    assert len({each["start"] for each in decays(Training(**script).compose(tuning_budget=0.1)[0])[1:3]}) == 2
    assert decays(Training(best=27 * OWN).compose(tuning_budget=0.0)[0])[1]["peak"] == pytest.approx(3)


@pytest.mark.parametrize(
    ("target", "growth"), [(0.65, 2.0), (0.61, 1.5), (0.9, 3.0), (0.6 + 0.05 * math.log2(2.5), 2.5)]
)
def test_the_next_end_is_where_twice_the_expected_gain_is_forecast(target, growth):
    planner = ComparingPlanner(Settings(), Conditions(OWN, 1000, 20, target, "max"))
    planner.ends = [(60, 0.5), (120, 0.6)]
    assert planner._growth() == pytest.approx(growth)
    planner.ends[-1] = (120, 0.5)
    assert planner._growth() == 2.0


# Checks every 20 steps of trainings of the bench: of the first decay, of the higher peak and of the lower one over the
# same steps, None if it is not trained; the target; the chosen peak.
RECORDED = {
    "sevens, SGD": ([0.1627, 0.2213, 0.2413], [0.2907, 0.376, 0.4173], None, 0.4467, "max", 9),
    "linear, Adam": ([0.2943, 0.0732, 0.0434], [0.0237, 0.018, 0.0169], None, 0.01561, "min", 9),
    "digits, momentum": ([0.5479, 0.8976, 0.922], [0.5835, 0.5122, 0.5746], None, 0.9599, "max", 3),
    "hastie, AdamW": ([0.5827, 0.6893, 0.8587], [0.7, 0.844, 0.9013], [0.8813, 0.8813, 0.94], 0.9547, "max", 3),
    "friedman3, AdamW": (
        [0.5195, 0.3281, 0.2952],
        [0.2986, 0.2583, 0.2134],
        [0.2787, 0.2309, 0.2204],
        0.1412,
        "min",
        9,
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_trainings_continue_from_the_better_peak(name):
    first, high, low, target, mode, chosen = RECORDED[name]
    plan = plan_segments(Settings(), OWN, 1000, 20, target, mode)
    segment, spent = next(plan), 0
    for value in [*first, *high, *(low or [])]:
        while not segment.steps:
            segment = plan.send(SegmentResult(0, spent=spent))
        spent += segment.steps
        segment = plan.send(SegmentResult(segment.steps, value, spent=spent))
    restored = []
    while not segment.steps:
        restored.append(segment.restore)
        segment = plan.send(SegmentResult(0, spent=spent))
    restored.append(segment.restore)
    assert max(segment.policy(segment.start + t) for t in range(60)) / OWN == pytest.approx(chosen)
    assert segment.start == (60 if high[-1] == 0.5746 else 120)
    assert [name for name in restored if name] == (
        ["trial"] if low and chosen == 9 else ["best"] if segment.start == 60 else []
    )


def test_the_watch_knows_a_training_that_has_not_learned():
    constant, learned = LossWatch(), LossWatch()
    for t in range(100):
        noise = 0.1 * (-1) ** t
        constant.update(1.609 + noise)
        learned.update(1.609 * 0.98**t + noise)
    assert not constant.has_learned
    assert learned.has_learned


@pytest.mark.parametrize(
    ("losses", "memorised"),
    [
        (lambda t: 1.1 * 0.9**t, True),
        (lambda t: max(1.1 * 0.9**t, 0.1), False),
        (lambda t: -3.0 - t, False),
    ],
)
def test_the_watch_knows_memorised_data(losses, memorised):
    watch = LossWatch()
    for t in range(100):
        watch.update(losses(t))
    assert watch.has_memorised == memorised
    watch.reset()
    assert not watch.has_memorised


def test_a_watch_that_went_back_measures_anew():
    watch = LossWatch()
    for t in range(200):
        watch.update(2.3 * 0.95**t + 0.4 * (-1) ** t)
    watch.reset()
    seen = []
    for t in range(30):
        assert not watch.update(1.5 + 0.4 * (-1) ** t)
        seen.append(watch.has_learned)
    assert all(seen)
    watch.reset()
    for t in range(100):
        watch.update(2.3 + 0.4 * (-1) ** t)
    assert not watch.has_learned


def test_a_fall_needs_two_checks_and_more_than_the_usual_change():
    noisy = [0.2, 0.5, 0.3, 0.55, 0.35, 0.6, 0.3, 0.35]
    assert not has_fallen(noisy)
    assert not has_fallen([0.2, 0.2, 0.2, 0.2, 0.2, 0.2])
    assert not has_fallen([0.95, 0.96, 0.96, 0.97, 0.98, 0.96, 0.96])
    assert has_fallen([-1.0, -0.7, -0.5, -0.4, -0.3, -1.2, -1.1])
