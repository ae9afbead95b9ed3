"""Properties of every policy, for any values of its fields."""

import math
import pickle

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lrbench_pl.policies import (
    Constant,
    Cyclic,
    Exponential,
    InverseTime,
    MultiStep,
    Policy,
    Polynomial,
    Sequential,
    Sigmoid,
    SqrtDecay,
    Step,
    cut,
    from_config,
    policy_id,
    segments,
    stretched,
    table,
    to_config,
)

rates = st.floats(0, 10)
gammas = st.floats(1e-6, 1)
counts = st.integers(1, 500)
milestones = st.lists(counts, max_size=4, unique=True).map(sorted)


@st.composite
def cycles(draw):
    low, high = sorted((draw(rates), draw(rates)))
    decay = draw(st.sampled_from(["none", "halving", "exponential"]))
    wave = draw(st.sampled_from(["triangle", "sine", "cosine", "sawtooth", "quarter_sine", "half_cosine"]))
    gamma = draw(gammas) if decay == "exponential" else 1.0
    return Cyclic(low, high, draw(counts), wave, decay, gamma, draw(st.integers(-500, 500)))


simple = st.one_of(
    st.builds(Constant, rates),
    st.builds(Step, rates, gammas, counts),
    st.builds(MultiStep, rates, gammas, milestones),
    st.builds(Exponential, rates, gammas),
    st.builds(InverseTime, rates, rates, rates),
    st.builds(Polynomial, rates, counts, st.floats(0.1, 5), rates),
    st.builds(SqrtDecay, rates, counts, rates),
    st.builds(Sigmoid, rates, st.floats(-10, 10), st.integers(0, 500)),
    cycles(),
)


@st.composite
def composites(draw, parts):
    inner = draw(st.lists(parts, min_size=1, max_size=4))
    stones = draw(st.lists(counts, min_size=len(inner) - 1, max_size=len(inner) - 1, unique=True).map(sorted))
    return Sequential(tuple(inner), tuple(stones))


policies = st.recursive(simple, composites, max_leaves=6)
times = st.one_of(st.integers(0, 2000), st.integers(0, 10**9))


@given(policies, st.lists(times, min_size=1, max_size=5))
def test_rates_are_pure_finite_and_not_negative(policy, ts):
    first = [policy(t) for t in ts]
    again = [policy(t) for t in reversed(ts)]
    assert first == again[::-1]
    assert all(math.isfinite(lr) and lr >= 0 for lr in first)


@given(policies)
def test_a_policy_is_a_value(policy):
    assert isinstance(policy, Policy)
    assert eval(repr(policy)) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert len({policy, eval(repr(policy))}) == 1


@given(policies)
def test_yaml_round_trip(policy):
    text = yaml.safe_dump(to_config(policy))
    assert from_config(yaml.safe_load(text)) == policy


@given(st.lists(composites(simple), min_size=2, max_size=3), times)
def test_nesting_equals_flattening(parts, t):
    nested = Sequential(tuple(parts), tuple(100 * (i + 1) for i in range(len(parts) - 1)))
    starts, flat = zip(*segments(nested), strict=True)
    assert Sequential(flat, starts[1:])(t) == nested(t)


@given(composites(policies))
def test_milestones_are_left_closed_and_parts_start_at_step_0(policy):
    for milestone, part in zip(policy.milestones, policy.policies[1:], strict=True):
        assert policy(milestone) == part(0)
    assert policy(0) == policy.policies[0](0)


@given(cycles(), times)
def test_a_cycle_stays_between_its_bounds(policy, t):
    slack = 1e-12 * policy.max_lr
    assert policy.base_lr - slack <= policy(t) <= policy.max_lr + slack


@given(st.integers(1, 300), rates)
def test_equal_rates_have_equal_ids(n, lr):
    assert policy_id(Constant(lr), n) == policy_id(Step(lr, 0.5, n), n)
    assert policy_id(Polynomial(lr + 1, n), n) != policy_id(Constant(lr + 1), n) or n == 1


def test_a_table_has_one_rate_per_step():
    assert table(Step(1.0, 0.5, 2), 4) == [1.0, 1.0, 0.5, 0.5]
    assert table(Constant(0.1), 0) == []
    with pytest.raises(ValueError, match="n must be an integer of at least 0, got -1"):
        table(Constant(0.1), -1)


@given(policies, st.integers(1, 20), st.integers(0, 2000))
def test_stretched_gives_the_same_rate_later(policy, factor, t):
    assert stretched(policy, factor)(factor * t) == pytest.approx(policy(t), rel=1e-6, abs=1e-9)


@given(policies, st.integers(1, 20), st.integers(0, 2000))
def test_stretching_can_be_undone(policy, factor, t):
    assert stretched(stretched(policy, factor), 1 / factor)(t) == pytest.approx(policy(t), rel=1e-6, abs=1e-9)
    assert stretched(policy, 1) == policy


@given(policies, st.floats(1e-4, 1e4), times)
def test_stretching_by_any_factor_keeps_the_bounds(policy, factor, t):
    other = stretched(policy, factor)
    assert from_config(to_config(other)) == other
    assert math.isfinite(other(t))
    if isinstance(policy, Step | MultiStep | Exponential | InverseTime):
        assert other(0) == policy(0)
        assert 0 <= other(t) <= policy(0)


def test_stretching_by_a_fraction():
    policy = Sequential((Cyclic(0.0, 1.0, 200, "triangle"), Polynomial(1.0, 400)), (600,))
    longer = table(stretched(policy, 1.37), 1370)
    assert [longer[round(1.37 * t)] for t in range(0, 1000, 50)] == pytest.approx(table(policy, 1000)[::50], abs=0.02)
    assert stretched(MultiStep(1.0, 0.5, (10, 11, 30)), 0.1).milestones == (1, 2, 3)


@pytest.mark.parametrize("factor", [0, -1, math.inf, math.nan, True, "2"])
def test_a_factor_is_a_number_above_0(factor):
    with pytest.raises(ValueError, match="factor must be a finite number above 0, got"):
        stretched(Constant(0.1), factor)


def test_an_unregistered_policy_cannot_be_stretched():
    class Mine(Constant):
        pass

    with pytest.raises(TypeError, match=r"expected a policy of lrbench_pl\.policies, got"):
        stretched(Sequential((Mine(0.1),)), 2)


@given(policies, st.integers(1, 600))
def test_cut_keeps_the_rates_before_and_drops_the_parts_after(policy, n):
    shorter = cut(policy, n)
    assert table(shorter, n) == table(policy, n)
    for start, part in segments(shorter):
        assert start < n
        assert all(start + stone < n for stone in getattr(part, "milestones", ()))
    with pytest.raises(ValueError, match="max_steps must be an integer of at least 1, got 0"):
        cut(policy, 0)
