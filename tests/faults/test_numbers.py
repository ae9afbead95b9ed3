"""Numbers at the edge: refused in one line, compared exactly, and nothing is computed over a whole long budget."""

import time

import pytest
import torch

from lrbench_pl.analysis.history import at_target
from lrbench_pl.analysis.load import load_runs
from lrbench_pl.policies import EXACT_STEPS, Constant, Polynomial, Sequential, Step, peak, policy_id
from lrbench_pl.runs import lint
from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.config import compose
from lrbench_pl.runs.options import UserError, check_config
from lrbench_pl.verdict import TargetCheck, plain_number
from lrbench_pl.workloads.metrics import Accuracy

HUGE = 2**40


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=9223372036854775808", "seed must be an integer below 2\\*\\*32, got 9223372036854775808"),
        ("seed=-1", "seed must be an integer of at least 0, got -1"),
        (f"max_steps={10**300}", "max_steps must be an integer of at most 9007199254740992, got 0x"),
        (f"batch_size={2**60}", "batch_size must be an integer of at most"),
        (f"checkpoint_every={2**60}", "checkpoint_every must be an integer of at most .* or null"),
        ("threads=100000", "threads must be an integer of at most 4096"),
        ("max_time=1e300", "max_time must be at most 1e"),
        ("lr=1e300", "lr must be at most 1e"),
        ("lr=1e38", "lr must be at most 1e"),
        (f"lr={'9' * 400}", "lr must be at most 1e.*…"),
    ],
)
def test_a_number_out_of_bounds_is_refused_in_one_short_line(override, message):
    with pytest.raises(UserError, match=message) as error:
        check_config(compose([override]))
    assert len(str(error.value)) < 200


@pytest.mark.slow
def test_a_bad_seed_fails_alone_and_the_other_jobs_of_its_sweep_train(tmp_path):
    from tests.faults.sweeps import rows, sweep

    done = sweep(tmp_path / "sweep", "basic", "max_steps=4", "target=null", "lr_policy=fix", f"seed={2**63},0")
    assert done.returncode == 1
    assert {row["status"] for row in rows(tmp_path / "sweep")} == {"failed", "missed"}
    assert "failed: seed must be an integer below 2**32" in done.stdout


@pytest.mark.parametrize("rate", [1e300, 1e38])
def test_a_rate_that_overflows_is_refused_wherever_it_is_given(tmp_path, rate):
    with pytest.raises(ValueError, match="lr must be at most 1e"):
        Constant(rate)
    cfg = compose([f"lr_policy.lr={rate}", "lr_policy=fix", "max_steps=4", f"logger.csv.save_dir={tmp_path}"])
    result = experiment.run(cfg, tmp_path)
    assert (result.status, result.steps_run) == ("failed", None)
    assert "lr must be at most 1e+30, since weights would overflow" in result.message


@pytest.mark.parametrize(
    "policy", [Constant(0.1), Sequential((Constant(0.1), Polynomial(0.1, HUGE // 2)), (HUGE // 2,))]
)
def test_a_long_budget_costs_no_time(policy):
    begun = time.perf_counter()
    assert policy_id(policy, HUGE) != policy_id(policy, HUGE + 1)
    assert policy_id(policy, HUGE) == policy_id(policy, HUGE)
    assert peak(policy, HUGE) == 0.1
    (finding,) = lint.lint(lint.TrainingPlan(policy, HUGE))
    assert finding.rule == "long"
    assert time.perf_counter() - begun < 5


def test_ids_of_budgets_that_were_computed_before_are_the_same():
    assert policy_id(Constant(0.1), 1000) == policy_id(Step(0.1, 0.5, 1000), 1000) == "b8cc1da22406"
    assert policy_id(Constant(0.1), EXACT_STEPS + 1) != policy_id(Constant(0.2), EXACT_STEPS + 1)


def test_an_accuracy_is_the_quotient_of_its_counts():
    metric = Accuracy()
    metric.update(torch.eye(2)[torch.zeros(300, dtype=int)], torch.arange(300) // 286)
    assert plain_number(metric.compute()) == 286 / 300
    for target, status in ((286 / 300, "reached"), (0.95333334, "missed")):
        check = TargetCheck(target, max_steps=1)
        check.update(1, metric.compute())
        assert check.verdict.status == status


@pytest.mark.parametrize(("correct", "total"), [(286, 300), (19, 20), (2, 3), (5717, 6000)])
def test_a_target_is_reached_at_equality_in_either_precision(correct, total):
    for value in (torch.tensor(correct / total), torch.tensor(correct / total, dtype=torch.float64)):
        check = TargetCheck(correct / total, max_steps=1)
        assert check.update(1, value)
        check = TargetCheck((correct + 1) / total, max_steps=1)
        assert not check.update(1, value)


def test_286_of_300_reach_their_target_in_a_run_and_from_its_history(tmp_path, monkeypatch):
    exact = torch.tensor(286 / 300, dtype=torch.float64)
    monkeypatch.setattr(Accuracy, "compute", lambda self: exact)

    def train(name, target):
        folder = tmp_path / name
        folder.mkdir()
        short = ("max_steps=4", "check_every=2", "lr_policy=fix", f"logger.csv.save_dir={folder}")
        return experiment.run(compose([*short, f"target={target}"]), folder)

    assert train("a", "0.9533333333333333").steps_to_target == 2
    assert train("b", "0.95333334").status == "missed"
    runs = load_runs(tmp_path / "b")
    assert at_target(runs, 286 / 300).table["steps_to_target"].to_list() == [2]
    assert at_target(runs, 0.95333334).table["status"].to_list() == ["missed"]


def test_checks_that_are_all_nan_are_not_called_never_checked():
    check = TargetCheck(0.9, max_steps=2)
    check.update(1, float("nan"))
    check.update(2, float("nan"))
    assert check.verdict.message == (
        "missed 0.9 within 2 steps; val/accuracy was not a finite number at any of 2 checks"
    )
    none = TargetCheck(0.9, max_steps=2)
    none.finish(2)
    assert none.verdict.message == "missed 0.9 within 2 steps; val/accuracy was never checked"
