"""Trainings of any Trainer and any loop can be ranked: the callback and `write_result` save what they were."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig

import lrbench_pl
from lrbench_pl import saving
from lrbench_pl.analysis.history import at_target
from lrbench_pl.analysis.load import load_runs
from lrbench_pl.callbacks.composer import LRPolicyComposer
from lrbench_pl.callbacks.lr_policy import LRPolicyCallback, LRPolicyError
from lrbench_pl.policies import Constant, PlateauPolicy, Polynomial, cut, from_config
from lrbench_pl.runs.config import read_policy
from lrbench_pl.runs.result import RESULT_FILE, RunResult
from lrbench_pl.selection.exchange import read_sources
from lrbench_pl.verdict import TargetCheck
from tests.helpers import TinyModule, tiny_trainer

POLICY = Polynomial(init_lr=0.1, decay_steps=10)
NAMES = {"dataset": "blobs", "model": "linear", "batch_size": 8, "seed": 3, "policy": "line"}


def fit(folder: Path, *others: Any, values: list[float] | None = None, policy: Any = POLICY, **arguments: Any) -> Any:
    names = arguments.pop("save_as", NAMES)
    target = arguments.pop("target", 0.7)
    callback = LRPolicyCallback(policy, target, monitor="val/given", save_to=folder, save_as=names)
    tiny_trainer(callback, *others, **arguments).fit(TinyModule(values=values or [0.1, 0.3, 0.5, 0.6, 0.65]))
    return callback


def test_a_fit_leaves_what_rank_and_db_read(tmp_path):
    callback = fit(tmp_path / "line-3")
    result = RunResult.read(tmp_path / "line-3" / RESULT_FILE)
    assert (result.status, result.message) == ("missed", callback.verdict.message)
    assert (result.run_id, result.policy, result.optimizer, result.seed) == ("line-3", "line", "SGD", 3)
    assert (result.max_steps, result.steps_run, result.target, result.lr) == (10, 10, 0.7, 0.1)
    assert read_policy(tmp_path / "line-3" / "policy.yaml") == POLICY
    found = read_sources([tmp_path])
    assert [run.policy for run in found.runs] == [POLICY]
    assert not found.refused
    table = at_target(load_runs([tmp_path]), 0.5).table
    assert table["steps_to_target"].to_list() == [6]


def test_what_the_trainer_knows_needs_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # of a configuration that an earlier test composed
    fit(tmp_path, save_as=None)
    result = RunResult.read(tmp_path / RESULT_FILE)
    assert (result.model, result.optimizer, result.policy) == ("TinyModule", "SGD", repr(POLICY))
    assert result.dataset is None


class Breaks(pl.Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 5:
            raise self.error


@pytest.mark.parametrize(
    ("error", "raised", "status", "message"),
    [
        (KeyError("x"), KeyError, "failed", "KeyError: 'x'"),
        (KeyboardInterrupt(), SystemExit, "stopped", "interrupted at step 5"),
    ],
)
def test_an_error_and_an_interruption_leave_a_result_too(tmp_path, error, raised, status, message):
    with pytest.raises(raised):
        fit(tmp_path, Breaks(error))
    result = RunResult.read(tmp_path / RESULT_FILE)
    assert (result.status, result.message, result.best_value) == (status, message, 0.3)


def test_a_refused_training_leaves_nothing(tmp_path):
    with pytest.raises(LRPolicyError, match="sets the learning rate too"):
        fit(tmp_path / "run", pl.callbacks.StochasticWeightAveraging(0.1), max_epochs=5)
    assert not (tmp_path / "run").exists()


def test_the_result_of_another_training_is_not_overwritten(tmp_path):
    fit(tmp_path)
    before = (tmp_path / RESULT_FILE).read_text()
    fit(tmp_path)  # the same one again
    with pytest.raises(LRPolicyError, match=r"holds the result of another training \(seed 3, here 4\); give each"):
        fit(tmp_path, save_as={**NAMES, "seed": 4})
    assert json.loads((tmp_path / RESULT_FILE).read_text())["seed"] == json.loads(before)["seed"] == 3


def test_resuming_and_extending_write_into_the_same_folder(tmp_path):
    values = [0.1, 0.3, 0.5, 0.6, 0.65]
    callback = LRPolicyCallback(POLICY, 0.7, monitor="val/given", save_to=tmp_path, save_as=NAMES)
    trainer = tiny_trainer(callback, max_steps=4)
    trainer.fit(TinyModule(values=values[:2]))
    trainer.save_checkpoint(tmp_path / "at4.ckpt")
    callback = LRPolicyCallback(Constant(0.1), 0.7, monitor="val/given", save_to=tmp_path, save_as=NAMES)
    with pytest.warns(UserWarning, match="Be aware|resuming from a checkpoint"):
        tiny_trainer(callback).fit(TinyModule(values=values[2:]), ckpt_path=tmp_path / "at4.ckpt", weights_only=False)
    result = RunResult.read(tmp_path / RESULT_FILE)
    assert (result.status, result.steps_run, result.policy_repr) == ("missed", 10, "Constant(lr=0.1)")
    assert at_target(load_runs([tmp_path]), 0.3).table["steps_to_target"].to_list() == [4]


def test_an_adaptive_policy_is_stored_as_it_was_applied(tmp_path):
    policy = PlateauPolicy((Constant(0.01), Constant(0.1)), 1, 2, 0.01, 0, switch_fraction=0.0, max_steps=10)
    fit(tmp_path, policy=policy, values=[0.5] * 5)
    assert read_policy(tmp_path / "policy.yaml") == policy.realised()
    assert RunResult.read(tmp_path / RESULT_FILE).policy_id is None


@pytest.mark.filterwarnings("ignore:the training loader has no `position`", "ignore:composing")
def test_a_composition_is_saved_with_its_parts(tmp_path):
    for _ in range(2):  # the same training again
        composer = LRPolicyComposer(0.0, 80, save_to=tmp_path, save_as={"seed": 3})
        tiny_trainer(composer, max_steps=80).fit(TinyModule())
    result = RunResult.read(tmp_path / RESULT_FILE)
    assert (result.status, result.policy, result.tuning_steps) == ("reached", "auto", composer.tuning_steps)
    assert json.loads((tmp_path / "tuning.json").read_text()) == composer.records
    assert read_policy(tmp_path / "policy.yaml") == cut(composer.realised(), 80)
    assert at_target(load_runs([tmp_path]), 0.0).table["steps_to_target"].to_list() == [result.steps_to_target]


def test_a_policy_of_no_registered_type_has_no_file(tmp_path):
    fit(tmp_path, policy=lambda step: 0.1)
    assert not (tmp_path / "policy.yaml").exists()
    assert RunResult.read(tmp_path / RESULT_FILE).lr == 0.1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"data": "x"}, "a result takes run_id, study, policy, .*, got 'data'"),
        ({"seed": "3"}, "seed must be an integer of at least 0, got '3'"),
        ({"seed": True}, "seed must be an integer of at least 0, got True"),
        ({"dataset": 3}, "dataset must be text or None, got 3"),
    ],
)
def test_a_field_that_no_result_has_is_refused_before_training(names, message):
    with pytest.raises(ValueError, match=message):
        LRPolicyCallback(POLICY, save_to="run", save_as=names)


def test_what_is_saved_is_what_is_read():
    kinds = {field.name: str(field.type) for field in fields(RunResult)}
    assert {name: kinds[name].removesuffix(" | None") for name in saving.NAMES} == {
        name: kind.__name__ for name, kind in saving.NAMES.items()
    }
    assert saving.RESULT_FILE == RESULT_FILE


# -- without a Trainer ----------------------------------------------------------------------------------------


def test_a_loop_of_ones_own_writes_a_result(tmp_path):
    check = TargetCheck(0.9, max_steps=20)
    check.update(10, 0.8)
    check.update(20, 0.95)
    result = lrbench_pl.write_result(
        check, tmp_path / "a", policy=POLICY, seed=0, dataset="blobs", model="linear", optimizer="sgd", batch_size=8,
        test_accuracy=0.93, name="line",
    )  # fmt: skip
    assert result.policy == "line"
    assert RunResult.read(tmp_path / "a" / RESULT_FILE) == result
    assert (result.status, result.steps_to_target, result.test_accuracy) == ("reached", 20, 0.93)
    stored = read_sources([tmp_path]).runs[0]
    assert stored.policy == POLICY == from_config({"_target_": "lrbench_pl.policies.Polynomial", "init_lr": 0.1,
                                                   "decay_steps": 10})  # fmt: skip
    assert at_target(load_runs([tmp_path]), 0.8).table["steps_to_target"].to_list() == [10]


@pytest.mark.parametrize("policy", [None, "line"])
def test_a_target_check_comes_with_its_policy(tmp_path, policy):
    with pytest.raises(ValueError, match="expected the policy that was applied beside a TargetCheck, got policy="):
        lrbench_pl.write_result(TargetCheck(0.9), tmp_path, policy=policy)


def test_a_trainer_without_the_callback_has_no_result(tmp_path):
    with pytest.raises(ValueError, match="expected a Trainer with an LRPolicyCallback"):
        lrbench_pl.write_result(tiny_trainer(), tmp_path)
    trainer = tiny_trainer(LRPolicyCallback(POLICY))
    trainer.fit(TinyModule())
    with pytest.raises(ValueError, match="policy= may be a name for it, got Polynomial"):
        lrbench_pl.write_result(trainer, tmp_path, policy=POLICY)
