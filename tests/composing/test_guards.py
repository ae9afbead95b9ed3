"""What protects a composition with a range test: peaks need proof, and training returns when its values fall."""

import math

import pytest

from lrbench_pl.composing.plan import plan_segments
from lrbench_pl.composing.segments import SegmentResult
from lrbench_pl.composing.settings import Settings

OWN = 0.1


def compose(
    value, losses=lambda rate: 2.0 - math.tanh(rate), has_learned=lambda rate: True, max_steps=4000, **settings
):
    """Run a plan on a scripted training: ``value`` by spent steps and rate, ``losses`` of the range test by rate."""
    plan = plan_segments(Settings(**settings), OWN, max_steps, 20, 2.0)
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
        result = SegmentResult(steps, value(spent, peak), False, tested, spent, has_learned(peak))


def growing(spent, rate):
    return 1 - 1 / (1 + spent)


def peaks(segments):
    return list(dict.fromkeys(float(each.note.split()[1]) for each in segments if each.kind == "stable"))


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


def test_falling_values_end_the_stable_phase():
    """Accuracies fall from 0.55 to 0.19 while the rate stays."""

    def value(spent, rate):
        if 900 <= spent < 960:
            return [0.19, 0.21][spent // 20 % 2]
        return min(0.55, 0.2 + spent / 2000) + 1e-6 * spent

    segments, found = compose(value)
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


@pytest.mark.parametrize(
    ("budget", "interval", "kind"), [(1000, 20, "stable"), (1001, 20, "range"), (1280, 40, "range")]
)
def test_a_range_test_begins_a_budget_of_which_it_takes_less_than_a_tenth(budget, interval, kind):
    plan = plan_segments(Settings(), OWN, budget, interval, 2.0)
    next(plan)
    assert plan.send(SegmentResult(0)).kind == kind


@pytest.mark.parametrize(("repeats", "kind"), [(None, "stable"), (0, "stable"), (1, "range")])
def test_with_an_adaptive_optimizer_a_range_test_has_to_be_asked_for(repeats, kind):
    plan = plan_segments(Settings(repeats=repeats), OWN, 10000, 20, 2.0, is_adaptive=True)
    next(plan)
    first = plan.send(SegmentResult(0))
    assert first.kind == kind
    rates = [first.policy(t) for t in range(first.steps)]
    assert repeats is not None or max(rates) <= 3 * OWN
