"""Summarise the outcome of a selection as text."""

from __future__ import annotations

from collections.abc import Sequence

from lrbench_pl.selection.trials import Selection, Standing
from lrbench_pl.words import counted


def summary(found: Selection, target: float) -> list[str]:
    r"""Return the outcome of a selection as lines of text.

    Example:
        >>> from lrbench_pl.selection.trials import Candidate
        >>> winner = Candidate("cosine", "adam", 0.002)
        >>> found = Selection(winner, 120, "reached", confirmed=2, asked=2, steps=900, seconds=7.5, jobs=21)
        >>> print("\n".join(summary(found, 0.96)))
        selected: cosine at 0.002 (adam) reaches 0.96 within 120 steps, on 2 of 2 fresh seeds
        tuning cost: 900 steps in 21 trainings, 7.5 s
    """
    lines = [_outcome(found, target)]
    first = "" if found.steps_to_first is None else f"; first success after {counted(found.steps_to_first, 'step')}"
    spent = f"{counted(found.steps, 'step')} in {counted(found.jobs, 'training')}"
    lines.append(f"tuning cost: {spent}, {found.seconds:.1f} s{first}")
    if found.ranking:
        lines += ["", *_table(found.ranking)]
    if found.avoided:
        lines += ["", "avoided", *(f"  {words}" for words in found.avoided)]
    return lines


def _outcome(found: Selection, target: float) -> str:
    if found.winner is None:
        return f"nothing selected: no training fits the tuning budget; target {target:g}"
    if found.status == "missed":
        best = next(standing for standing in found.ranking if standing.candidate == found.winner)
        value = "no value" if best.value is None else f"{best.value:.4g}"
        return f"missed {target:g}: the best policy is {found.winner} over {counted(found.horizon, 'step')}, {value}"
    evidence = f"on {found.confirmed} of {found.asked} fresh seeds" if found.asked else "on no fresh seed"
    return f"selected: {found.winner} reaches {target:g} within {counted(found.horizon, 'step')}, {evidence}"


def _table(ranking: Sequence[Standing]) -> list[str]:
    names = [str(standing.candidate) for standing in ranking]
    width = max(map(len, names))
    lines = [f"    {'ranking':{width}}  horizon  reached   steps    best"]
    for number, (name, standing) in enumerate(zip(names, ranking, strict=True), 1):
        steps = "∞" if standing.steps is None else f"{standing.steps:g}"
        value = "-" if standing.value is None else f"{standing.value:.4f}"
        reached = f"{standing.reached}/{standing.runs}"
        lines.append(f"{number:>3} {name:{width}} {standing.horizon:>8} {reached:>8} {steps:>7} {value:>7}")
    return lines
