"""Grid search: full trainings in sequence, each stopped at the target, until one reaches it.

Order: the optimizer's own rate first, then 0.3, 3, 0.1 and 10 times that; at each, the shapes as the pool lists them.

    python experiments/tuning_cost/grid.py experiment=mnist_lenet seed=31 target=0.99 --out rows.csv
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig
from protocol import Outcome, main, pool, train

FACTORS = (1.0, 0.3, 3.0, 0.1, 10.0)


def grid(overrides: list[str], cfg: DictConfig, cap: int) -> list[Outcome]:
    """Count the steps until the first training that reaches the target."""
    spent = trainings = 0
    for factor in FACTORS:
        for shape in pool():
            if spent >= cap:
                return [Outcome("grid", cap, False, trainings)]
            row = train([*overrides, f"lr_policy={shape}", f"lr={factor * cfg.lr!r}", "stop_at_target=true"])
            trainings += 1
            steps = row.steps_run or 0
            if spent + steps > cap:
                return [Outcome("grid", cap, False, trainings)]
            spent += steps
            if row.status == "reached":
                return [Outcome("grid", spent, True, trainings)]
    return [Outcome("grid", spent, False, trainings)]


if __name__ == "__main__":
    main(grid, sys.argv[1:])
