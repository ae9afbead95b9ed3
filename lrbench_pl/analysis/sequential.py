"""Sequential test of the share of seeds that reach a target, valid after every seed."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from scipy.special import betaln
from scipy.stats import beta

MOST_SEEDS = 1_000_000  # a share that takes more to confirm is refused
_A = _B = 0.5  # Jeffreys' prior, restricted to one side


@dataclass(frozen=True)
class Decision:
    """Decision about the share of seeds that reach the target.

    Args:
        verdict: ``confirmed`` if it is at least the given share, ``refuted`` if it is below, or ``undecided``.
        seeds: Number of seeds used.
        reached: Number of these that reached the target.
    """

    verdict: Literal["confirmed", "refuted", "undecided"]
    seeds: int
    reached: int


def evidence(reached: int, seeds: int, share: float) -> tuple[float, float]:
    """Compute the log evidence that the probability of a success is above ``share``, and that it is below.

    Each is a test martingale: the likelihood averaged over the probabilities on one side of ``share`` (Beta(1/2, 1/2)),
    over the likelihood at ``share``. If the probability lies on the other side, the evidence *ever* reaches ``x`` with
    probability at most ``1 / x`` (Ville 1939), for any number of looks and any stopping rule.

    Args:
        reached: Number of successes.
        seeds: Number of trials.
        share: The probability to compare with, in (0, 1).

    Example:
        >>> [round(value, 2) for value in evidence(reached=0, seeds=0, share=0.8)]
        [0.0, 0.0]
        >>> above, below = evidence(reached=17, seeds=17, share=0.8)
        >>> above > math.log(20), below < 0
        (True, True)

    Source: Robbins 1970, Ann. Math. Stat. 41, 1397 (mixtures); Howard, Ramdas, McAuliffe & Sekhon 2021, arXiv
    1810.08240; Waudby-Smith & Ramdas 2024, arXiv 2010.09686.
    """
    missed = seeds - reached
    a, b = _A + reached, _B + missed
    whole = betaln(a, b) - betaln(_A, _B) - reached * math.log(share) - missed * math.log1p(-share)
    above = whole + beta.logsf(share, a, b) - beta.logsf(share, _A, _B)
    below = whole + beta.logcdf(share, a, b) - beta.logcdf(share, _A, _B)
    return float(above), float(below)


def decide(outcomes: Iterable[bool], share: float = 0.8, confidence: float = 0.95) -> Decision:
    """Decide whether at least ``share`` of all seeds reach the target, from as few seeds as possible.

    The probability of a wrong decision is at most ``1 - confidence``, although the test looks after every seed.

    Args:
        outcomes: Whether each seed reached the target, in an order that does not depend on the outcomes.
        share: The share to decide about, in (0, 1).
        confidence: Confidence of the decision, in (0, 1).

    Raises:
        ValueError: If ``share`` or ``confidence`` is outside of (0, 1).

    Example:
        >>> decide([True] * 30)
        Decision(verdict='confirmed', seeds=17, reached=17)
        >>> decide([True, False, False, False, False])
        Decision(verdict='refuted', seeds=5, reached=1)
        >>> decide([True] * 5)
        Decision(verdict='undecided', seeds=5, reached=5)
    """
    for name, value in (("share", share), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {value}")
    enough = -math.log1p(-confidence)
    seeds = reached = 0
    for outcome in outcomes:
        seeds += 1
        reached += bool(outcome)
        above, below = evidence(reached, seeds, share)
        if max(above, below) >= enough:
            return Decision("confirmed" if above > below else "refuted", seeds, reached)
    return Decision("undecided", seeds, reached)


def seeds_to_confirm(reached: int, seeds: int, share: float = 0.8, confidence: float = 0.95) -> int:
    """Return the number of further seeds that confirm the share if all of them reach the target.

    Each success raises the evidence, so the number is found by bisection.

    Raises:
        ValueError: If it is above ``MOST_SEEDS``.

    Example:
        >>> seeds_to_confirm(0, 0), seeds_to_confirm(4, 5)
        (17, 26)
    """
    enough = -math.log1p(-confidence)

    def confirms(more: int) -> bool:
        return evidence(reached + more, seeds + more, share)[0] >= enough

    above = 1
    while not confirms(above):
        if above >= MOST_SEEDS:
            raise ValueError(
                f"a share of {share!r} at confidence {confidence!r} takes more than {MOST_SEEDS:,} seeds to confirm; "
                "give a smaller --share"
            )
        above = min(2 * above, MOST_SEEDS)
    return bisect.bisect_left(range(above), True, key=confirms)
