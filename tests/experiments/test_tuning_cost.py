"""Every figure in the study comes out of its frozen rows."""

import subprocess
import sys
from pathlib import Path

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "tuning_cost"


def test_the_tables_in_the_readme_are_those_of_the_frozen_results():
    found = subprocess.run([sys.executable, STUDY / "table.py"], capture_output=True, text=True, check=True).stdout
    assert found.count("| auto |") == 3
    assert found.strip() in (STUDY / "README.md").read_text()


def test_the_policies_alone_are_those_of_the_frozen_rows():
    found = subprocess.run([sys.executable, STUDY / "transfer.py"], capture_output=True, text=True, check=True).stdout
    assert found.count("| seed ") >= 5
    assert found.strip() in (STUDY / "README.md").read_text()
