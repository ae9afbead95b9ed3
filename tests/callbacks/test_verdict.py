"""Each fit has its own verdict, each measurement is judged once, and a miss used its whole budget."""

from __future__ import annotations

import importlib
import logging
import math
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from lrbench_pl.callbacks.lr_policy import LRPolicyCallback, LRPolicyError
from lrbench_pl.callbacks.lr_range_test import LRRangeTest
from lrbench_pl.policies import Constant, PlateauPolicy
from tests.helpers import TinyModule, blobs, tiny_trainer


def fit(callback: LRPolicyCallback, *others: Any, values: list[float] | None = None, **arguments: Any) -> TinyModule:
    module = TinyModule(values=values)
    tiny_trainer(callback, *others, **arguments).fit(module)
    return module


# -- steps that no check sees ---------------------------------------------------------------------------------


def test_a_miss_says_when_the_last_check_was_before_the_end():
    callback = LRPolicyCallback(Constant(0.1), target=0.9, monitor="val/given")
    fit(callback, values=[0.2] * 9, max_steps=7, val_check_interval=3, check_val_every_n_epoch=None)
    last = callback.verdict.checks[-1].step
    assert last < 7
    assert callback.verdict.message.endswith(
        f"the last check was at step {last}, so the steps after it were not judged"
    )


def test_a_miss_whose_last_step_was_checked_says_no_more():
    callback = LRPolicyCallback(Constant(0.1), target=0.9, monitor="val/given")
    fit(callback, values=[0.2] * 9, max_steps=6, val_check_interval=3, check_val_every_n_epoch=None)
    assert callback.verdict.message.startswith("missed 0.9 within 6 steps; best ")
    assert "last check" not in callback.verdict.message


# -- a fit of its own -----------------------------------------------------------------------------------------


def test_a_second_fit_has_a_verdict_of_its_own():
    callback = LRPolicyCallback(Constant(0.01), 0.7, monitor="val/given")
    fit(callback, values=[0.1, 0.9])
    assert (callback.verdict.status, callback.verdict.steps_run) == ("reached", 4)
    fit(callback, values=[0.2] * 5)
    verdict = callback.verdict
    assert (verdict.status, verdict.steps_run, verdict.best_value) == ("missed", 10, 0.2)
    assert [check.step for check in verdict.checks] == [2, 4, 6, 8, 10]


def test_validating_and_testing_keep_the_verdict():
    callback = LRPolicyCallback(Constant(0.01), 0.1)
    module = fit(callback)
    before = callback.verdict
    tiny_trainer(callback).validate(module, verbose=False)
    assert callback.verdict == before
    assert before.status == "reached"


def plateau() -> PlateauPolicy:
    return PlateauPolicy((Constant(0.01), Constant(0.1)), 1, 2, 0.01, 0, switch_fraction=0.0, max_steps=10)


class WithoutReset:
    """An adaptive policy of somebody else: halves its rate at each check."""

    def __init__(self) -> None:
        self.observed: list[float] = []

    def __call__(self, t: int) -> float:
        return 0.1 * 0.5 ** len(self.observed)

    def observe(self, t: int, value: float) -> None:
        self.observed.append(value)

    def state_dict(self) -> dict[str, Any]:
        return {"observed": self.observed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.observed = state["observed"]

    def realised(self) -> Constant:
        return Constant(0.1)


@pytest.mark.parametrize("policy", [plateau(), WithoutReset()])
@pytest.mark.parametrize("shared", ["callback", "policy"])
def test_an_adaptive_policy_begins_anew_with_each_fit(policy, shared):
    first = LRPolicyCallback(policy, None, monitor="val/given")
    second = first if shared == "callback" else LRPolicyCallback(policy, None, monitor="val/given")
    rates = [fit(callback, values=[0.5] * 5).rates for callback in (first, second)]
    assert rates[0] == rates[1]
    assert len({rate for (rate,) in rates[0]}) > 1


def test_building_a_callback_leaves_the_policy_alone():
    policy = plateau()
    fit(LRPolicyCallback(policy, None, monitor="val/given"), values=[0.5] * 5)
    realised = policy.realised()
    LRPolicyCallback(policy)
    assert policy.realised() == realised


def test_a_range_test_keeps_the_losses_of_the_last_fit():
    test = LRRangeTest(lr=0.1, steps=10)
    for _ in range(2):
        fit(test)
        assert len(test.losses) == 10


# -- a measurement is judged once -----------------------------------------------------------------------------


def seldom(package: str) -> tuple[Any, Any]:
    """A module that logs its metric at every second validation, and a Trainer of the same package."""
    lightning = importlib.import_module(package)

    class Seldom(lightning.LightningModule):
        def __init__(self, values: list[float]) -> None:
            super().__init__()
            self.layer, self.values, self.count = nn.Linear(4, 2), values, 0

        def training_step(self, batch, batch_idx):
            loss = nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val/always", 0.5)
            if self.count % 2 == 0:
                self.log("val/given", self.values[self.count // 2])

        def on_validation_epoch_end(self):
            self.count += 1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self):
            return DataLoader(blobs(), batch_size=8)

        def val_dataloader(self):
            return DataLoader(blobs(32, seed=1), batch_size=32)

    return Seldom, lightning.Trainer


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_a_metric_logged_at_every_second_validation_is_judged_once(package):
    pytest.importorskip(package)
    module, trainer = seldom(package)
    callback = LRPolicyCallback(Constant(0.01), 0.7, monitor="val/given", confirmations=2)
    tiny_trainer(callback, trainer_class=trainer, num_sanity_val_steps=0).fit(module([0.9, 0.1, 0.9]))
    assert [(check.step, check.value) for check in callback.checks] == [(2, 0.9), (6, 0.1), (10, 0.9)]
    assert callback.verdict.status == "missed"
    callback = LRPolicyCallback(Constant(0.01), 0.7, monitor="val/given", confirmations=2)
    tiny_trainer(callback, trainer_class=trainer, num_sanity_val_steps=0).fit(module([0.9, 0.8, 0.9]))
    assert (callback.verdict.status, callback.verdict.steps_to_target, callback.verdict.steps_run) == ("reached", 2, 6)


def test_a_metric_of_training_is_judged_at_every_check():
    module, _ = seldom("pytorch_lightning")
    callback = LRPolicyCallback(Constant(0.01), 0.0, monitor="train/loss", mode="min")
    tiny_trainer(callback).fit(module([0.9, 0.1, 0.9]))
    assert [check.step for check in callback.checks] == [2, 4, 6, 8, 10]


def test_a_metric_of_one_of_several_loaders():
    class Two(TinyModule):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            if self.trainer.global_step % 4:
                self.log("val/given", 0.1 * (dataloader_idx + 1))

        def val_dataloader(self):
            return [DataLoader(blobs(8), batch_size=8), DataLoader(blobs(8), batch_size=8)]

    callback = LRPolicyCallback(Constant(0.01), 0.9, monitor="val/given/dataloader_idx_1")
    tiny_trainer(callback).fit(Two())
    assert [(check.step, check.value) for check in callback.checks] == [(2, 0.2), (6, 0.2), (10, 0.2)]


@pytest.mark.parametrize(("mode", "sign"), [("max", ">="), ("min", "<=")])
def test_the_line_of_a_target_reached_has_the_sign_of_its_mode(mode, sign, caplog):
    with caplog.at_level(logging.INFO, logger="pytorch_lightning.utilities.rank_zero"):
        fit(LRPolicyCallback(Constant(0.01), 0.7, monitor="val/given", mode=mode), values=[0.7])
    assert f"target reached: val/given 0.7 {sign} 0.7 at step 2" in caplog.text


def test_a_percentage_as_a_target_is_refused():
    with pytest.raises(ValueError, match=r"must be at most 1 for 'val/accuracy', got 95; did you mean 0.95\?"):
        LRPolicyCallback(Constant(0.1), target=95)


# -- how it ended ---------------------------------------------------------------------------------------------


def test_max_epochs_before_the_budget_is_stopped():
    callback = LRPolicyCallback(Constant(0.01), 0.7, monitor="val/given")
    fit(callback, values=[0.1] * 9, max_steps=300, max_epochs=2)
    verdict = callback.verdict
    assert (verdict.status, verdict.message) == ("stopped", "stopped at step 16 of 300: max_epochs=2 was reached")


def test_epochs_are_a_budget_where_there_is_none_in_steps():
    callback = LRPolicyCallback(Constant(0.01), 0.7, monitor="val/given")
    fit(callback, values=[0.1] * 9, max_steps=-1, max_epochs=2)
    assert callback.verdict.message == "missed 0.7 within 16 steps; best 0.1 at step 2"


class StopsAt(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop |= trainer.global_step >= self.step


@pytest.mark.parametrize(("budget", "at"), [({"max_steps": 10}, 3), ({"max_steps": -1, "max_epochs": 2}, 11)])
def test_ended_by_another_callback_is_stopped(budget, at):
    callback = LRPolicyCallback(Constant(0.01), 0.7, monitor="val/given")
    fit(callback, StopsAt(at), values=[0.1] * 9, **budget)
    of = " of 10" if budget["max_steps"] > 0 else ""
    reason = "a callback or the module ended the training"
    assert (callback.verdict.status, callback.verdict.message) == ("stopped", f"stopped at step {at}{of}: {reason}")


def test_a_callback_that_ends_it_with_the_budget_changes_nothing():
    callback = LRPolicyCallback(Constant(0.01), 0.7, monitor="val/given")
    fit(callback, StopsAt(10), values=[0.1] * 5)
    assert callback.verdict.status == "missed"


def test_a_fit_without_a_step_is_no_miss():
    callback = LRPolicyCallback(Constant(0.01), 0.7, monitor="val/given")
    fit(callback, limit_train_batches=0)
    assert callback.verdict.status == "stopped"


def test_before_and_during_a_fit_nothing_is_missed():
    seen = []

    class Look(pl.Callback):
        def on_train_batch_end(self, *_):
            seen.append(callback.verdict.status)

    callback = LRPolicyCallback(Constant(0.01), 0.7, monitor="val/given")
    assert callback.verdict.status == "stopped"
    fit(callback, Look(), values=[0.1] * 5)
    assert set(seen) == {"stopped"}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_resumed_at_its_end_the_verdict_stays(tmp_path):
    first, second = (LRPolicyCallback(Constant(0.01), 0.7, monitor="val/given") for _ in range(2))
    trainer = tiny_trainer(first)
    trainer.fit(TinyModule(values=[0.1] * 5))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    tiny_trainer(second).fit(TinyModule(values=[]), ckpt_path=tmp_path / "end.ckpt", weights_only=False)
    assert second.verdict == first.verdict
    assert second.verdict.status == "missed"


def test_with_min_steps_divergence_names_its_first_step_and_no_later_check_counts():
    callback = LRPolicyCallback(Constant(0.01), 0.7, monitor="val/given")
    module = TinyModule(values=[0.1, 0.1, 0.9, 0.9, 0.9], nan_from=3)
    tiny_trainer(callback, min_steps=8).fit(module)
    verdict = callback.verdict
    assert verdict.message == "the training loss became non-finite at step 4; try a lower learning rate"
    assert (verdict.status, verdict.steps_run) == ("diverged", 8)
    assert all(math.isfinite(check.value) and check.value < 0.7 for check in verdict.checks)


def test_one_step_is_singular():
    callback = LRPolicyCallback(Constant(0.01), 0.7, monitor="val/given")
    fit(callback, values=[0.1], max_steps=1, val_check_interval=1)
    assert callback.verdict.message == "missed 0.7 within 1 step; best 0.1 at step 1"


# -- beside callbacks of Lightning ----------------------------------------------------------------------------


class WithBackbone(TinyModule):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.backbone = nn.Linear(4, 4)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize(
    ("name", "arguments", "advice"),
    [
        ("StochasticWeightAveraging", {"swa_lrs": 0.1}, "use EMAWeightAveraging"),
        ("BackboneFinetuning", {}, "add the backbone's group yourself, with lr_scale"),
    ],
)
def test_a_callback_of_lightning_that_sets_rates_is_refused(package, name, arguments, advice):
    other = getattr(pytest.importorskip(f"{package}.callbacks"), name)(**arguments)
    module = WithBackbone(values=[0.1] * 5)
    callback = LRPolicyCallback(Constant(0.1), 0.7, monitor="val/given")
    with pytest.raises(LRPolicyError, match=f"^{name} sets the learning rate too; remove it, or {advice}"):
        tiny_trainer(callback, other, max_epochs=5).fit(module)
    assert module.batches_seen == 0


def test_averaged_weights_are_what_is_judged():
    averaging = pytest.importorskip("pytorch_lightning.callbacks")
    if not hasattr(averaging, "EMAWeightAveraging"):
        pytest.skip("this Lightning has no EMAWeightAveraging")
    seen = []

    class Judged(TinyModule):
        def on_validation_epoch_end(self):
            seen.append(float(self.layer.weight.detach().sum()))
            self.log("val/weight", seen[-1])

    module = Judged()
    callback = LRPolicyCallback(Constant(0.1), 1e9, monitor="val/weight")
    tiny_trainer(callback, averaging.EMAWeightAveraging(decay=0.5), num_sanity_val_steps=0).fit(module)
    assert [check.value for check in callback.checks] == pytest.approx(seen, rel=1e-6)
    assert (callback.verdict.status, len(callback.checks), module.rates) == ("missed", 5, [[0.1]] * 10)
