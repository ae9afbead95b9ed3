"""From folders of rows to a ranking."""

import csv
import json
import math

import polars as pl
import pytest

from lrbench_pl.analysis.load import AnalysisError, load_runs
from lrbench_pl.analysis.ranking import default_keys, equal_policies, rank
from lrbench_pl.analysis.show import render
from lrbench_pl.results import RunResult

COMMON = {
    "dataset": "digits",
    "model": "mlp",
    "optimizer": "momentum",
    "batch_size": 64,
    "lr": 0.05,
    "max_steps": 1000,
    "target_accuracy": 0.97,
    "monitor": "val/accuracy",
    "check_on": "validation",
}


def write(folder, policy, steps, seed=0, best=0.98, status=None, **changes):
    status = status or ("missed" if steps is None else "reached")
    row = {**COMMON, "policy": policy, "steps_to_target": steps, "seed": seed, "best_accuracy": best, **changes}
    number = len(list(folder.iterdir())) if folder.exists() else 0
    RunResult(run_id=f"{policy}{seed}", status=status, **row).write(folder / str(number))
    return folder / str(number)


def ranked(folder, **arguments):
    return rank(load_runs([folder]).table, **arguments)


def test_share_then_median_steps_then_best_accuracy(tmp_path):
    runs = {
        "half": [100, None],
        "fast": [100, 300],
        "slow": [400, 400],
        "never": [None, None],
        "closer": [None, None],
    }
    for policy, steps in runs.items():
        for seed, each in enumerate(steps):
            write(tmp_path, policy, each, seed, best=0.96 if policy == "closer" else 0.9)
    table = ranked(tmp_path)
    assert table["policy"].to_list() == ["fast", "slow", "half", "closer", "never"]
    assert table["rank"].to_list() == [1, 2, 3, 4, 5]
    assert table["reached"].to_list() == [2, 2, 1, 0, 0]
    assert table["median_steps"].to_list() == [200, 400, math.inf, math.inf, math.inf]


def test_a_miss_counts_as_infinite_in_the_median(tmp_path):
    for seed, steps in enumerate([100, 200, None]):
        write(tmp_path, "a", steps, seed)
    assert ranked(tmp_path)["median_steps"].to_list() == [200]


def test_equals_share_a_rank(tmp_path):
    for policy in ("b", "a", "c"):
        write(tmp_path, policy, 300 if policy == "c" else 100)
    table = ranked(tmp_path)
    assert list(zip(table["rank"], table["policy"], strict=True)) == [(1, "a"), (1, "b"), (3, "c")]


def test_a_diverged_run_is_a_miss_and_a_failed_one_says_nothing(tmp_path):
    write(tmp_path, "a", 100, seed=0)
    write(tmp_path, "a", None, seed=1, status="failed", message="disk full", best=None)
    write(tmp_path, "a", None, seed=2, status="stopped", best=None)
    write(tmp_path, "b", 100, seed=0)
    write(tmp_path, "b", None, seed=1, status="diverged", best=None)
    write(tmp_path, "c", None, status="failed", best=None)
    table = ranked(tmp_path)
    assert table["policy"].to_list() == ["a", "b", "c"]
    assert table["runs"].to_list() == [1, 2, 0]
    assert table["share"].to_list() == [1.0, 0.5, None]
    assert table["median_steps"].to_list() == [100, math.inf, None]
    assert table.select("diverged", "failed", "stopped").rows() == [(0, 1, 1), (1, 0, 0), (0, 1, 0)]


def test_the_optimizer_and_the_rate_are_told_apart_where_they_vary(tmp_path):
    write(tmp_path, "a", 100)
    assert default_keys(load_runs([tmp_path]).table) == ["policy"]
    write(tmp_path, "a", 200, optimizer="adam", lr=0.002)
    assert default_keys(load_runs([tmp_path]).table) == ["policy", "optimizer"]
    write(tmp_path, "a", 300, optimizer="adam", lr=0.004)
    assert default_keys(load_runs([tmp_path]).table) == ["policy", "optimizer", "lr"]
    assert ranked(tmp_path).height == 3


@pytest.mark.parametrize(
    "change",
    [{"target_accuracy": 0.9}, {"max_steps": 2000}, {"dataset": "mnist"}, {"model": "lenet"}, {"check_on": "test"}],
)
def test_answers_to_different_questions_are_not_ranked_together(tmp_path, change):
    write(tmp_path, "a", 100)
    write(tmp_path, "b", 100, **change)
    (column,) = change
    with pytest.raises(AnalysisError, match=f"the runs differ in {column} .* --by policy,{column}"):
        ranked(tmp_path)
    assert ranked(tmp_path, by=["policy", column]).height == 2


def test_a_failed_run_does_not_make_the_rest_incomparable(tmp_path):
    write(tmp_path, "a", 100)
    write(tmp_path, "b", None, status="failed", check_on=None)
    assert ranked(tmp_path).height == 2


def test_an_unknown_column_is_refused(tmp_path):
    write(tmp_path, "a", 100)
    with pytest.raises(AnalysisError, match=r"--by must name columns of the results \(run_id, .*\), got 'color'"):
        ranked(tmp_path, by=["color"])


def test_policies_with_the_same_rates_are_named():
    runs = pl.DataFrame({"policy": ["a", "b", "b", "c", "d"], "policy_id": ["1", "1", "1", "2", None]})
    assert equal_policies(runs) == [["a", "b"]]


def test_what_cannot_be_read_is_named_and_the_rest_is_ranked(tmp_path):
    write(tmp_path, "a", 100)
    half = write(tmp_path, "b", 100) / "result.json"
    half.write_text(half.read_text()[:100])
    running = tmp_path / "2"
    (running / ".hydra").mkdir(parents=True)
    (running / "run.log").touch()
    runs = load_runs([tmp_path, tmp_path / "0"])
    assert runs.table["policy"].to_list() == ["a"]
    assert [(s.path.name, s.reason.split(":")[0].split(" (")[0]) for s in runs.skipped] == [
        ("1", "not complete JSON"),
        ("2", "no result.json"),
    ]


def test_job_10_comes_after_job_9(tmp_path):
    for number in range(11):
        write(tmp_path, f"p{number}", 100)
    assert load_runs([tmp_path]).table["policy"].to_list() == [f"p{number}" for number in range(11)]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(AnalysisError, match=r"no run with a readable result.json \(none found\)"):
        load_runs([tmp_path])
    with pytest.raises(AnalysisError, match="no such folder"):
        load_runs([tmp_path / "nowhere"])
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(AnalysisError, match=r"1 unreadable, the first: .*field 'policy' is missing"):
        load_runs([tmp_path])


def test_the_forms(tmp_path):
    write(tmp_path, "tri | x", 240, test_accuracy=0.97)
    write(tmp_path, "[red]fix", None, best=0.9)
    table = ranked(tmp_path)
    rows = json.loads(render(table, "json"))
    assert [(row["policy"], row["median_steps"]) for row in rows] == [("tri | x", 240.0), ("[red]fix", None)]
    first = next(csv.DictReader(render(table, "csv").splitlines()))
    assert (first["rank"], first["policy"], first["median_steps"], first["rank_low"]) == ("1", "tri | x", "240.0", "")
    markdown = render(table, "markdown").splitlines()
    assert markdown[2] == "| 1 | 1 | tri \\| x | 1/1 | 1.00 [0.21, 1.00] | 240 | 240 | 0.9800 | 0.9700 |"
    plain = render(table, "table", width=120).splitlines()
    titles = "tier rank policy reached share median steps expected steps best acc. test acc."
    assert " ".join(plain[0].split()) == titles
    assert plain[-1].split() == ["1", "2", "[red]fix", "0/1", "0.00", "[0.00,", "0.79]", "∞", "∞", "0.9000", "–"]
