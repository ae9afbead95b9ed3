"""Notes below a ranking: how to read it, and what it does not show."""

from __future__ import annotations

import polars as pl

from lrbench_pl.analysis.columns import group_keys
from lrbench_pl.analysis.comparable import with_settings
from lrbench_pl.analysis.load import Runs
from lrbench_pl.analysis.ranking import equal_policies
from lrbench_pl.analysis.statistics import FEWEST_FOR_INTERVAL, FEWEST_FOR_RANK
from lrbench_pl.words import counted

# Columns of one training. Runs that agree in all of them repeat a seed.
_TRAINING = ("dataset", "model", "optimizer", "batch_size", "policy", "policy_id", "lr", "max_steps", "seed")


def notes(ranking: pl.DataFrame, runs: Runs, most: int = 5) -> list[str]:
    """Return the notes below a ranking, one line each.

    Args:
        ranking: From :func:`lrbench_pl.analysis.ranking.rank`.
        runs: The runs that were ranked.
        most: Number of failures of a kind that are listed; the others are counted.
    """
    table = runs.table
    found = [_summary(ranking, runs)]
    if ranking["rank_low"].is_not_null().any():
        found.append(
            "[low, high]: 95 % intervals; no policy in a tier is significantly worse than the tier's first (5 % level, "
            "all pairs at once)"
        )
    found += [*few_runs(ranking), *_unequal_runs(ranking), *_mixed(table, ranking), *_repeated(table)]
    found += [*_engines(table), *_averaged(table)]
    if "open" in ranking.columns and (n := int(ranking["open"].sum() or 0)):
        found.append(
            f"open: {counted(n, 'run')} stopped at an easier target and cannot answer beyond; shares and medians are "
            "Kaplan-Meier estimates; train with stop_at_target=false to avoid this"
        )
    if "speed_up" in ranking.columns:
        found.append("speed-up: median of the baseline's steps over the policy's, paired by seed if all seeds match")
    found += [*_failures(table, most), *_skipped(runs, most)]
    if "policy" in ranking.columns:
        found += [f"the same policy over this budget: {', '.join(names)}" for names in equal_policies(table)]
    return found


def _summary(ranking: pl.DataFrame, runs: Runs) -> str:
    counts = {name: int((runs.table["status"] == name).sum()) for name in ("failed", "stopped")}
    counts["skipped"] = len(runs.skipped)
    total = counted(runs.table.height, "run") + "".join(f", {n} {name}" for name, n in counts.items() if n)
    if "reached" not in ranking.columns:
        return f"{total}; medians"
    targets = runs.table["target"].unique().to_list()
    if targets == [None]:
        return f"{total}; the runs have no target, so all count as missed; use --metric utility or give --target"
    target = f" to {targets[0]:g}" if len(targets) == 1 else ""
    return f"{total}; steps{target}, medians; ∞: half of the runs or more missed"


def _failures(table: pl.DataFrame, most: int) -> list[str]:
    found: list[str] = []
    for status in ("failed", "stopped"):
        runs = table.filter(table["status"].cast(pl.String) == status)
        for run in runs.head(most).to_dicts():
            message = run["message"] or "no reason given"
            found.append(f"{status}: {run['policy']} (seed {run['seed']}) in {run['folder']}: {message}")
        if runs.height > most:
            found.append(f"{status}: {runs.height - most} more")
    return found


def _skipped(runs: Runs, most: int) -> list[str]:
    found = [f"skipped: {skipped.path}: {skipped.reason}" for skipped in runs.skipped[:most]]
    return [*found, f"skipped: {len(runs.skipped) - most} more"] if len(runs.skipped) > most else found


def _unequal_runs(ranking: pl.DataFrame) -> list[str]:
    counts = ranking.filter(pl.col("runs") > 0)["runs"]
    if counts.n_unique() < 2:
        return []
    return [f"unequal numbers of runs: {min(counts)} to {max(counts)} per policy"]


def _mixed(table: pl.DataFrame, ranking: pl.DataFrame) -> list[str]:
    """Return a note for each group that contains several policies under one name.

    Example:
        >>> table = pl.DataFrame({"policy": ["step"] * 2, "policy_id": ["a", "b"], "max_steps": [9, 9]})
        >>> _mixed(table, pl.DataFrame({"tier": [1], "policy": ["step"], "runs": [2]}))
        ['step: 2 policies of this name are ranked as one; separate them with --by policy,policy_id']
    """
    keys = group_keys(ranking)
    if "policy_id" not in table.columns or "policy_id" in keys or "policy" not in keys:
        return []
    table = with_settings(table, keys)
    # an id depends on the budget
    apart = [*keys, *(name for name in ("max_steps",) if name in table.columns and name not in keys)]
    counts = table.drop_nulls("policy_id").group_by(apart, maintain_order=True).agg(pl.col("policy_id").n_unique())
    by = ",".join([*keys, "policy_id"])
    return [
        f"{row['policy']}: {row['policy_id']} policies of this name are ranked as one; separate them with --by {by}"
        for row in counts.filter(pl.col("policy_id") > 1).to_dicts()
    ]


def _repeated(table: pl.DataFrame) -> list[str]:
    """Return a note if a training occurs more than once, as in two sweeps with the same seeds.

    Example:
        >>> _repeated(pl.DataFrame({"policy": ["tri", "tri", "cos"], "seed": [0, 0, 0]}))
        ['1 run repeats policy and seed of another and is counted again: use new seeds, or leave one out']
        >>> _repeated(pl.DataFrame({"policy": ["tri", "tri"], "seed": [0, 1]}))
        []
    """
    known = [name for name in _TRAINING if name in table.columns]
    table = table.drop_nulls("seed") if "seed" in known else table  # those refused before it was known repeat nothing
    if "seed" not in known or not (n := table.height - table.select(known).unique().height):
        return []
    repeat, others, are = ("repeats", "another", "is") if n == 1 else ("repeat", "others", "are")
    return [
        f"{counted(n, 'run')} {repeat} policy and seed of {others} and {are} counted again: use new seeds, or leave "
        "one out"
    ]


def _engines(table: pl.DataFrame) -> list[str]:
    """Return a note if the runs were trained by several engines, which round differently.

    Example:
        >>> _engines(pl.DataFrame({"engine": ["serial", "stacked", None]}))
        ['trained by several engines (serial, stacked), whose numbers differ in the lower digits']
        >>> _engines(pl.DataFrame({"engine": ["serial", None]}))
        []
    """
    found = table["engine"].drop_nulls().unique().sort().to_list() if "engine" in table.columns else []
    if len(found) < 2:
        return []
    return [f"trained by several engines ({', '.join(found)}), whose numbers differ in the lower digits"]


def _averaged(table: pl.DataFrame) -> list[str]:
    """Return a note for each policy with runs whose averaged weights reached the target.

    Example:
        >>> _averaged(pl.DataFrame({"policy": ["auto", "auto", "tri"], "weights": ["averaged", None, None]}))
        ['auto: averaged weights reached the target in 1 of 2 runs; the others are judged by their own weights']
        >>> _averaged(pl.DataFrame({"policy": ["tri"]}))
        []
    """
    if "weights" not in table.columns:
        return []
    counts = table.group_by("policy", maintain_order=True).agg(pl.col("weights").count(), pl.len().alias("runs"))
    return [
        f"{row['policy']}: averaged weights reached the target in {row['weights']} of {counted(row['runs'], 'run')}; "
        "the others are judged by their own weights"
        for row in counts.filter(pl.col("weights") > 0).to_dicts()
    ]


def few_runs(ranking: pl.DataFrame) -> list[str]:
    """Return a note if a policy has too few runs for intervals.

    Example:
        >>> few_runs(pl.DataFrame({"policy": ["a", "b"], "runs": [1, 1]}))
        ['1 run each: no interval; comparing policies takes 3 seeds or more, an interval of the median 5']
    """
    counts = ranking.filter(pl.col("runs") > 0)["runs"]
    if not len(counts) or counts.min() >= FEWEST_FOR_INTERVAL:  # type: ignore[operator]
        return []
    least, most = int(counts.min()), int(counts.max())  # type: ignore[arg-type]
    total = counted(least, "run") + (" each" if least == most else f" for some policies, {most} for others")
    if least < FEWEST_FOR_RANK:
        missing = "no interval" if most < FEWEST_FOR_RANK else f"no interval below {FEWEST_FOR_RANK} runs"
        return [
            f"{total}: {missing}; comparing policies takes {FEWEST_FOR_RANK} seeds or more, an interval of the median "
            f"{FEWEST_FOR_INTERVAL}"
        ]
    return [f"{total}: no interval of the median below {FEWEST_FOR_INTERVAL} runs"]
