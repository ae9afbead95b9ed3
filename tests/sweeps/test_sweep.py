"""run.py as a user starts it: one run, a sweep and its ranking, mistakes, Ctrl-C, two processes."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests import forks

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("max_steps=60", "check_every=20", "trainer=cpu")


def command(*arguments, module=False):
    return [sys.executable, *(["-m", "lrbench_pl"] if module else [str(ROOT / "run.py")]), *map(str, arguments)]


def call(folder, *arguments, module=False):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return forks.run(command(*arguments, module=module), folder, environment, timeout=300)


def rows(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("result.json"))]


@pytest.mark.slow
def test_a_real_sweep_and_its_ranking(tmp_path):
    """Two policies, one of them a composite, by two seeds; one job of a third policy fails and stops nothing."""
    swept = call(
        tmp_path,
        "-m",
        *SHORT,
        "target=0.5",
        "lr_policy=fix,composite_tri",
        "seed=0,1",
        "hydra.sweep.dir=sweep",
    )
    assert swept.returncode == 0, swept.stderr
    assert swept.stdout.count("reached 0.500 at step") == 4
    found = rows(tmp_path / "sweep")
    assert {(row["policy"], row["seed"]) for row in found} == {(p, s) for p in ("fix", "composite_tri") for s in (0, 1)}
    assert {row["status"] for row in found} == {"reached"}
    assert all(
        (path / "policy.yaml").exists() and (path / "metrics.csv").exists() for path in (tmp_path / "sweep").glob("?")
    )

    failing = call(
        tmp_path, "-m", *SHORT, "target=0.5", "lr_policy=tri", "batch_size=64,9000", "hydra.sweep.dir=sweep2"
    )
    assert failing.returncode == 1  # a job failed; the other one is a row
    assert "failed: a batch of 9000 samples is larger" in failing.stdout

    ranked = call(tmp_path, "rank", "sweep", "sweep2", "--format", "json", module=True)
    assert ranked.returncode == 0, ranked.stderr
    table = json.loads(ranked.stdout)
    assert {row["policy"]: row["runs"] for row in table} == {"fix": 2, "composite_tri": 2, "tri": 1}
    assert "6 runs, 1 failed" in ranked.stderr
    assert "a batch of 9000 samples is larger than the training set" in ranked.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["lr_policy=nope"], 1, "error: lr_policy has no choice 'nope'; choose from auto, best, "),
        (["lr_policy.gama=2"], 1, "error: there is no key 'lr_policy.gama'"),
        (["colour=red"], 1, "error: there is no key 'colour'; lrbench run --help lists them"),
        (["group/nope=1"], 1, "error: there is no group 'group/nope'; lrbench run --help lists them"),
        (
            ["target=95", *SHORT],
            1,
            "target must be at most 1 for 'val/accuracy', got 95; did you mean 0.95?",
        ),
        (["target=1.0", "require_target=true", *SHORT], 3, "missed 1.000 within 60 steps"),
    ],
)
def test_exit_codes(tmp_path, arguments, code, message):
    done = call(tmp_path, *arguments)
    assert done.returncode == code
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistake_that_all_jobs_share_is_said_once(tmp_path):
    done = call(tmp_path, "-m", *SHORT, "target=0.5,0.6", "lr=-1", "hydra.sweep.dir=sweep")
    assert done.returncode == 1
    assert done.stderr == "error: 2 jobs refused: lr must be a finite number above 0, got -1\n"
    assert not rows(tmp_path)
    assert not (tmp_path / "sweep" / "multirun.yaml").exists()

    done = call(tmp_path, "-m", *SHORT, "target=0.5", "lr=-1,-2,nan", "hydra.sweep.dir=sweep")
    assert done.returncode == 1
    assert [f"failed: lr must be a finite number above 0, got {lr}" in done.stdout for lr in (-1, -2, "nan")] == [
        True
    ] * 3


@pytest.mark.slow
def test_a_mistake_of_some_jobs_stops_no_other_and_is_ranked_as_what_it_is(tmp_path):
    """Also where the sweeper launches them in batches, of which one has mistakes alone."""
    sweep = ("-m", *SHORT, "target=0.1", "lr_policy=fix", "lr=-1,0.1", "seed=0,1", "hydra.sweep.dir=sweep")
    done = call(tmp_path, *sweep, "hydra.sweeper.max_batch_size=2")
    assert done.returncode == 1
    assert [(row["status"], row["optimizer"], row["seed"]) for row in rows(tmp_path / "sweep")] == [
        ("failed", "momentum", 0),
        ("failed", "momentum", 1),
        ("reached", "momentum", 0),
        ("reached", "momentum", 1),
    ]
    ranked = call(tmp_path, "rank", "sweep", "--by", "policy,optimizer.momentum", module=True)
    assert ranked.returncode == 0, ranked.stderr
    assert "counted again" not in ranked.stderr
    assert "failed: fix (seed 1)" in ranked.stderr


def test_a_sweep_that_is_refused_leaves_the_record_of_the_one_before(tmp_path):
    first = ("-m", *SHORT, "target=0.1", "lr_policy=fix", "hydra.sweep.dir=sweep")
    assert call(tmp_path, *first, "lr=0.1").returncode == 0
    before = (tmp_path / "sweep" / "multirun.yaml").read_bytes()
    assert "the folder belongs to another sweep" in call(tmp_path, *first, "lr=0.2").stderr
    assert (tmp_path / "sweep" / "multirun.yaml").read_bytes() == before


def test_help_lists_options_and_groups(tmp_path):
    done = call(tmp_path, "--help")
    assert done.returncode == 0
    for words in (
        "The three options of a policy",
        "lr_policy: ",
        "composite_tri",
        "optimizer: ",
        "lrbench run -m",
        "experiment: ",
    ):
        assert words in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_gives_a_result_and_exit_code_130(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    history = tmp_path / "run" / "metrics.csv"
    endless = command("max_steps=2000000", "check_every=100", "target=1.0", "hydra.run.dir=run")
    with (tmp_path / "output.txt").open("w") as file:
        process = forks.start(endless, tmp_path, environment, file)
    try:
        deadline = time.monotonic() + 60
        while not history.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=300)
    finally:
        process.kill_group()
    output = (tmp_path / "output.txt").read_text()
    assert code == 130, output
    (row,) = rows(tmp_path)
    assert row["status"] == "stopped"
    assert row["message"].startswith("interrupted at step ")
    assert row["steps_run"] > 0
    assert "Traceback" not in output


@pytest.mark.slow
def test_two_processes_agree_and_write_one_result(tmp_path):
    done = call(tmp_path, "trainer=ddp", "trainer.accelerator=cpu", *SHORT[:2], "target=0.5", "hydra.run.dir=run")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = rows(tmp_path)
    assert row["status"] == "reached"
    assert row["steps_run"] == row["steps_to_target"]
    assert row["test_accuracy"] > 0.3  # guessing gives 0.1
