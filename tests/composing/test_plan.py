"""The plan of a composition, against a training that is a formula."""

import itertools
import math

import pytest

from lrbench_pl.composing.plan import Settings, compose
from lrbench_pl.composing.range_test import Sweep, analyse
from lrbench_pl.composing.segments import Outcome
from lrbench_pl.policies import to_config


def play(settings, max_steps=1000, interval=10, limit=0.4, lr=0.1, value=None, target=2.0):
    """Run the plan on a training that diverges above ``limit`` and gains with the steps of its policy."""
    plan = compose(settings, lr, max_steps, interval, target)
    legs, spent, sent = [], 0, None
    while True:
        try:
            leg = plan.send(sent)
        except StopIteration as end:
            return legs, spent, end.value
        legs.append(leg)
        steps = min(leg.steps, max_steps - spent)
        rates = [leg.policy(leg.start + t) for t in range(steps)]
        blown = leg.kind != "range" and any(rate > limit for rate in rates)
        losses = [2.0 - math.tanh(rate) if rate < limit else math.inf for rate in rates] if leg.kind == "range" else ()
        spent += steps
        gained = value(leg.start + steps) if value else 1 - 1 / (1 + leg.start + steps)
        sent = Outcome(steps, gained, blown, tuple(losses), spent)


def test_it_spends_the_budget_and_no_more():
    for budget in (10, 20, 50, 130, 1000, 1005):
        _, spent, found = play(Settings(), max_steps=budget)
        assert spent <= budget
        assert spent > budget - 20
        assert found.policy is not None


def test_the_peak_lies_below_what_diverged():
    _, _, found = play(Settings())
    assert found.range.peak < found.range.high < found.range.diverged_at
    assert found.range.high < 0.4
    assert found.avoided[0].startswith("rates of 0.4")


def test_a_trunk_that_diverges_goes_back_to_half_the_rate():
    legs, _, found = play(Settings(repeats=0), lr=1.0)
    peaks = [leg.note for leg in legs if leg.kind == "trunk"]
    assert peaks[:3] == ["peak 1", "peak 0.5", "peak 0.25"]
    assert [leg.restore for leg in legs if leg.kind == "trunk"][1:3] == ["start", "start"]
    assert [words.split(":")[0] for words in found.avoided[:2]] == ["a trunk at 1", "a trunk at 0.5"]


def test_branches_start_from_the_trunk_and_end_at_zero():
    legs, _, _ = play(Settings(average=0.0, growth=1.5, reuse=False))
    branches = [leg for leg in legs if leg.kind == "branch"]
    assert len(branches) >= 4
    assert len({leg.start for leg in branches}) == len(branches)
    for leg in branches:
        assert leg.policy(leg.start + leg.steps) == 0
        assert to_config(leg.policy)
    trunks = [leg for leg in legs if leg.kind == "trunk"][1:]
    assert all(leg.restore == "trunk" for leg in trunks)


def test_a_trunk_goes_on_from_a_branch_that_missed():
    legs, _, found = play(Settings(average=0.0, growth=1.5, repeats=0))
    taken = [leg for leg in legs if leg.kind in ("trunk", "branch")]
    assert sum(leg.kind == "branch" for leg in taken) >= 4
    assert all(leg.restore is None for leg in taken[1:])
    assert all(before.start + before.steps == leg.start for before, leg in itertools.pairwise(taken))
    for before, leg in itertools.pairwise(taken):  # what has been trained stays as it was
        assert [leg.policy(t) for t in range(before.start, leg.start)] == [
            before.policy(t) for t in range(before.start, leg.start)
        ]
    assert found.policy == [leg for leg in taken if leg.kind == "branch"][-1].policy


def test_a_standstill_changes_the_trunk():
    def value(t):
        return 0.5 + 0.001 * (t // 10 % 2)

    legs, _, found = play(Settings(trunks=("constant", "sine"), average=0.0, growth=1.5), value=value)
    assert any("going on at" in words for words in found.avoided)
    assert len({leg.note for leg in legs if leg.kind == "trunk"}) > 1


def test_a_network_that_answers_as_before_is_begun_anew_at_half_the_rate():
    """It died, or learnt its data by heart: no rate moves it from there."""
    legs, spent, found = play(Settings(repeats=0), value=lambda t: min(0.9, t / 100))
    taken = [leg for leg in legs if leg.kind in ("trunk", "branch")]
    anew = [at for at, leg in enumerate(taken) if leg.restore == "start"]
    assert anew
    for at in anew:
        assert taken[at - 1].kind == "branch"
        assert taken[at].start == 0
        assert [leg.note for leg in taken[at - 2 :] if leg.kind == "trunk"]
    peaks = list(dict.fromkeys(leg.note for leg in taken if leg.kind == "trunk"))
    assert peaks[:2] == ["peak 0.1", "peak 0.05"]
    assert found.avoided[0] == "going on at 0.1: 5 checks in a row brought the same; begun anew"
    assert spent == 1000
    assert found.best == 0.9


def test_what_is_begun_anew_takes_the_own_rate_at_most():
    """The range test found several times the own rate, and the network died of it."""
    legs, _, _ = play(Settings(), max_steps=2000, limit=3.0, value=lambda t: 0.1)
    peaks = list(dict.fromkeys(leg.note for leg in legs if leg.kind == "trunk"))
    assert float(peaks[0].removeprefix("peak ")) > 0.5
    assert peaks[1:3] == ["peak 0.1", "peak 0.05"]


def test_a_branch_leaves_when_the_forecast_meets_the_target():
    """The averaged trunk and a branch are worth the same here: the first branch is the one that succeeds."""

    def value(t):
        return 1 - 40 / (40 + t)

    legs, _, _ = play(Settings(repeats=0), max_steps=5000, value=value, target=0.9)  # met at 360
    forecasts = [leg for leg in legs if leg.averaged]
    branches = [leg for leg in legs if leg.kind == "branch"]
    assert {leg.steps for leg in forecasts} == {10}
    assert branches[0].start < 360 <= branches[0].start + branches[0].steps
    assert branches[0].start > 250  # no dead end came before it


def test_a_branch_that_ends_near_the_target_is_held_there():
    def value(t):
        return 0.9 if t < 400 else 0.9 + 0.001 * (t // 10 % 2)

    legs, _, _ = play(Settings(repeats=0), max_steps=3000, value=value, target=0.9015)
    held = [leg for leg in legs if leg.note.startswith("held")]
    assert held
    for leg in held:
        before = legs[legs.index(leg) - 1]
        before = legs[legs.index(leg) - 2] if before.kind == "keep" else before
        assert leg.start == before.start + before.steps
        assert leg.restore is None
        assert leg.steps == 10
        assert leg.policy(leg.start) > 0


def test_the_tuning_budget_bounds_the_dead_ends():
    for share in (0.05, 0.1, 0.3):
        legs, _, _ = play(Settings(tuning_budget=share, repeats=0))
        dead = [leg.steps for leg in legs if leg.kind == "branch"][:-1]
        assert sum(dead) <= share * 1000
    assert sum(leg.kind == "branch" for leg in play(Settings(tuning_budget=0.0))[0]) == 1


def test_the_best_comes_back_when_the_last_is_worse():
    legs, _, found = play(Settings(), value=lambda t: -abs(t - 300))
    assert legs[-1].restore == "best"
    assert found.best == max(-abs(leg.start + leg.steps - 300) for leg in legs if leg.kind == "branch")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"trunks": ("cube",)}, "trunks must be a list of constant, inverse_sqrt, triangle, sine, got"),
        ({"trunks": ()}, "trunks must be a list"),
        ({"decay": "no"}, "decay must be one of linear, cosine, sqrt, got 'no'"),
        ({"growth": 1.0}, "growth must be a finite number above 1, got 1.0"),
        ({"first_branch": 0.0}, r"first_branch must lie in \(0, 1\)"),
        ({"average": 1.0}, r"average must lie in \[0, 1\)"),
        ({"tuning_budget": 2.0}, r"tuning_budget must lie in \[0, 1\]"),
        ({"margin": 0.5}, r"margin must be a finite number of at least 1, got 0\.5"),
    ],
)
def test_a_setting_out_of_range_is_named(field, message):
    with pytest.raises(ValueError, match=message):
        Settings(**field)


def test_the_margin_lies_between_the_largest_usable_rate_and_the_peak():
    tests = {margin: play(Settings(margin=margin))[2].range for margin in (None, 3.0, 9.0)}
    for margin, found in tests.items():
        assert found.peak == pytest.approx(found.high / (margin or 3.0))
    assert len({found.high for found in tests.values()}) == 1


def test_a_range_that_diverges_at_once_is_refused():
    with pytest.raises(ValueError, match=r"diverged at a rate of 0\.1, the least of the range test"):
        analyse(Sweep(0.1, 1.0, 10), [[math.nan] * 10])


def test_losses_that_never_rise_again_say_nothing_of_a_limit():
    """A network with batch statistics falls to a constant answer, whose loss is below that of its start."""
    sweep = Sweep(0.001, 10.0, 50)
    dead = [6.5 - 4.1 * min(t, 30) / 30 for t in range(50)]
    assert analyse(sweep, [dead, dead]).peak == pytest.approx(0.1)  # the optimizer's own
    risen = [loss if t < 40 else 2.4 + 0.3 * (t - 40) for t, loss in enumerate(dead)]
    halfway = analyse(sweep, [risen, risen])
    assert halfway.diverged_at is None
    lowest = halfway.rates[halfway.losses.index(min(halfway.losses))]
    assert halfway.peak == pytest.approx(math.sqrt(0.1 * lowest))
    assert 0.2 < halfway.peak < lowest
    diverged = [loss if t < 40 else 2.4 + 1.5 * (t - 40) for t, loss in enumerate(dead)]
    assert analyse(sweep, [diverged, diverged]).peak == pytest.approx(lowest)
    early = [2.3 - 2.0 * min(t, 10) / 10 for t in range(50)]
    assert analyse(sweep, [early, early]).peak == pytest.approx(0.1)  # never above it: the first of equals is far lower


def test_a_range_test_that_learnt_nothing_moves_the_peak_half_way_to_the_own_rate():
    sweep = Sweep(1e-5, 0.1, 50)  # round the own rate of 0.001
    plateau = [2.3 - 0.001 * min(t, 40) + 0.02 * (-1) ** t for t in range(50)]
    steep = [2.3 - 0.05 * min(t, 40) + 0.8 * max(0, t - 40) for t in range(50)]
    assert analyse(sweep, [steep]).peak > 0.01
    assert analyse(sweep, [plateau]).peak == pytest.approx(math.sqrt(0.1 / 3 * 0.001))
