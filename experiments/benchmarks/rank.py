"""Time of `lrbench rank` on many runs, against reading them one by one into pandas.

    python experiments/benchmarks/rank.py [--runs 10000] [--policies 60] [--rounds 5] [--quick]

Generated run folders hold the files of a run (result.json, metrics.csv, policy.yaml, run.log, .hydra/config.yaml).
Seconds of the whole command in a new process, of reading (`load_runs`) and of ranking (`rank`); the peer reads the same
files with `json.load` below `Path.rglob` and builds a `pandas.DataFrame` from the dicts, without validation. Both
alternate in rounds: medians of the seconds and of the paired ratios, with quartiles.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from lrbench_pl.analysis.load import load_runs
from lrbench_pl.analysis.ranking import rank
from lrbench_pl.runs.config import compose
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import RunSpec


def generate(folder: Path, runs: int, policies: int) -> None:
    """Write run folders whose steps differ between policies and between seeds."""
    rng = random.Random(0)
    settings = RunSpec.from_config(compose(["lr_policy=tri"])).settings
    for number in range(runs):
        policy, seed = number % policies, number // policies
        steps = 20 * math.ceil(rng.lognormvariate(math.log(150 + 8 * policy), 0.2) / 20)
        reached = steps <= 1000
        best = 0.95 + 0.04 * rng.random() if reached else 0.94
        row = RunResult(
            run_id=f"{number:012x}", study="benchmark", dataset="digits", model="mlp", optimizer="momentum",
            batch_size=64, policy=f"policy_{policy}", policy_id=f"{policy:012x}", policy_repr="Constant(init_lr=0.05)",
            lr=0.05, seed=seed, max_steps=1000, target=0.95, monitor="val/accuracy", mode="max",
            confirmations=1, check_on="validation", status="reached" if reached else "missed", message="generated",
            steps_to_target=steps if reached else None, seconds_to_target=0.002 * steps if reached else None,
            best_value=best, best_step=900, final_value=best, test_accuracy=best - 0.004, test_top5=1.0,
            test_loss=0.1, train_loss=0.05, loss_difference=0.05, confidence=0.95, confidence_std=0.08, cdac=0.02,
            steps_run=1000, tuning_steps=0, wall_time_s=3.1, precision="32-true", device="cpu",
            versions={"torch": "2.9.0", "pytorch-lightning": "2.5.0"}, git_sha="0" * 40,
            settings=settings,
        )  # fmt: skip
        run = folder / str(number)
        (run / ".hydra").mkdir(parents=True)
        # not RunResult.write: it waits for the disk once per file
        (run / "result.json").write_text(json.dumps(row.to_dict(), indent=2) + "\n")
        for name, text in (
            ("metrics.csv", "step\n"),
            ("policy.yaml", "\n"),
            ("run.log", ""),
            (".hydra/config.yaml", "\n"),
        ):
            (run / name).write_text(text)


def with_pandas(folder: Path) -> int:
    """Read the runs in the usual way."""
    rows = []
    for path in sorted(folder.rglob("result.json")):
        with open(path, encoding="utf-8") as file:
            rows.append(json.load(file))
    return len(pd.DataFrame(rows))


def seconds(call: Callable[[], object]) -> float:
    """Return the wall-clock time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(values: list[float], form: str = ".2f") -> str:
    """Format median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


def main() -> None:
    """Generate the runs, measure in rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--policies", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="600 runs, 2 rounds: whether it works")
    arguments = parser.parse_args()
    runs, rounds = (600, 2) if arguments.quick else (arguments.runs, arguments.rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder, runs, arguments.policies)
        command = [sys.executable, "-m", "lrbench_pl", "rank", name]
        table = load_runs([folder]).table
        assert table.height == with_pandas(folder) == runs
        took: dict[str, list[float]] = {key: [] for key in ("command", "read", "rank", "pandas")}
        for _ in range(rounds):
            took["command"].append(seconds(lambda: subprocess.run(command, check=True, capture_output=True)))
            took["read"].append(seconds(lambda: load_runs([folder])))
            took["pandas"].append(seconds(lambda: with_pandas(folder)))
            took["rank"].append(seconds(lambda: rank(table)))
    print(f"{runs} runs of {arguments.policies} policies, {os.cpu_count()} cores, {rounds} rounds, median [quartiles]")
    print(f"the command, a new process: {spread(took['command'])} s")
    print(f"reading and checking every row: {spread(took['read'])} s; ranking: {spread(took['rank'])} s")
    ratios = [peer / ours for peer, ours in zip(took["pandas"], took["read"], strict=True)]
    print(f"json.load into pandas, unchecked: {spread(took['pandas'])} s, {spread(ratios)} of our reading")


if __name__ == "__main__":
    main()
