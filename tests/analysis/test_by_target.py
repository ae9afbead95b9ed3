"""Speed-ups over a baseline at many targets."""

import csv
import json
import math

import pytest

from lrbench_pl.analysis import plots
from lrbench_pl.analysis import statistics as st
from lrbench_pl.analysis.by_target import Course, by_target, compare
from lrbench_pl.analysis.history import History
from lrbench_pl.analysis.load import AnalysisError, load_runs
from lrbench_pl.analysis.ranking import rank
from tests.analysis.test_history import run
from tests.cli.test_cli import call


def course(values, seed=0, every=100, is_complete=True):
    steps = tuple(every * (index + 1) for index in range(len(values)))
    return Course(seed, History(steps, tuple(values), (None,) * len(steps)), steps[-1], is_complete)


SLOW, FAST = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8]


def test_the_targets_are_those_of_the_baseline_at_equal_steps():
    noisy = ((100, 200, 300, 400, 500), (0.5, 0.8, 0.6, 0.8, 0.9))
    assert st.target_grid([noisy], 5) == [(100.0, 0.5), (200.0, 0.8), (300.0, 0.83333), (400.0, 0.86666), (500.0, 0.9)]
    loss = ((10, 20, 30), (4.0, 2.0, 1.0))
    assert st.target_grid([loss], 3, "min") == [(10.0, 4.0), (20.0, 2.0), (30.0, 1.0)]
    assert st.target_grid([((10, 20, 30), (0.33333333, 0.4, 0.44444444))], 3)[0] == (10.0, 0.33333)  # not a harder one
    assert st.target_grid([((10, 20, 30), (3.3333333, 2.0, 1.0))], 3, "min")[0] == (10.0, 3.3334)
    three = [((10, 20), values) for values in ((0.1, 0.2), (0.3, 0.4), (0.5, 0.6))]
    assert [target for _, target in st.target_grid(three, 2)] == [0.3, 0.4]  # of the median run
    assert st.target_grid([((10, 20), (math.nan, math.nan)), ((), ())], 3) == []
    with pytest.raises(ValueError, match="expected at least 2 targets, got 1"):
        st.target_grid([noisy], 1)


def test_both_counts():
    groups = {("tri",): [course(FAST)], ("fix",): [course(SLOW)]}
    rows = [row for row in compare(groups, ("fix",), 800.0, number=8) if row["group"] == ("tri",)]
    assert [row["target"] for row in rows] == SLOW
    assert [row["speed_up"] for row in rows] == pytest.approx([1, 2, 1.5, 2, 5 / 3, 2, 7 / 4, 2])
    assert [row["budget_ratio"] for row in rows] == pytest.approx([8, 8, 4, 4, 8 / 3, 8 / 3, 2, 2])
    own = [row for row in compare(groups, ("fix",), 800.0, number=8) if row["group"] == ("fix",)]
    assert {row["speed_up"] for row in own} == {1.0}
    assert [row["budget_ratio"] for row in own] == pytest.approx([8, 4, 8 / 3, 2, 1.6, 4 / 3, 8 / 7, 1])


def test_a_smaller_value_can_be_the_better_one():
    groups = {("tri",): [course([1 - v for v in FAST])], ("fix",): [course([1 - v for v in SLOW])]}
    rows = [row for row in compare(groups, ("fix",), 800.0, "min", number=8) if row["group"] == ("tri",)]
    assert [row["speed_up"] for row in rows][::7] == pytest.approx([1, 2])


def test_seeds_are_paired_if_the_baseline_has_them():
    slow = [course(SLOW, seed) for seed in range(4)] + [course(SLOW, 4, every=200)]
    fast = [course(FAST, seed) for seed in (4, 3)]
    last = compare({("tri",): fast, ("fix",): slow}, ("fix",), 1600.0, number=8)[-2]
    assert last["group"] == ("tri",)
    assert last["speed_up"] == pytest.approx(math.sqrt(4 * 2))


def test_a_run_that_ended_early_is_open_beyond_its_last_check():
    groups = {("tri",): [course(FAST[:2], is_complete=False)], ("fix",): [course(SLOW)]}
    rows = [row for row in compare(groups, ("fix",), 800.0, number=8) if row["group"] == ("tri",)]
    assert [(row["reached"], row["open"]) for row in rows] == [(1, 0)] * 4 + [(0, 1)] * 4
    assert [row["speed_up"] for row in rows] == [*map(pytest.approx, (1, 2, 1.5, 2)), None, None, None, None]
    assert [row["budget_ratio"] for row in rows[4:]] == [None] * 4
    groups[("tri",)] = [course(FAST[:2])]  # a miss
    rows = [row for row in compare(groups, ("fix",), 800.0, number=8) if row["group"] == ("tri",)]
    assert [row["speed_up"] for row in rows[4:]] == [0.0] * 4


@pytest.mark.parametrize(
    ("base", "reached", "expected"),
    [
        ([800, 600, 900, 900, 900], [True, True, True, False, False], (2.0, True)),
        ([800, 600, 900, 900, 900], [True] * 5, (2.0, False)),
    ],
)
def test_a_miss_of_the_baseline_is_a_bound(base, reached, expected):
    found = st.bounded_speed_up(base, reached, [400, 300, 400, 500, 450], [True] * 5, rng=0, paired=True)
    assert (found.times.value, found.at_least) == expected
    assert math.isinf(found.times.high) == expected[1]


def test_open_runs_widen_the_interval_and_may_leave_no_value():
    base = [800] * 5, [True] * 5
    known = st.bounded_speed_up(*base, [400, 400, 400, 400, 500], [True] * 4 + [False], 0, is_open=[False] * 4 + [True],
                                paired=True)  # fmt: skip
    assert (known.times.value, known.times.low, known.times.high) == (2.0, 0.0, 2.0)
    most = st.bounded_speed_up(
        *base, [400] * 5, [True] * 2 + [False] * 3, 0, is_open=[False] * 2 + [True] * 3, paired=True
    )
    assert most.times.value is None


def sweep(folder, seeds=5, target=0.8, **changes):
    for policy, values in (("fix", SLOW), ("tri", FAST)):
        checks = [(100 * (index + 1), value) for index, value in enumerate(values)]
        reached = next(step for step, value in checks if value >= target)
        for seed in range(seeds):
            more = {"max_steps": 800, "steps_run": 800, "target": target, "final_value": checks[-1][1]}
            run(folder, policy, reached, checks, seed=seed, **more | changes)
    return load_runs([folder])


def test_the_table_of_a_sweep(tmp_path, monkeypatch, capsys):
    sweep(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = call(monkeypatch, capsys, "rank", tmp_path, "--targets", 4, "--baseline", "fix")
    assert code == 0
    assert out.startswith("speed-up over fix, by target\n")
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("0.8 ")]
    assert rows == [["0.8", "5/5", "2.00"], ["0.8", "5/5", "2.00", "1.00"]]
    assert "the baseline's whole budget divided by the policy's steps" in " ".join(err.split())
    out = call(monkeypatch, capsys, "rank", tmp_path, "--targets", 4, "--format", "csv")[1]  # fix is the baseline
    last = list(csv.DictReader(out.splitlines()))[-2]
    assert (last["policy"], last["target"], last["speed_up"], last["budget_ratio"]) == ("tri", "0.8", "2.0", "2.0")
    out = call(monkeypatch, capsys, "rank", tmp_path, "--targets", 4, "--format", "json")[1]
    assert json.loads(out)[0]["runs"] == 5
    out = call(monkeypatch, capsys, "rank", tmp_path, "--targets", 4, "--format", "markdown")[1]
    assert out.startswith("| target | reached by fix | tri |\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", "1"], "error: --targets must be at least 2, got 1\n"),
        (["--targets", "3", "--baseline", "x"], "error: --baseline must name one of tri, fix, got 'x'\n"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    sweep(tmp_path, seeds=1)
    assert call(monkeypatch, capsys, "rank", tmp_path, *arguments)[::2] == (2, message)


def test_what_cannot_be_compared_is_refused(tmp_path):
    runs = sweep(tmp_path / "a", seeds=1)
    for at in (tmp_path / "a").iterdir():
        (at / "metrics.csv").unlink()
    with pytest.raises(AnalysisError, match=r"--targets needs the histories of fix, got none; the first: .*logger=csv"):
        by_target(runs, rank(runs), ["policy"], "fix")
    sweep(tmp_path / "b", seeds=1, dataset="digits")
    sweep(tmp_path / "b", seeds=1, dataset="mnist")
    runs = load_runs([tmp_path / "b"])
    keys = ["policy", "dataset"]
    with pytest.raises(AnalysisError, match="--targets needs runs of one task, got several of dataset"):
        by_target(runs, rank(runs, keys), keys, "fix")


def test_the_figure_has_both_counts_and_the_targets_on_its_axis(tmp_path):
    runs = sweep(tmp_path)
    info = plots.targets_info(by_target(runs, rank(runs), ["policy"], "fix", number=8))
    assert [line.name for line in info.speed_ups] == ["tri"]
    assert [line.name for line in info.budget_ratios] == ["tri", "fix"]
    assert info.targets == tuple(SLOW)
    drawn = plots.targets_figure(info)
    assert drawn.layout.xaxis.ticktext[-1] == "0.8"
    assert drawn.layout.xaxis.tickvals[-1] == 800
    alone = load_runs([at for at in tmp_path.iterdir() if "fix" in (at / "result.json").read_text()])
    assert plots.targets_info(by_target(alone, rank(alone), ["policy"], "fix")) is None


def test_a_policy_has_one_colour_in_both_panels(tmp_path):
    for number in range(8):
        values = [0.1 * (step + 1) - 0.001 * number for step in range(8)]
        checks = [(100 * (index + 1), value) for index, value in enumerate(values)]
        more = {"max_steps": 800, "steps_run": 800, "target": None, "final_value": checks[-1][1]}
        run(tmp_path, "fix" if number == 0 else f"p{number}", None, checks, seed=0, best=values[-1], **more)
    runs = load_runs([tmp_path])
    drawn = plots.targets_figure(plots.targets_info(by_target(runs, rank(runs), ["policy"], "fix", number=4)))
    colours = {}
    for trace in drawn.data:
        if trace.meta and "name" in trace.meta:
            colours.setdefault(trace.meta["name"], set()).add(trace.line.color)
    assert len(colours) == 8
    assert all(len(each) == 1 for each in colours.values())
    assert [trace.name for trace in drawn.data if trace.showlegend].count("the 2 others") == 1
    bands = [trace for trace in drawn.data if trace.fill == "toself"]
    assert len(bands) <= 2
