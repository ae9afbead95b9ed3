"""The callback in real Trainers, and the facts about Lightning that it rests on."""

from __future__ import annotations

import csv
import math
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from lrbench_pl.callbacks.lr_policy import LRPolicyCallback, LRPolicyError, plain_number
from lrbench_pl.policies import Constant, Cyclic, PlateauPolicy, Polynomial, Sequential, table, warmup
from lrbench_pl.verdict import Check, best_check, first_confirmed
from tests.helpers import TinyModule, tiny_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",  # tiny data needs none
    "ignore:.*has no `test_dataloader`:UserWarning",
)

POLICY = warmup(Polynomial(init_lr=0.1, decay_steps=8), 2)


def checks(*values: float, every: int = 100) -> list[Check]:
    return [Check(every * (i + 1), value, float(i)) for i, value in enumerate(values)]


def rows(folder: Any) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


# -- the pure part --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "confirmations", "step"),
    [
        pytest.param((0.1, 0.5, 0.9), 1, 200, id="equality-reaches"),
        pytest.param((0.5, 0.4, 0.6, 0.7), 2, 300, id="in-a-row-starts-again"),
        pytest.param((0.5, 0.6), 3, None, id="too-few"),
        pytest.param((0.4, math.nan), 1, None, id="nan-never-reaches"),
        pytest.param((), 1, None, id="no-check"),
    ],
)
def test_first_confirmed(values, confirmations, step):
    hit = first_confirmed(checks(*values), 0.5, "max", confirmations)
    assert (hit.step if hit else None) == step


def test_first_confirmed_in_mode_min():
    assert first_confirmed(checks(0.6, 0.5), 0.5, "min").step == 200


def test_best_check_is_the_first_and_ignores_nan():
    assert best_check(checks(math.nan, 0.3, 0.3)).step == 200
    assert best_check(checks(0.3, 0.2), "min").step == 200
    assert best_check(checks(math.nan)) is None


@pytest.mark.parametrize("hits", range(1, 21))
def test_a_float32_accuracy_meets_a_decimal_target_at_equality(hits):
    assert plain_number(torch.tensor(hits) / 20) == hits / 20


# -- constructor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": 0.1}, "policy must be callable: t -> learning rate, got 0.1"),
        ({"target": math.nan}, "target must be a finite number or None, got nan"),
        ({"mode": "maximum"}, "mode must be 'max' or 'min', got 'maximum'"),
        ({"confirmations": 0}, "confirmations must be an integer of at least 1, got 0"),
        ({"confirmations": True}, "confirmations must be an integer of at least 1, got True"),
    ],
)
def test_constructor_refuses(arguments, message):
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(").replace(")", r"\)") + "$"):
        LRPolicyCallback(**{"policy": Constant(0.1), **arguments})


# -- the rate -------------------------------------------------------------------------------------------------


def test_every_step_uses_the_policys_rate():
    module = TinyModule()
    tiny_trainer(LRPolicyCallback(POLICY)).fit(module)
    assert module.rates == [[lr] for lr in table(POLICY, 10)]


def test_accumulation_counts_optimizer_steps_not_batches():
    module = TinyModule()
    callback = LRPolicyCallback(POLICY)
    tiny_trainer(callback, accumulate_grad_batches=3, max_steps=4, val_check_interval=3).fit(module)
    assert module.batches_seen > len(module.rates) == 4
    assert module.rates == [[lr] for lr in table(POLICY, 4)]


def test_lr_scale_of_a_group_multiplies():
    class TwoGroups(TinyModule):
        def configure_optimizers(self):
            bias = {"params": [self.layer.bias], "lr_scale": 2.0}
            return torch.optim.SGD([{"params": [self.layer.weight]}, bias], lr=1.0)

    module = TwoGroups()
    tiny_trainer(LRPolicyCallback(POLICY)).fit(module)
    assert module.rates == [[lr, 2.0 * lr] for lr in table(POLICY, 10)]


def test_a_tensor_rate_is_filled_in_place():
    class Capturable(TinyModule):
        def configure_optimizers(self):
            self.lr = torch.tensor(1.0)
            return torch.optim.Adam(self.parameters(), lr=self.lr, capturable=True, foreach=False)

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            self.rates.append([float(group["lr"]) for group in optimizer.param_groups])
            optimizer_closure()  # capturable steps need a GPU; the rate is what is tested

    module = Capturable()
    tiny_trainer(LRPolicyCallback(Constant(0.25)), max_steps=-1, max_epochs=1, val_check_interval=None).fit(module)
    assert set(map(tuple, module.rates)) == {(0.25,)}
    assert module.lr.item() == 0.25


def test_bf16_mixed_precision():
    module = TinyModule()
    callback = LRPolicyCallback(POLICY, target=2.0, monitor="val/score")
    tiny_trainer(callback, precision="bf16-mixed").fit(module)
    assert module.rates == [[lr] for lr in table(POLICY, 10)]
    assert callback.verdict.status == "missed"


def test_the_logged_rate_is_that_of_the_step_which_uses_it(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    tiny_trainer(LRPolicyCallback(POLICY), logger=logger).fit(TinyModule())
    logged = {int(row["step"]): float(row["lr"]) for row in rows(tmp_path) if row["lr"]}
    assert logged == dict(enumerate(table(POLICY, 10)))


def test_the_check_row_says_how_many_steps_were_taken(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    tiny_trainer(LRPolicyCallback(POLICY), logger=logger).fit(TinyModule())
    found = [(int(row["step"]), float(row["check/step"])) for row in rows(tmp_path) if row["check/step"]]
    assert found == [(1, 2.0), (3, 4.0), (5, 6.0), (7, 8.0), (9, 10.0)]


def test_works_in_a_trainer_of_the_lightning_package():
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        __init__ = TinyModule.__init__
        training_step = TinyModule.training_step
        validation_step = TinyModule.validation_step
        configure_optimizers = TinyModule.configure_optimizers
        train_dataloader = TinyModule.train_dataloader
        val_dataloader = TinyModule.val_dataloader

    callback = LRPolicyCallback(POLICY, target=0.5)
    module = TinyModule.__new__(Module)
    lightning.LightningModule.__init__(module)
    module.layer, module.rates, module.batches_seen, module.nan_from = torch.nn.Linear(4, 2), [], 0, None
    tiny_trainer(callback, trainer_class=lightning.Trainer).fit(module)
    assert callback.verdict.status in ("reached", "missed")
    assert callback.checks


# -- the verdict ----------------------------------------------------------------------------------------------


def given(values: list[float], target: float | None = 0.7, **arguments: Any) -> LRPolicyCallback:
    callback = LRPolicyCallback(Constant(0.01), target, monitor="val/given", **arguments)
    tiny_trainer(callback, num_sanity_val_steps=2).fit(TinyModule(values=values))
    return callback


def test_reached_stops_there():
    verdict = given([0.1, 0.7, 0.9, 0.9, 0.9]).verdict
    assert (verdict.status, verdict.steps_to_target, verdict.steps_run) == ("reached", 4, 4)
    assert (verdict.best_value, verdict.best_step, verdict.final_value) == (0.7, 4, 0.7)
    assert verdict.message == "reached 0.7 at step 4"
    assert verdict.seconds_to_target > 0


def test_reached_without_stopping_goes_on():
    verdict = given([0.1, 0.7, 0.9, 0.5, 0.6], stop=False).verdict
    assert (verdict.status, verdict.steps_to_target, verdict.steps_run) == ("reached", 4, 10)
    assert (verdict.best_value, verdict.final_value) == (0.9, 0.6)


def test_confirmations_report_the_first_of_the_row():
    verdict = given([0.7, 0.1, 0.8, 0.8, 0.9], confirmations=2).verdict
    assert (verdict.steps_to_target, verdict.steps_run) == (6, 8)


def test_missed():
    verdict = given([0.1, 0.6, 0.5, 0.4, 0.3]).verdict
    assert (verdict.status, verdict.steps_to_target, verdict.seconds_to_target) == ("missed", None, None)
    assert verdict.message == "missed 0.7 within 10 steps; best 0.6 at step 4"


def test_no_target_is_a_miss_in_name_only():
    verdict = given([0.1, 0.2, 0.3, 0.4, 0.5], target=None).verdict
    assert (verdict.status, verdict.message) == ("missed", "no target was set; best 0.5 at step 10")


def test_mode_min():
    verdict = given([0.9, 0.8, 0.7, 0.6, 0.5], target=0.7, mode="min").verdict
    assert (verdict.steps_to_target, verdict.best_value) == (6, 0.7)


def test_a_non_finite_loss_is_divergence():
    callback = LRPolicyCallback(Constant(0.01), target=2.0, monitor="val/score")
    tiny_trainer(callback).fit(TinyModule(nan_from=5))
    verdict = callback.verdict
    assert (verdict.status, verdict.steps_run) == ("diverged", 6)
    assert verdict.message == "the training loss became non-finite at step 6; try a lower learning rate"


def test_seldom_looks_find_divergence_too(monkeypatch):
    """As on an accelerator, where looking at each loss would wait for the device."""
    callback = LRPolicyCallback(Constant(0.01))
    monkeypatch.setattr(pl.Trainer, "world_size", property(lambda self: 2))
    tiny_trainer(callback, max_steps=100, limit_val_batches=0).fit(TinyModule(nan_from=3))
    assert callback.verdict.status == "diverged"
    assert callback.verdict.steps_run < 100


def test_an_early_end_by_somebody_else_is_stopped():
    class Stopper(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step >= 3

    callback = LRPolicyCallback(Constant(0.01), target=2.0, monitor="val/score")
    tiny_trainer(callback, Stopper()).fit(TinyModule())
    assert callback.verdict.status == "stopped"
    assert callback.verdict.message == "stopped at step 3 of 10: a callback or the module ended the training"


def test_an_error_in_training_is_failed():
    class Broken(TinyModule):
        def training_step(self, batch, batch_idx):
            raise KeyError("x")

    callback = LRPolicyCallback(Constant(0.01))
    with pytest.raises(KeyError):
        tiny_trainer(callback).fit(Broken())
    assert (callback.verdict.status, callback.verdict.message) == ("failed", "KeyError: 'x'")


def test_an_interruption_is_stopped():
    class Interrupted(TinyModule):
        def training_step(self, batch, batch_idx):
            if batch_idx == 4:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

    callback = LRPolicyCallback(Constant(0.01))
    with pytest.raises(SystemExit):  # what Lightning makes of Ctrl-C
        tiny_trainer(callback).fit(Interrupted())
    assert (callback.verdict.status, callback.verdict.message) == ("stopped", "interrupted at step 4")


def test_a_target_never_checked_warns():
    callback = LRPolicyCallback(Constant(0.01), target=0.5)
    with pytest.warns(UserWarning, match="'val/accuracy' was never checked in 10 steps"):
        tiny_trainer(callback, val_check_interval=50).fit(TinyModule())
    assert callback.verdict.message == "missed 0.5 within 10 steps; val/accuracy was never checked"


def test_validating_outside_a_fit_is_no_check():
    callback = LRPolicyCallback(Constant(0.01), target=0.1)
    tiny_trainer(callback).validate(TinyModule(), verbose=False)
    assert callback.checks == []


def test_an_adaptive_policy_is_told_the_values():
    policy = PlateauPolicy(
        policies=(Constant(0.01), Constant(0.1)), start=1, patience=2, threshold=0.01, cooldown=0, max_steps=10,
        switch_fraction=0.0,
    )  # fmt: skip
    module = TinyModule(values=[0.5, 0.5, 0.5, 0.5, 0.5])
    tiny_trainer(LRPolicyCallback(policy, monitor="val/given")).fit(module)
    assert {rate for (rate,) in module.rates} == {0.1, 0.01}
    assert table(policy.realised(), 10) == [rate for (rate,) in module.rates]


# -- refusing -------------------------------------------------------------------------------------------------


def refuses(module: Any, message: str, *others: Any, callback: Any = None, **arguments: Any) -> None:
    callback = callback or LRPolicyCallback(Constant(0.1), target=0.5)
    with pytest.raises(LRPolicyError, match=message):
        tiny_trainer(callback, *others, **arguments).fit(module)


def test_a_second_writer_of_the_rate_is_refused():
    class Scheduled(TinyModule):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    refuses(Scheduled(), r"StepLR from configure_optimizers\(\) sets the learning rate too")


def test_two_policies_are_refused():
    class Other(LRPolicyCallback):
        @property
        def state_key(self) -> str:
            return "other"

    refuses(TinyModule(), "expected one LRPolicyCallback", Other(Constant(0.2)))


class TwoOptimizers(TinyModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        self.rates.append([first.param_groups[0]["lr"], second.param_groups[0]["lr"]])

    def configure_optimizers(self):
        return [torch.optim.SGD([p], lr=1.0) for p in self.layer.parameters()]


def test_several_optimizers_need_an_index():
    refuses(TwoOptimizers(), "has 2 optimizers; say which one the policy drives with optimizer_index=")
    callback = LRPolicyCallback(Constant(0.1), optimizer_index=2)
    refuses(TwoOptimizers(), r"optimizer_index must lie in \[0, 1\], got 2", callback=callback)


def test_the_index_says_which_optimizer():
    module = TwoOptimizers()
    tiny_trainer(LRPolicyCallback(Constant(0.1), optimizer_index=1), max_steps=4).fit(module)
    assert module.rates[0] == [1.0, 0.1]


def test_no_optimizer_is_refused():
    class None_(TinyModule):  # noqa: N801  (None is taken)
        def configure_optimizers(self):
            return None

    with pytest.warns(UserWarning, match="returned `None`"):
        refuses(None_(), "the module has no optimizer")


def test_a_monitor_that_is_never_logged_is_refused_with_those_that_are():
    callback = LRPolicyCallback(Constant(0.1), target=0.5, monitor="val/acc")
    refuses(TinyModule(), "'val/acc' was not logged in validation; logged were: val/accuracy", callback=callback)


def test_a_target_without_validation_is_refused():
    refuses(TinyModule(), "this fit runs none", limit_val_batches=0)


# -- resuming, and several processes --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")  # torch's DataLoader begins anew: rates alone
def test_resuming_continues_the_rates_and_the_checks(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1, filename="{step}")
    whole = TinyModule()
    first = LRPolicyCallback(POLICY, target=2.0, monitor="val/score")
    tiny_trainer(first, checkpoint, enable_checkpointing=True).fit(whole)

    rest = TinyModule()
    second = LRPolicyCallback(POLICY, target=2.0, monitor="val/score")
    again = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1, filename="{step}")
    start = str(tmp_path / "step=5.ckpt")
    tiny_trainer(second, again, enable_checkpointing=True).fit(rest, ckpt_path=start, weights_only=False)
    assert rest.rates == whole.rates[5:]
    assert [c.step for c in second.checks] == [c.step for c in first.checks] == [2, 4, 6, 8, 10]
    assert second.checks[:2] == first.checks[:2]
    assert second.verdict.steps_run == 10


def test_the_checkpoint_holds_no_scheduler(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="{step}")
    tiny_trainer(LRPolicyCallback(POLICY), checkpoint, enable_checkpointing=True).fit(TinyModule())
    assert torch.load(next(tmp_path.glob("*.ckpt")), weights_only=False)["lr_schedulers"] == []


# -- facts about Lightning ------------------------------------------------------------------------------------


def test_fact_lr_monitor_before_the_callback_logs_the_step_before(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")

    class WithScheduler(TinyModule):  # the monitor wants one; this one changes nothing and is not ours
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=99.0)
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)]

    class Setter(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            trainer.optimizers[0].param_groups[0]["lr"] = POLICY(trainer.global_step)

    monitor = LearningRateMonitor(logging_interval="step")
    tiny_trainer(monitor, Setter(), logger=logger, val_check_interval=50).fit(WithScheduler())
    logged = [float(row["lr-SGD"]) for row in rows(tmp_path) if row.get("lr-SGD")]
    assert logged[1] != POLICY(1)


def test_fact_early_stopping_is_strict_where_we_stop_at_equality():
    module = TinyModule(values=[0.7, 0.7, 0.7, 0.7, 0.7])
    stopper = EarlyStopping("val/given", mode="max", stopping_threshold=0.7, patience=99)
    trainer = tiny_trainer(stopper, LRPolicyCallback(Constant(0.01)))
    trainer.fit(module)
    assert trainer.global_step == 10


def test_fact_the_sanity_check_is_no_check():
    callback = LRPolicyCallback(Constant(0.01), target=0.0)
    trainer = tiny_trainer(callback, num_sanity_val_steps=2)
    trainer.fit(TinyModule())
    assert callback.checks[0].step == 2


def test_composites_nest_in_the_trainer():
    cycles = Cyclic(base_lr=0.0, max_lr=0.1, period=4, wave="triangle")
    policy = Sequential((Constant(0.05), cycles), milestones=(4,))
    module = TinyModule()
    tiny_trainer(LRPolicyCallback(policy)).fit(module)
    assert [rate for (rate,) in module.rates] == pytest.approx([0.05] * 4 + [0, 0.05, 0.1, 0.05, 0, 0.05])
