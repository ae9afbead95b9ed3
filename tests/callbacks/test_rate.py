"""The callback owns the rate: of the steps of its optimizer, whatever else happens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from pytorch_lightning.plugins import MixedPrecision

from lrbench_pl.callbacks import fits
from lrbench_pl.callbacks.lr_policy import LRPolicyCallback, LRPolicyError
from lrbench_pl.policies import Constant, PlateauPolicy, Polynomial, table
from tests.helpers import TinyModule, tiny_trainer

LINE = Polynomial(init_lr=1.0, decay_steps=20)


class Watched(TinyModule):
    """Notes the rates with which its optimizer really steps.

    Args:
        build: Makes the optimizer from the layer.
    """

    def __init__(self, build: Callable[[torch.nn.Linear], torch.optim.Optimizer] | None = None) -> None:
        super().__init__()
        self.build = build or (lambda layer: torch.optim.SGD(layer.parameters(), lr=0.5))
        self.stepped: list[list[float]] = []

    def watch(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        def note(optimizer: Any, *_: Any) -> None:
            self.stepped.append([float(group["lr"]) for group in optimizer.param_groups])

        optimizer.register_step_post_hook(note)
        return optimizer

    def configure_optimizers(self) -> Any:
        return self.watch(self.build(self.layer))


def fitted(module: Watched, *callbacks: Any, policy: Any = LINE, **arguments: Any) -> list[list[float]]:
    index = arguments.pop("optimizer_index", None)
    tiny_trainer(LRPolicyCallback(policy, optimizer_index=index), *callbacks, **arguments).fit(module)
    return module.stepped


def refused(module: Watched, message: str, *callbacks: Any, policy: Any = LINE, **arguments: Any) -> LRPolicyCallback:
    callback = LRPolicyCallback(policy, target=2.0, monitor="val/score")
    with pytest.raises(LRPolicyError, match=message):
        tiny_trainer(callback, *callbacks, **arguments).fit(module)
    assert callback.verdict.status == "failed"
    return callback


def line(steps: int) -> list[list[float]]:
    return [[lr] for lr in table(LINE, steps)]


# -- whose steps ----------------------------------------------------------------------------------------------


def test_an_optimizer_that_is_set_up_again_is_followed():
    class Renew(pl.Callback):
        def on_train_epoch_start(self, trainer, *_):
            if trainer.current_epoch == 1:
                trainer.strategy.setup_optimizers(trainer)

    assert fitted(Watched(), Renew(), max_steps=12) == line(12)


class Alternating(Watched):
    """Two optimizers, of which the watched one steps ``times`` a batch."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.times = times

    def training_step(self, batch, batch_idx):
        for optimizer, times in zip(self.optimizers(), (1, self.times), strict=True):
            for _ in range(times):
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

    def configure_optimizers(self):
        other = torch.optim.SGD([self.layer.bias], lr=0.5)
        return [other, self.watch(torch.optim.SGD([self.layer.weight], lr=0.5))]


@pytest.mark.parametrize(("times", "max_steps", "own"), [(1, 20, 10), (3, 16, 12)])
def test_of_several_optimizers_the_driven_ones_steps_count(times, max_steps, own):
    module = Alternating(times)
    callback = LRPolicyCallback(LINE, optimizer_index=1)
    tiny_trainer(callback, max_steps=max_steps, val_check_interval=2).fit(module)
    assert module.stepped == line(own)
    assert (callback.verdict.steps_run, callback.verdict.status) == (own, "missed")
    assert callback.checks[0].step == 2 * times


def test_a_step_inside_a_step_is_one():
    class Inner(torch.optim.SGD):
        """Instances of its own class hook SGD.step, which it calls."""

    class Outer(Inner):
        def step(self, closure=None):
            return super().step(closure)

    Inner([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    module = Watched(lambda layer: Outer(layer.parameters(), lr=0.5))
    callback = LRPolicyCallback(LINE)
    tiny_trainer(callback).fit(module)
    assert callback.verdict.steps_run == 10
    assert [rates for rates in line(10) if rates not in module.stepped] == []


def test_lbfgs_evaluates_its_closure_many_times_within_one_step():
    module = Watched(lambda layer: torch.optim.LBFGS(layer.parameters(), lr=0.5, max_iter=4))
    assert fitted(module, max_steps=6, policy=Polynomial(0.1, 20)) == [[lr] for lr in table(Polynomial(0.1, 20), 6)]


@pytest.mark.filterwarnings("ignore:When using `Trainer.accumulate_grad_batches")
def test_accumulation_that_changes_by_epoch():
    scheduler = GradientAccumulationScheduler({0: 1, 1: 4})
    assert fitted(Watched(), scheduler, max_steps=14, val_check_interval=8) == line(14)


class SkipsSome(pl.Callback):
    """Makes gradients infinite in some batches, as float16 does when it overflows."""

    def __init__(self, *batches: int) -> None:
        self.batches = batches

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.handle = pl_module.layer.weight.register_hook(lambda g: g * math.inf if batch_idx in self.batches else g)

    def on_train_batch_end(self, *_):
        self.handle.remove()


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_does_not_advance_the_policy(fused):
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0))
    module = Watched(lambda layer: torch.optim.SGD(layer.parameters(), lr=0.5, fused=fused))
    callback = LRPolicyCallback(LINE, target=2.0, monitor="val/score")
    trainer = tiny_trainer(callback, SkipsSome(0, 3), plugins=[plugin], max_steps=8)
    trainer.fit(module)
    skipped = [0, 4] if fused else []  # a fused optimizer is called, and leaves the weights alone
    assert [rates for index, rates in enumerate(module.stepped) if index not in skipped] == line(6)
    assert (trainer.global_step, callback.verdict.steps_run) == (8, 6)
    assert callback.verdict.status == "missed"
    assert [check.step for check in callback.checks] == [1, 2, 4, 6]


# -- the groups -----------------------------------------------------------------------------------------------


def groups(layer: torch.nn.Linear, first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"params": [layer.weight], **first}, {"params": [layer.bias], **second}]


def test_groups_that_share_a_tensor_rate_get_one_each():
    def build(layer):
        return torch.optim.Adam(groups(layer, {}, {"lr_scale": 0.1}), lr=torch.tensor(0.5), foreach=False)

    rates = fitted(Watched(build), policy=Constant(0.3), max_steps=2)
    assert rates == [[pytest.approx(0.3), pytest.approx(0.03)]] * 2


@pytest.mark.parametrize(("own", "share"), [(1e-5, "0.01"), (0.0, "0")])
def test_unequal_rates_without_lr_scale_are_refused_with_the_share(own, share):
    module = Watched(lambda layer: torch.optim.SGD(groups(layer, {}, {"lr": own}), lr=1e-3))
    refused(module, rf"different learning rates \(0.001, {own:g}\).*'lr_scale': {share}\}}")
    assert module.stepped == []


def test_a_rate_of_its_own_beside_lr_scale_is_no_contradiction():
    module = Watched(lambda layer: torch.optim.SGD(groups(layer, {}, {"lr": 1e-5, "lr_scale": 0.0}), lr=1e-3))
    assert fitted(module, policy=Constant(0.3), max_steps=2) == [[0.3, 0.0]] * 2


class Adds(pl.Callback):
    """Adds the bias as a group of its own before the fourth step."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3 and len(trainer.optimizers[0].param_groups) == 1:
            trainer.optimizers[0].add_param_group({"params": [pl_module.layer.bias], **self.settings})


@pytest.mark.parametrize("before", [True, False], ids=["listed-before", "listed-after"])
@pytest.mark.parametrize(("settings", "scale"), [({}, 1.0), ({"lr_scale": 0.1}, 0.1)])
def test_a_group_added_later_is_driven_from_its_first_step(before, settings, scale):
    module = Watched(lambda layer: torch.optim.SGD([layer.weight], lr=0.5))
    pair = [LRPolicyCallback(LINE), Adds(**settings)]
    tiny_trainer(*(pair[::-1] if before else pair), max_steps=5).fit(module)
    assert module.stepped == [*line(3), *([lr, lr * scale] for (lr,) in line(5)[3:])]


def test_a_group_added_later_with_a_rate_of_its_own_is_refused():
    module = Watched(lambda layer: torch.optim.SGD([layer.weight], lr=0.5))
    refused(module, r"added before step 3 has a learning rate of its own \(1e-05\)", Adds(lr=1e-5))


# -- another writer -------------------------------------------------------------------------------------------


class InOptimizerStep(Watched):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.param_groups[0]["lr"] = 0.002
        optimizer.step(closure=optimizer_closure)


class InTrainingStep(Watched):
    """Which runs inside the optimizer's step, as its closure."""

    def training_step(self, batch, batch_idx):
        self.trainer.optimizers[0].param_groups[0]["lr"] = 0.002
        return super().training_step(batch, batch_idx)


class OfATensor(Watched):
    def __init__(self):
        super().__init__(lambda layer: torch.optim.Adam(layer.parameters(), lr=torch.tensor(0.5), foreach=False))

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.param_groups[0]["lr"].fill_(0.002)
        optimizer.step(closure=optimizer_closure)


@pytest.mark.parametrize("module", [InOptimizerStep, InTrainingStep, OfATensor])
def test_another_writer_is_refused_with_both_values(module):
    message = "the policy set the learning rate of step 0 to 0.3, but the optimizer found 0.002"
    callback = refused(module(), message, policy=Constant(0.3))
    assert message in callback.verdict.message


def test_a_callback_that_writes_after_ours_is_refused():
    class Writer(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 4:
                trainer.optimizers[0].param_groups[0]["lr"] = 0.25

    refused(Watched(), "of step 4 to 0.8, but the optimizer found 0.25", Writer())


def test_writing_the_same_value_is_no_contradiction():
    class Same(Watched):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] * 1.0
            optimizer.step(closure=optimizer_closure)

    assert fitted(Same()) == line(10)


def test_the_hooks_are_gone_after_the_fit():
    module = Watched()
    optimizer = torch.optim.SGD(module.layer.parameters(), lr=0.5)
    module.configure_optimizers = lambda: optimizer
    fitted(module)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


# -- what the policy gives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [math.nan, math.inf, -0.1, None, "fast"])
def test_what_is_no_rate_is_refused_by_step_and_value(given):
    module = Watched()
    message = rf"the policy gave {given!r} as the learning rate of step 3; expected a finite number of at least 0"
    callback = refused(module, message, policy=lambda t: given if t == 3 else 0.1)
    assert len(module.stepped) == callback.verdict.steps_run == 3


def test_never_log_is_never(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    assert fitted(Watched(), logger=logger, log_every_n_steps=0) == line(10)


# -- resuming -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint",
    "ignore:Using ModelCheckpoint with manual",
    "ignore:Be aware that when using `ckpt_path`",
)
@pytest.mark.parametrize("make", [Watched, Alternating])
def test_resuming_goes_on_with_the_rates_of_the_own_steps(tmp_path, make):
    index = 1 if make is Alternating else None
    whole = make()
    saved = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    fitted(whole, saved, enable_checkpointing=True, max_steps=12, optimizer_index=index)
    rest = make()
    callback = LRPolicyCallback(LINE, optimizer_index=index)
    start = str(tmp_path / "step=4.ckpt")
    tiny_trainer(callback, max_steps=12).fit(rest, ckpt_path=start, weights_only=False)
    assert rest.stepped == whole.stepped[len(whole.stepped) - len(rest.stepped) :]
    assert len(rest.stepped) == (4 if index else 8)


def test_the_state_of_version_0_1_is_read():
    callback = LRPolicyCallback(LINE)
    old = {"checks": [{"step": 2, "value": 0.5, "seconds": 0.1}], "seconds": 0.2, "policy": None}
    callback.load_state_dict(old)
    assert callback.checks[0].step == 2


def test_an_adaptive_policy_that_observes_in_mid_accumulation_sets_the_rate_of_that_step():
    rates = (Constant(0.01), Constant(0.1))
    policy = PlateauPolicy(rates, start=1, patience=1, threshold=9.0, cooldown=9, switch_fraction=0.0, max_steps=8)
    module = Watched()
    callback = LRPolicyCallback(policy, monitor="val/score")
    tiny_trainer(callback, max_steps=8, val_check_interval=6, accumulate_grad_batches=4).fit(module)
    assert [rates[0] for rates in module.stepped] == table(callback.policy.realised(), 8)
    assert len({rates[0] for rates in module.stepped}) > 1


class Two(Watched):
    """Two optimizers, each of which steps with every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch[0]).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        weight, bias = self.layer.parameters()
        return [self.watch(torch.optim.SGD([weight], lr=0.5)), torch.optim.SGD([bias], lr=0.5)]


def test_a_second_fit_of_a_trainer_counts_on_with_several_optimizers():
    """Lightning's own count is that of both."""
    module, callback = Two(), LRPolicyCallback(LINE, optimizer_index=0)
    trainer = tiny_trainer(callback, max_steps=8)
    trainer.fit(module)
    trainer.fit_loop.epoch_loop.max_steps = 16
    trainer.fit(module)
    assert module.stepped == line(8)
    assert callback.verdict.steps_run == 8


def test_steps_of_several_optimizers_that_nobody_counted_are_refused(tmp_path):
    trainer = tiny_trainer(max_steps=8)
    trainer.fit(Two())
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    again = tiny_trainer(LRPolicyCallback(LINE, optimizer_index=0), max_steps=16)
    with pytest.raises(LRPolicyError, match="not known how many of the 8 steps so far each optimizer took"):
        again.fit(Two(), ckpt_path=tmp_path / "other.ckpt")


def test_a_loss_of_each_sample_is_watched_too():
    class PerSample(Two):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            super().training_step(batch, batch_idx)
            losses = torch.ones(4)
            losses[1] = math.nan if batch_idx == 3 else 1.0
            return {"loss": losses}

    callback = LRPolicyCallback(LINE, optimizer_index=0)
    tiny_trainer(callback, max_steps=16).fit(PerSample())
    assert (callback.verdict.status, callback.verdict.steps_run) == ("diverged", 4)


def test_a_strategy_whose_processes_take_the_verdict_with_them_is_refused(tmp_path):
    with pytest.raises(LRPolicyError, match=r"processes \(spawn\) that end with the fit.*; give save_to"):
        fits.refuse_lost_verdict(tiny_trainer(strategy="ddp_spawn", devices=2))
    fits.refuse_lost_verdict(tiny_trainer())
