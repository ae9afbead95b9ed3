"""Every rule has a policy that triggers it; no shipped policy triggers any."""

import pytest

from lrbench_pl.policies import (
    Constant,
    Cyclic,
    Exponential,
    InverseTime,
    MultiStep,
    PlateauPolicy,
    Polynomial,
    Sequential,
    Sigmoid,
    SqrtDecay,
    Step,
    warmup,
)
from lrbench_pl.runs.config import build_policy, compose, conf_dir
from lrbench_pl.runs.lint import Finding, TrainingPlan, lint, summary, training_plan

FOUND_LATER = ("auto", "best", "range")  # composed while training, looked up, and no policy but a test
POLICIES = sorted({path.stem for path in (conf_dir() / "lr_policy").glob("*.yaml")} - set(FOUND_LATER))
EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))


def plateau(patience):
    return PlateauPolicy((Constant(0.01), Constant(0.1)), 1, patience, 0.0, 0, max_steps=1000)


def findings(policy, **changes):
    return lint(TrainingPlan(policy, **{"max_steps": 1000, "check_every": 20, **changes}))


@pytest.mark.parametrize("name", POLICIES)
def test_shipped_policies_have_no_findings(name):
    cfg = compose([f"lr_policy={name}"])
    for max_steps in (1000, 100, 997, 10_000):  # the default first; those that round differently
        cfg.max_steps = max_steps
        assert lint(training_plan(cfg, build_policy(cfg))) == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_have_no_findings(name):
    cfg = compose([f"experiment={name}", "max_steps=10000", "check_every=100"])
    assert lint(training_plan(cfg, build_policy(cfg))) == []


@pytest.mark.parametrize(
    ("policy", "changes", "rule", "words"),
    [
        (Sigmoid(0.1, 0.012, 1000), {}, "rises", "its peak of 0.1 comes later; shorten the rise"),
        (Polynomial(0.001, 5000, end_lr=0.1), {}, "rises", "still rises after the budget of 1000 steps"),
        (Cyclic(0.0, 0.1, 1, "triangle"), {"max_steps": 10, "check_every": 1}, None, ""),
        (Polynomial(0.1, 500), {}, "horizon", "over at step 500 of 1000: 500 steps run at 0; set decay_steps to 1000"),
        (Polynomial(0.1, 2000), {}, "horizon", "until step 2000, but the budget ends at 1000, at 50 % of the peak"),
        (SqrtDecay(0.1, 100), {}, "horizon", "900 steps run at 0"),
        (Cyclic(0.0, 0.1, 1500, "half_cosine"), {}, "horizon", "ends 67 % into a cycle of 1500 steps, at 25 % of"),
        (Cyclic(0.0, 0.1, 800, "half_cosine"), {}, "horizon", "set period to 1000 or max_steps to 1600"),
        (Cyclic(0.0, 0.1, 300, "triangle"), {}, "horizon", "ends 33 % into a cycle of 300 steps, at 66 % of the peak"),
        (Cyclic(0.0, 0.1, 400, "cosine"), {}, None, ""),
        (Cyclic(0.0, 0.1, 500, "cosine"), {}, "horizon", "ends 50 % into a cycle of 500 steps, at 100 % of the peak"),
        (Sequential((Constant(0.1), Constant(0.05)), (1000,)), {}, "never-runs", "Constant would begin at step 1000"),
        (MultiStep(0.1, 0.1, (500, 1500)), {}, "never-runs", "the drop at step 1500 is never reached"),
        (Step(0.1, 0.1, 1000), {}, "never-runs", "would drop first after 1000 steps, but has 1000: it is constant"),
        (Step(0.1, 1.0, 1000), {}, None, ""),
        (
            Sequential((Sequential((Constant(0.1), Constant(0.2)), (600,)), Constant(0.01)), (500,)),
            {},
            "never-runs",
            "begin at step 600, but its part ends at step 500",
        ),
        (plateau(60), {}, "never-runs", "could change at step 1220 at the earliest, after the budget of 1000"),
        (plateau(6), {}, None, ""),
        (Sequential((Constant(0.001), Constant(0.02)), (500,)), {}, "jump", "from 0.001 to 0.02 at step 500, higher"),
        (Sequential((Constant(0.1), Constant(0.005)), (500,)), {}, "jump", "the peak falls from 0.1 to 0.005 at step"),
        (Sequential((Constant(0.1), Constant(0.01)), (500,)), {}, None, ""),
        (Step(0.1, 0.01, 400), {}, "jump", "drops to 0.01 of itself at step 400; set gamma to 0.1 or more"),
        (MultiStep(0.1, 0.05, (300, 600)), {}, "jump", "drops to 0.05 of itself at step 300"),
        (Cyclic(0.0001, 0.1, 200, "sawtooth"), {}, None, ""),  # a restart is no jump
        (
            Exponential(0.1, 0.9999),
            {},
            "end",
            "ends at 90 % of its peak, though the policy is meant",
        ),
        (Cyclic(0.001, 0.1, 200, "triangle", "exponential", 0.9999), {}, "end", "ends at 90 % of its peak"),
        (Step(0.1, 0.9, 300), {}, "end", "ends at 73 % of its peak"),
        (MultiStep(0.1, 0.5, (500,)), {}, "end", "ends at 50 % of its peak"),
        (Sigmoid(0.1, -0.001, 500), {}, "end", "set midpoint to 500 and gamma to -0.012"),
        (Polynomial(0.1, 1000, end_lr=0.05), {}, "end", "lower end_lr to 0.01 or less"),
        (InverseTime(0.01, 1e-4, 0.75), {}, "end", "ends at 93 % of its peak"),
        (InverseTime(0.01, 1e-3, 0.75), {}, None, ""),  # slow by design
        (
            Cyclic(0.001, 0.1, 200, "triangle", "exponential", 0.1),
            {},
            "dies",
            "dead after 4 of 1000 steps, at a rate of 0.001; gamma acts on every step: 0.995405 leaves 1 %",
        ),
        (Exponential(0.1, 0.5), {}, "dies", "the decay is dead after 7 of 1000 steps"),
        (Sequential((Constant(0.1), Constant(0.05)), (5,)), {"check_every": 1}, "dies", "slow the decay down"),
        (Cyclic(0.0, 0.1, 10, "triangle"), {}, "short", "a cycle takes 10 steps, but checks are 20 apart"),
        (Step(0.1, 0.99, 10), {"max_steps": 3000}, "short", "a level takes 10 steps"),
        (MultiStep(0.1, 0.1, (500, 510)), {}, "short", "a level takes 10 steps"),
        (Sequential((Constant(0.1), Constant(0.05)), (990,)), {}, "short", "the part from step 990 takes 10 steps"),
        (warmup(Constant(0.1), 10), {}, None, ""),  # a warm-up needs no check
        (
            Constant(0.1),
            {"accumulate": 4, "batch_size": 64},
            "batches",
            "4 batches (accumulate_grad_batches=4)",
        ),
        (Constant(0.1), {"processes": 2, "batch_size": 64}, "batches", "batch_size=32 keeps 64 samples a step"),
        (plateau(6), {"processes": 2}, "batches", "1000 steps read 2000 batches"),
        (Constant(0.0), {}, None, ""),
    ],
)
def test_each_rule_and_the_nearest_policy_without_a_finding(policy, changes, rule, words):
    found = findings(policy, **changes)
    assert [finding.rule for finding in found] == ([rule] if rule else [])
    assert words in "".join(map(str, found))


def test_errors_come_first():
    found = findings(Exponential(0.1, 0.5), processes=2)
    assert [finding.level for finding in found] == ["error", "warning"]


def test_the_fixes_fix():
    assert findings(Exponential(0.1, 0.995405)) == []
    assert findings(Cyclic(0.0, 0.1, 1000, "half_cosine")) == findings(Cyclic(0.0, 0.1, 333, "triangle")) == []
    assert findings(Sigmoid(0.1, -0.012, 500)) == []


@pytest.mark.parametrize(
    ("overrides", "processes", "accumulate"),
    [
        ([], 1, 1),
        (["trainer=ddp"], 2, 1),
        (["trainer.devices=auto"], 1, 1),
        (["trainer.devices='0,1'"], 2, 1),
        (["trainer.devices=[0,1,2]"], 3, 1),
        (["trainer.devices=2", "+trainer.num_nodes=2", "trainer.accumulate_grad_batches=3"], 4, 3),
    ],
)
def test_batches_per_step_are_read_from_the_trainer(overrides, processes, accumulate):
    cfg = compose(overrides)
    made = training_plan(cfg, build_policy(cfg))
    assert (made.processes, made.accumulate, made.batch_size, made.check_every) == (processes, accumulate, 64, 20)


@pytest.mark.parametrize("field", ["max_steps", "check_every", "batch_size", "accumulate", "processes"])
def test_a_plan_without_steps_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be an integer of at least 1, got 0"):
        TrainingPlan(Constant(0.1), **{"max_steps": 10, field: 0})


def test_the_line_at_the_start_of_a_run():
    assert summary([]) is None
    assert summary([Finding("jump", "warning", "it jumps", "warm up")]) == "lint: it jumps; warm up"
