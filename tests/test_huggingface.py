"""A policy and its verdict in a Hugging Face Trainer; nothing is downloaded."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from lrbench_pl.analysis.history import at_target  # noqa: E402
from lrbench_pl.analysis.load import load_runs  # noqa: E402
from lrbench_pl.huggingface import TargetCallback  # noqa: E402
from lrbench_pl.policies import Constant, PlateauPolicy, table  # noqa: E402
from lrbench_pl.runs.result import RunResult  # noqa: E402
from lrbench_pl.scheduler import LRPolicyScheduler  # noqa: E402
from lrbench_pl.selection.exchange import read_sources  # noqa: E402
from tests import forks  # noqa: E402
from tests.accelerated import POLICY, arguments, texts, tiny_model, watch, with_accelerate  # noqa: E402

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def accelerate_is_left_as_it_was(monkeypatch):
    """Accelerate sets environment variables and keeps a state of the process."""
    before = dict(os.environ)
    yield
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    for key in os.environ.keys() - before.keys():
        os.environ.pop(key)
    os.environ.update(before)


class Training:
    """A Trainer of six steps, its rates, and what its evaluations are scripted to give."""

    def __init__(
        self,
        folder: Path,
        *callbacks: Any,
        policy: Any = POLICY,
        values: list[float] | None = None,
        scheduler: Any = None,
        lr: float = 0.1,
        **given: Any,
    ) -> None:
        self.model = tiny_model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.rates = watch(self.optimizer)
        self.scheduler = scheduler(self.optimizer) if scheduler else LRPolicyScheduler(self.optimizer, policy)
        values = list(values or [])
        self.trainer = transformers.Trainer(
            self.model,
            arguments(folder, **given),
            train_dataset=texts(),
            eval_dataset=texts(4),
            compute_metrics=(lambda _: {"given": values.pop(0)}) if values else None,
            callbacks=list(callbacks),
            optimizers=(self.optimizer, self.scheduler),
        )

    def train(self, **given: Any) -> Training:
        self.trainer.train(**given)
        return self


def scripted(target: float | None = 0.7, **given: Any) -> TargetCallback:
    return TargetCallback(target, monitor="eval_given", mode="max", **given)


# -- the rate -------------------------------------------------------------------------------------------------


def test_every_step_uses_the_policys_rate_and_it_is_logged(tmp_path):
    training = Training(tmp_path).train()
    assert training.rates == table(POLICY, 6)
    logged = {row["step"]: row["learning_rate"] for row in training.trainer.state.log_history if "learning_rate" in row}
    assert sorted(logged) == [1, 2, 3, 4, 5, 6]
    assert set(logged.values()) <= set(table(POLICY, 7))


def test_accumulation_counts_optimizer_steps(tmp_path):
    assert Training(tmp_path, gradient_accumulation_steps=2).train().rates == table(POLICY, 6)


@pytest.mark.slow
def test_resuming_gives_the_rates_and_checks_of_the_unbroken_run(tmp_path):
    whole = Training(tmp_path / "whole").train()
    values = [0.1, 0.2, 0.3]
    first = scripted(save_to=tmp_path / "run")
    saved = {"save_strategy": "steps", "save_steps": 2}
    Training(tmp_path / "a", first, values=values, **saved).train()
    second = scripted(save_to=tmp_path / "run")
    rest = Training(tmp_path / "a", second, values=values[1:], **saved)
    rest.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert rest.rates == whole.rates[2:]
    assert [(check.step, check.value) for check in second.target_check.checks] == [(2, 0.1), (4, 0.2), (6, 0.3)]
    assert second.verdict.status == "missed"


def test_a_loop_with_accelerate():
    assert with_accelerate(True) == with_accelerate(False) == table(POLICY, 8)


@pytest.mark.slow
def test_two_processes_have_the_rates_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.accelerated", str(tmp_path)]
    processes = [forks.start(command, ROOT, {**variables, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    assert [process.wait(300) for process in processes] == [0, 0]
    found = json.loads((tmp_path / "rates.json").read_text())
    assert found["processes"] == 2
    assert found["prepared"] == found["not prepared"] == table(POLICY, 4)
    assert found["trainer"] == table(POLICY, 6)


# -- the verdict ----------------------------------------------------------------------------------------------


def test_the_target_stops_training_and_the_result_is_ranked(tmp_path):
    callback = scripted(save_to=tmp_path / "run", save_as={"dataset": "texts", "policy": "line"})
    training = Training(tmp_path / "out", callback, values=[0.1, 0.7, 0.9], gradient_accumulation_steps=2).train()
    assert len(training.rates) == 4
    result = RunResult.read(tmp_path / "run" / "result.json")
    assert (result.status, result.steps_to_target, result.message) == ("reached", 4, "reached 0.7 at step 4")
    assert (result.model, result.optimizer, result.batch_size, result.seed) == ("GPT2LMHeadModel", "SGD", 8, 42)
    assert (result.policy, result.lr, result.max_steps, result.monitor) == ("line", 1.0, 6, "eval_given")
    assert result.seconds_to_target > 0
    assert [run.policy for run in read_sources([tmp_path / "run"]).runs] == [POLICY]
    assert at_target(load_runs([tmp_path / "run"]), 0.1).table["steps_to_target"].to_list() == [2]


def test_missed_and_a_loss_as_the_metric(tmp_path):
    callback = TargetCallback(0.0)
    Training(tmp_path, callback).train()
    assert callback.verdict.status == "missed"
    assert callback.verdict.message.startswith("missed 0 within 6 steps; best ")


def test_confirmations_without_stopping(tmp_path):
    callback = scripted(confirmations=2, stop=False)
    training = Training(tmp_path, callback, values=[0.1, 0.8, 0.9]).train()
    assert (len(training.rates), callback.verdict.steps_to_target) == (6, 4)


def test_evaluating_after_training_is_no_check(tmp_path):
    callback = scripted(0.95)
    training = Training(tmp_path, callback, values=[0.1, 0.2, 0.3, 0.99]).train()
    before = callback.verdict
    training.trainer.evaluate()
    assert callback.verdict == before
    assert before.status == "missed"


def test_evaluating_before_the_first_step_is_no_check(tmp_path):
    callback = scripted()
    Training(tmp_path, callback, values=[0.99, 0.1, 0.2, 0.3], eval_on_start=True).train()
    assert [check.value for check in callback.target_check.checks] == [0.1, 0.2, 0.3]


def test_a_loss_that_is_not_finite_is_divergence(tmp_path):
    callback = TargetCallback(0.0)
    training = Training(tmp_path, callback, policy=Constant(1e30), logging_nan_inf_filter=False).train()
    assert callback.verdict.status == "diverged"
    assert "loss became non-finite by step" in callback.verdict.message
    assert len(training.rates) < 6


class Ends(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= 3


def test_ended_by_another_callback_is_stopped(tmp_path):
    callback = scripted()
    Training(tmp_path, callback, Ends(), values=[0.1, 0.2, 0.3]).train()
    assert callback.verdict.message == "stopped at step 3 of 6: a callback ended the training"


class Fails(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5:
            raise KeyError("x")


def test_a_training_that_fails_leaves_what_was_checked(tmp_path):
    with pytest.raises(KeyError):
        Training(tmp_path / "out", scripted(save_to=tmp_path), Fails(), values=[0.1, 0.2, 0.3]).train()
    result = RunResult.read(tmp_path / "result.json")
    assert (result.status, result.best_value) == ("stopped", 0.2)
    assert result.message == "at step 4: the training has not ended"


def test_an_adaptive_policy_observes_the_evaluations(tmp_path):
    policy = PlateauPolicy((Constant(0.01), Constant(0.1)), 1, 1, 0.01, 0, switch_fraction=0.0, max_steps=6)
    training = Training(tmp_path, scripted(), policy=policy, values=[0.5, 0.5, 0.5]).train()
    assert training.rates == [0.1] * 4 + [0.01] * 2


def test_a_scheduler_of_transformers_is_judged_under_its_name(tmp_path):
    def scheduler(optimizer):
        return transformers.get_cosine_schedule_with_warmup(optimizer, 0, 6)

    callback = scripted(save_to=tmp_path / "run")
    Training(
        tmp_path / "out", callback, scheduler=scheduler, values=[0.1, 0.2, 0.3], lr_scheduler_type="cosine"
    ).train()
    result = RunResult.read(tmp_path / "run" / "result.json")
    assert (result.status, result.policy, result.policy_id) == ("missed", "cosine", None)
    assert not (tmp_path / "run" / "policy.yaml").exists()


def test_the_monitor_may_be_of_the_second_of_several_data_sets(tmp_path):
    """Each data set is an evaluation of its own."""
    callback = TargetCallback(2.0, monitor="eval_b_given", mode="max")
    training = Training(tmp_path, callback, values=[0.1, 0.2] * 9)
    training.trainer.eval_dataset = {"a": texts(4), "b": texts(4)}
    training.train()
    assert {check.value for check in callback.target_check.checks} == {0.2}
    assert callback.verdict.status == "missed"

    callback = TargetCallback(2.0, monitor="eval_c_given", mode="max")
    training = Training(tmp_path, callback, values=[0.1, 0.2] * 9)
    training.trainer.eval_dataset = {"a": texts(4), "b": texts(4)}
    with pytest.raises(ValueError, match=r"'eval_c_given' was not .*: .*eval_a_given.*eval_b_given.*\. Set monitor="):
        training.train()


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_seconds_leave_evaluation_out_whenever_it_takes_place(tmp_path, strategy, monkeypatch):
    """An evaluation takes an hour, a training step no time."""
    now = [0.0]
    monkeypatch.setattr("lrbench_pl.stopwatch.time.perf_counter", lambda: now[0])
    callback = scripted(2.0)
    training = Training(tmp_path, callback, values=[0.1] * 9, eval_strategy=strategy)
    measured = training.trainer.compute_metrics

    def slow(prediction):
        now[0] += 3600
        return measured(prediction)

    training.trainer.compute_metrics = slow
    training.train()
    assert {check.seconds for check in callback.target_check.checks} == {0.0}


def test_a_metric_that_is_not_evaluated_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(ValueError, match=r"'eval_accuracy' was not evaluated; evaluated were: .*eval_loss.*Set"):
        Training(tmp_path, TargetCallback(0.9, monitor="eval_accuracy", mode="max")).train()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": math.nan}, "target must be a finite number or None, got nan"),
        ({"save_as": {"data": "x"}}, "a result takes .*, got 'data'"),
        ({"confirmations": 0}, "confirmations must be an integer of at least 1, got 0"),
    ],
)
def test_the_constructor_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        TargetCallback(**given)


@pytest.mark.slow
def test_without_transformers_the_message_says_what_to_install(monkeypatch):
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "try:\n    import lrbench_pl.huggingface\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "lrbench_pl.huggingface needs transformers, which is not installed: pip install transformers" in done.stdout
