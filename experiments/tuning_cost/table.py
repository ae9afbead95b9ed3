"""Tables of this study, from its frozen results or from folders of new runs.

    python experiments/tuning_cost/table.py [DIR...]

With folders their results replace ``results.csv``. The results of the other ways of tuning are in ``ways.csv``, as
their scripts write them.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import polars as pl

from lrbench_pl.analysis.load import load_runs

RESULTS = Path(__file__).parent / "results.csv"
WAYS = Path(__file__).parent / "ways.csv"
COLUMNS = ["study", "dataset", "model", "optimizer", "policy", "lr", "seed", "max_steps", "target", "status"]
COLUMNS += ["steps_to_target", "tuning_steps", "steps_run", "best_value", "test_accuracy", "run_id", "git_sha"]


def lines(runs: pl.DataFrame, ways: pl.DataFrame) -> list[str]:
    """Return the table of one workload: for each way, all steps until the target and the ratio to the default by seed.

    A default or composition that misses counts as its budget, a lower bound; a way that is cut off counts as what it
    spent.

    Args:
        runs: Results of ``auto`` and of one other policy, the default.
        ways: Results of the other ways.
    """
    (default,) = set(runs["policy"]) - {"auto"}
    spent: dict[str, dict[int, tuple[int, bool]]] = {default: {}, "auto": {}}
    for policy, seed, steps, budget in runs.select("policy", "seed", "steps_to_target", "max_steps").rows():
        spent[policy][seed] = (budget if steps is None else steps, steps is not None)
    alone = runs.filter(policy="auto").select("seed", "steps_to_target", "tuning_steps", "steps_run")
    spent["auto, its policy alone"] = {
        seed: ((run if steps is None else steps) - tuning, steps is not None)
        for seed, steps, tuning, run in alone.rows()
    }
    for method, seed, steps, reached in ways.select("method", "seed", "steps_in_all", "reached").rows():
        spent.setdefault(method, {})[seed] = (steps, reached)
    shown = ["| way | reached | steps in all, median [range] | default / it, median [range] |", "|---|---|---|---|"]
    for way, found in spent.items():
        steps = [float(steps) for steps, _ in found.values()]
        gains = [spent[default][seed][0] / steps for seed, (steps, _) in found.items()]
        reached = sum(reached for _, reached in found.values())
        name = f"{way}, the default" if way == default else way
        shown.append(f"| {name} | {reached}/{len(found)} | {_spread(steps, '.0f')} | {_spread(gains, '.2f')} |")
    return shown


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def main(folders: list[str]) -> None:
    """Freeze the results of the folders, if any; print a table for each workload."""
    if folders:
        load_runs(folders).table.select(COLUMNS).sort("dataset", "policy", "seed").write_csv(RESULTS)
    runs, ways = pl.read_csv(RESULTS), pl.read_csv(WAYS)
    for (dataset, model, target, budget), mine in runs.group_by(
        "dataset", "model", "target", "max_steps", maintain_order=True
    ):
        print(f"{dataset}/{model}, target {target:.4g}, budget {budget}:\n")
        print("\n".join(lines(mine, ways.filter(pl.col("workload") == f"{dataset}/{model}"))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
