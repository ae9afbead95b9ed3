"""The comparison with LRBench's public code: frozen, recomputed, shown."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "compare_with_reference"


@pytest.fixture
def table(monkeypatch, tmp_path):
    """The script as a module that writes elsewhere."""
    spec = importlib.util.spec_from_file_location("compare_with_reference", STUDY / "table.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_with_reference", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results.csv")
    monkeypatch.setattr(module, "FIGURE", tmp_path / "figure.png")
    return module


def test_the_block_in_the_readme_is_what_the_command_prints():
    found = subprocess.run([sys.executable, STUDY / "table.py"], capture_output=True, text=True, check=True).stdout
    block = (STUDY / "README.md").read_text().split("<!-- from results.csv -->\n")[1].split("<!-- end -->")[0]
    assert found == block


@pytest.mark.slow
def test_computed_again_it_gives_the_frozen_rows(table, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["table.py", "--run"])
    table.main()
    assert table.RESULTS.read_text() == (STUDY / "results.csv").read_text()
    assert table.FIGURE.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("all 10,001") == 26  # 25 functions and a composite


def test_the_frozen_rows_say_what_the_reading_says():
    with (STUDY / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    plainly = [row for row in rows if row["case"] == "in order"]
    assert len(plainly) == len({row["function"] for row in plainly}) == 34
    apart = {row["function"]: (row["agree"], row["first"]) for row in plainly if row["agree"] != row["steps"]}
    restarting = [name + decay for name in ("RSW", "SINRSW", "COSRSW") for decay in ("", "2", "EXP")]
    assert apart == dict.fromkeys(restarting, ("9995", "0"))


def test_what_was_seen_of_the_reference(table):
    """Rates worked out by hand from what its functions do."""
    nstep = {"lrPolicy": "NSTEP", "k0": 1.0, "gamma": 0.5, "l": [10, 20]}
    first = table.reference(nstep)
    assert [first(t) for t in (9, 10, 25, 0)] == [1, 0.5, 0.25, 0.25]
    second = table.reference(nstep)
    assert [second(25), second(25), first(0)] == [0.5, 0.25, 0.25]
    parts = [{"lrPolicy": "FIX", "k0": 3.0}, {"lrPolicy": "POLY", "k0": 0.0, "k1": 1.0, "p": 1, "l": 4}]
    joined = table.reference(parts, [8])
    assert [joined(t) for t in (7, 8, 10, 0)] == [3, 1, 0.5, 3]
    assert table.plain("POLY", 0.0, 1.0, p=0.5, l=4)(5) is None
    assert table.plain("POLY", 0.0, p=1, l=4)(0) is None
    assert table.plain("SIG", 1.0, gamma=-1.0, l=0)(709) > 0
    assert table.plain("SIG", 1.0, gamma=-1.0, l=0)(710) is None
    sawtooth = table.plain("RSW", 1.0, 5.0, l=4)
    assert [sawtooth(t) for t in (0, 1, 3, 4, 5)] == [1, 4, 2, 1, 4]
    halved = table.plain("TRI2", 1.0, 5.0, l=1)
    assert halved(2 * 1023 + 1) == 1
    assert halved(2 * 1024 + 1) is None


def test_without_frozen_rows_it_says_so(table, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["table.py"])
    with pytest.raises(SystemExit, match=r"results\.csv is not there: expected .*; --run computes them"):
        table.main()
