"""A project in the layout of lightning-hydra-template that takes policies and launchers from here."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests import forks

PROJECT = Path(__file__).parent / "foreign_project"


def train(folder, *arguments, code=0):
    """Run its training script; where it writes is below ``folder``."""
    words = [sys.executable, PROJECT / "src" / "train.py", *arguments, f"paths.log_dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = forks.run(words, folder, environment, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def results(folder):
    found = [json.loads(path.read_text()) for path in Path(folder).rglob("result.json")]
    return {(row["policy"], row["seed"]): row for row in found}


def test_it_takes_five_lines():
    marks = [
        line.split("(lrbench)")[1].strip()
        for path in (PROJECT / "configs").rglob("*.yaml")
        for line in path.read_text().splitlines()
        if "(lrbench)" in line
    ]
    assert sorted(marks) == ["1", "2", "3", "4", "5"]


@pytest.mark.slow
def test_a_run_applies_the_policy_and_its_result_can_be_ranked(tmp_path):
    train(tmp_path, "experiment=example", "lr_policy=composite_tri")
    (row,) = results(tmp_path).values()
    assert (row["policy"], row["seed"], row["status"], row["monitor"]) == ("composite_tri", 12345, "reached", "val/acc")
    assert (row["model"], row["dataset"], row["optimizer"]) == ("DigitsModule", "DigitsDataModule", "SGD")
    assert row["lr"] == pytest.approx(0.2, rel=0.1)
    assert row["policy_repr"].startswith("Sequential(")
    words = [sys.executable, "-m", "lrbench_pl", "rank", tmp_path, "--target", "0.5", "--format", "json"]
    ranked = forks.run(words, tmp_path, os.environ, timeout=300)
    assert ranked.returncode == 0, ranked.stderr
    (ranked_row,) = json.loads(ranked.stdout)
    assert ranked_row["policy"] == "composite_tri"
    assert ranked_row["median_steps"] <= row["steps_to_target"]


@pytest.mark.slow
def test_its_own_launcher_and_ours_give_the_same(tmp_path):
    """Jobs find the project's modules and the resolvers of its script in other processes too."""
    two = ("-m", "lr_policy=tri,cosine", "seed=1")
    found = {}
    for launcher in ("basic", "lrbench_basic", "lrbench_joblib", "lrbench_submitit_local"):
        folder = tmp_path / launcher
        folder.mkdir()
        output = train(folder, *two, f"hydra/launcher={launcher}")
        if launcher.startswith("lrbench_"):
            assert "2 of 2: " in output
        rows = results(folder)
        found[launcher] = {key: (row["steps_to_target"], row["best_value"]) for key, row in rows.items()}
    assert len(found["basic"]) == 2
    assert all(each == found["basic"] for each in found.values()), found


@pytest.mark.slow
def test_a_job_that_fails_ends_no_other_and_the_sweep_says_so(tmp_path):
    output = train(
        tmp_path, "-m", "data.batch_size=0,64", "hydra/launcher=lrbench_joblib", "hydra.launcher.n_jobs=1", code=1
    )
    assert "1 of 2: data.batch_size=0: failed: batch_size" in output
    assert "2 of 2: data.batch_size=64: 0." in output
    assert len(results(tmp_path)) == 1


def test_an_argument_that_a_launcher_refuses_is_one_line(tmp_path):
    output = train(tmp_path, "-m", "seed=0,1", "hydra/launcher=lrbench_joblib", "hydra.launcher.n_jobs=0", code=1)
    assert "hydra.launcher.n_jobs must be at least 1" in output
    assert "Traceback" not in output
