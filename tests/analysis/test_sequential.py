"""The error of the test over seeds, computed exactly."""

import math

import pytest

from lrbench_pl.analysis.sequential import decide, evidence


def errors(p, share, most=150, confidence=0.95):
    """Chance that looking after each of ``most`` seeds ever confirms and ever refutes, if ``p`` of all seeds reach."""
    enough = -math.log1p(-confidence)
    open_, confirmed, refuted = {0: 1.0}, 0.0, 0.0
    for n in range(1, most + 1):
        after = {}
        for k, chance in open_.items():
            for hit, weight in ((1, p), (0, 1 - p)):
                after[k + hit] = after.get(k + hit, 0.0) + chance * weight
        open_ = {}
        for k, chance in after.items():
            above, below = evidence(k, n, share)
            if above >= enough:
                confirmed += chance
            elif below >= enough:
                refuted += chance
            else:
                open_[k] = chance
    return confirmed, refuted


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_at_the_boundary_each_wrong_decision_is_rarer_than_one_in_twenty(share):
    confirmed, refuted = errors(share, share)
    assert 0.001 < confirmed <= 0.05
    assert 0.001 < refuted <= 0.05


@pytest.mark.slow
def test_away_from_the_boundary_the_decision_is_right():
    assert errors(0.98, 0.8)[0] > 0.9
    assert errors(0.4, 0.8)[1] > 0.99


@pytest.mark.parametrize(("share", "confidence"), [(0, 0.9), (1, 0.9), (0.8, 0), (0.8, 1)])
def test_share_and_confidence_lie_between_0_and_1(share, confidence):
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\), got"):
        decide([True], share, confidence)
