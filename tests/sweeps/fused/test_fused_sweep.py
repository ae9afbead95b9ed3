"""Sweeps with ``hydra/launcher=fused``: what they leave is what serial ones leave."""

import csv
import json
import math
import os
import signal
import sys
from pathlib import Path

import pytest

from tests import forks
from tests.faults import sweeps
from tests.faults.sweeps import Terminal, end, records, sweep, wait_for

ROOT = Path(__file__).resolve().parents[3]
TWELVE = ("lr_policy=fix,tri,cosine", "seed=0,1", "optimizer.weight_decay=0.0,0.001", "target=0.9")
SHORT = ("max_steps=120", "check_every=20", "trainer=cpu", "threads=1")
TIMES = ("seconds_to_target", "wall_time_s", "engine")


def run(folder, *arguments, failures="none"):
    words = [sys.executable, str(ROOT / "tests/sweeps/fused/in_process.py"), failures, "-m", *SHORT]
    words += ["hydra/launcher=fused", "hydra.launcher.engine=stacked", "hydra.launcher.n_jobs=1"]
    words += [f"hydra.sweep.dir={folder}", *arguments]
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


@pytest.mark.slow
def test_statuses_and_steps_to_target_equal_the_serial_ones(twelve):
    alone, fused = results(twelve / "serial"), results(twelve / "fused")
    assert len(alone) == 12
    assert alone.keys() == fused.keys()
    assert {each["engine"] for each in alone.values()} == {"serial"}
    assert {each["engine"] for each in fused.values()} == {"stacked"}
    assert {each["status"] for each in alone.values()} == {"reached"}
    for run_id in alone:
        assert_equal_results(alone[run_id], fused[run_id])


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_job_that_diverges_leaves_and_touches_no_other(tmp_path):
    jobs = ("lr_policy=fix,tri", "lr=0.05,1e9", "seed=3", "target=null")
    for name, start in (("serial", serial), ("fused", run)):
        done = start(tmp_path / name, *jobs)
        assert done.returncode == 0, done.stdout + done.stderr
    alone, fused = results(tmp_path / "serial"), results(tmp_path / "fused")
    assert sorted(each["status"] for each in fused.values()) == ["diverged", "diverged", "missed", "missed"]
    for run_id in alone:
        assert_equal_results(alone[run_id], fused[run_id])
        one, other = (history(folders(tmp_path / name)[run_id]) for name in ("serial", "fused"))
        assert_equal_histories(one, other)


@pytest.mark.slow
def test_confirmations_and_jobs_that_go_on_after_their_target(tmp_path):
    jobs = ("lr_policy=fix,tri", "seed=0,1", "target=0.85", "confirmations=2")
    for more in ((), ("stop_at_target=false", "mode=min", "monitor=val/loss", "target=0.5")):
        name = "min" if more else "max"
        for kind, start in (("serial", serial), ("fused", run)):
            done = start(tmp_path / f"{name}-{kind}", *jobs, *more)
            assert done.returncode == 0, done.stdout + done.stderr
        alone, fused = results(tmp_path / f"{name}-serial"), results(tmp_path / f"{name}-fused")
        for run_id in alone:
            assert_equal_results(alone[run_id], fused[run_id])
            assert alone[run_id]["steps_run"] == (120 if more else alone[run_id]["steps_to_target"] + 20)


@pytest.mark.slow
def test_a_monitor_that_is_not_logged_fails_as_in_a_serial_run(tmp_path):
    jobs = ("lr_policy=fix,tri", "monitor=val/f1", "target=0.5")
    messages = []
    for name, start in (("serial", serial), ("fused", run)):
        done = start(tmp_path / name, *jobs)
        assert done.returncode == 1
        assert {each["status"] for each in results(tmp_path / name).values()} == {"failed"}
        messages.append({each["message"] for each in results(tmp_path / name).values()})
    assert messages[0] == messages[1]


def test_one_job_that_cannot_be_built_fails_alone(tmp_path):
    for name, milestone in (("good", 60), ("late", 500)):
        part = "{_target_: lrbench_pl.policies.Constant, lr: 0.05}"
        text = f"_target_: lrbench_pl.policies.Sequential\nmilestones: [{milestone}]\npolicies: [{part}, {part}]\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    done = run(tmp_path / "sweep", "lr_policy_file=good.yaml,late.yaml", "seed=0,1", "target=null")
    assert done.returncode == 1
    found = {(each["policy"], each["seed"]): each for each in results(tmp_path / "sweep").values()}
    statuses = {name: each["status"] for name, each in found.items()}
    assert statuses == {("good", 0): "missed", ("good", 1): "missed", ("late", 0): "failed", ("late", 1): "failed"}
    assert "milestones must lie below max_steps (120), got 500" in found["late", 0]["message"]


def test_equal_policies_train_once(tmp_path):
    jobs = ("lr_policy=linear,poly", "++lr_policy.power=1", "seed=0,1", "target=1.0", "lr=0.05")
    done = run(tmp_path / "sweep", *jobs)
    assert done.returncode == 0, done.stderr
    found = {
        (each["policy"], each["seed"]): each
        for each in (json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/result.json"))
    }
    for seed in (0, 1):
        first, second = found["linear", seed], found["poly", seed]
        assert (first["shared_with"], second["shared_with"]) == (None, first["run_id"])
        assert first["test_loss"] == second["test_loss"]
    assert len({path.read_text() for path in (tmp_path / "sweep").glob("*/metrics.csv")}) == 2


@pytest.mark.slow
def test_out_of_memory_splits_the_group(tmp_path, twelve):
    for name, failure in (("start", "most=5"), ("later", "memory_at=40")):
        done = run(tmp_path / name, *TWELVE, "checkpoint_every=30", failures=failure)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "out of memory with 12 jobs in a group; continuing as groups of 6 and 6 jobs" in done.stdout
        expected, found = results(twelve / "fused"), results(tmp_path / name)
        for run_id in expected:
            assert_equal_results(expected[run_id], found[run_id])
            one, other = history(folders(twelve / "fused")[run_id]), history(folders(tmp_path / name)[run_id])
            assert_equal_histories(one, other)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_finished_jobs_are_kept(tmp_path, twelve):
    folder = tmp_path / "sweep"
    killed = run(folder, *TWELVE, "checkpoint_every=30", failures="kill_at=60")
    assert killed.returncode == -9
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    assert 0 < len(before) < 12
    done = run(folder, *TWELVE, "checkpoint_every=30")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming from step 30 of its group" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    expected, found = results(twelve / "fused"), results(folder)
    assert {each["engine"] for each in found.values()} == {"stacked"}
    for run_id in expected:
        assert_equal_results(expected[run_id], found[run_id])
        assert_equal_histories(history(folders(twelve / "fused")[run_id]), history(folders(folder)[run_id]))
    assert not (folder / ".fused").exists()


@pytest.mark.slow
def test_a_mixed_sweep_says_why_jobs_are_not_fused(tmp_path):
    done = run(tmp_path / "sweep", "lr_policy=fix,tri,plateau,auto", "target=null", "max_steps=60")
    assert done.returncode == 0, done.stdout + done.stderr
    engines = {each["policy"]: each["engine"] for each in results(tmp_path / "sweep").values()}
    assert engines == {"fix": "stacked", "tri": "stacked", "plateau": "serial", "auto": "serial"}
    assert "not fused: 1 job (2): lr_policy=plateau is adaptive: its rates depend on the checks" in done.stderr
    assert "not fused: 1 job (3): lr_policy=auto decides on its rates while it trains" in done.stderr


@pytest.mark.parametrize(
    ("failure", "reason"), [("refuse=it is too odd", "it is too odd"), ("break=no", "the group failed: no")]
)
def test_what_the_engine_cannot_train_runs_serially(tmp_path, failure, reason):
    done = run(tmp_path / "sweep", "lr_policy=fix,tri", "target=null", "max_steps=40", failures=failure)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"not fused: 2 jobs (0, 1): {reason}" in done.stderr
    assert {each["engine"] for each in results(tmp_path / "sweep").values()} == {"serial"}
    assert {each["status"] for each in results(tmp_path / "sweep").values()} == {"missed"}


def test_only_the_job_that_ends_its_process_is_lost(tmp_path):
    done = run(tmp_path / "sweep", "seed=0,1,2,3,4", "target=null", "max_steps=40", failures="lost=3")
    assert done.returncode == 1
    statuses = {each["seed"]: each["status"] for each in results(tmp_path / "sweep").values()}
    assert statuses == {0: "missed", 1: "missed", 2: "missed", 3: "failed", 4: "missed"}
    assert "the 5 jobs of its group continue as two groups" in done.stderr


def test_the_jobs_of_a_group_that_was_interrupted_before_it_began_are_stopped(tmp_path):
    done = run(tmp_path / "sweep", "seed=0,1", "target=null", "max_steps=40", failures="early=1")
    assert "Traceback" not in done.stderr
    assert [each["status"] for each in results(tmp_path / "sweep").values()] == ["stopped", "stopped"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("engine=fast", "hydra.launcher.engine must be one of auto, stacked, captured, got 'fast'"),
        ("max_group=1", "hydra.launcher.max_group must be an integer of at least 2 or null, got 1"),
    ],
)
def test_options_out_of_range(tmp_path, option, message):
    done = run(tmp_path / "sweep", "seed=0,1", f"hydra.launcher.{option}")
    assert done.returncode == 1
    assert message in done.stderr
    assert not list((tmp_path / "sweep").glob("*/run.json"))


@pytest.mark.slow
def test_the_engine_is_chosen_by_a_trial(tmp_path):
    jobs = ("lr_policy=fix,tri", "seed=0,1", "target=null", "max_steps=40")
    for failures, engine in (("trial=stacked", "stacked"), ("refuse_trial=nothing is gained", "serial")):
        done = run(tmp_path / engine, *jobs, "hydra.launcher.engine=auto", failures=failures)
        assert done.returncode == 0, done.stdout + done.stderr
        assert {each["engine"] for each in results(tmp_path / engine).values()} == {engine}
    assert "not fused: 4 jobs (0, 2, 1, 3): nothing is gained" in done.stderr


@pytest.mark.slow
def test_a_selection_trains_its_rungs_as_groups(tmp_path):
    options = ["hydra/sweeper=lrbench", "hydra.sweeper.shapes=[cosine,tri2]", "hydra.sweeper.repeats=0"]
    options += ["hydra.sweeper.rates=[1.0,0.5]", "hydra.sweeper.confirm=0", "hydra.sweeper.known=0", "seed=0,1"]
    done = run(tmp_path / "sweep", *options, "target=0.8", "max_steps=240", "hydra.sweeper.first=0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*-steps/*/result.json")]
    assert len(found) >= 4
    assert "stacked" in {each["engine"] for each in found}
    assert "lrbench run" in done.stdout


@pytest.mark.slow
def test_a_result_of_a_group_is_verified_with_further_seeds(tmp_path, twelve):
    words = [sys.executable, "-m", "lrbench_pl", "verify", str(twelve / "fused"), "--where", "policy=fix"]
    words += ["--where", "optimizer.weight_decay=0.0", "--run", "1"]
    done = forks.run(words, tmp_path, {**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode in (0, 1, 3), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


LONG = (*SHORT, "hydra.launcher.engine=stacked", "lr_policy=fix,tri", "seed=0,1,2", "target=null")


def workers(folder):
    return {record["pid"] for record in records(folder)}


def groups_with_checkpoint(folder):
    return {path.parent for path in folder.glob(".fused/*/step=*.ckpt")}


STEPS = 2400  # on a busy machine some are left when the test has seen the first checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["all", "worker"])
def test_processes_that_are_killed(tmp_path, whom):
    """Worker processes of their own: the sweep is killed with them, or one of them, whose group becomes two."""
    folder, jobs = tmp_path / "sweep", (*LONG, f"max_steps={STEPS}", "check_every=20", "checkpoint_every=20")
    process = sweeps.start(folder, "fused", *jobs)
    try:
        assert wait_for(lambda: 0 < len(workers(folder)) <= len(groups_with_checkpoint(folder)))
        if whom == "worker":
            os.kill(records(folder)[0]["pid"], signal.SIGKILL)
            assert process.wait(timeout=300) == 0
    finally:
        end(process)
    if whom == "all":
        done = sweep(folder, "fused", *jobs)
        assert done.returncode == 0, done.stdout + done.stderr
    found = results(folder)
    assert len(found) == 6
    assert {(each["status"], each["engine"], each["steps_run"]) for each in found.values()} == {
        ("missed", "stacked", STEPS)
    }
    notes = [note for record in records(folder) for note in record["notes"]]
    assert any(note.startswith("resuming from step ") for note in notes)
    assert len(history(folders(folder)[next(iter(found))])) == 1 + 2 * 100 + STEPS // 20 + 1
    assert not (folder / ".fused").exists()


@pytest.mark.slow
def test_ctrl_c_and_the_same_command_again(tmp_path):
    folder, jobs = tmp_path / "sweep", (*LONG, "max_steps=60000", "checkpoint_every=20")
    terminal = Terminal(folder, "fused", *jobs)
    try:
        assert wait_for(lambda: list(folder.glob(".fused/*/step=*.ckpt"))), terminal.text()
        terminal.interrupted()
    finally:
        terminal.close()
    stopped = results(folder)
    assert {each["status"] for each in stopped.values()} == {"stopped"}
    assert all(each["message"].startswith("interrupted ") for each in stopped.values())
    assert len(stopped) == len(records(folder))
    again = sweeps.start(folder, "fused", *jobs)
    try:
        assert wait_for(lambda: any("resuming from step" in str(each["notes"]) for each in records(folder)))
    finally:
        end(again)
