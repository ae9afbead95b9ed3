"""Measure this study again: the default and `auto` as sweeps, then every other way, two at a time.

    python experiments/tuning_cost/measure.py [WORKLOAD...] [--seeds 81,82,83] [--jobs 2] [--cap 2] [OVERRIDE...]

Workloads: digits, mnist, cnn3 (all by default). Lines of ``ways.csv`` are not measured again; delete them first.
The default and ``auto`` on MNIST and CIFAR-10 are those of the studies ``policies_mnist_lenet`` and
``policies_cifar10_cnn3``, whose seeds and targets these are.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

from protocol import Cost

HERE = Path(__file__).resolve().parent
WAYS = ("selection", "grid", "lr_finder_onecycle", "optuna_tpe")
ROWS = {"selection": "selection", "grid": "grid", "lr_finder_onecycle": "lr_finder_onecycle", "optuna_tpe": "optuna"}
# Overrides, target and name of each workload in the results.
WORKLOADS = {
    "digits": (("trainer=cpu", "check_every=20"), 0.9733334, "digits/mlp"),
    "mnist": (("experiment=mnist_lenet", "trainer=bf16"), 0.9892, "mnist/lenet"),
    "cnn3": (
        ("experiment=cifar10_cnn3", "trainer=bf16", "max_steps=3500", "check_every=50"),
        0.6848,
        "cifar10/cnn3",
    ),
}


def measured(path: Path) -> set[tuple[str, str, int]]:
    """Return method, workload and seed of the lines of a CSV."""
    with path.open(newline="", encoding="utf-8") as file:
        return {(row["method"], row["workload"], int(row["seed"])) for row in csv.DictReader(file)}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help=f"workloads ({', '.join(WORKLOADS)}) and overrides (NAME=VALUE)")
    parser.add_argument("--seeds", default="81,82,83")
    parser.add_argument("--jobs", type=int, default=2, help="parallel processes, one thread each")
    parser.add_argument("--cap", type=float, default=2.0, help="steps at most, in budgets")
    parser.add_argument("--out", type=Path, default=HERE / "ways.csv")
    given = parser.parse_intermixed_args()
    chosen = [word for word in given.words if "=" not in word] or list(WORKLOADS)
    if unknown := [word for word in chosen if word not in WORKLOADS]:
        parser.error(f"expected workloads among {', '.join(WORKLOADS)}, got {unknown[0]}")
    extra = [word for word in given.words if "=" in word]
    if not given.out.exists():
        given.out.write_text(",".join(field.name for field in fields(Cost)) + "\n", encoding="utf-8")
    there = measured(given.out)
    commands = []
    for workload in chosen:
        overrides, target, name = WORKLOADS[workload]
        for seed in map(int, given.seeds.split(",")):
            for way in WAYS:
                if (ROWS[way], name, seed) in there:
                    continue
                words = [*overrides, f"seed={seed}", f"target={target!r}", *extra]
                words += ["--cap", f"{given.cap:g}", "--out", str(given.out)]
                commands.append([sys.executable, str(HERE / f"{way}.py"), *words])
    with ThreadPoolExecutor(given.jobs) as pool:
        for done, code in enumerate(pool.map(lambda command: subprocess.run(command).returncode, commands), 1):
            print(f"-- {done} of {len(commands)}" + (f": exit code {code}" if code else ""), flush=True)


if __name__ == "__main__":
    main()
