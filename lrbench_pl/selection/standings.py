"""Compare the candidates of a rung, and describe the outcome."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from lrbench_pl.selection.trials import Candidate, Selection, SelectionOptions, Standing, TrialResult
from lrbench_pl.words import counted


def standings(results: Mapping[Candidate, Sequence[TrialResult]], horizon: int, mode: str) -> list[Standing]:
    """Return the candidates of a rung, best first: by share of seeds that reached, median steps, mean value.

    A candidate that reached the target with half of the seeds or fewer counts as a miss.
    """
    sign = 1.0 if mode == "max" else -1.0
    found = []
    for candidate, own in results.items():
        steps = statistics.median(math.inf if r.steps_to_target is None else r.steps_to_target for r in own)
        values = [result.value for result in own if result.value is not None and math.isfinite(result.value)]
        found.append(
            Standing(
                candidate=candidate,
                horizon=horizon,
                reached=sum(result.status == "reached" for result in own),
                runs=len(own),
                steps=steps if math.isfinite(steps) else None,
                value=statistics.fmean(values) if len(values) == len(own) else None,
                diverged=sum(result.status in ("diverged", "failed") for result in own),
            )
        )

    def key(standing: Standing) -> tuple[float, ...]:
        value = math.inf if standing.value is None else -sign * standing.value
        if standing.steps is None:
            return 0.0, standing.diverged, math.inf, value
        return -standing.reached / standing.runs, standing.diverged, standing.steps, value

    return sorted(found, key=key)


def promoted(ranked: Sequence[Standing], options: SelectionOptions) -> list[Standing]:
    """Return one in ``eta`` candidates, the best first, without those that diverged with every seed."""
    kept = ranked[: math.ceil(len(ranked) / options.eta)]
    return [standing for standing in kept if standing.diverged < standing.runs]


def update_ranking(found: Selection, ranked: Sequence[Standing]) -> None:
    """Put the candidates of this rung first; recommend the best of them until one reached the target."""
    current = {standing.candidate for standing in ranked}
    found.ranking = [*ranked, *(standing for standing in found.ranking if standing.candidate not in current)]
    best = ranked[0]
    if found.status == "missed" and best.diverged < best.runs:
        found.winner, found.horizon = best.candidate, best.horizon


def note_dropped(
    found: Selection,
    ranked: Sequence[Standing],
    kept: Sequence[Standing],
    results: Mapping[Candidate, Sequence[TrialResult]],
    last: bool,
) -> None:
    """Note why candidates were not promoted."""
    for standing in ranked:
        over = f"{standing.candidate} over {counted(standing.horizon, 'step')}"
        bad = [result for result in results[standing.candidate] if result.status in ("diverged", "failed")]
        if bad:
            found.avoided.append(f"{over}: {bad[0].message or bad[0].status}")
        elif standing not in kept and not last:
            than = f", the last kept {outcome(kept[-1])}" if kept else ""
            found.avoided.append(f"{over}: {outcome(standing)}{than}")


def outcome(standing: Standing) -> str:
    """Return the outcome of a candidate in words."""
    if standing.steps is not None:
        return f"reached at {standing.steps:g}"
    return "no value" if standing.value is None else f"{standing.value:.4g}"


def rung_line(found: Selection, name: str, ranked: Sequence[Standing]) -> str:
    """Return the line that summarises a rung."""
    best = ranked[0]
    reached = sum(standing.steps is not None for standing in ranked)
    return (
        f"{name}, {counted(best.horizon, 'step')} each: {counted(len(ranked), 'candidate')}, {reached} reached; "
        f"best {best.candidate}: {outcome(best)}; {counted(found.steps, 'step')} spent"
    )
