"""A full disk, a folder that cannot be written, a damaged checkpoint, a dead service, a job without memory."""

import os
import subprocess

import pytest

from tests.faults.sweeps import end, needs, numbers, rows, start, sweep, wait_for

pytestmark = pytest.mark.slow

SHORT = ("max_steps=300", "check_every=100", "checkpoint_every=100", "target=null", "lr_policy=fix")


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, timeout=10
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True, timeout=10)


def test_a_full_disk_is_reported_and_the_sweep_goes_on_when_there_is_room(small_disk, tmp_path):
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 900_000)
    jobs = (*SHORT, "seed=0,1,2,3,4")
    full = sweep(small_disk / "sweep", "basic", *jobs)
    assert full.returncode != 0
    assert "No space left on device" in full.stdout + full.stderr
    assert "Traceback" not in full.stderr
    assert len(rows(small_disk / "sweep")) < 5
    filler.unlink()
    done = sweep(small_disk / "sweep", "basic", *jobs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sweep(tmp_path / "other", "basic", *jobs).returncode == 0
    assert numbers(small_disk / "sweep") == numbers(tmp_path / "other")


def test_a_folder_that_cannot_be_written_is_one_line(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True, timeout=10)
    done = sweep(small_disk / "sweep", "basic", *SHORT)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"cannot write into {small_disk}/sweep: ")
    assert "Read-only file system" in line
    assert done.stdout == ""


def test_a_damaged_checkpoint_is_said_and_passed_over(tmp_path):
    folder, jobs = tmp_path / "sweep", (*SHORT, "max_steps=3000", "checkpoints_kept=2")
    process = start(folder, "basic", *jobs)
    try:
        assert wait_for(lambda: len(list(folder.glob("0/checkpoints/step=*.ckpt"))) == 2)
    finally:
        end(process)
    earlier, last = sorted(folder.glob("0/checkpoints/step=*.ckpt"))
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    done = sweep(folder, "basic", *jobs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"cannot resume from {last.name}" in done.stdout
    assert f"resuming from {earlier.name}" in done.stdout
    (row,) = rows(folder)
    assert (row["status"], row["steps_run"]) == ("missed", 3000)


def test_a_service_that_fails_in_the_middle_changes_no_number(tmp_path, monkeypatch):
    from pytorch_lightning.loggers import WandbLogger

    from lrbench_pl.runs import run as experiment
    from lrbench_pl.runs.config import compose

    def run(name, *overrides):
        folder = tmp_path / name
        folder.mkdir()
        return experiment.run(compose([*SHORT, "trainer=cpu", f"logger.csv.save_dir={folder}", *overrides]), folder)

    calls = []

    def fail(self, metrics, step=None):
        calls.append(step)
        if len(calls) > 3:
            raise ConnectionError("the service went away")

    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(WandbLogger, "log_metrics", fail)
    with pytest.warns(UserWarning, match="W&B failed"):
        failing = run("a", "logger=wandb", f"logger.wandb.save_dir={tmp_path}/a")
    plain = run("b")
    assert len(calls) == 4
    assert failing.status == "missed"
    assert (failing.run_id, failing.test_loss, failing.final_value) == (
        plain.run_id,
        plain.test_loss,
        plain.final_value,
    )


@pytest.mark.parametrize("launcher", ["joblib", "ray", "submitit_local"])
def test_a_job_killed_for_memory_is_a_row_and_the_others_go_on(tmp_path, launcher):
    needs(launcher.split("_")[0])
    doomed = ("model._target_=tests.faults.own.model", "+model.seed=${seed}", "+model.doomed=1", "+model.steps=150")
    done = sweep(tmp_path / "sweep", launcher, *SHORT, *doomed, "seed=0,1,2")
    assert done.returncode == 1, done.stdout + done.stderr
    found = {row["seed"]: row for row in rows(tmp_path / "sweep")}
    assert {seed: row["status"] for seed, row in found.items()} == {0: "missed", 1: "failed", 2: "missed"}
    assert "its process" in found[1]["message"]
    assert "3 jobs: 2 without a target, 1 failed" in done.stdout
    assert os.listdir(tmp_path / "sweep" / "1" / "checkpoints")  # to go on from with more memory
