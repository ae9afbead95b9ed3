"""What protects a composition: peaks need proof, and training returns when its values fall."""

import math

import pytest

from lrbench_pl.composing.comparison import ComparingPlanner
from lrbench_pl.composing.plan import plan_segments, rules_for
from lrbench_pl.composing.planner import Conditions
from lrbench_pl.composing.segments import SegmentResult
from lrbench_pl.composing.settings import Settings

OWN = 0.1


def compose(
    value,
    losses=lambda rate: 2.0 - math.tanh(rate),
    has_learned=lambda rate: True,
    max_steps=4000,
    rules="range test",
    limit=math.inf,
    **settings,
):
    """Run a plan on a scripted training: ``value`` by spent steps and rate, ``losses`` of the range test by rate."""
    plan = plan_segments(Settings(**settings), OWN, max_steps, 20, 2.0, rules=rules)
    segments, spent, result = [], 0, None
    while True:
        try:
            segment = plan.send(result)
        except StopIteration as end:
            return segments, end.value
        steps = min(segment.steps, max_steps - spent)
        rates = [segment.policy(segment.start + t) for t in range(steps)]
        spent += steps
        if steps:
            segments.append(segment)
        tested = tuple(losses(rate) for rate in rates) if segment.kind == "range" else ()
        peak = max(rates, default=0.0)
        diverged = segment.kind != "range" and peak > limit
        result = SegmentResult(steps, value(spent, peak), diverged, tested, spent, has_learned(peak))


def growing(spent, rate):
    return 1 - 1 / (1 + spent)


def near(spent, rate):
    """Values above the target, so that the first decay is not given up."""
    return 3 - 1 / (1 + spent)


def peaks(segments):
    notes = [each.note for each in segments if each.kind == "stable"]
    return list(dict.fromkeys(float(note.removeprefix("peak ")) for note in notes if note.startswith("peak ")))


def test_a_range_test_that_diverges_at_its_lowest_rate_leaves_the_own_rate():
    segments, found = compose(growing, losses=lambda rate: math.nan)
    assert found.range is None
    assert peaks(segments)[0] == OWN
    assert found.avoided[0].startswith("a peak from the range test: the training diverged at a rate of 0.001")
    assert found.avoided[0].endswith("the peak is 0.1")


def test_a_given_range_test_that_diverges_at_its_lowest_rate_ends_the_composition():
    with pytest.raises(ValueError, match=r"the training diverged at a rate of 0\.001"):
        compose(growing, losses=lambda rate: math.nan, repeats=2)


def test_the_peak_is_never_below_a_tenth_of_the_own_rate():
    """The noise of single batches was taken for divergence."""
    low = {"losses": lambda rate: 2.0 - math.tanh(1000 * rate) if rate < OWN / 50 else math.inf}
    assert peaks(compose(growing, **low)[0])[0] == pytest.approx(OWN / 10)
    assert peaks(compose(growing, **low, repeats=2)[0])[0] < OWN / 100


def test_a_network_that_dies_at_a_high_peak_is_trained_again_at_the_own_rate():
    """Its checks alternate, so that they are never identical, but its loss stays that of a constant answer."""

    def value(spent, rate):
        return [0.178, 0.192, 0.206][spent // 20 % 3] if rate > OWN else 0.3 + 1e-5 * spent

    def losses(rate):
        return 2.0 - math.tanh(rate) if rate < 3.0 else math.inf

    segments, found = compose(value, losses, has_learned=lambda rate: rate <= OWN)
    assert peaks(segments)[0] > OWN
    assert peaks(segments)[1] == OWN
    assert "the loss is still that of the start; training restarted" in found.avoided[1]
    lost = sum(each.steps for each in segments[: next(i for i, s in enumerate(segments) if s.note == "peak 0.1")])
    assert lost <= 600


@pytest.mark.parametrize("rules", ["range test", "holding"])
def test_falling_values_end_the_stable_phase(rules):
    """Accuracies fall from 0.55 to 0.19 while the rate stays."""

    def value(spent, rate):
        if 900 <= spent < 960:
            return [0.19, 0.21][spent // 20 % 2]
        return min(0.55, 0.2 + spent / 2000) + 1e-6 * spent

    segments, found = compose(value, rules=rules)
    fallen = [message for message in found.avoided if "the values of the checks fell" in message]
    assert len(fallen) == 1
    assert len(peaks(segments)) >= 2
    assert found.best > 0.55


def test_a_branch_whose_value_is_no_number_is_never_the_best():
    bad = []

    def value(spent, rate):
        return 1 - 1 / (1 + spent)

    def first_branch_is_nan(spent, rate):
        if rate < 0.999 * OWN and not bad and spent > 300:
            bad.append(spent)
            return math.nan
        return value(spent, rate)

    _, found = compose(first_branch_is_nan, repeats=0)
    assert math.isfinite(found.best)


# -- a short decay before the stable phase ---------------------------------------------------------------------


def rates_of(segments):
    return [segment.policy(segment.start + t) for segment in segments for t in range(segment.steps)]


def test_a_long_budget_begins_with_a_short_decay_from_three_times_the_own_rate():
    segments, _ = compose(near, rules="holding")
    rates = rates_of(segments)
    assert max(rates[:240]) == pytest.approx(3 * OWN)
    assert rates[239] < 0.02 * OWN
    assert rates[240:288] == sorted(rates[240:288])  # it rises again, over an interval at most
    assert rates[260:440] == pytest.approx([4.5 * OWN] * 180)
    assert peaks(segments) == pytest.approx([4.5 * OWN])


@pytest.mark.parametrize(("max_steps", "steps"), [(1200, 80), (4000, 240), (70000, 240)])
def test_the_first_decay_takes_six_percent_of_the_budget_and_at_most_240_steps(max_steps, steps):
    segments, _ = compose(near, rules="holding", max_steps=max_steps)
    lowest = min(range(steps + 20), key=rates_of(segments).__getitem__)
    assert lowest == steps - 1 or rates_of(segments)[lowest] == 0


def test_no_branch_starts_and_no_average_is_checked_until_the_stable_phase_has_trained_its_share():
    segments, _ = compose(near, rules="holding")
    after = [segment for segment in segments if segment.start >= 240]
    assert after[0].kind == "stable"
    assert not after[0].averaged
    assert after[1].start == 240 + 200
    assert after[1].averaged


def test_a_first_decay_ends_when_the_target_is_out_of_its_reach():
    """At the second check: the rate stays high, and nothing is lost."""
    segments, _ = compose(growing, rules="holding")
    rates = rates_of(segments)
    assert rates[24:40] == pytest.approx([3 * OWN] * 16)
    assert rates[40:240] == pytest.approx([4.5 * OWN] * 200)


@pytest.mark.parametrize(
    ("seen", "is_given_up"),
    [((0.1, 0.2), True), ((0.90, 0.91), True), ((0.7, 0.8), False), ((0.91, 0.90), False), ((0.4,), False)],
)
def test_what_two_checks_forecast_for_its_end_decides(seen, is_given_up):
    """After 40 of 240 steps; twice the gain by the logarithm of the steps, up to a target of 1."""
    planner = ComparingPlanner(Settings(), Conditions(OWN, 4000, 20, 1.0, "max"))
    planner.t = 40
    assert planner._is_out_of_reach(seen, 240) == is_given_up


def test_a_first_decay_that_diverges_leaves_the_own_rate():
    segments, found = compose(growing, rules="holding", limit=2 * OWN)
    assert found.avoided[0] == "continuing at 0.3: diverged after policy step 0"
    assert peaks(segments)[0] == pytest.approx(OWN)
    assert segments[1].start == 0
    assert segments[1].restore == "start"


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        pytest.param(lambda spent, rate: 0.6 if spent < 240 else 0.59, 240, id="lower at its end"),
        pytest.param(lambda spent, rate: 0.5 + 0.001 * (spent // 20 % 2), 60, id="given up where it began"),
    ],
)
def test_after_a_first_decay_without_a_gain_training_begins_again_at_the_own_rate(value, steps):
    segments, found = compose(value, rules="holding")
    assert found.avoided[0] == f"continuing at 0.3: no gain over {steps} steps; training restarted"
    assert peaks(segments)[0] == pytest.approx(OWN)
    first = next(each for each in segments if each.note.startswith("peak"))
    assert (first.start, first.restore) == (0, "start")


def test_one_check_in_the_first_decay_proves_nothing():
    plan = plan_segments(Settings(), OWN, 4000, 240, 2.0, rules="holding")
    result, segment = None, None
    while segment is None or not segment.note.startswith("peak"):
        segment = plan.send(result)
        result = SegmentResult(segment.steps, 0.5, spent=240 if segment.steps else 0)
    assert segment.start == 240
    assert segment.policy(1000) == pytest.approx(4.5 * OWN)


def test_without_a_target_the_stable_phase_begins_at_once():
    plan = plan_segments(Settings(), OWN, 4000, 20, None, rules="holding")
    segments, spent = [next(plan)], 0
    while spent < 4000:
        spent += segments[-1].steps
        segments.append(plan.send(SegmentResult(segments[-1].steps, growing(spent, 0), spent=spent)))
    trained = [segment for segment in segments if segment.steps]
    assert [segment.kind for segment in trained] == [*["stable"] * 16, "branch"]
    assert {segment.steps for segment in trained[:-1]} == {200}  # each end is guarded
    assert sum(segment.steps for segment in trained) == 4000
    assert trained[0].policy(1000) == pytest.approx(4.5 * OWN)


def test_a_first_decay_that_is_given_up_late_is_kept_and_followed_by_a_warm_up():
    def value(spent):
        return 2 + 0.3 * math.log(spent / 240) if spent <= 180 else 1.92

    plan = plan_segments(Settings(), OWN, 4000, 20, 2.0, rules="holding")
    segments, spent = [next(plan)], 0
    while segments[-1].start < 200 or not segments[-1].steps:
        spent += segments[-1].steps
        segments.append(plan.send(SegmentResult(segments[-1].steps, value(max(spent, 1)), spent=spent)))
    kept, stable = segments[-2:]
    assert (kept.start, kept.steps, kept.save, kept.restore) == (200, 0, "stable", None)
    assert kept.policy(199) < 1.5 * OWN  # it had decayed
    assert stable.policy(200) < 0.5 * OWN < stable.policy(219) < stable.policy(220) == pytest.approx(4.5 * OWN)


@pytest.mark.parametrize("first", [math.nan, -math.inf, math.inf])
def test_a_value_that_is_no_number_does_not_hide_a_fall(first):
    def value(spent, rate):
        if spent == 240 + 200:  # the first check of the stable phase
            return first
        return 0.2 + 0.005 * (spent // 20 % 2) if 2000 <= spent < 2080 else min(0.8, 0.2 + spent / 2500) + 1e-6 * spent

    found = compose(value, rules="holding")[1]
    assert any("the values of the checks fell" in message for message in found.avoided)


def test_a_growth_of_any_size_is_a_plan():
    assert compose(growing, rules="holding", growth=1e308)[1].policy is not None


def snapshots_of(value, max_steps, interval=20, **settings):
    """Run a plan; return for each restored snapshot the step of its state and that of the segment."""
    plan, spent, result = plan_segments(Settings(**settings), OWN, max_steps, interval, 2.0, rules="holding"), 0, None
    kept, restored = {}, []
    while True:
        try:
            segment = plan.send(result)
        except StopIteration:
            return restored
        if segment.restore is not None and (segment.steps or segment.save):
            restored.append((kept[segment.restore], segment.start))
        steps = min(segment.steps, max_steps - spent)
        spent += steps
        if segment.save is not None:
            kept[segment.save] = segment.start + steps
        result = SegmentResult(steps, value(spent), False, (), spent)


@pytest.mark.parametrize("max_steps", [3, 2000])
def test_a_branch_after_a_return_goes_back_to_where_it_began(max_steps):
    def value(spent):
        return 0.2 + 0.005 * (spent // 20 % 2) if 500 <= spent < 560 else 0.8 - 0.6 / (1 + spent / 300) + 1e-6 * spent

    restored = snapshots_of(value, max_steps, min(20, max_steps // 3), reuse=False, growth=1.25)
    assert restored or max_steps == 3
    assert all(state == start for state, start in restored)


@pytest.mark.parametrize(
    ("budget", "interval", "rules"), [(1000, 20, "comparison"), (1001, 20, "holding"), (1280, 40, "holding")]
)
def test_on_a_short_budget_peaks_are_compared(budget, interval, rules):
    assert rules_for(Settings(), False, budget, interval) == rules
    assert rules_for(Settings(), True, budget, interval) == "comparison"


@pytest.mark.parametrize(("repeats", "kind"), [(0, "stable"), (1, "range")])
@pytest.mark.parametrize("is_adaptive", [False, True])
def test_a_range_test_has_to_be_asked_for(repeats, kind, is_adaptive):
    settings = Settings(repeats=repeats)
    plan = plan_segments(settings, OWN, 10000, 20, 2.0, rules=rules_for(settings, is_adaptive, 10000, 20))
    next(plan)
    assert plan.send(SegmentResult(0)).kind == kind
