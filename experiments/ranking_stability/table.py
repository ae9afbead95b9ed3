"""Stability of rankings by few seeds: table and figure, from the frozen results of another study.

    python experiments/ranking_stability/table.py [--write] [RESULTS.csv]

By default the results are those of ``policies_mnist_lenet``; ``--write`` draws the figure and updates the README.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tables import save, stage, written  # noqa: E402

ROWS = HERE.parent / "policies_mnist_lenet" / "results.csv"
Steps = dict[str, dict[int, float]]  # of each policy, by seed; infinite for a miss


@dataclass(frozen=True)
class Named:
    """Winners of all rankings by ``n`` of the seeds.

    Args:
        n: Seeds of a ranking.
        right: Share of them that select the winner of all seeds; tied winners share it.
        policies: Number of policies that any of them selects.
        lost: Additional steps of the selected policy over the winner's, by medians over all seeds: mean and largest;
            infinite if its median is a miss.
    """

    n: int
    right: float
    policies: int
    lost: tuple[float, float]


def steps_of(rows: pl.DataFrame) -> Steps:
    """Return the steps to the target of the policies that a study compares."""
    found: Steps = {}
    for policy, seed, at in stage(rows, "run", "auto").select("policy", "seed", "steps_to_target").rows():
        found.setdefault(policy, {})[seed] = math.inf if at is None else float(at)
    return found


def winners(steps: Steps, seeds: Sequence[int]) -> set[str]:
    """Return the policies with the smallest median over these seeds.

    Example:
        >>> sorted(winners({"a": {1: 5, 2: 9, 3: 9}, "b": {1: 6, 2: 6, 3: 6}, "c": {1: 6, 2: 6, 3: 6}}, [1, 2, 3]))
        ['b', 'c']
    """
    medians = {policy: statistics.median(each[seed] for seed in seeds) for policy, each in steps.items()}
    return {policy for policy, median in medians.items() if median == min(medians.values())}


def stability(steps: Steps) -> list[Named]:
    """Return the winners of the rankings by all sets of seeds, for every size of set.

    Example:
        >>> stability({"a": {1: 5, 2: 9, 3: 9}, "b": {1: 6, 2: 6, 3: 6}})[0]
        Named(n=1, right=0.6666666666666666, policies=2, lost=(1.0, 3.0))
    """
    seeds = sorted({seed for each in steps.values() for seed in each})
    best = winners(steps, seeds)
    medians = {policy: statistics.median(each.values()) for policy, each in steps.items()}
    least = min(medians.values())
    found = []
    for n in range(1, len(seeds) + 1):
        named = [winners(steps, chosen) for chosen in itertools.combinations(seeds, n)]
        lost = [statistics.fmean(medians[policy] - least for policy in each) for each in named]
        largest = max(medians[policy] - least for each in named for policy in each)
        right = statistics.fmean(len(each & best) / len(each) for each in named)
        found.append(Named(n, right, len(set().union(*named)), (statistics.fmean(lost), largest)))
    return found


def table(steps: Steps) -> list[str]:
    """Return the table in Markdown."""
    every = sorted({seed for each in steps.values() for seed in each})
    best = " and ".join(f"`{name}`" for name in sorted(winners(steps, every)))
    lines = [f"{len(steps)} policies; all {len(every)} seeds name {best}.", ""]
    lines += ["| seeds | name the same winner | policies named | steps lost, mean | at most |", "|---|---|---|---|---|"]
    for each in stability(steps):
        lines.append(f"| {each.n} | {each.right:.0%} | {each.policies} | {each.lost[0]:.0f} | {each.lost[1]:.0f} |")
    return lines


def figure(steps: Steps, path: Path) -> None:
    """Draw the rank of each policy by each single seed; a long line is an unstable rank."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    seeds = sorted({seed for each in steps.values() for seed in each})
    order = sorted(steps, key=lambda policy: statistics.median(steps[policy].values()))
    ranks = {
        policy: [1 + sum(other[seed] < steps[policy][seed] for other in steps.values()) for seed in seeds]
        for policy in order
    }
    picture, axes = pyplot.subplots(figsize=(8, 0.9 + 0.3 * len(order)), layout="constrained")
    for y, policy in enumerate(order):
        axes.plot([min(ranks[policy]), max(ranks[policy])], [y, y], color="#bbbbbb", linewidth=3, zorder=1)
        axes.scatter(ranks[policy], [y] * len(seeds), s=28, alpha=0.6, color="#1f77b4", linewidths=0, zorder=2)
        axes.scatter(statistics.median(ranks[policy]), y, s=120, marker="|", color="#d62728", zorder=3)
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    axes.set(xlabel=f"rank by one seed alone (a dot for each of {len(seeds)}, a bar at the median)")
    axes.set_xticks(range(1, len(order) + 1))
    save(picture, path)


def main() -> None:
    """Print the table, or write it and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", type=Path, default=ROWS)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    steps = steps_of(pl.read_csv(given.rows))
    text = "\n".join(table(steps))
    if given.write:
        figure(steps, HERE / "figure.png")
        readme = HERE / "README.md"
        readme.write_text(written(readme.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
