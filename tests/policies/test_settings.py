"""Policies of momentum, weight decay, groups and several optimizers, as values and as files."""

import pytest
import torch

from lrbench_pl.policies import (
    AdaptiveOptimizerPolicy,
    AdaptivePolicy,
    Constant,
    GroupPolicy,
    MultiStep,
    OptimizerPolicy,
    PerOptimizer,
    PlateauPolicy,
    Polynomial,
    Sequential,
    check_values,
    combined,
    cut,
    from_config,
    peak,
    policy_id,
    settings_of,
    stretched,
    table,
    to_config,
)
from lrbench_pl.runs.config import build_policy, compose, conf_dir

LINE = Polynomial(0.1, 100)
FALLING, RISING = Polynomial(0.95, 100, end_lr=0.85), Polynomial(0.85, 100, end_lr=0.95)
WHOLE = combined(LINE, FALLING, Constant(0.01), {"head": Constant(0.2), 0: Constant(0.3)})
FILES = [
    (group, path.stem)
    for group in ("momentum_policy", "weight_decay_policy")
    for path in sorted((conf_dir() / group).glob("*.yaml"))
    if path.stem != "none"
]


def plateau():
    return PlateauPolicy((Constant(0.01), Constant(0.1)), 1, 1, 0.0, 0, 0.0, max_steps=100)


def test_one_policy_is_itself_and_keeps_its_id():
    assert combined(LINE) is LINE
    assert settings_of(LINE) == {"lr": LINE}
    assert policy_id(LINE, 100) == "603d99dbd87c"  # as it was before policies had other settings
    assert policy_id(combined(LINE), 100) == policy_id(LINE, 100)


def test_as_a_function_it_is_the_rate():
    assert table(WHOLE, 100) == table(LINE, 100)
    assert peak(WHOLE, 100) == 0.1
    assert table(PerOptimizer((LINE, Constant(0.5))), 5) == table(LINE, 5)


def test_each_setting_is_part_of_the_id():
    others = [
        combined(LINE, momentum=FALLING),
        combined(LINE, momentum=RISING),
        combined(LINE, weight_decay=FALLING),
        combined(LINE, groups={"head": FALLING}),
        combined(LINE, groups={"body": FALLING}),
        PerOptimizer((LINE, FALLING)),
        PerOptimizer((FALLING, LINE)),
    ]
    assert len({policy_id(each, 100) for each in (LINE, *others)}) == len(others) + 1
    spelled = MultiStep(0.01, 1.0, (50,))
    assert policy_id(combined(LINE, weight_decay=spelled), 100) == policy_id(combined(LINE, None, Constant(0.01)), 100)


def test_the_settings_have_the_names_of_the_log():
    assert list(settings_of(WHOLE)) == ["lr", "lr/head", "lr/0", "momentum", "weight_decay"]
    both = settings_of(PerOptimizer((WHOLE, OptimizerPolicy(LINE, FALLING))))
    assert list(both)[-2:] == ["optimizer_1/lr", "optimizer_1/momentum"]


def test_it_is_stored_stretched_and_cut_with_all_its_parts():
    assert from_config(to_config(WHOLE)) == WHOLE
    two = PerOptimizer((WHOLE, LINE))
    assert from_config(to_config(two)) == two
    assert stretched(WHOLE, 2).momentum == Polynomial(0.95, 200, end_lr=0.85)
    drops = combined(LINE, MultiStep(0.9, 0.5, (10, 40)), groups={"head": Sequential((LINE, LINE), (50,))})
    assert cut(drops, 30) == combined(LINE, MultiStep(0.9, 0.5, (10,)), groups={"head": LINE})


def test_what_is_combined_twice_is_refused():
    assert combined(combined(LINE, FALLING), None, Constant(0.1)) == OptimizerPolicy(LINE, FALLING, Constant(0.1))
    with pytest.raises(ValueError, match="momentum must be given once, but the policy has it already"):
        combined(combined(LINE, FALLING), RISING)
    with pytest.raises(ValueError, match="momentum must be given for each optimizer, within an OptimizerPolicy"):
        combined(PerOptimizer((LINE, LINE)), RISING)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OptimizerPolicy(LINE, momentum=0.9), "momentum must be a plain policy of one setting, .*got 0.9"),
        (lambda: OptimizerPolicy(WHOLE), "lr must be a plain policy of one setting"),
        (lambda: OptimizerPolicy(plateau()), "lr must be a plain policy of one setting"),
        (lambda: combined(LINE, plateau()), "momentum must be a plain policy of one setting"),
        (lambda: combined(LINE, groups={"head": plateau()}), "lr must be a plain policy of one setting"),
        (lambda: combined(plateau(), plateau()), "momentum must be a plain policy of one setting"),
        (
            lambda: combined(LINE, groups={1.5: LINE}),
            "group must be the name or the index of a parameter group, got 1.5",
        ),
        (lambda: OptimizerPolicy(LINE, groups=(LINE,)), "groups must be a list of GroupPolicy, got Polynomial"),
        (lambda: OptimizerPolicy(LINE, groups={"a": LINE}), "groups must be a list of GroupPolicy, got {"),
        (
            lambda: OptimizerPolicy(LINE, groups=(GroupPolicy("a", LINE),) * 2),
            "name each parameter group once, got 'a'",
        ),
        (lambda: PerOptimizer(()), "policies must be one policy for each optimizer"),
        (lambda: PerOptimizer((LINE, plateau())), "policies must be plain policies"),
        (lambda: PerOptimizer((PerOptimizer((LINE,)),)), "policies must be one policy for each optimizer"),
    ],
)
def test_what_is_no_policy_of_its_place_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_momentum_lies_below_one_and_weight_decay_is_not_negative():
    check_values(WHOLE, 100)
    check_values(combined(LINE, weight_decay=Constant(5.0)), 100)
    late = combined(LINE, momentum=Polynomial(0.5, 1000, end_lr=1.0))
    check_values(late, 1000)
    with pytest.raises(
        ValueError, match=r"the policy of momentum must give numbers in \[0, 1\), got 1.0 for step 1000"
    ):
        check_values(late, 1001)
    with pytest.raises(ValueError, match="the policy of weight_decay must give finite numbers of at least 0, got -1"):
        check_values(PerOptimizer((LINE, combined(LINE, weight_decay=lambda t: -1.0))), None)
    with pytest.raises(ValueError, match=r"policy of momentum must give numbers .*, got None for step 0"):
        check_values(combined(LINE, lambda t: None), 10)


def test_an_adaptive_rate_has_plain_policies_beside_it():
    policy = combined(plateau(), FALLING, groups={"head": Constant(0.2)})
    assert isinstance(policy, AdaptiveOptimizerPolicy)
    assert isinstance(policy, AdaptivePolicy)
    for t, value in ((10, 0.9), (20, 0.8)):
        policy.observe(t, value)
    assert (policy(19), policy(20)) == (0.1, 0.01)
    again = combined(plateau(), FALLING, groups={"head": Constant(0.2)})
    again.load_state_dict(policy.state_dict())
    realised = combined(Sequential((Constant(0.1), Constant(0.01)), (20,)), FALLING, groups={"head": Constant(0.2)})
    assert again.realised() == realised
    again.reset()
    assert again(20) == 0.1
    assert list(settings_of(policy)) == ["lr", "lr/head", "momentum"]
    assert "momentum=Polynomial" in repr(policy)
    assert combined(policy, weight_decay=Constant(0.1)).weight_decay == Constant(0.1)


# -- the files ----------------------------------------------------------------------------------------------------


def configured(*overrides):
    return build_policy(compose(list(overrides)))


@pytest.mark.parametrize(("group", "name"), FILES)
@pytest.mark.parametrize("max_steps", [7, 1000])
def test_every_file_is_a_valid_policy_of_its_setting(group, name, max_steps):
    assert (conf_dir() / group / f"{name}.yaml").read_text().startswith("# ")
    policy = configured(f"{group}={name}", "optimizer=adamw", f"max_steps={max_steps}")
    check_values(policy, max_steps)
    values = table(getattr(policy, group.removesuffix("_policy")), max_steps)
    assert max(values) > min(values)
    assert from_config(to_config(policy)) == policy


def test_the_momentum_of_onecycle_is_as_published():
    """It falls from 0.95 to 0.85 in a line while the rate rises, and rises by a cosine, as torch's annealing does."""
    steps = 1000
    policy = configured("lr_policy=onecycle", "momentum_policy=onecycle", f"max_steps={steps}")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, pct_start=0.3)
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if len(expected) < steps:
            theirs.step()
    mine = table(policy.momentum, steps)
    down = [0.95 - 0.1 * t / 300 for t in range(300)]
    assert mine[:300] == pytest.approx(down)
    assert mine[300:] == pytest.approx(expected[300:], abs=5e-4)  # torch counts one step less
    assert mine[0] == 0.95
    assert mine[300] == pytest.approx(0.85)
    assert mine[-1] == pytest.approx(0.95, abs=1e-5)
    rates = table(policy, steps)
    assert rates.index(max(rates)) == mine.index(min(mine)) == 300


def test_off_by_default():
    assert isinstance(configured("lr_policy=onecycle"), Sequential)
    assert configured("lr_policy=onecycle") == configured("lr_policy=onecycle", "momentum_policy=none")


def test_weight_decay_is_a_multiple_of_the_optimizers():
    policy = configured("weight_decay_policy=rising", "optimizer.weight_decay=0.04", "max_steps=100")
    assert policy.weight_decay(0) == pytest.approx(0.04)
    assert policy.weight_decay(99) == pytest.approx(0.4, rel=1e-3)
