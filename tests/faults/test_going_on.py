"""Trainings that are ended in the middle, and sweeps that are started twice."""

import json
import os
import random
import signal
import sys
import time

import pytest

from tests import forks
from tests.faults.sweeps import (
    ENVIRONMENT,
    LIMIT_S,
    LONG,
    ROOT,
    command,
    end,
    group,
    needs,
    numbers,
    records,
    rows,
    start,
    sweep,
    wait_for,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("budget", "rules", "kills", "seconds"),
    [(2000, "range test", 2, 0.3), (2000, "holding", 3, 0.3), (1000, "comparison", 2, 0.05)],
)
def test_a_composition_killed_again_and_again(tmp_path, budget, rules, kills, seconds):
    """Killed after 200 steps or more each time, it composes what it composes undisturbed."""
    never = ("monitor=val/loss", "mode=min", "target=1e-9")
    jobs = ("lr_policy=auto", f"max_steps={budget}", "check_every=20", "checkpoint_every=20", *never)
    if rules == "range test":
        jobs = (*jobs, "lr_policy.repeats=2")
    undisturbed = sweep(tmp_path / "other", "basic", *jobs)
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr
    segments = json.loads((tmp_path / "other" / "0" / "tuning.json").read_text())
    assert {segment["kind"] for segment in segments} >= {"stable", "branch"}
    assert (segments[0]["kind"] == "range") == (rules == "range test")
    folder, chance, killed = tmp_path / "sweep", random.Random(2), []
    for _ in range(kills):
        process = start(folder, "basic", *jobs)
        try:
            _wait_for_steps(process, folder, max(killed, default=0) + 200)
            time.sleep(chance.uniform(0.0, seconds))
        finally:
            end(process)
        killed.append(_steps(folder))
    assert len(set(killed) - {0}) == kills  # each went further
    done = sweep(folder, "basic", *jobs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resuming from step={killed[-1]:09d}.ckpt" in done.stdout
    assert "cannot go on" not in done.stdout
    assert numbers(folder) == numbers(tmp_path / "other")
    for file in ("tuning.json", "policy.yaml"):
        assert (folder / "0" / file).read_text() == (tmp_path / "other" / "0" / file).read_text()


def _wait_for_steps(process, folder, steps):
    assert wait_for(lambda: process.poll() is not None or _steps(folder) >= steps)


def _steps(folder):
    """Of the last checkpoint of the only job."""
    return max((int(path.stem.partition("=")[2]) for path in folder.glob("0/checkpoints/step=*.ckpt")), default=0)


def test_a_training_in_two_processes_goes_on(tmp_path):
    """In a sweep both processes of a job are the job's, one job after the other; killed alone it ends with that row."""
    two = (*LONG, "max_steps=300", "lr_policy=fix", "trainer=ddp", "trainer.accelerator=cpu")
    whole = sweep(tmp_path / "sweep", "joblib", *two, "seed=0,1", "hydra.launcher.n_jobs=1")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert whole.stderr == ""
    assert "2 jobs: 2 without a target" in whole.stdout
    alone = [sys.executable, str(ROOT / "run.py"), *two, "seed=1", f"hydra.run.dir={tmp_path}/alone"]
    first = forks.start(alone, tmp_path, ENVIRONMENT)
    try:
        assert wait_for(lambda: list(tmp_path.glob("alone/checkpoints/step=*.ckpt")))
        first.kill()  # the second process ends without it
        first.wait(timeout=300)
        assert wait_for(lambda: not group(first.pid)), group(first.pid)
    finally:
        end(first)
    assert rows(tmp_path) == []
    again = forks.run(alone, tmp_path, ENVIRONMENT, LIMIT_S)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resuming from step=" in again.stdout + again.stderr
    assert (again.stdout + again.stderr).count("ran 300 steps") == 1
    assert numbers(tmp_path)[0] in numbers(tmp_path / "sweep")


def test_a_preempted_job_is_queued_again(tmp_path):
    """SIGUSR2 is what SLURM sends through submitit: the job writes a checkpoint, goes, and comes back."""
    needs("submitit")
    folder = tmp_path / "sweep"
    jobs = ("max_steps=3000", "check_every=500", "checkpoint_every=null", "target=null", "lr_policy=fix")
    process = start(folder, "submitit_local", *jobs)
    try:
        assert wait_for(lambda: [p for p in folder.glob("0/metrics.csv") if p.stat().st_size > 2000])
        os.kill(records(folder)[0]["pid"], signal.SIGUSR2)
        assert wait_for(lambda: list(folder.glob("0/checkpoints/step=*.ckpt")))
        assert process.wait(timeout=300) == 0
    finally:
        end(process)
    (row,) = rows(folder)
    assert (row["status"], row["steps_run"]) == ("missed", 3000)
    undisturbed = sweep(tmp_path / "other", "basic", *jobs)
    assert undisturbed.returncode == 0
    assert numbers(folder) == numbers(tmp_path / "other")


def test_two_at_once_share_no_work(tmp_path):
    """The same sweep started twice: the second waits for what the first is at, and repeats nothing."""
    folder = tmp_path / "sweep"
    jobs = (*LONG, "max_steps=3000", "lr_policy=fix", "seed=0,1")  # longer than the second one takes to start
    first = start(folder, "basic", *jobs)
    try:
        assert wait_for(lambda: records(folder))
        second = sweep(folder, "basic", *jobs)
        assert second.returncode == 0, second.stdout + second.stderr
        assert first.wait(timeout=300) == 0
    finally:
        end(first)
    assert len(rows(folder)) == 2
    assert "finished before" not in second.stdout  # it began while the first was under way


def test_two_sweeps_of_one_second_have_two_folders(tmp_path):
    jobs = [word for word in command(tmp_path, "basic", "max_steps=20") if not word.startswith("hydra.sweep.dir")]
    both = [forks.start(jobs, tmp_path, ENVIRONMENT) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert len(list(tmp_path.glob("multirun/*/*/0/result.json"))) == 2
