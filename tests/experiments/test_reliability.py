"""The frozen trials, and that a wrong end is counted."""

import csv
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "reliability"
sys.path.insert(0, str(STUDY.parent))

import tables  # noqa: E402

table = runpy.run_path(str(STUDY / "table.py"))["table"]


def frozen():
    with (STUDY / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_in_the_readme_is_that_of_the_frozen_trials():
    readme = (STUDY / "README.md").read_text()
    assert tables.written(readme, "\n".join(table(frozen()))) == readme


def test_no_trial_is_there_twice():
    keys = [(row["act"], row["strike"], row["at"]) for row in frozen()]
    assert len(set(keys)) == len(keys)


def test_what_went_wrong_is_counted():
    good = dict.fromkeys(("lost", "doubled", "unequal", "histories", "left", "silent", "repeated"), "0")
    first = {**good, "act": "run", "strike": "write", "struck": "1", "whole": "60", "repeated": "20"}
    second = {**first, "lost": "1", "repeated": "7"}
    late = {**first, "struck": "0", "repeated": "0"}
    lines = table([first, second, late])
    assert lines[0] == "3 trials, 2 of them with a SIGKILL and 0 with a failed operation."
    assert lines[4] == "| run | write | 3 | 2 | 1 | 0 | 0 | 0 | 0 | 0 | 13.5 | 20 | 60 |"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None or not sys.platform.startswith("linux"), reason="needs Linux and cc")
def test_trials_of_the_database(tmp_path):
    """A few trials: kills strike, and nothing is lost, doubled or unequal."""
    output = tmp_path / "results.csv"
    command = [sys.executable, STUDY / "measure.py", "--only", "database", "--hours", "0.003", "-o", output]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    with output.open(newline="") as file:
        trials = list(csv.DictReader(file))
    assert any(trial["ended"] == "killed" for trial in trials)
    assert not any(int(trial[name]) for trial in trials for name in ("lost", "doubled", "unequal", "left", "silent"))
