"""Runs the policies that `auto` composed on new seeds: is it the policy, or the seed?

    python experiments/tuning_cost/transfer.py                                    # the table of the frozen results
    python experiments/tuning_cost/transfer.py DIR... [--seeds 101,102,103] [--work multirun/transfer] [OVERRIDE...]

Each folder is a sweep of ``lr_policy=auto``. Every policy that reached its target there is run over as many steps as it
took, without its tuning, on new seeds; the results are frozen in ``transfer.csv``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from lrbench_pl.analysis.load import load_runs

HERE = Path(__file__).resolve().parent
ROWS = HERE / "transfer.csv"
COLUMNS = ["dataset", "model", "optimizer", "composed_on", "seed", "max_steps", "target", "status"]
COLUMNS += ["steps_to_target", "final_value", "best_value", "test_accuracy", "git_sha"]


def lines(rows: pl.DataFrame) -> list[str]:
    """Return the table in Markdown, one line for each composed policy."""
    shown = ["| workload, target | composed on | steps | new seeds that reached it | best check, median [range] |"]
    shown.append("|---|---|---|---|---|")
    for (dataset, model, target, seed, steps), part in rows.group_by(
        "dataset", "model", "target", "composed_on", "max_steps", maintain_order=True
    ):
        ends = part["best_value"].to_list()
        hits = part["steps_to_target"].is_not_null().sum()
        shown.append(
            f"| {dataset}/{model}, {target:.4f} | seed {seed} | {steps} | {hits}/{len(part)} "
            f"| {statistics.median(ends):.4f} [{min(ends):.4f}, {max(ends):.4f}] |"
        )
    return shown


def measure(composed: pl.DataFrame, seeds: str, work: Path, overrides: Sequence[str]) -> pl.DataFrame:
    """Run every policy that reached its target on the seeds; return the results."""
    found = []
    for row in composed.filter(pl.col("steps_to_target").is_not_null()).sort("dataset", "seed").to_dicts():
        steps = row["steps_to_target"] - row["tuning_steps"]
        folder = work / f"{row['dataset']}-{row['model']}-{row['seed']}"
        command = [sys.executable, str(HERE.parents[1] / "run.py"), "-m", *overrides]
        command += [f"lr_policy_file={Path(row['folder']).resolve() / 'policy.yaml'}", f"seed={seeds}"]
        command += [f"max_steps={steps}", f"target={row['target']!r}", f"hydra.sweep.dir={folder}"]
        done = subprocess.run([*command, "hydra/launcher=joblib"], check=False)
        if done.returncode != 0:
            sys.exit(f"{folder}: the sweep ended with {done.returncode}; see above, and give the same command again")
        found.append(load_runs([folder]).table.with_columns(pl.lit(row["seed"]).alias("composed_on")))
    if not found:
        sys.exit("expected folders with runs of lr_policy=auto that reached their target, found none")
    return pl.concat(found).select(COLUMNS)


def main() -> None:
    """Measure, if there are folders; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words", nargs="*", help="folders of compositions, and overrides (NAME=VALUE) of their workload"
    )
    parser.add_argument("--seeds", default="101,102,103")
    parser.add_argument("--work", type=Path, default=Path("multirun/transfer"))
    given = parser.parse_intermixed_args()
    folders = [word for word in given.words if "=" not in word]
    if folders:
        overrides = [word for word in given.words if "=" in word]
        new = measure(load_runs(folders).table, given.seeds, given.work, overrides)
        workloads = new.select("dataset", "model").unique()
        kept = pl.read_csv(ROWS).join(workloads, on=["dataset", "model"], how="anti") if ROWS.exists() else new.clear()
        new = new.with_columns(pl.col("status").cast(pl.String))
        kept = kept.with_columns(pl.col("status").cast(pl.String))
        pl.concat([kept, new], how="vertical_relaxed").sort("dataset", "composed_on", "seed").write_csv(ROWS)
    print("\n".join(lines(pl.read_csv(ROWS))))


if __name__ == "__main__":
    main()
