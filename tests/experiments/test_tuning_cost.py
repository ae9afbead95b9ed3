"""Every figure in the study comes out of its frozen rows, and every way of tuning runs."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "tuning_cost"


def test_the_tables_in_the_readme_are_those_of_the_frozen_results():
    found = subprocess.run([sys.executable, STUDY / "table.py"], capture_output=True, text=True, check=True).stdout
    assert found.count("| auto |") == 2
    assert found.strip() in (STUDY / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["selection", "grid", "lr_finder_onecycle", "optuna_tpe"])
def test_a_way_of_tuning_leaves_its_rows(tmp_path, way):
    arguments = ["seed=3", "max_steps=300", "check_every=20", "target_accuracy=0.85", "trainer=cpu"]
    done = subprocess.run(
        [sys.executable, STUDY / f"{way}.py", *arguments, "--out", tmp_path / "rows.csv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, *_ = csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())
    assert first["reached"] == "True"
    assert 0 < int(first["steps_in_all"]) <= 1200
    assert f"{way}.py seed=3" in first["command"]
