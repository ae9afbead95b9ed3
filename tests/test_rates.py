"""The driver of an optimizer's rates: what is read ahead changes nothing."""

import math
from dataclasses import dataclass

import pytest
import torch

from lrbench_pl.policies import PlateauPolicy, Polynomial
from lrbench_pl.rates import LRPolicyError, RateDriver, is_value


@dataclass(frozen=True)
class Ends:
    """A policy without a value from a step on."""

    end: int
    then: float | None = None

    def __call__(self, t: int) -> float:
        if t < self.end:
            return 1.0 / (1 + t)
        if self.then is None:
            raise IndexError(t)
        return self.then


def driver(policy, step=0):
    return RateDriver(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), policy, step)


def rates(driven, steps):
    found = []
    for _ in range(steps):
        driven.optimizer.step()
        found.append(driven.optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("policy", [Polynomial(1.0, 100), lambda t: 1.0 / (1 + t)])
def test_the_rate_of_every_step_is_the_policys(policy):
    assert rates(driver(policy), 100) == [policy(t) for t in range(100)]


def test_the_count_may_jump_to_and_fro():
    policy = Polynomial(1.0, 1000)
    driven = driver(policy, step=500)
    for step in (500, 510, 490, 600, 0, 31, 32):
        driven.step = step
        assert rates(driven, 1) == [policy(step)]


def test_a_policy_may_end_where_the_training_ends():
    assert rates(driver(Ends(40)), 40) == [1.0 / (1 + t) for t in range(40)]


@pytest.mark.parametrize("then", [math.nan, math.inf, -1.0])
def test_what_is_no_rate_fails_at_its_step(then):
    driven = driver(Ends(40, then))
    assert len(rates(driven, 40)) == 40
    with pytest.raises(LRPolicyError, match="as the learning rate of step 40"):
        driven.optimizer.step()


def test_only_values_are_read_ahead():
    assert is_value(Polynomial(1.0, 10))
    assert not is_value(lambda t: 0.1)
    plateau = PlateauPolicy(
        (Polynomial(0.1, 10), Polynomial(1.0, 10)), start=0, patience=1, threshold=0.0, cooldown=0, max_steps=10
    )
    assert not is_value(plateau)
