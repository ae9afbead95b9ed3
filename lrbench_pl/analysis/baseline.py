"""Compare each policy of a ranking with a baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lrbench_pl.analysis import statistics as st
from lrbench_pl.analysis.groups import Group, estimate
from lrbench_pl.analysis.load import AnalysisError

_SHOWN = 8  # names that a message lists


def add_speed_ups(
    baseline: str, groups: Sequence[Group], rows: Sequence[dict[str, Any]], keys: Sequence[str], seed: int
) -> None:
    """Add the speed-up over the baseline and the log-rank p-value to the rows, paired by seed if the seeds match.

    Args:
        baseline: Name of the baseline, or all values of ``keys`` joined by commas.
        groups: The groups of the ranking.
        rows: Their rows, which are changed.
        keys: Columns that distinguish the groups.
        seed: Seed of the resampling.

    Raises:
        AnalysisError: If no group has this name.
    """
    for group, row, other in zip(groups, rows, _baselines(baseline, groups, keys), strict=True):
        if other is None or not len(other.reached) or not len(group.reached) or group.open.any():
            continue
        if other is group:
            row["speed_up"] = 1.0
        elif not other.open.any() and not math.isnan(group.budget):
            row |= _compared(other, group, seed)


def compared_with(
    baseline: str, groups: Sequence[Group], keys: Sequence[str], seed: int = 0
) -> tuple[int, dict[str, float | None]] | None:
    """Return the place of the first group's baseline, and the columns of the speed-up over it.

    Returns:
        None if the first group has no baseline, is it itself, or the runs do not determine the speed-up.
    """
    other = _baselines(baseline, groups, keys)[0]
    first = groups[0]
    if other is None or other is first or first.open.any() or other.open.any() or math.isnan(first.budget):
        return None
    found = _compared(other, first, seed)
    return None if found["speed_up"] is None else (groups.index(other), found)


def _baselines(baseline: str, groups: Sequence[Group], keys: Sequence[str]) -> list[Group | None]:
    """Return the group to compare each group with: the baseline that agrees with it in all other columns."""
    by_name = {",".join(str(group.key[key]) for key in keys): group for group in groups}
    if baseline in by_name:
        return [by_name[baseline]] * len(groups)
    column = next((key for key in keys if any(str(group.key[key]) == baseline for group in groups)), None)
    if column is None:
        few = ", ".join(list(by_name)[:_SHOWN]) + (", …" if len(by_name) > _SHOWN else "")
        raise AnalysisError(f"--baseline must name one of {few}, got {baseline!r}")

    def rest(group: Group) -> tuple[Any, ...]:
        return tuple(group.key[key] for key in keys if key != column)

    partners = {rest(group): group for group in groups if str(group.key[column]) == baseline}
    return [partners.get(rest(group)) for group in groups]


def _compared(baseline: Group, group: Group, seed: int) -> dict[str, float | None]:
    pairs = st.pair_by_seed(baseline.seeds, group.seeds)
    first, second = pairs if pairs is not None else (slice(None), slice(None))
    sides = (baseline.steps[first], baseline.reached[first], group.steps[second], group.reached[second])
    speed_up = st.speed_up(*sides, rng=seed, paired=pairs is not None)
    return estimate("speed_up", speed_up) | {"log_rank_p": st.log_rank(*sides, rng=seed).p}
