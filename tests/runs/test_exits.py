"""Exit codes of runs and sweeps under every launcher."""

import pytest
from omegaconf import OmegaConf

from lrbench_pl.runs.exits import ExitCode, exit_code, record_status
from tests.faults.sweeps import rows, sweep

SHORT = ("max_steps=20", "check_every=10", "logger=none")


@pytest.mark.parametrize(
    ("runs", "code"),
    [
        ([], 0),
        ([("reached", True), ("missed", False), ("diverged", False), ("stopped", False)], 0),
        ([("reached", True), ("missed", True)], 3),
        ([("diverged", True)], 3),
        ([("stopped", True)], 3),
        ([("missed", True), ("failed", False), ("reached", True)], 1),
    ],
)
def test_the_worst_of_the_jobs_decides(runs, code):
    assert exit_code(runs) == code


def hydra_of(sweeper):
    return OmegaConf.create({"hydra": {"sweeper": {"_target_": sweeper}}})


def test_a_sweep_counts_only_its_own_jobs(tmp_path):
    callback, config = ExitCode(), hydra_of("hydra._internal.core_plugins.basic_sweeper.BasicSweeper")
    callback.on_multirun_start(config)
    record_status(tmp_path / "0", "failed", False)
    record_status(tmp_path / "1", "reached", False)
    with pytest.raises(SystemExit) as left:
        callback.on_multirun_end(config)
    assert left.value.code == 1
    callback.on_multirun_start(config)
    callback.on_multirun_end(config)


def test_a_candidate_of_a_selection_may_fail(tmp_path):
    callback, config = ExitCode(), hydra_of("hydra_plugins.lrbench_sweeper.LRBenchSweeper")
    callback.on_multirun_start(config)
    record_status(tmp_path / "0", "failed", True)
    callback.on_multirun_end(config)
    callback.on_multirun_start(config)


FAILING = ("target=null", "batch_size=64,9000", "study=2024")
MISSING = ("lr_policy=fix,tri", "target=1.0", "require_target=true")


# tests/faults/test_faults.py has the other launchers, with a job whose process is killed
@pytest.mark.slow
def test_a_failed_job_is_exit_code_1(tmp_path):
    failed = sweep(tmp_path / "a", "basic", *SHORT, *FAILING)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "Traceback" not in failed.stderr
    assert sorted((row["status"], row["study"]) for row in rows(tmp_path / "a")) == [
        ("failed", "2024"),
        ("missed", "2024"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_missed_required_target_is_exit_code_3(tmp_path, launcher):
    missing = (*SHORT, *MISSING, *(["hydra.launcher.n_jobs=1"] if launcher == "joblib" else []))
    assert sweep(tmp_path / "b", launcher, *missing).returncode == 3
    assert sweep(tmp_path / "b", launcher, *missing).returncode == 3  # also of jobs that are finished already
    assert sweep(tmp_path / "b", launcher, *SHORT, *MISSING[:2]).returncode == 0


@pytest.mark.slow
def test_a_launcher_prints_a_remark_once_for_all_jobs(tmp_path):
    given = ("lr_policy=fix,tri", "max_steps=22", "check_every=10", "target=0.99", "logger=none")
    done = sweep(tmp_path / "a", "joblib", *given, "+colour=red", "hydra.launcher.n_jobs=1")
    assert done.returncode == 0
    assert done.stderr.count("the last check is at step 20 of 22") == 1
    assert done.stderr.count("colour has no effect: nothing reads it") == 1
