"""What holds for every policy, whatever its numbers."""

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
    Step,
    from_config,
    policy_id,
    segments,
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
def test_pure_finite_and_never_negative_in_any_order(policy, ts):
    first = [policy(t) for t in ts]
    again = [policy(t) for t in reversed(ts)]
    assert first == again[::-1]
    assert all(math.isfinite(lr) and lr >= 0 for lr in first)


@given(policies)
def test_a_value(policy):
    assert isinstance(policy, Policy)
    assert eval(repr(policy)) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert len({policy, eval(repr(policy))}) == 1


@given(policies)
def test_yaml_and_back(policy):
    text = yaml.safe_dump(to_config(policy))
    assert from_config(yaml.safe_load(text)) == policy


@given(st.lists(composites(simple), min_size=2, max_size=3), times)
def test_nesting_equals_flattening(parts, t):
    nested = Sequential(tuple(parts), tuple(100 * (i + 1) for i in range(len(parts) - 1)))
    starts, flat = zip(*segments(nested), strict=True)
    assert Sequential(flat, starts[1:])(t) == nested(t)


@given(composites(policies))
def test_left_closed_with_local_clocks(policy):
    for milestone, part in zip(policy.milestones, policy.policies[1:], strict=True):
        assert policy(milestone) == part(0)
    assert policy(0) == policy.policies[0](0)


@given(cycles(), times)
def test_a_cycle_stays_between_its_bounds(policy, t):
    slack = 1e-12 * policy.max_lr
    assert policy.base_lr - slack <= policy(t) <= policy.max_lr + slack


@given(st.integers(1, 300), rates)
def test_one_schedule_in_two_spellings_has_one_id(n, lr):
    assert policy_id(Constant(lr), n) == policy_id(Step(lr, 0.5, n), n)
    assert policy_id(Polynomial(lr + 1, n), n) != policy_id(Constant(lr + 1), n) or n == 1


def test_a_table_is_the_whole_budget():
    assert table(Step(1.0, 0.5, 2), 4) == [1.0, 1.0, 0.5, 0.5]
    assert table(Constant(0.1), 0) == []
    with pytest.raises(ValueError, match="n must be an integer of at least 0, got -1"):
        table(Constant(0.1), -1)
