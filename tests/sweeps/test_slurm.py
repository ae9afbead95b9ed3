"""Sweeps on a SLURM of one node, which CI installs and ``slurm.sh`` starts; skipped where there is none.

The partition ``high`` pre-empts and requeues the jobs of ``main``. SLURM lets a requeued job wait for two minutes; the
tests let it start at once.
"""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time

import pytest

from tests.faults.sweeps import end, needs, numbers, records, rows, start, sweep, wait_for

pytestmark = pytest.mark.slow

ON = ("hydra.launcher.slurm_partition=main", "hydra.launcher.timeout_min=10", "hydra.launcher.slurm_signal_delay_s=30")
LONG = ("max_steps=4000", "check_every=500", "checkpoint_every=null", "target=null", "lr_policy=fix")
SHORT = ("max_steps=60", "check_every=20", "target=null", "lr_policy=fix")


def slurm(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(scope="module", autouse=True)
def partitions():
    needs("submitit")
    found = slurm("sinfo", "--noheader", "--format=%R %T") if shutil.which("sinfo") else ""
    if not re.search(r"^main idle|^main mix", found, re.MULTILINE) or "high" not in found:
        pytest.skip("there is no SLURM with partitions main and high")


def queue():
    """Return the states of the jobs of ``main`` by id."""
    lines = slurm("squeue", "--noheader", "--array", "--partition=main", "--format=%i %T").splitlines()
    return dict(line.split() for line in lines)


def start_now():
    """Let requeued jobs start."""
    for job, state in queue().items():
        if state == "PENDING":
            slurm("scontrol", "update", f"jobid={job}", "starttime=now")


@pytest.fixture(autouse=True)
def alone():
    """One test at a time: they share the queue."""
    with open(os.path.join(tempfile.gettempdir(), "slurm-of-tests.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def started(folder, *jobs):
    """A sweep whose output is in a file beside its folder."""
    process = start(folder, "submitit_slurm", *ON, *jobs, output=folder.with_name("output.txt"))
    try:
        yield process
    finally:
        end(process)
        slurm("scancel", "--partition=main", "--user=root")
        slurm("scancel", "--partition=high", "--user=root")
        wait_for(lambda: not queue(), limit_s=60)


def steps_logged(folder):
    return [path for path in folder.glob("*/metrics.csv") if path.stat().st_size > 300]


def ends(process, limit_s=240):
    """Wait for the end of a sweep, whose requeued jobs start at once."""
    deadline = time.monotonic() + limit_s
    while process.poll() is None and time.monotonic() < deadline:
        start_now()
        time.sleep(2)
    return process.poll()


@pytest.fixture(scope="module")
def undisturbed(made_once):
    def fill(folder):
        done = sweep(folder / "sweep", "joblib", *LONG, "seed=0,1")
        assert done.returncode == 0, done.stdout + done.stderr

    return made_once("undisturbed_on_slurm", fill) / "sweep"


def histories(folder):
    """Return the histories by run, without times."""
    found = {}
    for row in rows(folder):
        (path,) = [path for path in folder.glob("*/result.json") if row["run_id"] in path.read_text()]
        lines = [line.split(",") for line in path.with_name("metrics.csv").read_text().splitlines()]
        timed = lines[0].index("check/seconds")
        found[row["run_id"]] = [line[:timed] + line[timed + 1 :] for line in lines]
    return found


def test_an_array_that_is_pre_empted_ends_as_if_undisturbed(tmp_path, undisturbed):
    folder = tmp_path / "sweep"
    with started(folder, *LONG, "seed=0,1") as process:
        assert wait_for(lambda: steps_logged(folder), limit_s=120)
        slurm("sbatch", "--partition=high", f"--ntasks={os.cpu_count()}", "--output=/dev/null", "--wrap=sleep 1")
        assert wait_for(lambda: list(folder.glob("*/checkpoints/step=*.ckpt")), limit_s=60)
        assert wait_for(lambda: "PENDING" in queue().values(), limit_s=60)
        assert not [row for row in rows(folder) if row["status"] == "stopped"]
        assert process.poll() is None
        assert ends(process) == 0
    text = (tmp_path / "output.txt").read_text()
    assert "queued again by SLURM" in text
    assert "2 jobs: 2 without a target" in text
    assert "accounting" not in text
    assert "Bypassing" not in text
    assert numbers(folder) == numbers(undisturbed)
    assert histories(folder) == histories(undisturbed)
    assert any("resuming from step=" in note for record in records(folder) for note in record["notes"])


def test_a_job_out_of_time_is_queued_again(tmp_path, undisturbed):
    """The signal before the time limit, sent by hand: a limit is a minute at least."""
    folder = tmp_path / "sweep"
    with started(folder, *LONG, "seed=0,1") as process:
        assert wait_for(lambda: len(steps_logged(folder)) == 2, limit_s=120)
        (job, *_) = [job for job, state in queue().items() if state == "RUNNING"]
        slurm("scancel", "--signal=USR2", job)
        assert wait_for(lambda: list(folder.glob("*/checkpoints/step=*.ckpt")), limit_s=60)
        assert ends(process) == 0
    assert numbers(folder) == numbers(undisturbed)
    assert histories(folder) == histories(undisturbed)


def test_a_cancelled_job_is_stopped_and_resumed_by_the_next_command(tmp_path, undisturbed):
    folder = tmp_path / "sweep"
    with started(folder, *LONG, "seed=0,1") as process:
        assert wait_for(lambda: len(steps_logged(folder)) == 2, limit_s=120)
        slurm("scancel", min(queue()))
        assert ends(process) == 0
        found = {row["seed"]: row for row in rows(folder)}
        assert found[0]["status"] == "stopped"
        assert "it was cancelled on SLURM" in found[0]["message"]
        assert found[1]["status"] == "missed"
        assert list(folder.glob("0/checkpoints/step=*.ckpt"))
    again = sweep(folder, "submitit_slurm", *ON, *LONG, "seed=0,1")
    assert again.returncode == 0, again.stdout + again.stderr
    assert numbers(folder) == numbers(undisturbed)
    assert histories(folder) == histories(undisturbed)


def test_the_command_killed_and_given_again_submits_nothing_twice(tmp_path, undisturbed):
    folder = tmp_path / "sweep"
    with started(folder, *LONG, "seed=0,1") as process:
        assert wait_for(lambda: len(steps_logged(folder)) == 2, limit_s=120)
        process.kill()
        process.wait(timeout=30)
        before = queue()
        again = sweep(folder, "submitit_slurm", *ON, *LONG, "seed=0,1")
        assert again.returncode == 0, again.stdout + again.stderr
        assert len(before) == 2
        assert len(list(folder.glob(".submitit/*/*_submitted.pkl"))) == 2
    assert numbers(folder) == numbers(undisturbed)


def test_a_job_whose_process_dies_is_failed_and_the_others_go_on(tmp_path):
    doomed = ("model._target_=tests.faults.own.model", "+model.seed=${seed}", "+model.doomed=1", "+model.steps=30")
    folder = tmp_path / "sweep"
    with started(folder, *SHORT, *doomed, "seed=0,1") as process:
        assert ends(process) == 1
    found = {row["seed"]: row for row in rows(folder)}
    assert found[0]["status"] == "missed"
    assert found[1]["status"] == "failed"
    assert "its process ended without a result: SLURM says FAILED" in found[1]["message"]
