"""Divergence is detected from the course of the loss, not from its level."""

import math
import random

import pytest

from lrbench_pl.composing.divergence import LossWatch, noise
from lrbench_pl.composing.range_test import RateRamp, analyse


def course(shape, steps=200, spread=0.1, seed=0):
    draw = random.Random(seed)
    return [shape(t) + draw.gauss(0.0, spread) for t in range(steps)]


def learning(t):
    return 0.1 + 2.2 * math.exp(-t / 30)


COURSES = {
    "learns": (course(learning), False),
    "stands still": (course(lambda t: 2.3), False),
    "stands still almost silently": (course(lambda t: 2.3, spread=1e-4), False),
    "starts with a bump": (course(lambda t: learning(t) + 1.5 * math.exp(-(((t - 3) / 2) ** 2))), False),
    "learns with one outlier": (course(lambda t: learning(t) + 5.0 * (t == 120)), False),
    "explodes": (course(lambda t: 2.3 * 1.3**t, steps=60), True),
    "jumps and stays there": (course(lambda t: 2.3 + 20.0 * (t > 10), spread=0.5), True),
    "learns and explodes": (course(lambda t: learning(t) if t < 100 else 1.2 ** (t - 100), steps=160), True),
    "learns and dies": (course(lambda t: learning(t) if t < 100 else 2.3), True),
}


def first_alarm(losses):
    watch = LossWatch()
    return next((step for step, loss in enumerate(losses) if watch.update(loss)), None)


@pytest.mark.parametrize("name", COURSES)
@pytest.mark.parametrize("scale", [0.001, 1.0, 1024.0])
@pytest.mark.parametrize("offset", [0.0, -5.0, 100.0])
def test_detection_does_not_depend_on_level_and_scale(name, scale, offset):
    losses, diverges = COURSES[name]
    plain = first_alarm(losses)
    assert (plain is not None) is diverges
    assert first_alarm([scale * (loss + offset) for loss in losses]) == plain


def test_noise_alone_is_rarely_a_divergence():
    """The first loss may be far below the others by chance, which looks like a rise."""
    alarms = [first_alarm(course(lambda t: 0.0, steps=400, seed=seed)) is not None for seed in range(200)]
    assert sum(alarms) <= 20


def test_a_reset_forgets_all_but_the_first_loss():
    watch = LossWatch()
    losses, _ = COURSES["explodes"]
    assert any([watch.update(loss) for loss in losses])
    watch.reset()
    assert not any(watch.update(loss) for loss in COURSES["learns"][0])
    assert watch.state_dict()["first"] == losses[0]


def test_a_watch_resumes_from_its_state():
    losses = COURSES["learns and dies"][0]
    watch, again = LossWatch(), LossWatch()
    for loss in losses[:80]:
        watch.update(loss)
    again.load_state_dict(watch.state_dict())
    assert [again.update(loss) for loss in losses[80:]] == [watch.update(loss) for loss in losses[80:]]


def test_a_non_finite_loss_is_a_divergence_and_leaves_the_state():
    watch = LossWatch()
    watch.update(1.0)
    before = watch.state_dict()
    assert watch.update(math.nan)
    assert watch.update(math.inf)
    assert watch.state_dict() == before


def test_noise_of_too_few_losses_is_zero():
    assert noise([]) == noise([3.0]) == 0.0


RAMP = RateRamp(0.001, 10.0, 50)
CURVES = {
    "learns, then explodes": lambda t: 2.3 - 0.05 * t if t < 30 else 0.8 + 0.3 * 1.6 ** (t - 30),
    "plateau, then explodes": lambda t: 2.3 if t < 35 else 2.3 + 0.3 * 1.6 ** (t - 35),
    "plateau throughout": lambda t: 2.3,
    "learns throughout": lambda t: 2.3 - 0.03 * t,
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("offset", [-5.0, -2.3, 50.0])
def test_a_range_test_does_not_depend_on_the_level_of_the_loss(name, offset):
    repeats = [course(CURVES[name], 50, 0.05, seed) for seed in (1, 2)]
    plain = analyse(RAMP, repeats)
    shifted = analyse(RAMP, [[loss + offset for loss in losses] for losses in repeats])
    for field in ("low", "high", "peak", "diverged_at"):
        assert getattr(shifted, field) == getattr(plain, field), field
    assert (plain.diverged_at is not None) is name.endswith("explodes")


def test_rates_whose_loss_was_not_seen_are_not_usable():
    seen = course(CURVES["learns throughout"], 50, 0.05)[:30]
    assert analyse(RAMP, [seen]).high == RAMP(29)


def test_a_range_test_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="expected the losses of at least one repeat, got none"):
        analyse(RAMP, [[]])
