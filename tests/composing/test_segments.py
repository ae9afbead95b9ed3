"""A tuner that is told again what it was told."""

import pytest

from lrbench_pl.composing.segments import Journal, Leg, Outcome
from lrbench_pl.policies import Constant


def doubling(first=10, limit=40, lr=0.1, note=""):
    """Legs that double until one takes more than the limit."""
    steps = first
    while steps <= limit:
        outcome = yield Leg("trunk", Constant(lr), 0, steps, note=note)
        if outcome.diverged:
            raise ValueError("diverged")
        steps = 2 * outcome.steps
    return steps


def told(outcomes, **arguments):
    journal = Journal(doubling(**arguments))
    for outcome in (None, *outcomes):
        journal.send(outcome)
    return journal


def test_a_replayed_tuner_goes_on_where_the_other_was():
    journal = told([Outcome(10, 0.5, losses=(1.0, 2.0))])
    again = Journal(doubling(note="in other words"))
    assert [leg.steps for leg in again.replay(journal.state_dict())] == [10, 20]
    assert again.state_dict() == journal.state_dict()
    assert again.send(Outcome(20)).steps == journal.send(Outcome(20)).steps == 40


@pytest.mark.parametrize(
    ("last", "found", "failure"), [(Outcome(30), 60, None), (Outcome(10, diverged=True), None, "diverged")]
)
def test_ends_are_replayed_too(last, found, failure):
    journal, again = told([last]), Journal(doubling())
    assert [leg.steps for leg in again.replay(journal.state_dict())] == [10]
    assert journal.has_ended
    assert again.has_ended
    assert (again.found, again.failure) == (journal.found, journal.failure) == (found, failure)
    assert not told([]).has_ended


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"lr": 0.2}, "the plan takes a trunk of 10 steps from 0 where leg 1 of the checkpoint was another one"),
        ({"limit": 15}, "the plan ends where leg 2 of the checkpoint was another one"),
    ],
)
def test_another_tuner_is_refused(other, message):
    with pytest.raises(ValueError, match=message):
        Journal(doubling(**other)).replay(told([Outcome(10)]).state_dict())
