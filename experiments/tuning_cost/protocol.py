"""Common parts of the ways of tuning in this study: configuration, training and result.

Every way is a script with the same arguments:

    python experiments/tuning_cost/WAY.py experiment=mnist_lenet seed=31 target=0.99 … --out rows.csv

All optimizer steps are counted, whatever they were for, until a model in training first reaches the target at a check.
A way that has not reached it by the cap, in budgets, is cut off there; its ``reached`` is false.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml
from omegaconf import DictConfig

from lrbench_pl.runs import config
from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.result import RunResult
from lrbench_pl.selection.select import SPAN

__all__ = ["SPAN", "Cost", "Outcome", "RunResult", "main", "pool", "train"]


@dataclass(frozen=True)
class Outcome:
    """Cost of a way of tuning.

    Args:
        method: Its name.
        steps_in_all: Optimizer steps until a model first reached the target, or all that were spent.
        reached: Whether one did.
        trainings: Trainings started, range tests included.
    """

    method: str
    steps_in_all: int
    reached: bool
    trainings: int


@dataclass(frozen=True)
class Cost:
    """One line of ``ways.csv``; steps are optimizer steps."""

    method: str
    workload: str
    optimizer: str
    seed: int
    budget: int
    target: float
    steps_in_all: int
    reached: bool
    trainings: int
    seconds: float
    command: str


Way = Callable[[list[str], DictConfig, int], Sequence[Outcome]]


def pool() -> list[str]:
    """Return the shapes that ``hydra/sweeper=lrbench`` selects from."""
    options = yaml.safe_load((config.conf_dir() / "hydra" / "sweeper" / "lrbench.yaml").read_text(encoding="utf-8"))
    return [str(shape) for shape in options["shapes"]]


def train(overrides: Sequence[str]) -> RunResult:
    """Train once, in a temporary folder.

    Raises:
        SystemExit: If it was interrupted or failed, since its steps would be wrong.
    """
    with tempfile.TemporaryDirectory() as folder:
        row = experiment.run(config.compose([*overrides, "logger=none", "checkpoint_every=null"]), Path(folder))
    if row.status in ("failed", "stopped"):
        sys.exit(f"{row.status}: {row.message}")
    return row


def main(way: Way, arguments: Sequence[str]) -> None:
    """Tune once and append the results to a CSV.

    Args:
        way: Called with Hydra's overrides, their configuration and the cap in steps.
        arguments: Those of the command line.
    """
    parser = argparse.ArgumentParser(description=sys.modules[way.__module__].__doc__)
    parser.add_argument("overrides", nargs="*", help="as for lrbench run")
    parser.add_argument("--out", type=Path, required=True, help="CSV to which results are appended")
    parser.add_argument("--cap", type=float, default=4.0, help="steps at most, in budgets (default 4)")
    given = parser.parse_intermixed_args(arguments)
    cfg = config.compose(given.overrides)
    if cfg.target is None or not given.cap > 0:
        parser.error("expected a target and a --cap above 0")
    started = time.perf_counter()
    outcomes = way(given.overrides, cfg, round(given.cap * cfg.max_steps))
    seconds = round(time.perf_counter() - started, 1)
    command = shlex.join(["python", f"experiments/tuning_cost/{Path(sys.argv[0]).name}", *arguments])
    rows = [
        Cost(
            method=outcome.method,
            workload=f"{cfg.names.dataset}/{cfg.names.model}",
            optimizer=cfg.names.optimizer,
            seed=cfg.seed,
            budget=cfg.max_steps,
            target=cfg.target,
            steps_in_all=outcome.steps_in_all,
            reached=outcome.reached,
            trainings=outcome.trainings,
            seconds=seconds,
            command=command,
        )
        for outcome in outcomes
    ]
    new = not given.out.exists()
    with given.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Cost)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    for row in rows:
        words = "first met after" if row.reached else "not met in"
        print(f"{row.method}, {row.workload}, seed {row.seed}: {row.target:g} {words} {row.steps_in_all} steps in all")
