"""Selection (``hydra/sweeper=lrbench``) with its defaults, with and without confirmation.

    python experiments/tuning_cost/selection.py experiment=mnist_lenet seed=31 target=0.99 --out rows.csv

The first result counts the steps until the first training that reaches the target, the second those until the answer is
confirmed on fresh seeds, before a shorter horizon is searched.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from omegaconf import DictConfig
from protocol import Outcome, main

RUN = Path(__file__).resolve().parents[2] / "run.py"


def selection(overrides: list[str], cfg: DictConfig, cap: int) -> list[Outcome]:
    """Count the steps of the whole sweep, range tests included, one job after the other."""
    with tempfile.TemporaryDirectory() as folder:
        given = [
            *overrides,
            "logger=none",
            f"hydra.sweep.dir={folder}",
            "hydra.sweeper.bisections=0",
            "hydra.sweeper.known=0",
        ]
        given += [f"hydra.sweeper.tuning_budget={cap / cfg.max_steps!r}"]
        done = subprocess.run([sys.executable, str(RUN), "-m", "hydra/sweeper=lrbench", *given])
        if done.returncode != 0:
            sys.exit(done.returncode)
        found = json.loads((Path(folder) / "selection.json").read_text(encoding="utf-8"))["found"]
    rows = []
    for method, steps in (
        ("selection", found["steps_to_first"]),
        ("selection, confirmed", found["steps_to_confirmed"]),
    ):
        rows.append(Outcome(method, found["steps"] if steps is None else steps, steps is not None, found["jobs"]))
    return rows


if __name__ == "__main__":
    main(selection, sys.argv[1:])
