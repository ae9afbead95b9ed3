"""Seconds before, between and after the jobs of a sweep of hundreds, beside Hydra's own launcher.

    python experiments/benchmarks/many_jobs.py [--jobs 500] [--steps 4]

A sweep of trainings of a few steps (the bundled digits, one thread, the basic launcher) is run, and run again when all
is finished. Printed are the time to the first job, the time of the second command, and the overhead of a job: its share
of the time after the first job less the time inside its `fit` (`wall_time_s`), which is building, checking, testing and
writing. The yardstick is Hydra's own basic launcher in the same run, on a program that does nothing with the same
configuration: what Hydra needs to compose and to start jobs, of which at most 100 are measured. The ratios to it, per
job, depend little on the machine, and those of CPU time little on what else it does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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


def timed(command: list[str]) -> tuple[float, float]:
    """Return the seconds that a command takes, and those of its CPU time."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, cpu


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
        whole, whole_cpu = timed(command)
        records = sorted(folder.glob("sweep/*/.hydra/config.yaml"), key=lambda path: path.stat().st_mtime)
        first = records[0].stat().st_mtime - began
        results = [json.loads(path.read_text()) for path in folder.glob("sweep/*/result.json")]
        training = sum(float(result["wall_time_s"] or 0.0) for result in results)
        again, again_cpu = timed(command)
        idle = min(jobs, 100)
        hydra, hydra_cpu = timed([sys.executable, "-c", _IDLE, *overrides(folder / "idle", idle, arguments.steps)])
    print(f"{len(results)} of {jobs} jobs of {arguments.steps} steps   seconds   of CPU time")
    print(f"first job after               {first:9.1f}")
    print(f"all finished                  {whole:9.1f} {whole_cpu:9.1f}")
    print(f"overhead per job              {(whole - first - training) / jobs:9.3f}")
    print(f"recognised when finished      {again:9.1f} {again_cpu:9.1f}")
    print(f"Hydra's launcher, {idle:3} idle     {hydra:9.1f} {hydra_cpu:9.1f}")
    hydra, hydra_cpu = hydra * jobs / idle, hydra_cpu * jobs / idle
    print(f"all of ours / Hydra's idle    {whole / hydra:9.2f} {whole_cpu / hydra_cpu:9.2f}")
    print(f"recognised / Hydra's idle     {again / hydra:9.2f} {again_cpu / hydra_cpu:9.2f}")


if __name__ == "__main__":
    main()
