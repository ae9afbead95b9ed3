"""A verdict without a Trainer, check by check."""

from __future__ import annotations

import json
import math

import pytest

from lrbench_pl.verdict import TargetCheck


def checked(*values: float, target: float | None = 0.7, **arguments: object) -> TargetCheck:
    check = TargetCheck(target, **arguments)  # type: ignore[arg-type]
    for index, value in enumerate(values):
        check.update(100 * (index + 1), value)
    return check


def test_reached_at_equality_and_said_at_once():
    check = TargetCheck(0.7)
    assert [check.update(step, value, float(step)) for step, value in ((1, 0.6), (2, 0.7), (3, 0.1))] == [
        False, True, True,
    ]  # fmt: skip
    verdict = check.verdict
    assert (verdict.status, verdict.message) == ("reached", "reached 0.7 at step 2")
    assert (verdict.steps_to_target, verdict.seconds_to_target, verdict.steps_run) == (2, 2.0, 3)
    assert (verdict.best_value, verdict.best_step, verdict.final_value) == (0.7, 2, 0.1)


def test_a_float32_accuracy_meets_a_decimal_target():
    assert TargetCheck(0.95).update(1, 0.949999988079071)


def test_confirmations_and_mode():
    check = checked(0.6, 0.8, 0.6, 0.5, 0.4, mode="min", confirmations=2, monitor="val/loss")
    assert check.verdict.steps_to_target == 300


def test_missed_once_the_budget_is_used():
    check = checked(0.1, 0.6, max_steps=300)
    assert check.verdict.message == "at step 200: the training has not ended"
    assert check.verdict.status == "stopped"
    check.update(300, 0.5)
    assert check.verdict.message == "missed 0.7 within 300 steps; best 0.6 at step 200"
    assert check.verdict.status == "missed"


def test_without_a_budget_the_loop_says_when_it_is_used():
    check = checked(0.1, 0.6)
    assert check.verdict.status == "stopped"
    check.finish(250)
    assert check.verdict.message == (
        "missed 0.7 within 250 steps; best 0.6 at step 200; the last check was at step 200, so the steps after it were "
        "not judged"
    )


def test_an_end_counts_once_and_no_later_check_does():
    check = checked(0.1)
    check.end("diverged", "the loss became non-finite")
    check.end("failed", "KeyError")
    assert not check.update(200, 0.9)
    assert (check.verdict.status, check.verdict.message) == ("diverged", "the loss became non-finite")
    assert len(check.checks) == 1


def test_no_target_is_a_miss_in_name_only():
    check = checked(0.1, 0.2, target=None, max_steps=200)
    assert check.verdict.message == "no target was set; best 0.2 at step 200"


def test_its_state_is_plain_data():
    check = checked(0.6, 0.7, confirmations=2)
    again = TargetCheck(0.7, confirmations=2)
    again.load_state_dict(json.loads(json.dumps(check.state_dict())))
    assert again.update(300, 0.8)
    assert again.verdict.steps_to_target == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": math.nan}, "target must be a finite number or None, got nan"),
        ({"target": 95}, "target must be at most 1 for 'val/accuracy', got 95; did you mean 0.95"),
        ({"mode": "maximum"}, "mode must be 'max' or 'min', got 'maximum'"),
        ({"confirmations": 0}, "confirmations must be an integer of at least 1, got 0"),
        ({"max_steps": 1.5}, "max_steps must be an integer of at least 1, got 1.5"),
    ],
)
def test_the_constructor_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        TargetCheck(**arguments)


def test_a_step_that_goes_back_or_is_none_is_refused():
    check = checked(0.1)
    with pytest.raises(ValueError, match="step must not go back: the last check was at step 100, got 50"):
        check.update(50, 0.2)
    with pytest.raises(ValueError, match=r"step must be an integer of at least 0, got 0\.5"):
        check.update(0.5, 0.2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"status must be one of reached, .*, got 'won'"):
        check.end("won", "")  # type: ignore[arg-type]
