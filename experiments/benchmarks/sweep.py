"""Jobs per hour of a sweep of short trainings, for each launcher, against a shell loop over `python run.py`.

    python experiments/benchmarks/sweep.py [--jobs 16] [--steps 12000] [--only shell,joblib]

The same trainings (the bundled digits, all steps of the budget, one thread each) are run one by one by a shell loop; by
as many such loops as there are cores (`xargs -P`); and as one sweep by each launcher at hand. 12,000 steps are a
training of several seconds: of shorter ones the imports, which a worker pays once, would be most of the time. The share
of the time that is not training is 1 - (sum of the results' `wall_time_s`) / (workers x wall-clock time). A last line
gives the wall time of twice as many equal jobs as cores through joblib, in units of one job alone: all cores and no
more are used where that is near 2.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loky import cpu_count

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
LAUNCHERS = {"basic": "hydra", "joblib": "loky", "ray": "ray", "submitit_local": "submitit"}  # and what each needs


def run_py(steps: int, *words: str) -> list[str]:
    """Return the command of one training or, with -m as the first word, of one sweep."""
    common = (
        "trainer=cpu",
        "lr_policy=fix",
        "target=null",
        f"max_steps={steps}",
        f"check_every={steps // 10}",
    )
    return [sys.executable, str(ROOT / "run.py"), *words, *common]


def timed(command: list[str], text: str | None = None) -> float:
    """Return the seconds that a command takes."""
    began = time.perf_counter()
    subprocess.run(command, input=text, text=True, check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT, timeout=3600)
    return time.perf_counter() - began


def training_seconds(folder: Path) -> float:
    """Return the time inside the fits of a sweep."""
    rows = [json.loads(path.read_text()) for path in folder.rglob("result.json")]
    return sum(float(row["wall_time_s"]) for row in rows)


def loop(folder: Path, jobs: int, steps: int, at_once: int) -> float:
    """Run a shell loop, or several in parallel."""
    each = " ".join(run_py(steps, "seed={}", f"hydra.run.dir={folder}/{{}}"))
    return timed(["xargs", "-P", str(at_once), "-I{}", "sh", "-c", each], "\n".join(map(str, range(jobs))))


def sweep(folder: Path, jobs: int, steps: int, launcher: str) -> float:
    """Run one sweep."""
    seeds = ",".join(map(str, range(jobs)))
    where = (f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder}")
    return timed(run_py(steps, "-m", f"seed={seeds}", *where))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--only", default="", help="ways, separated by commas")
    arguments = parser.parse_args()
    jobs, steps, cores = arguments.jobs, arguments.steps, cpu_count()
    ways = {"shell": 1, "xargs": cores, "basic": 1, "joblib": cores, "ray": cores, "submitit_local": cores}
    chosen = [way for way in arguments.only.split(",") if way] or list(ways)
    print(f"{jobs} trainings of {steps} steps, {cores} cores")
    print(f"{'':<16}{'workers':>8}{'seconds':>9}{'jobs/h':>8}{'not training':>14}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for way in chosen:
            if way in LAUNCHERS and importlib.util.find_spec(LAUNCHERS[way]) is None:
                continue
            folder, workers = Path(scratch) / way, ways[way]
            run = sweep(folder, jobs, steps, way) if way in LAUNCHERS else loop(folder, jobs, steps, workers)
            idle = 1 - training_seconds(folder) / (workers * run)
            print(f"{way:<16}{workers:>8}{run:>9.1f}{3600 * jobs / run:>8.0f}{idle:>13.0%}", flush=True)
        one = sweep(Path(scratch) / "one", 1, steps, "joblib")
        many = sweep(Path(scratch) / "many", 2 * cores, steps, "joblib")
    print(f"{2 * cores} jobs on {cores} cores take {many / one:.2f} times as long as one (to reach: at most 2.3)")


if __name__ == "__main__":
    main()
