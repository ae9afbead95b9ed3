"""A policy as a torch scheduler: in plain loops, beside torch's own schedulers, in Fabric and Accelerate."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as torchs

from lrbench_pl.policies import (
    Constant,
    Cyclic,
    Exponential,
    MultiStep,
    PlateauPolicy,
    Polynomial,
    Sequential,
    Step,
    table,
    warmup,
)
from lrbench_pl.rates import LRPolicyError
from lrbench_pl.scheduler import LRPolicyScheduler

LINE = Polynomial(init_lr=1.0, decay_steps=20)


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def sgd(lr: Any = 0.5, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(layer().parameters(), lr=lr, **settings)


def train(optimizer: Any, scheduler: Any, steps: int) -> list[list[float]]:
    """The rates with which the optimizer really stepped."""
    rates: list[list[float]] = []
    handle = optimizer.register_step_post_hook(
        lambda optimizer, *_: rates.append([float(group["lr"]) for group in optimizer.param_groups])
    )
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    handle.remove()
    return rates


def line(start: int, end: int) -> list[list[float]]:
    return [[LINE(step)] for step in range(start, end)]


# -- the rate -------------------------------------------------------------------------------------------------


def test_the_nth_step_has_the_policys_nth_rate():
    optimizer = sgd()
    scheduler = LRPolicyScheduler(optimizer, LINE)
    assert isinstance(scheduler, torchs.LRScheduler)
    assert scheduler.get_last_lr() == [1.0]
    assert train(optimizer, scheduler, 12) == line(0, 12)
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (12, [LINE(12)])


@pytest.mark.parametrize(
    ("policy", "theirs"),
    [
        pytest.param(Step(0.5, 0.3, 4), lambda o: torchs.StepLR(o, 4, 0.3), id="StepLR"),
        pytest.param(MultiStep(0.5, 0.1, (3, 7)), lambda o: torchs.MultiStepLR(o, [3, 7]), id="MultiStepLR"),
        pytest.param(Exponential(0.5, 0.9), lambda o: torchs.ExponentialLR(o, 0.9), id="ExponentialLR"),
        pytest.param(Constant(0.5), lambda o: torchs.ConstantLR(o, 1.0), id="ConstantLR"),
        pytest.param(Polynomial(0.5, 10), lambda o: torchs.LinearLR(o, 1.0, 0.0, 10), id="LinearLR"),
        pytest.param(Polynomial(0.5, 10, power=2), lambda o: torchs.PolynomialLR(o, 10, 2.0), id="PolynomialLR"),
        pytest.param(
            Cyclic(0.01, 0.5, period=24, wave="cosine"),
            lambda o: torchs.CosineAnnealingLR(o, 12, 0.01),
            id="CosineAnnealingLR",
        ),
        pytest.param(
            Sequential((Polynomial(0.05, 4, end_lr=0.5), Exponential(0.5, 0.9)), (4,)),
            lambda o: torchs.SequentialLR(o, [torchs.LinearLR(o, 0.1, 1.0, 4), torchs.ExponentialLR(o, 0.9)], [4]),
            id="SequentialLR",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_it_agrees_with_torchs_scheduler_of_the_same_policy(policy, theirs):
    mine, other = sgd(), sgd()
    rates = train(mine, LRPolicyScheduler(mine, policy), 12)
    assert rates == [pytest.approx(each, rel=1e-6) for each in train(other, theirs(other), 12)]


def test_lr_scale_multiplies_and_unequal_rates_need_it():
    module = layer()
    groups = [{"params": [module.weight]}, {"params": [module.bias], "lr_scale": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    scheduler = LRPolicyScheduler(optimizer, Constant(0.3))
    assert train(optimizer, scheduler, 2) == [[0.3, pytest.approx(0.03)]] * 2
    unequal = torch.optim.SGD([{"params": [module.weight]}, {"params": [module.bias], "lr": 0.005}], lr=0.5)
    with pytest.raises(LRPolicyError, match=r"different learning rates \(0.5, 0.005\).*'lr_scale': 0.01\}"):
        LRPolicyScheduler(unequal, LINE)


def test_a_tensor_rate_is_written_in_place_and_each_group_has_its_own():
    module = layer()
    lr = torch.tensor(0.5)
    groups = [{"params": [module.weight]}, {"params": [module.bias], "lr_scale": 0.5}]
    optimizer = torch.optim.Adam(groups, lr=lr, foreach=False)
    scheduler = LRPolicyScheduler(optimizer, LINE)
    first = optimizer.param_groups[0]["lr"]
    assert train(optimizer, scheduler, 3)[-1] == [pytest.approx(LINE(2)), pytest.approx(LINE(2) / 2)]
    assert optimizer.param_groups[0]["lr"] is first
    assert float(first) == pytest.approx(LINE(3))


@pytest.mark.parametrize(("settings", "scale"), [({}, 1.0), ({"lr_scale": 0.1}, 0.1)])
def test_a_group_added_later_is_driven_from_its_first_step(settings, scale):
    module = layer()
    optimizer = torch.optim.SGD([module.weight], lr=0.5)
    scheduler = LRPolicyScheduler(optimizer, LINE)
    train(optimizer, scheduler, 3)
    optimizer.add_param_group({"params": [module.bias], **settings})
    assert len(scheduler.get_last_lr()) == 2
    assert train(optimizer, scheduler, 2) == [[LINE(step), pytest.approx(scale * LINE(step))] for step in (3, 4)]


def test_a_group_added_later_with_a_rate_of_its_own_is_refused():
    module = layer()
    optimizer = torch.optim.SGD([module.weight], lr=0.5)
    LRPolicyScheduler(optimizer, LINE)
    optimizer.add_param_group({"params": [module.bias], "lr": 1e-5})
    scheduler = LRPolicyScheduler  # the first one is gone, and with it what it watched
    with pytest.raises(LRPolicyError, match=r"different learning rates \(1, 1e-05\)"):
        scheduler(optimizer, LINE)
    optimizer = torch.optim.SGD([module.weight], lr=0.5)
    held = LRPolicyScheduler(optimizer, LINE)
    optimizer.add_param_group({"params": [module.bias], "lr": 1e-5})
    with pytest.raises(LRPolicyError, match=r"added before step 0 has a learning rate of its own \(1e-05\)"):
        train(optimizer, held, 1)


# -- what counts as a step --------------------------------------------------------------------------------------


def test_only_a_step_of_the_optimizer_advances_the_policy():
    optimizer = sgd()
    scheduler = LRPolicyScheduler(optimizer, LINE)
    for _ in range(3):
        scheduler.step()
    assert scheduler.last_epoch == 0
    optimizer.step()
    for _ in range(4):  # as a prepared scheduler of Accelerate with four processes
        scheduler.step()
    assert scheduler.last_epoch == 1


def test_stepped_before_the_optimizer_no_rate_is_left_out():
    optimizer, rates = sgd(), []
    scheduler = LRPolicyScheduler(optimizer, LINE)
    for _ in range(4):
        scheduler.step()
        rates.append([optimizer.param_groups[0]["lr"]])
        optimizer.step()
    assert rates == line(0, 4)


def test_stepped_once_an_epoch_the_policys_clock_is_the_epoch():
    optimizer, rates = sgd(), []
    scheduler = LRPolicyScheduler(optimizer, LINE)
    for _ in range(3):
        for _ in range(5):
            optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert rates == table(LINE, 3)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_scaler_skips_does_not_advance_the_policy(fused):
    module = layer()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, fused=fused)
    scheduler = LRPolicyScheduler(optimizer, LINE)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    rates = []
    for batch in range(6):
        optimizer.zero_grad()
        loss = module(torch.ones(1, 3)).sum() * (math.inf if batch in (0, 3) else 1.0)
        rates.append([optimizer.param_groups[0]["lr"]])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    assert rates == [line(0, 6)[step] for step in (0, 0, 1, 2, 2, 3)]


def test_going_to_a_step():
    optimizer = sgd()
    scheduler = LRPolicyScheduler(optimizer, LINE)
    scheduler.step(7)
    assert train(optimizer, scheduler, 2) == line(7, 9)


# -- another writer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)])
def test_another_writer_is_refused_with_both_values(lr):
    optimizer = torch.optim.Adam(layer().parameters(), lr=lr, foreach=False)
    scheduler = LRPolicyScheduler(optimizer, LINE)
    train(optimizer, scheduler, 2)
    if isinstance(lr, torch.Tensor):
        optimizer.param_groups[0]["lr"].fill_(0.25)
    else:
        optimizer.param_groups[0]["lr"] = 0.25
    with pytest.raises(LRPolicyError, match=r"of step 2 to 0.9, but the optimizer found 0.25"):
        optimizer.step()


def test_a_scheduler_that_nobody_holds_is_gone():
    optimizer = sgd()
    scheduler = LRPolicyScheduler(optimizer, LINE)
    train(optimizer, scheduler, 2)
    scheduler = LRPolicyScheduler(optimizer, Constant(0.3))
    assert train(optimizer, scheduler, 2) == [[0.3]] * 2
    del scheduler
    optimizer.param_groups[0]["lr"] = 0.7
    optimizer.step()


# -- resuming -------------------------------------------------------------------------------------------------

RESUMED = warmup(Cyclic(0.0, 0.1, period=20, wave="cosine"), 5)  # what SequentialLR would be taken for


@pytest.mark.parametrize("order", [("optimizer", "scheduler"), ("scheduler", "optimizer")])
@pytest.mark.parametrize("at", [0, 3, 5, 8])
def test_resuming_gives_the_rates_of_the_unbroken_run(order, at):
    optimizer = sgd()
    whole = train(optimizer, LRPolicyScheduler(optimizer, RESUMED), 14)
    optimizer = sgd()
    scheduler = LRPolicyScheduler(optimizer, RESUMED)
    train(optimizer, scheduler, at)
    state = {"scheduler": copy.deepcopy(scheduler.state_dict()), "optimizer": copy.deepcopy(optimizer.state_dict())}
    parts: dict[str, Any] = {"optimizer": sgd()}
    parts["scheduler"] = LRPolicyScheduler(parts["optimizer"], RESUMED)
    for name in order:
        parts[name].load_state_dict(state[name])
    assert train(parts["optimizer"], parts["scheduler"], 14 - at) == whole[at:]


@pytest.mark.parametrize("order", [("optimizer", "scheduler"), ("scheduler", "optimizer")])
def test_extended_by_another_policy_the_new_one_holds_at_once(order):
    optimizer = sgd()
    scheduler = LRPolicyScheduler(optimizer, LINE)
    train(optimizer, scheduler, 5)
    parts: dict[str, Any] = {"optimizer": sgd()}
    longer = Polynomial(1.0, 40)
    parts["scheduler"] = LRPolicyScheduler(parts["optimizer"], longer)
    state = {"scheduler": scheduler.state_dict(), "optimizer": copy.deepcopy(optimizer.state_dict())}
    for name in order:
        parts[name].load_state_dict(state[name])
    assert train(parts["optimizer"], parts["scheduler"], 3) == [[longer(step)] for step in (5, 6, 7)]


def test_last_epoch_goes_on_without_any_state():
    optimizer = sgd()
    scheduler = LRPolicyScheduler(optimizer, RESUMED, last_epoch=6)
    assert train(optimizer, scheduler, 4) == [[RESUMED(step)] for step in (7, 8, 9, 10)]


def test_the_state_is_the_number_of_steps_and_needs_no_policy_that_pickles():
    optimizer = sgd()
    scheduler = LRPolicyScheduler(optimizer, lambda step: 0.1)
    train(optimizer, scheduler, 3)
    assert json.loads(json.dumps(scheduler.state_dict())) == {"last_epoch": 3}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
def test_a_copy_counts_the_steps_of_the_copied_optimizer(copied):
    optimizer = sgd()
    scheduler = LRPolicyScheduler(optimizer, LINE)
    train(optimizer, scheduler, 3)
    optimizer, scheduler = copied((optimizer, scheduler))
    assert scheduler.optimizer is optimizer
    assert train(optimizer, scheduler, 2) == line(3, 5)


# -- adaptive policies ----------------------------------------------------------------------------------------


def plateau() -> PlateauPolicy:
    return PlateauPolicy((Constant(0.01), Constant(0.1)), 1, 2, 0.01, 0, switch_fraction=0.0, max_steps=10)


def test_an_adaptive_policy_observes_and_its_state_is_saved():
    optimizer, policy = sgd(), plateau()
    scheduler = LRPolicyScheduler(optimizer, policy)
    rates = []
    for _ in range(5):
        rates += train(optimizer, scheduler, 2)
        scheduler.observe(0.5)
    assert [rate for (rate,) in rates] == table(policy.realised(), 10)
    assert {rate for (rate,) in rates} == {0.1, 0.01}
    again = LRPolicyScheduler(sgd(), plateau())
    again.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    assert again.get_last_lr() == scheduler.get_last_lr() == [0.01]
    assert LRPolicyScheduler(sgd(), policy).get_last_lr() == [0.1]  # a new run begins


# -- refusing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": 0.1}, "policy must be callable: t -> learning rate, got 0.1"),
        ({"last_epoch": -2}, "last_epoch must be an integer of at least -1, got -2"),
        ({"last_epoch": True}, "last_epoch must be an integer of at least -1, got True"),
    ],
)
def test_the_constructor_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        LRPolicyScheduler(**{"optimizer": sgd(), "policy": LINE, **arguments})


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match="is not an Optimizer"):
        LRPolicyScheduler(layer(), LINE)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [math.nan, -0.1, None])
def test_what_is_no_rate_is_refused_by_step_and_value(given):
    optimizer = sgd()
    scheduler = LRPolicyScheduler(optimizer, lambda t: given if t == 2 else 0.1)
    with pytest.raises(LRPolicyError, match=f"the policy gave {given!r} as the learning rate of step 2"):
        train(optimizer, scheduler, 3)


def test_a_state_of_another_kind_is_refused():
    scheduler = LRPolicyScheduler(sgd(), LINE)
    with pytest.raises(ValueError, match=r"the state of an LRPolicyScheduler with last_epoch, got \['steps'\]"):
        scheduler.load_state_dict({"steps": 3})
    with pytest.raises(ValueError, match="expected a state without that of an adaptive policy"):
        scheduler.load_state_dict({"last_epoch": 3, "policy": {}})
    with pytest.raises(ValueError, match="expected a state with that of an adaptive policy"):
        LRPolicyScheduler(sgd(), plateau()).load_state_dict({"last_epoch": 3})
    with pytest.raises(ValueError, match=r"observe\(\) needs an adaptive policy, got Polynomial"):
        scheduler.observe(0.5)


# -- in Fabric ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("built", ["before", "after"], ids=["before-setup", "after-setup"])
def test_in_fabric(built):
    fabric_module = pytest.importorskip("lightning.fabric")
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1)
    module = layer()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    scheduler = LRPolicyScheduler(optimizer, LINE) if built == "before" else None
    module, prepared = fabric.setup(module, optimizer)
    scheduler = scheduler or LRPolicyScheduler(prepared, LINE)
    rates = []
    optimizer.register_step_post_hook(lambda optimizer, *_: rates.append([optimizer.param_groups[0]["lr"]]))
    for _ in range(4):
        prepared.zero_grad()
        fabric.backward(module(torch.ones(2, 3)).sum())
        prepared.step()
        scheduler.step()
    assert rates == line(0, 4)


def test_in_a_lightning_module():
    from tests.helpers import TinyModule, tiny_trainer

    class Scheduled(TinyModule):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
            return [optimizer], [{"scheduler": LRPolicyScheduler(optimizer, LINE), "interval": "step"}]

    module = Scheduled()
    tiny_trainer(max_steps=6).fit(module)
    assert module.rates == line(0, 6)
