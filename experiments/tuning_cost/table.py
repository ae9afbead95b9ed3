"""The table of this study, from its frozen results, or from folders of new runs.

    python experiments/tuning_cost/table.py [DIR...]

With folders their rows replace ``results.csv``.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import polars as pl

from lrbench_pl.analysis.load import load_runs

RESULTS = Path(__file__).parent / "results.csv"
COLUMNS = ["study", "dataset", "model", "optimizer", "policy", "lr", "seed", "max_steps", "target_accuracy", "status"]
COLUMNS += ["steps_to_target", "tuning_steps", "steps_run", "best_accuracy", "test_accuracy", "run_id", "git_sha"]


def lines(runs: pl.DataFrame, baseline: str = "inv") -> list[str]:
    """Steps in all until the target, per policy: median, range, and paired by seed the ratio to the baseline.

    A miss counts as more steps than the budget; a ratio with a missed baseline is a lower bound of the gain.
    """
    shown = ["| policy | reached | steps in all, median [range] | baseline / it, median [range] | test acc., median |"]
    shown.append("|---|---|---|---|---|")
    spent = {
        (policy, seed): float(budget if steps is None else steps)
        for policy, seed, steps, budget in runs.select("policy", "seed", "steps_to_target", "max_steps").rows()
    }
    for policy in sorted({policy for policy, _ in spent}, key=lambda name: (name != baseline, name)):
        mine = runs.filter(pl.col("policy") == policy)
        steps = [spent[policy, seed] for seed in mine["seed"]]
        gains = [spent[baseline, seed] / spent[policy, seed] for seed in mine["seed"] if (baseline, seed) in spent]
        reached = int(mine["steps_to_target"].is_not_null().sum())
        shown.append(
            f"| {policy} | {reached}/{mine.height} | {_spread(steps, '.0f')} | {_spread(gains, '.2f')} "
            f"| {mine['test_accuracy'].median():.4f} |"
        )
    return shown


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def main(folders: list[str]) -> None:
    """Freeze the rows of the folders, if any; print the table."""
    if folders:
        load_runs(folders).table.select(COLUMNS).sort("policy", "seed").write_csv(RESULTS)
    print("\n".join(lines(pl.read_csv(RESULTS))))


if __name__ == "__main__":
    main(sys.argv[1:])
