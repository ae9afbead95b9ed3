"""A sweep as a function call."""

from __future__ import annotations

import math

import numpy as np
import pytest

import lrbench_pl
from lrbench_pl.policies import Constant, Polynomial
from lrbench_pl.runs.result import RunResult
from lrbench_pl.selection.exchange import read_sources
from lrbench_pl.verdict import TargetCheck

POLICIES = {"slow": Constant(0.01), "fast": Constant(0.05)}
NAMES = {"dataset": "none", "model": "formula", "optimizer": "sgd", "batch_size": 1}


class Train:
    """Counts its trainings; the metric is a formula of rate and step."""

    def __init__(self) -> None:
        self.trained: list[tuple[float, int]] = []
        self.validated = 0

    def __call__(self, policy, seed):
        self.trained.append((policy(0), seed))
        for step in (10, 20, 30):
            self.validated += 1
            yield step, policy(0) * step


def sweep(folder, train, policies=POLICIES, seeds=(0, 1), **arguments):
    return lrbench_pl.sweep(
        policies, seeds, train, **{"folder": folder, "max_steps": 30, "target": 0.9, **NAMES, **arguments}
    )


def test_its_results_are_ranked_and_stored(tmp_path, capsys):
    runs = sweep(tmp_path, Train())
    ranked = lrbench_pl.rank(runs.table)
    assert ranked.select("policy", "share", "median_steps").rows() == [("fast", 1.0, 20.0), ("slow", 0.0, math.inf)]
    assert [run.policy for run in read_sources([tmp_path]).runs] == [Constant(0.05)] * 2 + [Constant(0.01)] * 2
    assert capsys.readouterr().out.splitlines() == [
        "1/4 slow, seed 0: missed 0.9 within 30 steps; best 0.3 at step 30",
        "2/4 slow, seed 1: missed 0.9 within 30 steps; best 0.3 at step 30",
        "3/4 fast, seed 0: reached 0.9 at step 20",
        "4/4 fast, seed 1: reached 0.9 at step 20",
    ]


def test_a_generator_is_asked_for_no_more_than_the_target_takes(tmp_path):
    train = Train()
    sweep(tmp_path, train, seeds=[0])
    assert train.validated == 3 + 2


def test_called_again_it_trains_what_is_missing(tmp_path, capsys):
    train = Train()
    sweep(tmp_path, train, seeds=[0])
    sweep(tmp_path, train, seeds=[0, 1])
    assert train.trained == [(0.01, 0), (0.05, 0), (0.01, 1), (0.05, 1)]
    assert "1/4 slow, seed 0: finished before" in capsys.readouterr().out


def test_integers_of_numpy_are_integers(tmp_path):
    def train(policy, seed):
        yield np.int64(30), np.float32(0.95)

    runs = sweep(tmp_path, train, {"a": Constant(0.1)}, np.arange(2), max_steps=np.int64(30), batch_size=np.int64(4))
    assert runs.table.select("seed", "status", "batch_size").rows() == [(0, "reached", 4), (1, "reached", 4)]


def test_an_error_is_a_failed_result_and_is_repeated(tmp_path, capsys):
    broken = [True]

    def train(policy, seed):
        if broken[0] and seed == 0:
            raise KeyError("x")
        return [(30, 0.95)]

    assert sweep(tmp_path, train, {"a": Constant(0.1)}).table["status"].to_list() == ["failed", "reached"]
    out = capsys.readouterr().out
    assert "1/2 a, seed 0: failed: KeyError: 'x'" in out
    assert "1 training failed; call sweep() again" in out
    broken[0] = False
    assert sweep(tmp_path, train, {"a": Constant(0.1)}).table["status"].to_list() == ["reached", "reached"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_the_sweep_and_is_repeated(tmp_path, interrupt):
    def train(policy, seed):
        yield 10, 0.5
        raise interrupt

    with pytest.raises(interrupt):
        sweep(tmp_path, train, {"a": Constant(0.1)})
    result = RunResult.read(tmp_path / "a-seed0" / "result.json")
    assert (result.status, result.message, result.best_value) == ("stopped", "interrupted after step 10", 0.5)
    assert sweep(tmp_path, Train(), {"a": Constant(0.1)}).table["status"].to_list() == ["reached", "reached"]


def test_a_value_that_is_not_finite_is_divergence(tmp_path):
    runs = sweep(tmp_path, lambda policy, seed: iter([(10, 0.5), (20, math.nan), (30, 0.95)]), seeds=[0])
    assert set(runs.table["message"]) == {"the metric became non-finite by step 20; try a lower learning rate"}


def test_a_training_that_ends_early_is_stopped(tmp_path):
    runs = sweep(tmp_path, lambda policy, seed: [(10, 0.5)], seeds=[0])
    assert set(runs.table["message"]) == {"stopped at step 10 of 30: the training ended"}


@pytest.mark.parametrize("as_attribute", [True, False])
def test_a_verdict_is_taken_as_it_is(tmp_path, as_attribute):
    def train(policy, seed):
        check = TargetCheck(0.9, max_steps=30)
        check.update(10, 0.5, 1.0)
        check.update(20, 0.95, 2.0)
        return check if as_attribute else check.verdict

    runs = sweep(tmp_path, train, seeds=[0])
    assert set(runs.table.select("status", "steps_to_target", "seconds_to_target").rows()) == {("reached", 20, 2.0)}


def test_a_verdict_that_diverged_or_used_its_budget_says_so(tmp_path):
    def train(policy, seed):
        check = TargetCheck(0.9, max_steps=30)
        check.update(10, 0.5)
        if seed:
            check.end("diverged", "the loss")
        else:
            check.finish(30)
        return check

    assert sweep(tmp_path, train, {"a": Constant(0.1)}).table["status"].to_list() == ["missed", "diverged"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 0.8}, r"holds a training with target=0\.9, expected 0\.8; give the sweep another folder"),
        ({"max_steps": 60}, "holds a training with max_steps=30, expected 60"),
        ({"policies": {"slow": Polynomial(0.1, 10)}}, r"holds a training with policy_repr='Constant\(lr=0.01\)'"),
    ],
)
def test_a_folder_of_another_task_is_refused_before_training(tmp_path, change, message):
    sweep(tmp_path, Train())
    train = Train()
    with pytest.raises(ValueError, match=message):
        sweep(tmp_path, train, **change)
    assert train.trained == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "expected at least one seed, got none"),
        ({"seeds": [0.5]}, r"a seed must be an integer of at least 0, got 0\.5"),
        ({"seeds": [-1]}, "a seed must be an integer of at least 0, got -1"),
        ({"policies": {}}, "expected at least one policy, got none"),
        ({"policies": {"a": 0.1}}, "policy 'a' must be callable: t -> learning rate, got 0.1"),
        ({"policies": {"a b": Constant(0.1), "a/b": Constant(0.2)}}, "must differ in their letters and digits"),
        ({"target": 95}, "did you mean 0.95"),
        ({"max_steps": 0}, "max_steps must be an integer of at least 1, got 0"),
        ({"data": "x"}, "a result takes .*, got 'data'"),
    ],
)
def test_what_it_refuses(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        sweep(tmp_path / "none", Train(), **change)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("outcome", [0.9, [1, 2], [(1, 2, 3)]])
def test_what_is_neither_checks_nor_a_verdict_fails(tmp_path, outcome):
    runs = sweep(tmp_path, lambda policy, seed: outcome, seeds=[0])
    assert set(runs.table["status"]) == {"failed"}
    assert "must yield" in runs.table["message"][0]
