"""Momentum, weight decay and the rates of groups are written, verified and resumed as the rate is."""

import copy

import pytest
import torch

from lrbench_pl import LRPolicyScheduler
from lrbench_pl.policies import Constant, OptimizerPolicy, PerOptimizer, PlateauPolicy, Polynomial
from lrbench_pl.rates import LRPolicyError, RateDriver

LINE = Polynomial(0.1, 10)
MOMENTUM = Polynomial(0.95, 10, end_lr=0.85)
DECAY = Polynomial(0.02, 10)


def parameters(n=1):
    return [torch.nn.Parameter(torch.zeros(1)) for _ in range(n)]


def sgd(*groups, **settings):
    groups = [{"params": parameters(), **group} for group in groups or ({},)]
    return torch.optim.SGD(groups, **{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, **settings})


def values(optimizer, steps, scheduler, *keys):
    """The values of each group with which the optimizer steps."""
    found = []

    def note(optimizer, *_):
        found.append([[group[key] for key in keys] for group in optimizer.param_groups])

    handle = optimizer.register_step_post_hook(note)
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    handle.remove()
    return found


def scheduled(optimizer, policy=LINE, **policies):
    return LRPolicyScheduler(optimizer, policy, **policies)


# -- what is written ----------------------------------------------------------------------------------------------


def test_every_step_has_the_values_of_all_policies():
    optimizer = sgd()
    scheduler = scheduled(optimizer, momentum_policy=MOMENTUM, weight_decay_policy=DECAY)
    seen = values(optimizer, 10, scheduler, "lr", "momentum", "weight_decay")
    assert seen == [[[LINE(t), MOMENTUM(t), DECAY(t)]] for t in range(10)]
    assert scheduler.policy == OptimizerPolicy(LINE, MOMENTUM, DECAY)
    assert scheduler.state_dict() == {"last_epoch": 10}


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam])
def test_the_momentum_of_the_adam_family_is_its_first_beta(kind):
    optimizer = kind(parameters(), lr=0.1, betas=(0.9, 0.98))
    seen = values(optimizer, 5, scheduled(optimizer, momentum_policy=MOMENTUM), "betas")
    assert seen == [[[(MOMENTUM(t), 0.98)]] for t in range(5)]


@pytest.mark.parametrize("kind", [torch.optim.RMSprop, torch.optim.SGD])
def test_a_momentum_that_was_off_in_all_groups_is_set(kind):
    optimizer = kind(parameters(2), lr=0.1)
    seen = values(optimizer, 2, scheduled(optimizer, momentum_policy=MOMENTUM), "momentum")
    assert seen == [[[0.95]], [[0.94]]]


def test_betas_that_are_tensors_are_written_in_place_and_not_shared():
    first = torch.tensor(0.9)
    groups = [{"params": parameters()}, {"params": parameters(), "momentum_scale": 0.5}]
    optimizer = torch.optim.Adam(groups, lr=torch.tensor(0.1), betas=(first, torch.tensor(0.99)), foreach=False)
    scheduler = scheduled(optimizer, momentum_policy=Constant(0.8))
    kept = [group["betas"][0] for group in optimizer.param_groups]
    assert [float(each) for each in kept] == pytest.approx([0.8, 0.4])
    optimizer.step()
    scheduler.step()
    assert [group["betas"][0] for group in optimizer.param_groups] == kept
    optimizer.param_groups[1]["betas"][0].fill_(0.7)
    with pytest.raises(LRPolicyError, match=r"set the momentum of step 1 to 0.4, but the optimizer found 0.7"):
        optimizer.step()


def test_a_group_has_a_policy_by_name_or_index():
    optimizer = sgd({}, {"name": "head"}, {"lr": 99.0, "lr_scale": 0.5})
    scheduler = scheduled(optimizer, groups={"head": Constant(0.2), 2: Constant(0.4)})
    assert values(optimizer, 2, scheduler, "lr") == [[[0.1], [0.2], [0.2]], [[0.09000000000000001], [0.2], [0.2]]]
    assert scheduler.get_last_lr() == [LINE(2), 0.2, 0.2]


def test_groups_without_weight_decay_keep_none():
    optimizer = sgd({}, {"weight_decay": 0.0}, {"weight_decay": 0.2, "weight_decay_scale": 2.0})
    scheduler = scheduled(optimizer, weight_decay_policy=DECAY)
    assert values(optimizer, 1, scheduler, "weight_decay") == [[[0.02], [0.0], [0.04]]]
    optimizer.add_param_group({"params": parameters(), "weight_decay": 0.0})
    optimizer.add_param_group({"params": parameters()})
    assert values(optimizer, 1, scheduler, "weight_decay") == [[[DECAY(1)], [0.0], [2 * DECAY(1)], [0.0], [DECAY(1)]]]


def test_weight_decay_that_all_groups_lack_is_set_in_all():
    optimizer = sgd({}, {}, weight_decay=0.0)
    assert values(optimizer, 1, scheduled(optimizer, weight_decay_policy=DECAY), "weight_decay") == [[[0.02], [0.02]]]


def test_an_adaptive_rate_beside_a_momentum():
    plateau = PlateauPolicy((Constant(0.01), Constant(0.1)), 1, 1, 0.0, 0, 0.0, max_steps=100)
    optimizer = sgd()
    scheduler = scheduled(optimizer, plateau, momentum_policy=MOMENTUM)
    values(optimizer, 2, scheduler)
    scheduler.observe(0.9)
    scheduler.observe(0.8)
    assert values(optimizer, 1, scheduler, "lr", "momentum") == [[[0.01, MOMENTUM(2)]]]
    again = sgd()
    resumed = scheduled(
        again, PlateauPolicy(plateau.policies, 1, 1, 0.0, 0, 0.0, max_steps=100), momentum_policy=MOMENTUM
    )
    resumed.load_state_dict(scheduler.state_dict())
    assert values(again, 1, resumed, "lr", "momentum") == [[[0.01, MOMENTUM(3)]]]


# -- resuming -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["optimizer", "scheduler", "built last"])
def test_a_resumed_run_has_the_values_of_the_unbroken_one(first):
    keys, groups = ("lr", "momentum", "weight_decay"), ({}, {"weight_decay": 0.0, "name": "no decay"})
    policies = {"momentum_policy": MOMENTUM, "weight_decay_policy": DECAY, "groups": {"no decay": Constant(0.3)}}
    optimizer = sgd(*groups)
    scheduler = scheduled(optimizer, **policies)
    values(optimizer, 4, scheduler)
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    unbroken = values(optimizer, 4, scheduler, *keys)
    again = sgd(*groups)
    if first == "built last":
        again.load_state_dict(saved[0])
        resumed = scheduled(again, last_epoch=3, **policies)
    else:
        resumed = scheduled(again, **policies)
        if first == "scheduler":
            resumed.load_state_dict(saved[1])
        again.load_state_dict(saved[0])
        if first == "optimizer":
            resumed.load_state_dict(saved[1])
    assert values(again, 4, resumed, *keys) == unbroken
    assert unbroken[0][1] == [0.3, MOMENTUM(4), 0.0]


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda group: group.update(momentum=0.5), "set the momentum of step 1 to 0.94, but the optimizer found 0.5"),
        (
            lambda group: group.update(weight_decay=0),
            "set the weight decay of step 1 to 0.018, but .* found 0: something",
        ),
        (lambda group: group.update(lr=0.5), "set the learning rate of step 1 to 0.09, but the optimizer found 0.5"),
    ],
)
@pytest.mark.parametrize("within", [False, True])
def test_a_second_writer_fails_at_the_step(change, message, within):
    optimizer = sgd()
    scheduler = scheduled(optimizer, momentum_policy=MOMENTUM, weight_decay_policy=DECAY)
    values(optimizer, 1, scheduler)
    if within:
        optimizer.register_step_pre_hook(lambda optimizer, *_: change(optimizer.param_groups[0]))
    else:
        change(optimizer.param_groups[0])
    with pytest.raises(LRPolicyError, match=message):
        optimizer.step()


def test_torchs_onecycle_beside_it_is_found_by_the_momentum_too():
    optimizer = sgd()
    scheduler = scheduled(optimizer, momentum_policy=MOMENTUM)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1 * 25, total_steps=10, base_momentum=0.85, max_momentum=0.9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(LINE(0))  # the same rate in this step
    with pytest.raises(LRPolicyError, match=r"set the momentum of step 0 to 0.95, but the optimizer found 0.9"):
        values(optimizer, 1, scheduler)


@pytest.mark.parametrize(
    ("optimizer", "policies", "message"),
    [
        (sgd, {"groups": {"head": LINE}}, "no parameter group has the name or index 'head' that a policy"),
        (lambda: sgd({"name": "a"}), {"groups": {3: LINE}}, "name or index 3 that a policy is for; there are 0 ('a')"),
        (lambda: sgd({"name": "a"}, {"name": "a"}), {"groups": {"a": LINE}}, "several parameter groups have the name"),
        (lambda: sgd({"name": "a"}), {"groups": {"a": LINE, 0: LINE}}, "a parameter group twice, by name and by index"),
        (
            lambda: torch.optim.Adagrad(parameters(), lr=0.1),
            {"momentum_policy": MOMENTUM},
            "momentum_policy needs an optimizer with this setting, but Adagrad has neither momentum nor betas",
        ),
        (
            lambda: torch.optim.Rprop(parameters(), lr=0.1),
            {"weight_decay_policy": DECAY},
            "weight_decay_policy needs an optimizer with this setting, but Rprop has no weight_decay; leave it out",
        ),
        (
            lambda: sgd({}, {"weight_decay": 0.4}),
            {"weight_decay_policy": DECAY},
            "different weight decays (0.1, 0.4), but the policy sets them all; give each group its share of the "
            "policy's weight decay, such as {'params': ..., 'weight_decay_scale': 0.25}",
        ),
        (lambda: sgd({}, {"momentum": 0.45}), {"momentum_policy": MOMENTUM}, "'momentum_scale': 0.5}"),
        (
            lambda: sgd({"momentum_scale": 2.0}),
            {"momentum_policy": MOMENTUM},
            "momentum_scale of a parameter group must be a number in [0, 1], got 2.0",
        ),
        (
            lambda: sgd({"weight_decay_scale": "much"}),
            {"weight_decay_policy": DECAY},
            "weight_decay_scale of a parameter group must be a finite number of at least 0, got 'much'",
        ),
        (
            sgd,
            {"momentum_policy": lambda t: 1.0},
            "the policy gave 1.0 as the momentum of step 0; expected a number in [0, 1)",
        ),
        (
            sgd,
            {"weight_decay_policy": lambda t: -0.1},
            "the policy gave -0.1 as the weight decay of step 0; expected a finite number of at least 0",
        ),
    ],
)  # fmt: skip
def test_what_an_optimizer_does_not_have_is_refused_in_one_line(optimizer, policies, message):
    with pytest.raises(LRPolicyError) as caught:
        scheduled(optimizer(), **policies)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_group_added_with_a_weight_decay_of_its_own_is_refused():
    optimizer = sgd()
    scheduler = scheduled(optimizer, weight_decay_policy=DECAY)
    values(optimizer, 1, scheduler)
    optimizer.add_param_group({"params": parameters(), "weight_decay": 0.3})
    with pytest.raises(
        LRPolicyError, match=r"added before step 1 has a weight decay of its own \(0.3\).*weight_decay_scale"
    ):
        optimizer.step()


def test_a_scheduler_is_for_one_optimizer():
    with pytest.raises(ValueError, match="give each optimizer its own LRPolicyScheduler"):
        scheduled(sgd(), PerOptimizer((LINE, LINE)))


def test_the_values_for_the_log():
    driver = RateDriver(sgd({}, {"name": "head"}), OptimizerPolicy(LINE, MOMENTUM, DECAY), 2)
    assert driver.values() == {"lr": LINE(2), "momentum": MOMENTUM(2), "weight_decay": DECAY(2)}
