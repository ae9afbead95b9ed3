"""A plan that is replayed from a journal."""

import pytest

from lrbench_pl.composing.segments import Journal, Segment, SegmentResult
from lrbench_pl.policies import Constant


def doubling(first=10, limit=40, lr=0.1, note=""):
    """Segments that double their steps until one takes more than the limit."""
    steps = first
    while steps <= limit:
        result = yield Segment("stable", Constant(lr), 0, steps, note=note)
        if result.diverged:
            raise ValueError("diverged")
        steps = 2 * result.steps
    return steps


def journal_of(results, **arguments):
    journal = Journal(doubling(**arguments))
    for result in (None, *results):
        journal.send(result)
    return journal


def test_a_replayed_plan_continues_where_the_other_was():
    journal = journal_of([SegmentResult(10, 0.5, losses=(1.0, 2.0))])
    again = Journal(doubling(note="in other words"))
    assert [segment.steps for segment in again.replay(journal.state_dict())] == [10, 20]
    assert again.state_dict() == journal.state_dict()
    assert again.send(SegmentResult(20)).steps == journal.send(SegmentResult(20)).steps == 40


@pytest.mark.parametrize(
    ("last", "found", "failure"), [(SegmentResult(30), 60, None), (SegmentResult(10, diverged=True), None, "diverged")]
)
def test_ends_are_replayed_too(last, found, failure):
    journal, again = journal_of([last]), Journal(doubling())
    assert [segment.steps for segment in again.replay(journal.state_dict())] == [10]
    assert journal.has_ended
    assert again.has_ended
    assert (again.found, again.failure) == (journal.found, journal.failure) == (found, failure)
    assert not journal_of([]).has_ended


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"lr": 0.2}, r"segment 1 of the plan \(stable, 10 steps from step 0\) differs from that of the checkpoint"),
        ({"limit": 15}, "the plan ends before segment 2 of the checkpoint"),
    ],
)
def test_another_plan_is_refused(other, message):
    with pytest.raises(ValueError, match=message):
        Journal(doubling(**other)).replay(journal_of([SegmentResult(10)]).state_dict())
