"""The bench of ordinary tasks: its frozen table, and its stacked trainings against those in a Trainer."""

import csv
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "experiments" / "auto_bench"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import bench

    yield bench
    for name in ("bench", "cases", "stacked", "in_lightning", "oracle"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "name",
    [
        "development.csv",
        "former.csv",
        "long_development.csv",
        "long_table.csv",
        "long_sgd_development.csv",
        "long_sgd_table.csv",
        "table.csv",
        "tuned_table.csv",
    ],
)
def test_the_table_is_that_of_the_frozen_rows(bench, name):
    with (BENCH / name).open() as file:
        rows = list(csv.DictReader(file))
    assert bench.summary(rows) in (BENCH / "README.md").read_text()


def test_the_worst_case_of_the_table_is_the_one_that_the_guide_names(bench):
    with (BENCH / "table.csv").open() as file:
        lines = bench.summary(list(csv.DictReader(file))).splitlines()
    worst = lines[-1].split("|")[5].strip()
    guide = (BENCH.parents[1] / "docs" / "auto.md").read_text()
    assert f"In the worst case it took {worst} times" in guide.replace("\n  ", " ")


def test_the_means_by_optimizer_are_those_of_the_frozen_rows(bench):
    with (BENCH / "long_development.csv").open() as file:
        rows = list(csv.DictReader(file))
    text = " ".join((BENCH / "README.md").read_text().split())
    for is_adaptive, sentence in (
        (True, "the range test needed {} times the default's steps (geometric mean, 18 tasks), the comparison {}."),
        (False, "with or without momentum, the range test needed {} times, the comparison {}."),
    ):
        own = [row for row in rows if (row["case"].split("-")[1] in bench.ADAPTIVE) == is_adaptive]
        means = [line.split("|")[4].strip() for line in bench.summary(own).splitlines()[-2:]]
        assert sentence.format(*means) in text


def test_the_guide_says_what_a_tuned_rate_costs(bench):
    with (BENCH / "tuned_table.csv").open() as file:
        rows = list(csv.DictReader(file))
    means = []
    for is_adaptive in (True, False):
        own = [row for row in rows if (row["case"].split("-")[1] in bench.ADAPTIVE) == is_adaptive]
        means.append(bench.summary(own).splitlines()[-1].split("|")[4].strip())
    worst = bench.summary(rows).splitlines()[-1].split("|")[5].strip()
    sentence = (
        "`auto` takes {} times the default's steps with Adam, AdamW and RMSprop, and {} times with SGD (geometric "
        "means; worst {})"
    )
    guide = (BENCH.parents[1] / "docs" / "auto.md").read_text()
    assert sentence.format(*means, worst) in " ".join(guide.split())


def test_a_tuned_case_has_the_rate_with_the_best_end(bench, monkeypatch):
    """The ends are those of a table, so that no training decides it; of equal ones the usual rate is taken."""
    ends = {1.0: 0.9, 0.3: 0.8, 3.0: 0.95, 10.0: math.nan}
    monkeypatch.setattr(
        bench,
        "train_plans",
        lambda case, plans, *_: [SimpleNamespace(trace=[(1, "stable", ends[case.factor])]) for _ in plans],
    )
    case = bench.Case("digits", "sgd")
    assert (bench.tuned(case).factor, bench.tuned(case).rate) == (3.0, pytest.approx(0.3))
    assert bench.tuned(bench.Case("diabetes", "sgd")).name == "diabetes-sgd-64-64 x0.3"  # a loss
    ends.update({3.0: 0.9, 0.3: 0.9})
    assert bench.tuned(case) == case


@pytest.mark.parametrize(
    ("given", "way", "known"),
    [
        ((), "other", "cosine, auto, auto with range test, averages accepted, range test, comparison, holding"),
        (("--real",), "comparison", "cosine, auto, auto with range test, averages accepted with --real"),
    ],
)
def test_an_unknown_way_is_refused_with_those_that_are_known(bench, monkeypatch, capsys, given, way, known):
    monkeypatch.setattr(sys, "argv", ["bench.py", "--ways", f"cosine,{way}", *given])
    with pytest.raises(SystemExit):
        bench.main()
    assert f"expected --ways of {known}, got {way}" in " ".join(capsys.readouterr().err.split())


def test_the_bound_is_that_of_the_frozen_rows(bench):
    import oracle

    with (BENCH / "oracle.csv").open() as file:
        assert oracle.summary(list(csv.DictReader(file))) in (BENCH / "README.md").read_text()


def test_no_case_of_the_table_is_one_of_development(bench):
    known, table = ({case.data for case in bench.CASES[name]} for name in ("development", "table"))
    assert not (known | {case.data for case in bench.CASES["former"]}) & table
    assert {case.optimizer for case in bench.CASES["table"]} == set(bench.OPTIMIZERS)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*only need to set")
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop"])
def test_stacked_trainings_are_those_of_a_trainer(bench, optimizer):
    """Two seeds beside each other end 40 steps with the values that each has alone, up to rounding."""
    import in_lightning

    case = bench.Case("diabetes", optimizer, 16, 64, steps=40)
    jobs = bench.train_plans(case, [bench.cosine_plan(case), bench.cosine_plan(case)], (1, 2), None)
    for seed, job in zip((1, 2), jobs, strict=True):
        alone = in_lightning.fit(case, seed, "cosine", None, {}).verdict
        assert [step for step, _, _ in job.trace] == [check.step for check in alone.checks] == [20, 40]
        torch.testing.assert_close(
            [value for _, _, value in job.trace], [check.value for check in alone.checks], rtol=1e-3, atol=1e-4
        )
