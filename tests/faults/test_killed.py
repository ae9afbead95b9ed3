"""Sweeps that are killed and started again end as if nothing had happened."""

import random
from collections import Counter

import pytest

from tests.faults.sweeps import (
    LONG,
    Terminal,
    end,
    kill_in_the_middle,
    needs,
    numbers,
    records,
    rows,
    start,
    sweep,
    wait_for,
)

pytestmark = pytest.mark.slow

TWELVE = (*LONG, "lr_policy=fix,tri", "seed=0,1,2,3,4,5")


@pytest.fixture(scope="module")
def undisturbed(made_once):
    def fill(folder):
        done = sweep(folder / "sweep", "basic", *TWELVE)
        assert done.returncode == 0, done.stdout + done.stderr

    found = numbers(made_once("undisturbed", fill) / "sweep")
    assert len(found) == 12
    return found


def go_through(folder, launcher, jobs, kinds, seed):
    chance = random.Random(seed)
    resumed = 0
    for number, how in enumerate(kinds):
        after = ("*/run.json", "*/checkpoints/step=*.ckpt")[number % 2]
        process = start(folder, launcher, *jobs)
        try:
            kill_in_the_middle(process, folder, how, chance, after)
        finally:
            end(process)
        resumed += bool(list(folder.glob("*/checkpoints/*.ckpt")))
    done = sweep(folder, launcher, *jobs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return resumed


def test_joblib_killed_three_times(tmp_path, undisturbed):
    """Parent and workers by SIGKILL at random moments: every row is there once and equals the undisturbed one."""
    kinds = ("parent", "worker", "all")
    resumed = go_through(tmp_path / "sweep", "joblib", TWELVE, kinds, seed=0)
    assert resumed  # of those that waited for a checkpoint, whatever the machine's speed
    assert numbers(tmp_path / "sweep") == undisturbed


@pytest.mark.parametrize("launcher", ["basic", "joblib", "ray", "submitit_local"])
def test_ctrl_c_ends_a_sweep_that_goes_on_when_started_again_and_killed(tmp_path, undisturbed, launcher):
    if launcher in ("ray", "submitit_local"):
        needs(launcher.split("_")[0])
    folder, jobs = tmp_path / "sweep", (*LONG, "lr_policy=fix,tri", "seed=0,1")
    terminal = Terminal(folder, launcher, *jobs)
    try:
        assert wait_for(lambda: records(folder)), terminal.text()
        text = terminal.interrupted()
    finally:
        terminal.close()
    states = Counter(row["status"] for row in rows(folder))
    assert not states["failed"], [row["message"] for row in rows(folder)]
    assert states.total() == len(records(folder))
    assert states["stopped"] == states.total() - states["missed"] >= 1  # one may have just ended
    counted = f"interrupted with {states['missed']} of 4 jobs finished and {states['stopped']} stopped; "
    assert f"{counted}the same command resumes the sweep" in " ".join(text.split())
    again = "basic" if launcher == "ray" else launcher  # to start Ray takes longer than all of this
    go_through(folder, again, jobs, ("worker",) if launcher == "basic" else (), seed=1)
    wanted = {run_id for run_id, _ in numbers(folder)}
    assert len(wanted) == 4
    assert numbers(folder) == [row for row in undisturbed if row[0] in wanted]
