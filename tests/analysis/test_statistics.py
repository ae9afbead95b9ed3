"""Estimates against lifelines, published numbers and simulated experiments."""

import itertools
import math

import lifelines
import numpy as np
import pytest
from lifelines.statistics import logrank_test
from lifelines.utils import median_survival_times
from scipy import stats

from lrbench_pl.analysis import statistics as st

EXPERIMENTS = 2000

# Remission of leukaemia patients in weeks, 6-MP and placebo (Freireich et al. 1963, the textbook example of survival)
WEEKS_6MP = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
RELAPSED_6MP = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
WEEKS_PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]
RELAPSED_PLACEBO = [1] * 21


def experiments(seed, n, miss=0.0, budget=2.5, sigma=0.3):
    """Steps in units of their median, and which runs reached_all, for 2,000 experiments of n runs."""
    rng = np.random.default_rng(seed)
    steps = rng.lognormal(0, sigma, (EXPERIMENTS, n))
    reached = (rng.random((EXPERIMENTS, n)) >= miss) & (steps < budget)
    return np.where(reached, steps, budget), reached


def coverage(estimates, truth):
    assert all(each.low is not None for each in estimates)
    return np.mean([each.low <= truth <= each.high for each in estimates])


# -- one policy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reached", "runs", "low", "high"),
    [
        # Brown, Cai and DasGupta's formula by hand: centre (x + z²/2)/(n + z²), z = 1.959964
        (4, 5, 0.375535, 0.963776),
        (0, 5, 0.0, 0.434482),
        (10, 10, 0.722467, 1.0),
        (81, 263, 0.255289, 0.366207),  # Newcombe (1998), table I: 0.2553, 0.3662
    ],
)
def test_wilson(reached, runs, low, high):
    found = st.success_rate(reached, runs)
    assert (found.value, found.n) == (reached / runs, runs)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-5)


def test_the_curve_is_lifelines():
    rng = np.random.default_rng(0)
    for n in (2, 7, 30):
        steps, reached = rng.integers(1, 12, n) * 20, rng.random(n) < 0.6
        reached[0] = True
        curve = st.kaplan_meier(steps, reached)
        fitter = lifelines.KaplanMeierFitter().fit(steps, reached)
        theirs = fitter.survival_function_at_times(curve.steps).to_numpy()
        assert curve.survival == pytest.approx(theirs)
        interval = fitter.confidence_interval_.loc[list(curve.steps)].to_numpy()
        inside = (theirs > 0) & (theirs < 1)
        assert np.array(curve.low)[inside] == pytest.approx(interval[inside, 0])
        assert np.array(curve.high)[inside] == pytest.approx(interval[inside, 1])
        assert all(low <= value <= high for low, value, high in zip(curve.low, curve.survival, curve.high, strict=True))


def test_the_curve_of_the_textbook():
    curve = st.kaplan_meier(WEEKS_6MP, RELAPSED_6MP)
    published = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    after = dict(zip(curve.steps, curve.survival, strict=True))
    assert {week: round(after[week], 3) for week in published} == published
    assert curve.steps[0] == 6
    assert st.median_steps(WEEKS_6MP, RELAPSED_6MP, budget=99).value == 23
    interval = st.median_steps(WEEKS_6MP, RELAPSED_6MP, budget=99)
    assert (interval.low, interval.high) == (13, math.inf)  # survfit of R, conf.type = "log-log"


def test_a_curve_without_events_and_one_that_ends_at_zero():
    assert st.kaplan_meier([300, 300], [False, False]).survival == (1.0,)
    curve = st.kaplan_meier([100, 200], [True, True])
    assert (curve.survival, curve.low[-1]) == ((0.5, 0.0), 0.0)
    assert curve.high[-1] == curve.high[0]


def test_the_median_of_a_curve_is_lifelines():
    rng = np.random.default_rng(3)
    for _ in range(20):
        steps, reached = rng.integers(1, 40, 25) * 10, rng.random(25) < 0.7
        fitter = lifelines.KaplanMeierFitter().fit(steps, reached)
        found = st.median_steps(steps, reached, budget=1e6)
        assert found.value == fitter.median_survival_time_
        low, high = median_survival_times(fitter.confidence_interval_).to_numpy()[0]
        assert (found.low, found.high) == (low, high)


@pytest.mark.parametrize(
    ("steps", "reached", "expected"),
    [
        ([3, 1, 2], [1, 1, 1], (2, None, None)),
        ([1, 2, 3, 4], [1, 1, 1, 1], (2.5, None, None)),
        ([1, 2, 3, 9], [1, 1, 0, 0], (math.inf, None, None)),
        ([9, 9, 9, 9, 9], [0, 0, 0, 0, 0], (math.inf, math.inf, math.inf)),
        ([1, 2, 3, 4, 5], [1, 1, 1, 1, 1], (3, 1, 5)),
    ],
)
def test_the_median_of_whole_runs(steps, reached, expected):
    steps = [step if hit else 9 for step, hit in zip(steps, reached, strict=True)]
    found = st.median_steps(steps, reached, budget=9)
    assert (found.value, found.low, found.high) == expected


def test_the_interval_of_the_median_is_hettmansperger_and_sheathers():
    # of ten values [x2, x9] covers 0.9785 and [x3, x8] 0.8906; between them 95 % is interpolated
    assert 1 - 2 * stats.binom.cdf([1, 2], 10, 0.5) == pytest.approx([0.978515625, 0.890625])
    share = (0.978515625 - 0.95) / (0.978515625 - 0.890625)
    weight = 8 * share / (2 + 6 * share)
    found = st.median(range(1, 11))
    assert (found.value, found.low, found.high) == pytest.approx((5.5, 2 + weight, 9 - weight))
    # an infinite neighbour is not interpolated with
    missed = st.median([1, 2, 3, 4, 5, 6, 7, math.inf, math.inf, math.inf])
    assert (missed.value, missed.high) == (5.5, math.inf)


def test_an_undetermined_median():
    assert st.median_steps([100, 200], [True, False], 400).value == 100
    assert st.median_steps([100, 200, 200], [True, False, False], 400).value is None
    assert st.median_steps([100, 200, 400], [True, False, False], 400).value == math.inf


def test_expected_steps_are_those_of_restarting():
    steps, reached = np.array([100, 140, 400, 400, 180]), np.array([True, True, False, False, True])
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 5, (20_000, 60))
    first = reached[drawn].argmax(axis=1)
    spent = np.where(np.arange(60) <= first[:, None], steps[drawn], 0).sum(axis=1)
    assert st.expected_steps(steps, reached) == pytest.approx(spent.mean(), rel=0.02)
    assert st.expected_steps([400], [False]) == math.inf


# -- two policies ---------------------------------------------------------------------------------------------


def test_speed_up_by_seed_is_the_median_ratio():
    slow, fast = [400, 300, 500, 900, 200, 100], [100, 100, 250, 900, 100, 400]
    reached_all = [True] * 6
    found = st.speed_up(slow, reached_all, fast, reached_all, rng=0, paired=True)
    assert found.value == pytest.approx(2.0)
    assert found == st.speed_up(slow, reached_all, fast, reached_all, rng=1, paired=True)


def test_speed_up_of_runs_is_hodges_and_lehmanns():
    slow, fast = [400, 300, 500], [100, 150]
    ratios = [a / b for a, b in itertools.product(slow, fast)]
    found = st.speed_up(slow, [True] * 3, fast, [True] * 2, rng=0)
    assert found.value == pytest.approx(math.exp(np.median(np.log(ratios))))
    assert (found.low, found.high, found.n) == (None, None, 2)


def test_misses_of_either_side_make_extreme_ratios_and_of_both_none():
    yes, no = True, False
    five = [100, 110, 120, 130, 140]
    both = st.speed_up([9, 9, 9, 9, 9], [no] * 5, [9, 9, 9, 9, 9], [no] * 5, rng=0)
    assert both.value is None
    assert st.speed_up([9], [no], [9], [no], rng=0, paired=True) == st.Estimate(None, None, None, 0)
    never = st.speed_up([500] * 5, [no] * 5, five, [yes] * 5, rng=0)
    assert (never.value, never.low, never.high) == (math.inf, math.inf, math.inf)
    assert st.speed_up(five, [yes] * 5, [500] * 5, [no] * 5, rng=0, paired=True).value == 0
    half = st.speed_up([*five, 500], [yes] * 5 + [no], [*five, 500], [yes] * 5 + [no], rng=0)
    assert half.value == pytest.approx(1.0)
    assert half.low < 1 < half.high
    # one ratio of 0 and one of infinity, and nothing between: no difference
    crossed = [100, 500], [yes, no], [500, 100], [no, yes]
    assert st.speed_up(*crossed, rng=0).value == st.speed_up(*crossed, rng=0, paired=True).value == 1.0
    # an even number of pairs, the middle ones a ratio and a miss: the miss decides, whichever side it is on
    assert st.speed_up([100, 100], [yes, yes], [50, 500], [yes, no], rng=0, paired=True).value == 0
    assert st.speed_up([50, 500], [yes, no], [100, 100], [yes, yes], rng=0, paired=True).value == math.inf


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(0)
    slow, fast = rng.lognormal(1, 0.3, 8), rng.lognormal(0, 0.3, 8)
    reached_all = [True] * 8
    first, again, other = (st.speed_up(slow, reached_all, fast, reached_all, rng=seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("seeds", "others", "expected"),
    [
        ([3, 4], [4, 3], ([0, 1], [1, 0])),
        ([3, 4], [3, 5], None),
        ([3, 3], [3, 3], None),
        ([3, None], [3, None], None),
        ([3], [3, 4], None),
        ([3], [3, 3], None),
    ],
)
def test_seeds_that_match(seeds, others, expected):
    assert st.pair_by_seed(seeds, others) == expected


def test_log_rank_of_the_textbook():
    found = st.log_rank(WEEKS_6MP, RELAPSED_6MP, WEEKS_PLACEBO, RELAPSED_PLACEBO, rng=0)
    assert found.z**2 == pytest.approx(16.793, abs=1e-3)  # published chi-square 16.79
    assert found.z < 0  # those under 6-MP relapse later
    theirs = logrank_test(WEEKS_6MP, WEEKS_PLACEBO, RELAPSED_6MP, RELAPSED_PLACEBO)
    assert found.z**2 == pytest.approx(theirs.test_statistic)
    assert found.p == pytest.approx(1e-4)  # of 10,000 splits the observed one alone


def test_log_rank_by_all_splits():
    rng = np.random.default_rng(2)
    steps, reached = rng.integers(1, 6, 9) * 20.0, rng.random(9) < 0.7
    found = st.log_rank(steps[:4], reached[:4], steps[4:], reached[4:], rng=0)

    def excess(group):
        """Observed less expected arrivals, as lifelines' test would sum them up."""
        inside = np.isin(np.arange(9), group)
        total = 0.0
        for time in np.unique(steps[reached]):
            here = reached & (steps == time)
            total += (here & inside).sum() - here.sum() * (inside & (steps >= time)).sum() / (steps >= time).sum()
        return total

    observed = abs(excess([0, 1, 2, 3]))
    far = [abs(excess(list(group))) >= observed - 1e-9 for group in itertools.combinations(range(9), 4)]
    assert found.p == pytest.approx(np.mean(far))
    assert st.log_rank([100, 100], [False, False], [100], [False], rng=0) == st.LogRank(0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "miss", "runs"), [(4, 0.0, 2000), (5, 0.3, 2000), (10, 0.1, 400)])
def test_log_rank_keeps_its_error_rate(n, miss, runs):
    steps, reached = experiments(n, 2 * n, miss)
    steps = np.ceil(steps * 10)  # ties
    p = [
        st.log_rank(t[:n], hit[:n], t[n:], hit[n:], rng=seed).p
        for seed, (t, hit) in enumerate(zip(steps[:runs], reached[:runs], strict=True))
    ]
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / runs)
    assert np.mean(np.array(p) <= 0.2) == pytest.approx(0.2, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.3, 0.6])
def test_the_number_of_seeds_needed_gives_the_power_it_promises(shift):
    z = shift / math.sqrt(2 / 5)  # of 5 runs each with spread 1
    n = st.seeds_needed(z, 5)
    rng = np.random.default_rng(0)
    p = stats.ttest_ind(rng.normal(0, 1, (EXPERIMENTS, n)), rng.normal(shift, 1, (EXPERIMENTS, n)), axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.03)


def test_seeds_needed():
    # Machin et al., table 3.1: standardised difference 0.5, two-sided 5 %, power 80 %: 64 per group
    assert st.seeds_needed(0.5 / math.sqrt(2 / 10), 10) == 64
    assert st.seeds_needed(0.5 / math.sqrt(2 / 10), 10, comparisons=10) > 100
    assert st.seeds_needed(0.0, 5) is None
    assert st.seeds_needed(math.inf, 5) is None


# -- many policies --------------------------------------------------------------------------------------------


def test_ranks_and_tiers_of_policies_far_apart():
    values = [[300 + i for i in range(5)], [100 + i for i in range(5)], [200 + i for i in range(5)]]
    found = st.compare(values, rng=0)
    assert (found.low, found.high) == ((3, 1, 2), (3, 1, 2))
    assert found.better.tolist() == [[False, False, False], [True, False, True], [True, False, False]]
    order = [1, 2, 0]
    assert st.tiers(found.better[np.ix_(order, order)]) == [1, 2, 3]
    assert found.z[1, 0] > found.z[1, 2] > 0 > found.z[0, 1]


def test_only_the_order_of_values_counts():
    rng = np.random.default_rng(0)
    values = [rng.lognormal(i / 2, 0.3, 6) for i in range(4)]
    plain, logs = st.compare(values, rng=1), st.compare([np.log(each) for each in values], rng=1)
    assert (plain.low, plain.high) == (logs.low, logs.high)
    assert st.compare([np.exp(5 * each) for each in values], rng=1).better.tolist() == plain.better.tolist()


def test_policies_that_always_miss_are_one_and_last():
    never, fast = [math.inf] * 5, [100, 110, 120, 130, 140]
    found = st.compare([never, fast, never], rng=0)
    assert (found.low, found.high) == ((2, 1, 2), (3, 1, 3))
    nothing = st.compare([never, never], rng=0)
    assert (nothing.low, nothing.high, nothing.better.any()) == ((1, 1), (2, 2), False)


def test_one_or_two_runs_have_no_rank_interval():
    five = [100, 110, 120, 130, 140]
    found = st.compare([[1], five, [2, 3], [300, 310, 320, 330, 340]], rng=0)
    assert found.low == (None, 1, None, 2)
    assert found.high == (None, 3, None, 4)
    assert math.isnan(found.z[0, 1])
    assert st.compare([[1], [2]], rng=0).low == (None, None)
    assert (st.compare([five], rng=0).low, st.compare([five], rng=0).high) == ((1,), (1,))
    assert st.compare([five, [1]], rng=0).high == (2, None)


def test_identical_runs_need_more_than_a_few():
    assert not st.compare([[200, 200, 200], [220, 220, 220], [210, 210, 210]], rng=0).better[0, 2]
    assert st.compare([[200] * 6, [220] * 6], rng=0).better[0, 1]


def test_a_tier_begins_at_the_first_significantly_worse_policy():
    better = np.zeros((5, 5), dtype=bool)
    better[0, 2] = better[1, 3] = better[2, 4] = True
    assert st.tiers(better) == [1, 1, 2, 2, 3]
    assert st.tiers(np.zeros((0, 0))) == []


# -- several workloads, several rates -------------------------------------------------------------------------


def test_a_profile_by_hand():
    profile = st.performance_profile({"a": [1, 1, math.inf], "b": [2, 8, math.inf], "c": [math.inf, 3, math.inf]})
    assert profile.factors == (1.0, 2.0, 3.0, 4.0)
    third = pytest.approx(1 / 3)
    assert profile.shares["a"] == (2 / 3, 2 / 3, 2 / 3, 2 / 3)
    assert profile.shares["b"] == (0, third, third, third)
    assert profile.shares["c"] == (0, 0, third, third)
    # mean share from 1 to 4: b has 1/3 on [2, 4], c on [3, 4]
    assert profile.scores == pytest.approx({"a": 2 / 3, "b": 2 / 9, "c": 1 / 9})


def test_a_profile_is_its_definition():
    rng = np.random.default_rng(0)
    costs = rng.lognormal(0, 1, (3, 7))
    profile = st.performance_profile(dict(zip("abc", costs.tolist(), strict=True)))
    taus = np.linspace(1, 4, 30_001)
    ratios = costs / costs.min(axis=0)
    for name, row in zip("abc", ratios, strict=True):
        assert profile.scores[name] == pytest.approx((row[:, None] <= taus).mean(), abs=1e-3)


@pytest.mark.parametrize(
    ("lr", "cost", "factor", "expected"),
    [
        ([1, 2, 4], [100, 100, 100], 1.5, (1, 4, 2.0, True, True)),
        ([4, 1, 2], [400, 400, 100], 2, (2**0.5, 2**1.5, 1.0, False, False)),
        ([1, 2, 4, 8], [math.inf, 100, 120, math.inf], 1.5, (2, 4, 1.0, False, False)),
        ([1, 2, 4, 8], [100, 900, 100, 900], 2, (1, 2 ** (math.log(2) / math.log(9)), None, True, False)),
        ([0.1], [100], 1.5, (0.1, 0.1, 0.0, True, True)),
        ([1, 2, 4], [200, 100, 200], 2, (1, 4, 2.0, True, True)),
    ],
)
def test_sensitivity_by_hand(lr, cost, factor, expected):
    found = st.sensitivity(lr, cost, factor)
    low, high, octaves, *edges = expected
    assert (found.low, found.high) == pytest.approx((low, high))
    assert octaves is None or found.octaves == pytest.approx(octaves)
    assert [found.low_is_edge, found.high_is_edge] == edges


def test_a_policy_that_never_reaches_the_target_has_no_range():
    assert st.sensitivity([0.1, 0.2], [math.inf, math.inf]) is None


# -- bad input ------------------------------------------------------------------------------------------------

ONE = ([100], [True])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: st.success_rate(3, 2), "0 <= reached <= runs and at least 1 run, got 3 of 2"),
        (lambda: st.success_rate(0, 0), "got 0 of 0"),
        (lambda: st.success_rate(1, 2, level=1.0), r"level must lie in \(0, 1\), got 1.0"),
        (lambda: st.kaplan_meier([], []), "at least one run"),
        (lambda: st.kaplan_meier([1, 2], [True]), r"of one length and at least one run, got \(2,\) and \(1,\)"),
        (lambda: st.kaplan_meier([math.inf], [False]), "expected finite steps of at least 0"),
        (lambda: st.expected_steps([-1], [True]), "expected finite steps of at least 0"),
        (lambda: st.median([]), "at least one number and no NaN"),
        (lambda: st.median([1, math.nan]), r"no NaN, got \[1.0, nan\]"),
        (lambda: st.speed_up([0], [True], *ONE, rng=0), "expected steps above 0"),
        (
            lambda: st.speed_up([1, 2], [True] * 2, *ONE, rng=0, paired=True),
            "as many runs of the baseline as of the policy, got 2 and 1",
        ),
        (lambda: st.seeds_needed(1.0, 0), "got 0, 1 and 0.8"),
        (lambda: st.seeds_needed(1.0, 5, comparisons=0), "got 5, 0 and 0.8"),
        (lambda: st.seeds_needed(1.0, 5, power=1.0), "got 5, 1 and 1.0"),
        (lambda: st.compare([], rng=0), "at least one policy, got none"),
        (lambda: st.compare([[1.0], []], rng=0), "at least one number"),
        (lambda: st.tiers([[True, False]]), r"a square array, got shape \(1, 2\)"),
        (lambda: st.performance_profile({}), "one cost per policy and workload, got {}"),
        (lambda: st.performance_profile({"a": [1], "b": [1, 2]}), r"got \{'a': 1, 'b': 2\}"),
        (lambda: st.performance_profile({"a": []}), r"got \{'a': 0\}"),
        (lambda: st.performance_profile({"a": [0]}), "expected costs above 0"),
        (lambda: st.performance_profile({"a": [1]}, r_max=1), "r_max must be a finite number above 1, got 1"),
        (lambda: st.sensitivity([], []), "as many costs as rates and at least one"),
        (lambda: st.sensitivity([1, 2], [1]), r"got \(2,\) and \(1,\)"),
        (lambda: st.sensitivity([1, 1], [1, 2]), "rates above 0 without repetition"),
        (lambda: st.sensitivity([1], [0]), "costs above 0 and a factor of at least 1, got 0.0 and 1.5"),
        (lambda: st.sensitivity([1], [1], factor=0.9), "got 1.0 and 0.9"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- 2,000 simulated experiments per case ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 10, 20])
def test_wilson_covers(n):
    rng = np.random.default_rng(n)
    rates = rng.random(EXPERIMENTS)
    counts = rng.binomial(n, rates)
    found = [st.success_rate(int(count), n) for count in counts]
    assert 0.93 <= np.mean([e.low <= rate <= e.high for e, rate in zip(found, rates, strict=True)]) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 6, 8, 10, 20])
@pytest.mark.parametrize("miss", [0.0, 0.3])
def test_the_interval_of_the_median_covers(n, miss):
    steps, reached = experiments(n, n, miss)
    truth = stats.lognorm.ppf(0.5 / (1 - miss), 0.3)
    found = [st.median_steps(t, hit, 2.5) for t, hit in zip(steps, reached, strict=True)]
    assert 0.93 <= coverage(found, truth) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 20])
def test_the_interval_of_the_median_of_a_curve_covers(n):
    rng = np.random.default_rng(n)
    steps, watched = rng.lognormal(0, 0.3, (EXPERIMENTS, n)), rng.uniform(0.6, 3, (EXPERIMENTS, n))
    reached = steps <= watched
    found = [st.median_steps(t, hit, 9) for t, hit in zip(np.minimum(steps, watched), reached, strict=True)]
    known = [each for each in found if each.value is not None]
    assert len(known) > 0.99 * EXPERIMENTS
    assert 0.93 <= coverage(known, 1.0) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 20])
def test_the_interval_of_the_curve_covers(n):
    steps, reached = experiments(n, n)
    shares = np.random.default_rng(n).uniform(0.2, 0.8, EXPERIMENTS)
    inside = []
    for t, hit, share in zip(steps, reached, shares, strict=True):
        curve = st.kaplan_meier(t, hit)
        index = int(np.searchsorted(curve.steps, stats.lognorm.isf(share, 0.3), side="right")) - 1
        inside.append(index >= 0 and curve.low[index] <= share <= curve.high[index])
    assert 0.93 <= np.mean(inside) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 10, 20])
@pytest.mark.parametrize("miss", [0.0, 0.2])
@pytest.mark.parametrize("paired", [False, True], ids=["runs", "pairs"])
def test_the_interval_of_the_speed_up_covers(n, miss, paired):
    # steps of two policies with a true ratio of 2; misses are as frequent in both, so the median ratio stays
    slow, slow_reached = experiments(n, n, miss, budget=8)
    fast, fast_reached = experiments(n + 100, n, miss, budget=8)
    rows = zip(slow * 2, slow_reached, fast, fast_reached, strict=True)
    found = [
        st.speed_up(a, a_hit, b, b_hit, rng=seed, paired=paired, resamples=500)
        for seed, (a, a_hit, b, b_hit) in enumerate(rows)
        if not paired or (a_hit | b_hit).sum() >= 5
    ]
    assert 0.93 <= coverage(found, 2.0) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 10])
@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("miss", [0.0, 0.3])
def test_equal_policies_get_the_whole_range_of_ranks(n, k, miss):
    steps, reached = experiments(n * k, n * k, miss)
    values = np.where(reached, steps, math.inf)
    whole = whole_order = 0
    for seed, row in enumerate(values):
        found = st.compare(np.split(row, k), rng=seed, resamples=400)
        whole += (found.low[0], found.high[0]) == (1, k)
        whole_order += not found.better.any()
    assert 0.93 <= whole / EXPERIMENTS <= 0.97
    assert 0.925 <= whole_order / EXPERIMENTS <= 0.975


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.02, 0.1, 0.3])
def test_rank_intervals_cover_the_ranks_of_distinct_policies(gap):
    rng = np.random.default_rng(0)
    ranks = np.arange(1, 7)
    inside = np.zeros(6)
    for seed in range(500):
        values = rng.normal(0, 0.3, (6, 5)) + gap * ranks[:, None]
        found = st.compare(list(values), rng=seed, resamples=400)
        inside += (np.array(found.low) <= ranks) & (ranks <= np.array(found.high))
    assert inside.min() / 500 >= 0.93
