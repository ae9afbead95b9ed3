"""Seconds before, between and after the jobs of a sweep of hundreds, beside Hydra's own launcher.

    python experiments/benchmarks/many_jobs.py [--jobs 500] [--steps 4]

A sweep of trainings of a few steps (the bundled digits, one thread, the basic launcher) is run, and run again when all
is finished. Printed are the time to the first job, the time of the second command, and the overhead of a job: its share
of the time after the first job less the time inside its `fit` (`wall_time_s`), which is building, checking, testing and
writing. The yardstick is Hydra's own basic launcher in the same run, on a program that does nothing with the same
configuration: what Hydra needs to compose and to start so many jobs. The ratio to it depends little on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
_IDLE = """
import sys
import hydra
from lrbench_pl.runs.config import conf_dir, register_resolvers
register_resolvers()
hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(lambda cfg: None)()
"""


def timed(command: list[str]) -> float:
    """Return the seconds that a command takes."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    return time.perf_counter() - began


def overrides(folder: Path, jobs: int, steps: int) -> list[str]:
    """Return the overrides of a sweep of two policies and many seeds."""
    seeds = ",".join(map(str, range(jobs // 2)))
    common = [f"max_steps={steps}", f"check_every={steps}", "checkpoint_every=null", "target=null", "trainer=cpu"]
    return ["-m", *common, "lr_policy=fix,tri", f"seed={seeds}", f"hydra.sweep.dir={folder}"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    jobs = arguments.jobs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = overrides(folder / "sweep", jobs, arguments.steps)
        command = [sys.executable, str(ROOT / "run.py"), *sweep, "hydra/launcher=basic"]
        began = time.time()
        whole = timed(command)
        records = sorted(folder.glob("sweep/*/.hydra/config.yaml"), key=lambda path: path.stat().st_mtime)
        first = records[0].stat().st_mtime - began
        results = [json.loads(path.read_text()) for path in folder.glob("sweep/*/result.json")]
        training = sum(float(result["wall_time_s"] or 0.0) for result in results)
        again = timed(command)
        hydra = timed([sys.executable, "-c", _IDLE, *overrides(folder / "idle", jobs, arguments.steps)])
    print(f"{len(results)} of {jobs} jobs of {arguments.steps} steps")
    print(f"first job after                {first:7.1f} s")
    print(f"all finished                   {whole:7.1f} s")
    print(f"overhead per job               {(whole - first - training) / jobs:7.3f} s")
    print(f"recognised when finished       {again:7.1f} s")
    print(f"Hydra's launcher, idle jobs    {hydra:7.1f} s")
    print(f"ratio of the first job to it   {first / hydra:7.2f}")


if __name__ == "__main__":
    main()
