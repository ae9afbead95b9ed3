"""Rates computed by hand from the formulas, before, at and after every boundary."""

import math

import pytest

from lrbench_pl.policies import (
    Constant,
    Cyclic,
    Exponential,
    InverseTime,
    MultiStep,
    Polynomial,
    Sequential,
    Sigmoid,
    SqrtDecay,
    Step,
    warmup,
)

TRIANGLE = Cyclic(base_lr=1.0, max_lr=5.0, period=8, wave="triangle")
COSINE2 = Cyclic(base_lr=0.0, max_lr=1.0, period=4, wave="cosine", decay="halving")
FAR = 10**9


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param(Constant(0.1), {0: 0.1, 7: 0.1, FAR: 0.1}, id="fix"),
        pytest.param(Step(1.0, 0.5, 100), {0: 1, 99: 1, 100: 0.5, 199: 0.5, 200: 0.25, FAR: 0}, id="step"),
        pytest.param(MultiStep(1.0, 0.1, (3, 5)), {2: 1, 3: 0.1, 4: 0.1, 5: 0.01, FAR: 0.01}, id="nstep"),
        pytest.param(MultiStep(1.0, 0.1, ()), {0: 1, FAR: 1}, id="nstep-without-milestones"),
        pytest.param(Exponential(2.0, 0.5), {0: 2, 1: 1, 3: 0.25, FAR: 0}, id="exp"),
        pytest.param(InverseTime(1.0, 1.0, 0.5), {0: 1, 3: 0.5, 8: 1 / 3}, id="inv"),
        pytest.param(InverseTime(0.01, 1e-4, 0.75), {0: 0.01, 10_000: 0.01 * 2**-0.75}, id="inv-caffe-lenet"),
        pytest.param(Polynomial(1.0, 10), {0: 1, 1: 0.9, 9: 0.1, 10: 0, 11: 0, FAR: 0}, id="linear"),
        pytest.param(Polynomial(1.0, 4, 0.5, 0.2), {0: 1, 3: 0.2 + 0.8 * 0.5, 4: 0.2, 5: 0.2}, id="poly"),
        pytest.param(Polynomial(0.0, 4, end_lr=1.0), {0: 0, 1: 0.25, 4: 1, 9: 1}, id="poly-rising"),
        pytest.param(SqrtDecay(1.0, 16, 0.2), {0: 1, 1: 0.8, 4: 0.6, 9: 0.4, 16: 0.2, FAR: 0.2}, id="sqrt"),
        pytest.param(Sigmoid(1.0, -1.0, 5), {5: 0.5, 4: 1 / (1 + math.exp(-1)), FAR: 0}, id="sig-falling"),
        pytest.param(Sigmoid(2.0, 1.0, 5), {5: 1.0, 0: 2 / (1 + math.exp(5)), FAR: 2}, id="sig-rising"),
        pytest.param(TRIANGLE, {0: 1, 1: 2, 4: 5, 5: 4, 7: 2, 8: 1, 12: 5}, id="tri"),
        pytest.param(
            Cyclic(1.0, 5.0, 8, "triangle", "halving"), {4: 5, 8: 1, 12: 3, 16: 1, 20: 2, 10_000 * 8 + 4: 1}, id="tri2"
        ),
        pytest.param(
            Cyclic(1.0, 5.0, 8, "triangle", "exponential", 0.5), {0: 1, 1: 1.5, 4: 1.25, 12: 1 + 4 / 4096}, id="triexp"
        ),
        pytest.param(Cyclic(1.0, 5.0, 8, "triangle", phase=4), {0: 5, 4: 1, 8: 5}, id="dtri"),
        pytest.param(
            Cyclic(1.0, 5.0, 8, "triangle", "halving", phase=4), {0: 5, 3: 2, 4: 1, 8: 3, 12: 1, 16: 2}, id="dtri2"
        ),
        pytest.param(Cyclic(0.0, 2.0, 4, "sine"), {0: 0, 1: math.sqrt(2), 2: 2, 4: 0, 6: 2}, id="sin"),
        pytest.param(Cyclic(0.0, 2.0, 4, "sine", "halving"), {2: 2, 6: 1, 10: 0.5}, id="sin2"),
        pytest.param(Cyclic(0.0, 1.0, 4, "cosine"), {0: 1, 1: 0.5, 2: 0, 4: 1}, id="cos"),
        pytest.param(
            COSINE2, {0: 1, 1: 0.5, 2: 0, 3: 0.25, 4: 0.5, 5: 0.25, 6: 0, 8: 0.25}, id="cos2-halves-at-minima"
        ),
        pytest.param(Cyclic(0.0, 1.0, 4, "cosine", "halving", phase=-2), {0: 0, 2: 1, 4: 0, 6: 0.5}, id="upcos2"),
        pytest.param(Cyclic(0.0, 1.0, 4, "sawtooth"), {0: 1, 1: 0.75, 3: 0.25, 4: 1}, id="rsw-restarts-at-the-top"),
        pytest.param(Cyclic(0.0, 1.0, 4, "sawtooth", "halving"), {3: 0.25, 4: 0.5, 8: 0.25}, id="rsw2"),
        pytest.param(Cyclic(0.0, 1.0, 3, "quarter_sine"), {0: 1, 2: 0.5, 3: 1}, id="sinrsw"),
        pytest.param(Cyclic(0.0, 1.0, 3, "half_cosine"), {0: 1, 1: 0.75, 2: 0.25, 3: 1}, id="cosrsw"),
        pytest.param(Cyclic(0.1, 0.1, 4, "sine"), {0: 0.1, 1: 0.1}, id="no-range"),
        pytest.param(
            Sequential((Constant(3.0), TRIANGLE, Constant(0.5)), (2, 10)),
            {1: 3, 2: 1, 6: 5, 9: 2, 10: 0.5},
            id="sequential",
        ),
        pytest.param(Sequential((Constant(3.0),)), {0: 3, 9: 3}, id="sequential-of-one"),
        pytest.param(warmup(Constant(0.4), 3), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.4}, id="warmup"),
    ],
)
def test_rates(policy, expected):
    for t, lr in expected.items():
        assert policy(t) == pytest.approx(lr, rel=1e-12, abs=1e-15), f"at t = {t}"


@pytest.mark.parametrize("wave", ["triangle", "sine", "cosine", "sawtooth", "quarter_sine", "half_cosine"])
def test_ten_thousand_halvings_do_not_overflow(wave):
    policy = Cyclic(0.001, 1.0, 10, wave, "halving")
    assert policy(10 * 10_000 + 3) == pytest.approx(0.001)
    assert policy(FAR) == pytest.approx(0.001)


def test_a_steep_sigmoid_does_not_overflow():
    assert Sigmoid(1.0, -1e6, 50)(FAR) == 0.0
    assert Sigmoid(1.0, 1e6, 50)(0) == 0.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: Constant(-0.1), "lr must be a finite number of at least 0, got -0.1", id="negative"),
        pytest.param(lambda: Constant(math.nan), "lr must be a finite number of at least 0, got nan", id="nan"),
        pytest.param(lambda: Constant(True), "lr must be a finite number of at least 0, got True", id="bool"),
        pytest.param(lambda: Constant("0.1"), "lr must be a finite number of at least 0, got '0.1'", id="text"),
        pytest.param(lambda: Step(0.1, 2, 5), r"gamma must lie in \(0, 1\], got 2", id="growing"),
        pytest.param(lambda: Step(0.1, 0.5, 0), "step_size must be an integer of at least 1, got 0", id="step_size"),
        pytest.param(
            lambda: Step(0.1, 0.5, 2.5), "step_size must be an integer of at least 1, got 2.5", id="half-step"
        ),
        pytest.param(
            lambda: MultiStep(0.1, 0.5, (5, 5)), r"milestones must increase strictly, got \(5, 5\)", id="equal"
        ),
        pytest.param(
            lambda: MultiStep(0.1, 0.5, (0,)), "milestones must be an integer of at least 1, got 0", id="at-0"
        ),
        pytest.param(lambda: MultiStep(0.1, 0.5, 5), "milestones must be a list of integers, got 5", id="no-list"),
        pytest.param(lambda: Exponential(0.1, 0), r"gamma must lie in \(0, 1\], got 0", id="gamma-0"),
        pytest.param(lambda: InverseTime(0.1, -1, 1), "gamma must be a finite number of at least 0", id="inv-gamma"),
        pytest.param(lambda: InverseTime(0.1, 1, -1), "power must be a finite number of at least 0", id="inv-power"),
        pytest.param(
            lambda: Polynomial(0.1, 0), "decay_steps must be an integer of at least 1, got 0", id="poly-steps"
        ),
        pytest.param(
            lambda: Polynomial(0.1, 5, power=0), "power must be a finite number above 0, got 0", id="poly-power"
        ),
        pytest.param(
            lambda: Polynomial(0.1, 5, end_lr=-1), "end_lr must be a finite number of at least 0", id="poly-end"
        ),
        pytest.param(lambda: SqrtDecay(0.1, 0), "decay_steps must be an integer of at least 1, got 0", id="sqrt-steps"),
        pytest.param(lambda: Sigmoid(0.1, math.inf, 5), "gamma must be a finite number, got inf", id="sig-gamma"),
        pytest.param(
            lambda: Sigmoid(0.1, 1.0, -5), "midpoint must be a finite number of at least 0", id="sig-midpoint"
        ),
        pytest.param(
            lambda: Cyclic(0.2, 0.1, 4, "sine"), r"max_lr must be at least base_lr \(0.2\), got 0.1", id="bounds"
        ),
        pytest.param(
            lambda: Cyclic(0.0, 0.1, 0, "sine"), "period must be an integer of at least 1, got 0", id="period"
        ),
        pytest.param(
            lambda: Cyclic(0.0, 0.1, 4, "square"), "wave must be one of triangle, .*, got 'square'", id="wave"
        ),
        pytest.param(
            lambda: Cyclic(0.0, 0.1, 4, "sine", "slow"), "decay must be one of none, .*, got 'slow'", id="decay"
        ),
        pytest.param(
            lambda: Cyclic(0.0, 0.1, 4, "sine", gamma=0.9), "gamma must be 1 unless decay is", id="idle-gamma"
        ),
        pytest.param(lambda: Cyclic(0.0, 0.1, 4, "sine", phase=0.5), "phase must be an integer, got 0.5", id="phase"),
        pytest.param(lambda: Sequential((), ()), "milestones must be one fewer than policies, got 0 for 0", id="empty"),
        pytest.param(lambda: Sequential((Constant(1),), (5,)), "one fewer than policies, got 1 for 1", id="too-many"),
        pytest.param(
            lambda: Sequential((0.1, Constant(1)), (5,)), "policies must be plain policies, .*, got 0.1", id="number"
        ),
        pytest.param(lambda: Sequential(Constant(1), ()), "policies must be a list of policies, got", id="no-sequence"),
        pytest.param(lambda: warmup(Constant(0.1), 0), "steps must be an integer of at least 1, got 0", id="warmup-0"),
        pytest.param(lambda: warmup(TRI0, 5), "policy must start above 0 for a warm-up", id="warmup-to-0"),
    ],
)
def test_a_bad_value_is_named_with_its_rule(build, message):
    with pytest.raises(ValueError, match=message):
        build()


TRI0 = Cyclic(0.0, 1.0, 4, "triangle")
