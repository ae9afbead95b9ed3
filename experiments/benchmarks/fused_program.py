"""Seconds of a real sweep with `hydra/launcher=fused` and with `hydra/launcher=joblib`, and whether they agree.

    python experiments/benchmarks/fused_program.py [--trainer gpu] [--seeds 16] [--jobs-per-gpu 8] [--limit 45]

The sweep trains the perceptron on the bundled digits with four policies and some seeds, to the end of its budget.
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
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def sweep(folder: Path, limit: float, *overrides: str) -> tuple[float, dict[str, Any]]:
    """Run a sweep; return its seconds and its results by job."""
    command = [sys.executable, "run.py", "-m", *overrides, f"hydra.sweep.dir={folder}"]
    began = time.time()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        printed, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        printed = process.communicate()[0] + f"\nended after {limit:g} s"
    seconds = time.time() - began
    lines = printed.splitlines()
    print(*lines[:2], "...", *lines[-4:], sep="\n    ", flush=True)
    found = {path.parent.name: json.loads(path.read_text()) for path in folder.rglob("result.json")}
    return seconds, found


def main() -> None:
    """Measure, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", default="gpu")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--jobs-per-gpu", type=int, default=8)
    parser.add_argument("--limit", type=float, default=45.0, help="seconds of each sweep")
    arguments = parser.parse_args()
    common = [
        "lr_policy=fix,step,exp,cosine", "seed=" + ",".join(map(str, range(arguments.seeds))), "stop_at_target=false",
        f"max_steps={arguments.steps}", f"trainer={arguments.trainer}",
    ]  # fmt: skip
    ways = {
        "fused": ["hydra/launcher=fused", f"hydra.launcher.engine={arguments.engine}"],
        "joblib": ["hydra/launcher=joblib", f"hydra.launcher.jobs_per_gpu={arguments.jobs_per_gpu}"],
    }
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way, overrides in ways.items():
            print(f"{way}:", flush=True)
            seconds, found[way] = sweep(Path(folder) / way, arguments.limit, *common, *overrides)
            engines = sorted({str(result.get("engine")) for result in found[way].values()})
            print(
                f"{way}: {len(found[way])} of {4 * arguments.seeds} results in {seconds:.1f} s, {engines}", flush=True
            )
    both = sorted(set(found["fused"]) & set(found["joblib"]))
    for what in ("status", "steps_to_target", "best_value", "test_value"):
        pairs = [(found["fused"][job].get(what), found["joblib"][job].get(what)) for job in both]
        print(f"{what}: equal in {sum(one == other for one, other in pairs)} of {len(both)} jobs", flush=True)


if __name__ == "__main__":
    main()
