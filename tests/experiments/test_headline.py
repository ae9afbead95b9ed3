"""The table at the head of the README comes out of the frozen rows."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))

import tables  # noqa: E402


@pytest.mark.slow
def test_the_headline_of_the_readme_is_that_of_the_frozen_rows():
    found = subprocess.run(
        [sys.executable, ROOT / "experiments" / "headline.py"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert "`auto`" in found
    readme = (ROOT / "README.md").read_text()
    assert tables.written(readme, found) == readme


def test_a_readme_without_its_marks_is_refused():
    with pytest.raises(ValueError, match=r"expected one .* found 0"):
        tables.written("no marks", "text")
