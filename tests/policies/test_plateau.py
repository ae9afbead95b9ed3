"""Adaptive policy: when it changes, in which direction, and the realised schedule."""

import math

import pytest

from lrbench_pl.policies import AdaptivePolicy, Constant, PlateauPolicy, Policy, Sequential, Step, table

THREE = (Constant(0.01), Constant(0.1), Constant(1.0))


def plateau(**changes):
    arguments = {"policies": THREE, "start": 1, "patience": 2, "threshold": 0.01, "cooldown": 0, "max_steps": 100}
    return PlateauPolicy(**{**arguments, **changes})


def observe(policy, values, every=10):
    for index, value in enumerate(values, start=1):
        policy.observe(every * index, value)
    return policy


@pytest.mark.parametrize(
    ("values", "changes", "rates"),
    [
        pytest.param([0.5, 0.5, 0.5], {}, {29: 0.1, 30: 1.0}, id="early-goes-up"),
        pytest.param([0.5, 0.5, 0.5], {"switch_fraction": 0.0}, {29: 0.1, 30: 0.01}, id="late-goes-down"),
        pytest.param([0.5, 0.5, 0.5], {"switch_fraction": 0.3}, {30: 0.01}, id="at-the-fraction-it-is-late"),
        pytest.param([0.5, 0.505, 0.509], {}, {30: 1.0}, id="a-gain-within-the-threshold-is-none"),
        pytest.param([0.5, 0.52, 0.54], {}, {99: 0.1}, id="gains"),
        pytest.param([0.5, 0.5, 0.6, 0.6], {}, {99: 0.1}, id="a-gain-begins-the-count-anew"),
        pytest.param([0.5] * 5, {}, {49: 1.0, 50: 1.0}, id="stays-at-the-largest"),
        pytest.param([0.5] * 3 + [0.5] * 2, {"start": 0}, {29: 0.01, 30: 0.1, 50: 1.0}, id="twice"),
        pytest.param([0.5] * 5, {"start": 0, "cooldown": 2}, {50: 0.1}, id="cooldown-delays"),
        pytest.param([0.5] * 7, {"start": 0, "cooldown": 2}, {69: 0.1, 70: 1.0}, id="cooldown-ends"),
        pytest.param([0.5, math.nan, math.nan], {}, {30: 1.0}, id="nan-is-no-gain"),
        pytest.param([0.5, 0.4, 0.3], {"mode": "min"}, {99: 0.1}, id="less-is-more"),
        pytest.param([0.5, 0.6, 0.7], {"mode": "min"}, {30: 1.0}, id="more-is-less"),
    ],
)
def test_when_it_changes(values, changes, rates):
    policy = observe(plateau(**changes), values)
    assert {t: policy(t) for t in rates} == rates


def test_each_policy_starts_at_step_0_and_the_schedule_can_be_run_again():
    policy = observe(plateau(policies=(Step(0.1, 0.5, 5), Step(1.0, 0.5, 5)), start=0), [0.5, 0.5, 0.5])
    realised = policy.realised()
    assert realised == Sequential((Step(0.1, 0.5, 5), Step(1.0, 0.5, 5)), (30,))
    assert table(realised, 100) == table(policy, 100)
    assert policy(30) == 1.0


def test_without_a_change_the_schedule_is_the_policy_itself():
    assert plateau().realised() == Constant(0.1)


def test_it_is_adaptive_and_a_plain_policy_is_not():
    assert isinstance(plateau(), AdaptivePolicy)
    assert isinstance(Constant(0.1), Policy)
    assert not isinstance(Constant(0.1), AdaptivePolicy)


def test_its_state_continues():
    values = [0.5, 0.5, 0.5, 0.55, 0.5, 0.5]
    whole = observe(plateau(start=0), values)
    first, second = observe(plateau(start=0), values[:2]), plateau(start=0)
    second.load_state_dict(first.state_dict())
    for index, value in enumerate(values[2:], start=3):
        second.observe(10 * index, value)
    assert second.state_dict() == whole.state_dict()
    assert table(second, 100) == table(whole, 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 3}, "start must be an index of policies, below 3, got 3"),
        ({"start": -1}, "start must be an integer of at least 0, got -1"),
        ({"patience": 0}, "patience must be an integer of at least 1, got 0"),
        ({"threshold": -1}, "threshold must be a finite number of at least 0, got -1"),
        ({"cooldown": -1}, "cooldown must be an integer of at least 0, got -1"),
        ({"switch_fraction": 2}, r"switch_fraction must lie in \[0, 1\], got 2"),
        ({"max_steps": 0}, "max_steps must be an integer of at least 1, got 0"),
        ({"mode": "up"}, "mode must be 'max' or 'min', got 'up'"),
        ({"policies": (0.1, 0.2)}, "policies must be plain policies, .*, got 0.1"),
    ],
)
def test_a_bad_value_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        plateau(**changes)
