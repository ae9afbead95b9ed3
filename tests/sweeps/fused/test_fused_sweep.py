"""Sweeps with ``hydra/launcher=fused``: what they leave is what serial ones leave."""

import csv
import json
import math
import os
import sys
from pathlib import Path

import pytest

from tests import forks

ROOT = Path(__file__).resolve().parents[3]
TWELVE = ("lr_policy=fix,tri,cosine", "seed=0,1", "optimizer.weight_decay=0.0,0.001", "target=0.9")
SHORT = ("max_steps=120", "check_every=20", "trainer=cpu", "threads=1")
TIMES = ("seconds_to_target", "wall_time_s", "engine")


def run(folder, *arguments, failures="none"):
    words = [sys.executable, str(ROOT / "tests/sweeps/fused/in_process.py"), failures, "-m", *SHORT]
    words += ["hydra/launcher=fused", "hydra.launcher.n_jobs=1", f"hydra.sweep.dir={folder}", *arguments]
    return forks.run(words, folder.parent, {**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)


def serial(folder, *arguments):
    words = [sys.executable, str(ROOT / "run.py"), "-m", *SHORT, f"hydra.sweep.dir={folder}", *arguments]
    return forks.run(words, folder.parent, {**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)


def results(folder):
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]
    return {each["run_id"]: each for each in found}


def folders(folder):
    return {json.loads(path.read_text())["run_id"]: path.parent for path in sorted(folder.glob("*/result.json"))}


def history(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_equal_histories(one, other):
    """Columns, rows, steps and rates are equal; metrics up to the order of additions."""
    assert len(one) == len(other)
    assert list(one[0]) == list(other[0])
    for row, same in zip(one, other, strict=True):
        for name in row:
            assert (row[name] == "") == (same[name] == "")
            if row[name] == "" or name == "check/seconds":
                continue
            if name in ("step", "epoch", "lr", "check/step"):
                assert float(row[name]) == float(same[name]), name
            else:
                near = math.isclose(float(row[name]), float(same[name]), rel_tol=2e-3, abs_tol=2e-3)
                assert near or row[name] == same[name], (name, row, same)  # nan


def assert_equal_results(one, other):
    for name in one:
        if name in TIMES:
            continue
        if isinstance(one[name], float) and isinstance(other[name], float):
            assert math.isclose(one[name], other[name], rel_tol=2e-3, abs_tol=2e-3), name
        else:
            assert one[name] == other[name], name


@pytest.fixture(scope="module")
def twelve(made_once):
    """The sweep of twelve jobs, serial and fused."""

    def fill(folder):
        for name, start in (("serial", serial), ("fused", run)):
            done = start(folder / name, *TWELVE)
            assert done.returncode == 0, done.stdout + done.stderr

    return made_once("twelve", fill)


def test_statuses_and_steps_to_target_equal_the_serial_ones(twelve):
    alone, fused = results(twelve / "serial"), results(twelve / "fused")
    assert len(alone) == 12
    assert alone.keys() == fused.keys()
    assert {each["engine"] for each in alone.values()} == {"serial"}
    assert {each["engine"] for each in fused.values()} == {"stacked"}
    assert {each["status"] for each in alone.values()} == {"reached"}
    for run_id in alone:
        assert_equal_results(alone[run_id], fused[run_id])


def test_each_job_leaves_the_files_of_a_run_of_its_own(twelve):
    alone, fused = folders(twelve / "serial"), folders(twelve / "fused")
    for run_id in alone:
        before = {path.relative_to(alone[run_id]).as_posix() for path in alone[run_id].rglob("*")}
        after = {path.relative_to(fused[run_id]).as_posix() for path in fused[run_id].rglob("*")}
        assert after == before | {"output.log"}  # the basic launcher prints
        for name in ("policy.yaml", ".hydra/config.yaml", ".hydra/overrides.yaml"):
            assert (alone[run_id] / name).read_text() == (fused[run_id] / name).read_text()
        assert_equal_histories(history(alone[run_id]), history(fused[run_id]))
    assert not (twelve / "fused" / ".fused").exists()
