"""What few seeds name, and that the study says what its rows say."""

import math
import runpy
import subprocess
import sys
from pathlib import Path

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "ranking_stability"
sys.path.insert(0, str(STUDY.parent))

import tables  # noqa: E402

stability = runpy.run_path(str(STUDY / "table.py"))


def test_the_table_in_the_readme_is_that_of_the_frozen_rows():
    command = [sys.executable, STUDY / "table.py"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    readme = (STUDY / "README.md").read_text()
    assert tables.written(readme, found) == readme
    assert (STUDY / "figure.png").stat().st_size > 5000


def test_a_single_seed_is_as_right_as_the_count_says():
    steps = {"inv": {0: 90, 1: 90, 2: 90}, "a": {0: 10, 1: 10, 2: 40}, "b": {0: 20, 1: 20, 2: 20}}
    lines = stability["table"](steps)
    assert lines[0] == "3 policies; all 3 seeds name `a`."
    assert lines[4] == "| 1 | 67% | 2 | 3 | 10 |"  # seed 2 names b, which takes 10 more
    assert lines[6] == "| 3 | 100% | 1 | 0 | 0 |"


def test_a_policy_that_misses_in_the_median_loses_all():
    steps = {"a": {0: 10, 1: 10, 2: 10}, "b": {0: 5, 1: math.inf, 2: math.inf}}
    assert stability["stability"](steps)[0].lost[1] == math.inf
