"""The planner of a composition, on a training that is a formula."""

import itertools
import math

import pytest

from lrbench_pl.composing.plan import plan_segments
from lrbench_pl.composing.range_test import RateRamp, analyse
from lrbench_pl.composing.segments import SegmentResult
from lrbench_pl.composing.settings import Settings
from lrbench_pl.policies import to_config


def play(settings, max_steps=1000, interval=10, limit=0.4, lr=0.1, value=None, target=2.0):
    """Run the plan on a training that diverges above ``limit`` and gains with the steps of its policy."""
    plan = plan_segments(settings, lr, max_steps, interval, target)
    segments, spent, sent = [], 0, None
    while True:
        try:
            segment = plan.send(sent)
        except StopIteration as end:
            return segments, spent, end.value
        segments.append(segment)
        steps = min(segment.steps, max_steps - spent)
        rates = [segment.policy(segment.start + t) for t in range(steps)]
        blown = segment.kind != "range" and any(rate > limit for rate in rates)
        losses = (
            [2.0 - math.tanh(rate) if rate < limit else math.inf for rate in rates] if segment.kind == "range" else ()
        )
        spent += steps
        gained = value(segment.start + steps) if value else 1 - 1 / (1 + segment.start + steps)
        sent = SegmentResult(steps, gained, blown, tuple(losses), spent)


def test_it_spends_the_budget_and_no_more():
    for budget in (10, 20, 50, 130, 1000, 1005):
        _, spent, found = play(Settings(repeats=2), max_steps=budget)
        assert spent <= budget
        assert spent > budget - 20
        assert found.policy is not None


def test_the_peak_lies_below_what_diverged():
    _, _, found = play(Settings(repeats=2))
    assert found.range.peak < found.range.high < found.range.diverged_at
    assert found.range.high < 0.4
    assert found.avoided[0].startswith("rates of 0.4")


def test_a_stable_phase_that_diverges_goes_back_to_half_the_rate():
    segments, _, found = play(Settings(repeats=0), lr=1.0)
    peaks = [segment.note for segment in segments if segment.kind == "stable"]
    assert peaks[:3] == ["peak 1", "peak 0.5", "peak 0.25"]
    assert [segment.restore for segment in segments if segment.kind == "stable"][1:3] == ["start", "start"]
    assert [message.split(":")[0] for message in found.avoided[:2]] == ["stable phase at 1", "stable phase at 0.5"]


def test_branches_start_from_the_stable_phase_and_end_at_zero():
    segments, _, _ = play(Settings(average=0.0, growth=1.5, reuse=False, repeats=2))
    branches = [segment for segment in segments if segment.kind == "branch"]
    assert len(branches) >= 4
    assert len({segment.start for segment in branches}) == len(branches)
    for segment in branches:
        assert segment.policy(segment.start + segment.steps) == 0
        assert to_config(segment.policy)
    phases = [segment for segment in segments if segment.kind == "stable"][1:]
    assert all(segment.restore == "stable" for segment in phases)


def test_a_stable_phase_continues_from_a_branch_that_missed():
    segments, _, found = play(Settings(average=0.0, growth=1.5, repeats=0))
    taken = [segment for segment in segments if segment.kind in ("stable", "branch")]
    assert sum(segment.kind == "branch" for segment in taken) >= 4
    assert all(segment.restore is None for segment in taken[1:])
    assert all(before.start + before.steps == segment.start for before, segment in itertools.pairwise(taken))
    for before, segment in itertools.pairwise(taken):  # what has been trained does not change
        assert [segment.policy(t) for t in range(before.start, segment.start)] == [
            before.policy(t) for t in range(before.start, segment.start)
        ]
    assert found.policy == [segment for segment in taken if segment.kind == "branch"][-1].policy


def test_a_standstill_changes_the_shape():
    def value(t):
        return 0.5 + 0.001 * (t // 10 % 2)

    segments, _, found = play(Settings(stable=("constant", "sine"), average=0.0, growth=1.5, repeats=2), value=value)
    assert any("no gain in 2 branches" in message for message in found.avoided)
    assert len({segment.note for segment in segments if segment.kind == "stable"}) > 1


def test_identical_checks_restart_the_training_at_half_the_rate():
    """The network is dead or has memorised its data: no rate changes that."""
    segments, spent, found = play(Settings(repeats=0), value=lambda t: min(0.9, t / 100))
    taken = [segment for segment in segments if segment.kind in ("stable", "branch")]
    restarts = [at for at, segment in enumerate(taken) if segment.restore == "start"]
    assert restarts
    for at in restarts:
        assert taken[at - 1].kind == "branch"
        assert taken[at].start == 0
        assert [segment.note for segment in taken[at - 2 :] if segment.kind == "stable"]
    peaks = list(dict.fromkeys(segment.note for segment in taken if segment.kind == "stable"))
    assert peaks[:2] == ["peak 0.1", "peak 0.05"]
    assert found.avoided[0] == "continuing at 0.1: 5 identical checks in a row; training restarted"
    assert spent == 1000
    assert found.best == 0.9


def test_a_restarted_training_takes_at_most_the_own_rate():
    """The range test found several times the own rate, and the network died at it."""
    segments, _, _ = play(Settings(repeats=2), max_steps=2000, limit=3.0, value=lambda t: 0.1)
    peaks = list(dict.fromkeys(segment.note for segment in segments if segment.kind == "stable"))
    assert float(peaks[0].removeprefix("peak ")) > 0.5
    assert peaks[1:3] == ["peak 0.1", "peak 0.05"]


def test_a_branch_starts_when_the_forecast_meets_the_target():
    """Averaged weights and a branch reach the same here: the first branch succeeds."""

    def value(t):
        return 1 - 40 / (40 + t)

    segments, _, _ = play(Settings(repeats=0), max_steps=5000, value=value, target=0.9)  # met at 360
    forecasts = [segment for segment in segments if segment.averaged]
    branches = [segment for segment in segments if segment.kind == "branch"]
    assert {segment.steps for segment in forecasts} == {10}
    assert branches[0].start < 360 <= branches[0].start + branches[0].steps
    assert branches[0].start > 250  # no branch was abandoned before it


def test_a_branch_that_ends_near_the_target_is_held_there():
    def value(t):
        return 0.9 if t < 400 else 0.9 + 0.001 * (t // 10 % 2)

    segments, _, _ = play(Settings(repeats=0), max_steps=3000, value=value, target=0.9015)
    held = [segment for segment in segments if segment.note.startswith("held")]
    assert held
    for segment in held:
        before = segments[segments.index(segment) - 1]
        before = segments[segments.index(segment) - 2] if before.kind == "snapshot" else before
        assert segment.start == before.start + before.steps
        assert segment.restore is None
        assert segment.steps == 10
        assert segment.policy(segment.start) > 0


def test_the_tuning_budget_bounds_the_abandoned_branches():
    for share in (0.05, 0.1, 0.3):
        segments, _, _ = play(Settings(tuning_budget=share, repeats=0))
        abandoned = [segment.steps for segment in segments if segment.kind == "branch"][:-1]
        assert sum(abandoned) <= share * 1000
    assert sum(segment.kind == "branch" for segment in play(Settings(tuning_budget=0.0, repeats=2))[0]) == 1


def test_the_best_is_restored_when_the_last_is_worse():
    segments, _, found = play(Settings(repeats=2), value=lambda t: -abs(t - 300))
    assert segments[-1].restore == "best"
    assert found.best == max(
        -abs(segment.start + segment.steps - 300) for segment in segments if segment.kind == "branch"
    )


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"stable": ("cube",)}, "stable must be a list of constant, inverse_sqrt, triangle, sine, got"),
        ({"stable": ()}, "stable must be a list"),
        ({"decay": "no"}, "decay must be one of linear, cosine, sqrt, got 'no'"),
        ({"growth": 1.0}, "growth must be a finite number above 1, got 1.0"),
        ({"first_branch": 0.0}, r"first_branch must lie in \(0, 1\)"),
        ({"average": 1.0}, r"average must lie in \[0, 1\)"),
        ({"accept_average": 1}, "accept_average must be true or false, got 1"),
        (
            {"accept_average": True, "average": 0.0},
            "accept_average needs averaged weights, got average=0; give a window",
        ),
        ({"tuning_budget": 2.0}, r"tuning_budget must lie in \[0, 1\]"),
        ({"margin": 0.5}, r"margin must be a finite number of at least 1, got 0\.5"),
    ],
)
def test_a_setting_out_of_range_is_named(field, message):
    with pytest.raises(ValueError, match=message):
        Settings(**field)


def test_the_margin_lies_between_the_largest_usable_rate_and_the_peak():
    tests = {margin: play(Settings(margin=margin, repeats=2))[2].range for margin in (None, 3.0, 9.0)}
    for margin, found in tests.items():
        assert found.peak == pytest.approx(found.high / (margin or 3.0))
    assert len({found.high for found in tests.values()}) == 1


def test_a_range_that_diverges_at_once_is_refused():
    with pytest.raises(ValueError, match=r"diverged at a rate of 0\.1, the lowest of the range test"):
        analyse(RateRamp(0.1, 1.0, 10), [[math.nan] * 10])


def test_losses_that_never_rise_show_no_upper_limit():
    """A network with batch statistics may output a constant, whose loss is below that of its start."""
    ramp = RateRamp(0.001, 10.0, 50)
    dead = [6.5 - 4.1 * min(t, 30) / 30 for t in range(50)]
    assert analyse(ramp, [dead, dead]).peak == pytest.approx(0.1)  # the optimizer's own
    risen = [loss if t < 40 else 2.4 + 0.3 * (t - 40) for t, loss in enumerate(dead)]
    halfway = analyse(ramp, [risen, risen])
    assert halfway.diverged_at is None
    lowest = halfway.rates[halfway.losses.index(min(halfway.losses))]
    assert halfway.peak == pytest.approx(math.sqrt(0.1 * lowest))
    assert 0.2 < halfway.peak < lowest
    diverged = [loss if t < 40 else 2.4 + 1.5 * (t - 40) for t, loss in enumerate(dead)]
    assert analyse(ramp, [diverged, diverged]).peak == pytest.approx(lowest)
    early = [2.3 - 2.0 * min(t, 10) / 10 for t in range(50)]
    assert analyse(ramp, [early, early]).peak == pytest.approx(
        0.1
    )  # never above it: the first of equal losses is far lower


def test_a_range_test_without_learning_moves_the_peak_halfway_to_the_own_rate():
    ramp = RateRamp(1e-5, 0.1, 50)  # around the own rate of 0.001
    plateau = [2.3 - 0.001 * min(t, 40) + 0.02 * (-1) ** t for t in range(50)]
    steep = [2.3 - 0.05 * min(t, 40) + 0.8 * max(0, t - 40) for t in range(50)]
    assert analyse(ramp, [steep]).peak > 0.01
    assert analyse(ramp, [plateau]).peak == pytest.approx(math.sqrt(0.1 / 3 * 0.001))
