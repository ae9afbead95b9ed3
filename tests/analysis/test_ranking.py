"""Rankings from folders of results."""

import csv
import json
import math
import os

import polars as pl
import pytest

from lrbench_pl.analysis.load import AnalysisError, load_runs
from lrbench_pl.analysis.notes import notes
from lrbench_pl.analysis.ranking import default_keys, equal_policies, rank
from lrbench_pl.analysis.show import render
from lrbench_pl.runs.result import RunResult

COMMON = {
    "dataset": "digits",
    "model": "mlp",
    "optimizer": "momentum",
    "batch_size": 64,
    "lr": 0.05,
    "max_steps": 1000,
    "target": 0.97,
    "monitor": "val/accuracy",
    "check_on": "validation",
}


def write(folder, policy, steps, seed=0, best=0.98, status=None, **changes):
    status = status or ("missed" if steps is None else "reached")
    row = {**COMMON, "policy": policy, "steps_to_target": steps, "seed": seed, "best_value": best, **changes}
    number = len(list(folder.iterdir())) if folder.exists() else 0
    RunResult(run_id=f"{policy}{seed}", status=status, **row).write(folder / str(number))
    return folder / str(number)


def ranked(folder, **arguments):
    return rank(load_runs([folder]).table, **arguments)


def test_share_then_median_steps_then_best_value(tmp_path):
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


def test_a_diverged_run_is_a_miss_and_a_failed_one_does_not_count(tmp_path):
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


def test_optimizer_and_rate_group_the_runs_if_they_vary(tmp_path):
    write(tmp_path, "a", 100)
    assert default_keys(load_runs([tmp_path]).table) == ["policy"]
    write(tmp_path, "a", 200, optimizer="adam", lr=0.002)
    assert default_keys(load_runs([tmp_path]).table) == ["policy", "optimizer"]
    write(tmp_path, "a", 300, optimizer="adam", lr=0.004)
    assert default_keys(load_runs([tmp_path]).table) == ["policy", "optimizer", "lr"]
    assert ranked(tmp_path).height == 3


@pytest.mark.parametrize(
    "change",
    [{"target": 0.9}, {"max_steps": 2000}, {"dataset": "mnist"}, {"model": "lenet"}, {"check_on": "test"}],
)
def test_runs_of_different_tasks_are_not_ranked_together(tmp_path, change):
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
    markdown = render(table, "markdown", monitor="val/accuracy").splitlines()
    assert markdown[2] == "| 1 | 1 | tri \\| x | 1/1 | 1.00 [0.21, 1.00] | 240 | 240 | 0.9800 | 0.9700 |"
    plain = render(table, "table", width=120, monitor="val/accuracy").splitlines()
    titles = "tier rank policy reached share median steps expected steps best acc. test acc."
    assert " ".join(plain[0].split()) == titles
    assert plain[-1].split() == ["1", "2", "[red]fix", "0/1", "0.00", "[0.00,", "0.79]", "∞", "∞", "0.9000", "–"]


# -- intervals, tiers, comparisons ----------------------------------------------------------------------------


def five(folder, policy, first, **changes):
    for seed in range(5):
        write(folder, policy, None if first is None else first + 20 * seed, seed, **changes)


def columns(table, *names):
    return dict(zip(names, (table[name].to_list() for name in names), strict=True))


def test_policies_without_a_significant_difference_share_a_tier(tmp_path):
    five(tmp_path, "fast", 100)
    five(tmp_path, "alike", 110)
    five(tmp_path, "slow", 600)
    assert columns(ranked(tmp_path), "policy", "tier", "rank_low", "rank_high", "median_low", "median_high") == {
        "policy": ["fast", "alike", "slow"],
        "tier": [1, 1, 2],
        "rank_low": [1, 1, 3],
        "rank_high": [2, 2, 3],
        "median_low": [100, 110, 600],
        "median_high": [180, 190, 680],
    }
    more = ranked(tmp_path)["more_seeds"].to_list()
    assert more[0] is None
    assert more[1] > 20
    assert more[2] is None


def test_misses_are_ordered_by_their_best_value(tmp_path):
    for seed in range(5):
        write(tmp_path, "far", None, seed, best=0.5 + seed / 100)
        write(tmp_path, "close", None, seed, best=0.9 + seed / 100)
    table = ranked(tmp_path)
    assert table.select("policy", "tier", "reached", "median_steps", "share_high").rows()[0][:4] == (
        "close", 1, 0, math.inf,
    )  # fmt: skip
    assert table["tier"].to_list() == [1, 2]


def test_policies_that_always_diverge_share_a_tier(tmp_path):
    for policy in ("a", "b"):
        five(tmp_path, policy, None, status="diverged", best=None)
    table = ranked(tmp_path)
    assert columns(table, "rank", "tier", "rank_low", "rank_high", "diverged", "best_value") == {
        "rank": [1, 1],
        "tier": [1, 1],
        "rank_low": [1, 1],
        "rank_high": [2, 2],
        "diverged": [5, 5],
        "best_value": [None, None],
    }
    assert table["more_seeds"].to_list() == [None, None]


def test_one_run_has_no_interval(tmp_path):
    write(tmp_path, "a", 100)
    table = ranked(tmp_path)
    assert table.select("rank", "rank_low", "tier", "median_steps", "median_low").rows() == [(1, None, 1, 100, None)]
    said = notes(table, load_runs([tmp_path]))
    assert said[0] == "1 run; steps to 0.97, medians; ∞: half of the runs or more missed"
    assert said[1].startswith("1 run each: no interval;")


def test_unequal_numbers_of_runs_are_noted(tmp_path):
    five(tmp_path, "a", 100)
    for seed in range(3):
        write(tmp_path, "b", 200, seed)
    said = notes(ranked(tmp_path), load_runs([tmp_path]))
    assert "3 runs for some policies, 5 for others: no interval of the median below 5 runs" in said
    assert "unequal numbers of runs: 3 to 5 per policy" in said


def test_the_same_seed_in_two_sweeps_is_noted(tmp_path):
    for sweep in ("one", "two"):
        five(tmp_path / sweep, "a", 100)
    runs = load_runs([tmp_path / "one", tmp_path / "two"])
    said = [line for line in notes(rank(runs.table), runs) if "repeat" in line]
    assert said == ["5 runs repeat policy and seed of others and are counted again: use new seeds, or leave one out"]
    runs = load_runs([tmp_path / "one"])
    assert not [line for line in notes(rank(runs.table), runs) if "repeat" in line]


def test_runs_without_a_target_count_as_missed(tmp_path):
    five(tmp_path, "a", None, target=None)
    assert "the runs have no target" in notes(ranked(tmp_path), load_runs([tmp_path]))[0]


def test_a_smaller_value_is_better_where_the_mode_is_min(tmp_path):
    write(tmp_path, "a", None, best=0.2, mode="min")
    write(tmp_path, "b", None, best=0.1, mode="min")
    assert ranked(tmp_path)["policy"].to_list() == ["b", "a"]


@pytest.mark.parametrize("change", [{"monitor": "val/loss"}, {"mode": "min"}, {"confirmations": 2}])
def test_mixed_rules_are_refused_and_separated_rankings_are_their_own(tmp_path, change):
    (column,) = change
    write(tmp_path, "a", 100)
    write(tmp_path, "b", 200)
    write(tmp_path, "c", 300, **change)
    with pytest.raises(AnalysisError, match=f"the runs differ in {column}"):
        ranked(tmp_path)
    table = ranked(tmp_path, by=["policy", column])
    assert sorted(zip(table["policy"], table["rank"], strict=True)) == [("a", 1), ("b", 2), ("c", 1)]


def test_the_speed_up_over_a_baseline_is_paired_by_seed(tmp_path):
    for seed, steps in enumerate([400, 440, 480, 400, 420]):
        write(tmp_path, "fix", steps, seed)
        write(tmp_path, "tri", steps // 2, seed)
        write(tmp_path, "odd", steps // 2, seed + 1)
    table = ranked(tmp_path, baseline="fix")
    found = {row["policy"]: row for row in table.to_dicts()}
    assert [found["tri"][name] for name in ("speed_up", "speed_up_low", "speed_up_high")] == pytest.approx([2.0] * 3)
    assert found["fix"]["speed_up"] == 1.0
    assert found["odd"]["speed_up_low"] < 2 < found["odd"]["speed_up_high"]
    assert found["tri"]["log_rank_p"] == pytest.approx(2 / 252)


def test_a_baseline_is_looked_for_under_the_same_optimizer(tmp_path):
    for optimizer, slow in (("sgd", 400), ("adam", 300)):
        write(tmp_path, "fix", slow, optimizer=optimizer)
        write(tmp_path, "tri", 100, optimizer=optimizer)
    write(tmp_path, "tri", 100, optimizer="nesterov")
    keys = ["optimizer", "policy"]

    def speed_ups(baseline):
        rows = ranked(tmp_path, by=keys, baseline=baseline).to_dicts()
        return {row["optimizer"]: row["speed_up"] for row in rows if row["policy"] == "tri"}

    assert speed_ups("fix") == pytest.approx({"sgd": 4.0, "adam": 3.0, "nesterov": None})
    assert speed_ups("sgd,fix") == pytest.approx({"sgd": 4.0, "adam": 4.0, "nesterov": 4.0})


def test_a_profile_over_workloads(tmp_path):
    for model, fast, slow in (("mlp", 100, 200), ("lenet", 100, 300)):
        write(tmp_path, "tri", fast, model=model)
        write(tmp_path, "fix", slow, model=model)
    table = ranked(tmp_path, by=["policy", "model"])
    scores = {row["policy"]: row["profile"] for row in table.to_dicts()}
    # fix is within a factor of 2 on one workload, of 3 on both: (0.5 * 1 + 1 * 1) / 3
    assert scores == pytest.approx({"tri": 1.0, "fix": 0.5})
    assert "profile" not in ranked(tmp_path / "0").columns


def test_utility_and_robustness(tmp_path):
    for seed in range(5):
        write(tmp_path, "good", 100, seed, test_accuracy=0.97 + seed / 1000, loss_difference=0.3, cdac=0.02)
        write(tmp_path, "robust", 100, seed, test_accuracy=0.9 + seed / 1000, loss_difference=0.1, cdac=0.01)
    write(tmp_path, "robust", None, 5, status="diverged", best=None)
    found = ranked(tmp_path, metric="utility")
    assert columns(found, "policy", "accuracy", "accuracy_low", "accuracy_high", "tier") == {
        "policy": ["good", "robust"],
        "accuracy": [0.972, pytest.approx(0.9015)],
        "accuracy_low": [0.970, -math.inf],
        "accuracy_high": [0.974, pytest.approx(0.904, abs=1e-3)],
        "tier": [1, 2],
    }
    found = ranked(tmp_path, metric="robustness")
    assert found.select("policy", "loss_difference", "cdac", "diverged").rows() == [
        ("robust", 0.1, 0.01, 1),
        ("good", 0.3, 0.02, 0),
    ]
    assert found["accuracy_spread"].to_list() == pytest.approx([0.00158, 0.00158], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "speed"}, "--metric must be cost, utility or robustness, got 'speed'"),
        (
            {"metric": "utility", "baseline": "a"},
            "--baseline needs --metric cost, got utility: only steps are compared",
        ),
        ({"metric": "robustness"}, "--metric robustness needs runs with loss_difference, got none"),
        ({"baseline": "b"}, "--baseline must name one of a, got 'b'"),
        ({"by": ["policy", "policy"]}, "--by must name each column once, got 'policy' twice"),
    ],
)
def test_an_invalid_argument_is_one_line(tmp_path, arguments, message):
    write(tmp_path, "a", 100)
    with pytest.raises(AnalysisError, match=message):
        ranked(tmp_path, **arguments)


def test_more_groups_than_can_be_compared(tmp_path):
    write(tmp_path, "a", 100)
    runs = load_runs([tmp_path]).table
    many = pl.concat([runs] * 2001).with_columns(pl.int_range(pl.len()).alias("seed"))
    with pytest.raises(AnalysisError, match="--by policy,seed must give at most 2000 groups, got 2001"):
        rank(many, by=["policy", "seed"])


def test_only_failed_runs_are_a_table_without_ranks(tmp_path):
    write(tmp_path, "a", None, status="failed", message="disk full")
    table = ranked(tmp_path)
    assert table.select("policy", "runs", "tier", "share", "failed").rows() == [("a", 0, None, None, 1)]
    assert "failed: a (seed 0)" in notes(table, load_runs([tmp_path]))[1]


def test_a_history_without_result_is_noted_and_a_result_without_history_is_ranked(tmp_path):
    write(tmp_path, "a", 100)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "metrics.csv").write_text("step,val/accuracy\n")
    runs = load_runs([tmp_path])
    assert rank(runs.table)["policy"].to_list() == ["a"]
    assert [(skipped.path.name, skipped.reason) for skipped in runs.skipped] == [
        ("1", "no result.json: still running, or killed")
    ]
    assert notes(rank(runs.table), runs)[-1].startswith("skipped: ")


def test_a_result_that_vanishes_while_it_is_read(tmp_path, monkeypatch):
    write(tmp_path, "a", 100)
    gone = write(tmp_path, "b", 100) / "result.json"
    walk = os.walk

    def and_delete(folder):
        yield from walk(folder)
        gone.unlink()

    monkeypatch.setattr("os.walk", and_delete)
    runs = load_runs([tmp_path])
    assert runs.table["policy"].to_list() == ["a"]
    assert "cannot be read" in runs.skipped[0].reason


@pytest.mark.parametrize("width", [64, 80, 120, 200])
@pytest.mark.parametrize("metric", ["cost", "utility", "robustness"])
def test_the_table_fits_its_width(tmp_path, width, metric):
    for policy in ("fix", "composite_fix_sin_linear"):
        five(tmp_path, policy, 100, test_accuracy=0.97, loss_difference=0.1, cdac=0.01, confidence=0.9, test_top5=1.0)
    write(tmp_path, "fix", None, 6, status="diverged", best=None)
    table = ranked(tmp_path, metric=metric)
    lines = render(table, "table", width=width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert lines[0].split()[0] == "tier" or lines[1].split()[0] == "tier"
    assert "diverged" in lines[0] or "diverged" in lines[1]
    body = " ".join(lines[2:])
    assert "fix" in body
    if width > 80:
        assert "composite_fix_sin_linear" in body
