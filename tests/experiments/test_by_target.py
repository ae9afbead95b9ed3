"""Speed-ups of a study by target: every number comes out of the frozen checks."""

import re
import sys
from pathlib import Path

import polars as pl
import pytest

from lrbench_pl.analysis.load import load_runs
from tests.analysis.test_history import run

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import by_target  # noqa: E402
import tables  # noqa: E402

FULL = EXPERIMENTS / "policies_cifar10_cnn3_full"


@pytest.fixture(scope="module")
def readme():
    return (FULL / "README.md").read_text()


def test_the_tables_in_the_readme_are_those_of_the_frozen_checks(readme, capsys):
    command = re.search(r"^    python experiments/by_target.py (.*)$", readme, re.MULTILINE)[1]
    by_target.main(command.split())
    found = capsys.readouterr().out.strip()
    assert len(found.splitlines()) == 10 + 1 + 2 + 30
    assert tables.written(readme, found, by_target.BEGIN) == readme
    assert (FULL / "by_target.png").stat().st_size > 5000


def test_the_reading_names_numbers_of_the_tables_and_results(readme):
    before, _, reading = readme.partition(tables.END)
    results = pl.read_csv(FULL / "results.csv")
    known = {f"{value:.4f}" for value in results["test_accuracy"].drop_nulls()}
    known |= {number for row in before.splitlines() if row.startswith("|") for number in re.findall(r"\d+\.\d+", row)}
    paper = {"1.6", "6.7", "0.001"}
    assert set(re.findall(r"\d+\.\d+", reading)) - paper <= known
    steps = {int(number.replace(",", "")) for number in re.findall(r"\d+,\d{3}", reading)} - {60000}
    assert all(f"{step}" in before for step in steps)


def test_the_checks_end_where_the_results_do():
    results = pl.read_csv(FULL / "results.csv").filter(pl.col("study").str.split("/").list.last() != "target")
    groups, budget, mode = by_target.courses(FULL / "curves.csv")
    assert (budget, mode) == (70_000, "max")
    assert {key: len(runs) for key, runs in groups.items()} == {("the default",): 5, ("auto",): 5, ("tri",): 3}
    ends = {(run.seed, run.steps_run, run.history.values[-1]) for runs in groups.values() for run in runs}
    assert ends == set(results.select("seed", "steps_run", "final_value").rows())
    stopped = {(run.seed, run.steps_run) for runs in groups.values() for run in runs if not run.is_complete}
    early = results.filter(pl.col("steps_run") < 70_000)
    assert stopped == set(early.select("seed", "steps_run").rows())


def test_runs_are_frozen_and_read_back(tmp_path):
    long, short = [(100, 0.5), (200, 0.7), (300, 0.9)], [(100, 0.6), (250, 0.95)]
    common = {"max_steps": 300, "target": None, "optimizer": "sgd"}
    run(tmp_path / "w", "inv", None, long, study="s/default", steps_run=300, seed=1, **common)
    run(tmp_path / "w", "auto", None, short, study="s/auto", steps_run=260, seed=1, status="stopped", **common)
    run(tmp_path / "w", "inv", None, long, study="s/tune", steps_run=300, seed=9, **common)
    by_target.freeze_curves(load_runs([tmp_path / "w"]).table, tmp_path / "curves.csv")
    table = pl.read_csv(tmp_path / "curves.csv")
    assert table.select("study", "steps", "values").rows() == [
        ("s/auto", "100 250", "0.6 0.95"),
        ("s/default", "100:300:100", "0.5 0.7 0.9"),
    ]
    groups, budget, mode = by_target.courses(tmp_path / "curves.csv")
    assert (budget, mode, list(groups)) == (300, "max", [("the default",), ("auto",)])
    assert groups[("auto",)][0].outcome(0.9, "max", 1) == (250, True, False)
    assert groups[("auto",)][0].outcome(0.96, "max", 1) == (260, False, True)
    lines = by_target.at_targets(tmp_path / "curves.csv", [0.9, 0.96])
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["300", "250", "missed", "> 260"]
    last = by_target.table(tmp_path / "curves.csv", number=3)[-1]
    assert last == "| 0.9 | 1/1 | 1.20 | 1.00 | 1.20 |"


def test_runs_without_a_history_freeze_nothing(tmp_path):
    at = run(tmp_path / "w", study="s/default")
    (at / "metrics.csv").unlink()
    by_target.freeze_curves(load_runs([tmp_path / "w"]).table, tmp_path / "curves.csv")
    assert not (tmp_path / "curves.csv").exists()


def test_a_study_without_frozen_checks_says_so(capsys):
    with pytest.raises(SystemExit):
        by_target.main(["policies_mnist_lenet"])
    assert (
        "policies_mnist_lenet has no curves.csv: the histories of its runs were not frozen" in capsys.readouterr().err
    )


@pytest.mark.parametrize("steps", [[], [5], [5, 9], [5, 10, 15], [5, 10, 16]])
def test_steps_are_packed_without_loss(steps):
    assert by_target.unpacked(by_target.packed(steps)) == steps
