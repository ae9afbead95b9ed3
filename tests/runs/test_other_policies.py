"""momentum_policy, weight_decay_policy and policies in param_groups: specification, run, stored policy, refusals."""

import csv

import polars as pl
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import open_dict

from lrbench_pl.analysis.load import load_runs
from lrbench_pl.analysis.ranking import rank
from lrbench_pl.cli.preview import curve, draw, panels, planned_runs
from lrbench_pl.cli.rebuild import overrides_of
from lrbench_pl.policies import Constant, GroupPolicy, OptimizerPolicy, PerOptimizer, Polynomial, policy_id, table
from lrbench_pl.reading import read_yaml
from lrbench_pl.runs import lint
from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.build import build
from lrbench_pl.runs.config import build_policy, compose, read_policy
from lrbench_pl.runs.options import UserError, check_config
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import RunSpec
from tests.helpers import TinyModule

CONSTANT = "{_target_: lrbench_pl.policies.Constant, lr: '${rate:0.1}'}"
GROUPS = f"param_groups=[{{params: '*.bias', weight_decay: 0.0, lr_policy: {CONSTANT}}}]"
ALL = ("momentum_policy=onecycle", "weight_decay_policy=linear", "optimizer.weight_decay=0.01", GROUPS)
SHORT = ("max_steps=20", "check_every=10", "batch_size=32", "trainer=cpu", "trainer.log_every_n_steps=1", "target=0.99")


def spec(*overrides):
    return RunSpec.from_config(compose(list(overrides)))


def run(folder, *overrides):
    folder.mkdir(parents=True, exist_ok=True)
    return experiment.run(compose([*SHORT, f"logger.csv.save_dir={folder}", *overrides]), folder)


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


# -- the specification --------------------------------------------------------------------------------------------


def test_a_run_without_them_is_the_run_that_it_was():
    assert spec().run_id == "e5f9fd33d7bd"
    assert spec("momentum_policy=none", "weight_decay_policy=none") == spec()


def test_they_are_part_of_the_policy_and_not_of_the_task():
    plain, other = spec("optimizer.weight_decay=0.01"), spec(*ALL[:3])
    assert other.task == plain.task
    assert other.run_id != plain.run_id
    assert other.policy_name == "cosine + momentum onecycle + weight decay linear"
    assert other.policy["_target_"] == "lrbench_pl.policies.OptimizerPolicy"
    assert other.policy["lr"] == plain.policy
    assert other.settings["lr_policy.momentum._target_"] == "lrbench_pl.policies.Sequential"
    assert RunSpec.from_dict(other.to_dict()).run_id == other.run_id


def test_the_policy_of_a_group_is_no_part_of_the_task():
    plain, other = spec(), spec(f"param_groups=[{{params: '*.bias', lr_policy: {CONSTANT}}}]")
    assert other.task == plain.task
    assert other.policy_name == "cosine + lr of *.bias"
    decays = "param_groups=[{params: '*.bias', weight_decay: 0.0}]"
    assert spec(GROUPS).task == spec(decays).task != plain.task
    first = f"param_groups=[{{params: '*.bias', lr_policy: {CONSTANT}}}, {{params: '*', weight_decay: 0.0}}]"
    assert spec(first).task.settings["param_groups"] == [{"params": "*.bias"}, {"params": "*", "weight_decay": 0}]


def test_rates_and_seeds_share_one_task_and_one_policy():
    one, two = (spec(*ALL, f"lr={lr}", f"seed={seed}") for lr, seed in ((0.1, 0), (0.2, 1)))
    assert one.settings == two.settings
    assert one.settings["lr_policy.groups"][0]["lr"]["lr"] == "0.1 * lr"


@pytest.mark.parametrize("overrides", [ALL[:3], ALL, ["momentum_policy=rising", "optimizer=adamw"]])
def test_the_command_is_rebuilt_from_the_specification(overrides):
    given = spec(*overrides, "seed=3")
    again = compose(overrides_of(given))
    assert RunSpec.from_config(again).run_id == given.run_id
    assert build_policy(again) == build_policy(compose(list(overrides)))


# -- a run --------------------------------------------------------------------------------------------------------


def test_a_run_applies_logs_and_stores_them_and_its_file_trains_the_same_again(tmp_path):
    result = run(tmp_path / "runs" / "first", *ALL)
    assert (result.status, result.policy) == (
        "missed",
        "cosine + momentum onecycle + weight decay linear + lr of *.bias",
    )
    policy = read_policy(tmp_path / "runs" / "first" / "policy.yaml")
    assert policy == build_policy(compose([*SHORT, *ALL]))
    assert [each.group for each in policy.groups] == ["*.bias"]
    assert result.policy_id == policy_id(policy, 20)
    logged = [row for row in rows(tmp_path / "runs" / "first") if row["momentum"]]
    assert [float(row["momentum"]) for row in logged] == pytest.approx(table(policy.momentum, 20))
    assert [float(row["weight_decay"]) for row in logged] == pytest.approx(table(policy.weight_decay, 20))
    assert {float(row["lr/*.bias"]) for row in logged} == {policy.groups[0](0)}

    file = f"lr_policy_file={tmp_path / 'runs' / 'first' / 'policy.yaml'}"
    decays = "param_groups=[{params: '*.bias', weight_decay: 0.0}]"
    again = run(tmp_path / "runs" / "second", file, "optimizer.weight_decay=0.01", decays, "names.policy=x")
    assert again.policy_id == result.policy_id
    assert (again.best_value, again.test_loss) == (result.best_value, result.test_loss)
    plain = run(tmp_path / "runs" / "third", "optimizer.weight_decay=0.01", decays)
    assert plain.test_loss != result.test_loss

    ranked = rank(load_runs([tmp_path / "runs"]).table.filter(pl.col("policy") != "first"))
    assert set(ranked["policy"]) == {result.policy, "cosine"}


class Unregistered:
    def __init__(self, lr):
        self.lr = lr

    def __call__(self, t):
        return self.lr


def test_the_file_of_a_policy_of_ones_own_type_has_all_settings(tmp_path):
    own = f"_target_: {__name__}.Unregistered\nlr: ${{lr}}\n"
    (tmp_path / "mine" / "lr_policy").mkdir(parents=True)
    (tmp_path / "mine" / "lr_policy" / "own.yaml").write_text(own)
    search = f"hydra.searchpath=[file://{tmp_path / 'mine'}]"
    result = run(tmp_path / "run", search, "lr_policy=own", "momentum_policy=rising", "max_steps=2", "check_every=2")
    assert result.status == "missed"
    stored = read_yaml(tmp_path / "run" / "policy.yaml")
    assert stored["lr"] == {"_target_": f"{__name__}.Unregistered", "lr": 0.05}
    assert stored["momentum"]["end_lr"] == 0.95


def test_a_group_that_only_the_policy_names_is_made(tmp_path):
    (tmp_path / "policy.yaml").write_text(
        "_target_: lrbench_pl.policies.OptimizerPolicy\nlr: {_target_: lrbench_pl.policies.Constant, lr: 0.1}\n"
        "groups:\n- _target_: lrbench_pl.policies.GroupPolicy\n  group: '*.bias'\n"
        "  lr: {_target_: lrbench_pl.policies.Constant, lr: 0.3}\n"
    )
    parts = build(compose([*SHORT, f"lr_policy_file={tmp_path}/policy.yaml"]))
    groups = parts.module.configure_optimizers().param_groups
    assert [group.get("name") for group in groups] == [None, "*.bias"]
    assert all(parameter.ndim == 1 for parameter in groups[1]["params"])


def test_weight_decay_that_a_group_does_not_have_stays_away(tmp_path):
    seen = []

    def note(optimizer, *_):
        seen.append([group["weight_decay"] for group in optimizer.param_groups])

    parts = build(compose([*SHORT, "logger=none", "max_steps=2", "check_every=2", *ALL]))
    configure = parts.module.configure_optimizers

    def configured():
        optimizer = configure()
        optimizer.register_step_post_hook(note)
        return optimizer

    parts.module.configure_optimizers = configured
    parts.trainer.fit(parts.module, datamodule=parts.data)
    assert seen == [[0.01, 0.0], [0.005, 0.0]]


class TwoOptimizers(TinyModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD([p], lr=0.5, momentum=0.9) for p in self.parameters()]

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        return loss


def test_a_workload_with_two_optimizers_takes_a_policy_for_each(tmp_path):
    policies = [f"{{_target_: lrbench_pl.policies.Constant, lr: {lr}}}" for lr in (0.1, 0.2)]
    (tmp_path / "mine" / "lr_policy").mkdir(parents=True)
    (tmp_path / "mine" / "lr_policy" / "each.yaml").write_text(
        f"_target_: lrbench_pl.policies.PerOptimizer\n_convert_: all\npolicies: [{', '.join(policies)}]\n"
    )
    overrides = [f"hydra.searchpath=[file://{tmp_path / 'mine'}]", "lr_policy=each"]
    assert build_policy(compose(overrides)) == PerOptimizer((Constant(0.1), Constant(0.2)))
    cfg = compose([*SHORT, *overrides, f"workload={{_target_: {__name__}.TwoOptimizers}}"])
    with open_dict(cfg):
        cfg.logger.csv.save_dir = str(tmp_path / "run")
    result = experiment.run(cfg, tmp_path / "run")
    assert (result.status, result.steps_run) in (("missed", 10), ("reached", 10)), result.message
    assert read_policy(tmp_path / "run" / "policy.yaml") == build_policy(compose(overrides))


# -- preview and lint ---------------------------------------------------------------------------------------------


def test_preview_draws_each_setting_on_a_scale_of_its_own():
    (planned,) = planned_runs(["lr_policy=onecycle", *ALL, "max_steps=100"])
    shown = curve(planned)
    policy = build_policy(compose(["lr_policy=onecycle", *ALL, "max_steps=100"]))
    assert shown.name == "onecycle + momentum onecycle + weight decay linear + lr of *.bias"
    assert shown.policy_id == policy_id(policy, 100)
    assert dict(shown.others)["momentum"] == tuple(table(policy.momentum, 100))
    assert list(panels([shown])) == ["learning rate", "momentum", "weight decay"]
    text = draw([shown], width=60)
    lines = text.splitlines()
    assert f"momentum of {shown.name}" in lines
    at = lines.index(f"momentum of {shown.name}")
    assert (lines[at + 1].split()[0], lines[at + 4].split()[0]) == ("0.95", "0.85")
    assert f"{shown.name}, *.bias" in lines


def test_a_sweep_over_a_policy_and_none():
    names = [each.name for each in planned_runs(["lr_policy=onecycle", "momentum_policy=none,onecycle"])]
    assert names == ["momentum_policy=none", "momentum_policy=onecycle"]


@pytest.mark.parametrize(
    ("policy", "findings"),
    [
        (OptimizerPolicy(Polynomial(0.1, 1000), Polynomial(0.95, 1000, end_lr=0.85)), []),
        (
            OptimizerPolicy(Polynomial(0.1, 1000), momentum=Polynomial(0.9, 500, end_lr=1.0)),
            [("range", "the policy of momentum must give numbers in [0, 1), got 1.0 for step 500; the run would be")],
        ),
        (
            OptimizerPolicy(Polynomial(0.1, 1000), weight_decay=Constant(0.0)),
            [("never-runs", "weight_decay is 0 at every step; give optimizer.weight_decay, or leave")],
        ),
        (
            OptimizerPolicy(Polynomial(0.1, 1000), groups=(GroupPolicy("head", Polynomial(0.1, 2000)),)),
            [("horizon", "lr/head: the decay would take until step 2000")],
        ),
        (
            PerOptimizer((Polynomial(0.1, 1000), Polynomial(0.1, 500))),
            [("horizon", "optimizer_1/lr: the decay is over at step 500 of 1000")],
        ),
    ],
)
def test_lint_looks_at_every_setting(policy, findings):
    found = lint.lint(lint.TrainingPlan(policy, max_steps=1000))
    assert [finding.rule for finding in found] == [rule for rule, _ in findings]
    for finding, (_, message) in zip(found, findings, strict=True):
        assert str(finding).startswith(message)


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["lr_policy=auto", "momentum_policy=rising"],
            "momentum_policy needs a policy of fixed steps, but lr_policy=auto",
        ),
        (["lr_policy=best", "weight_decay_policy=linear"], "but lr_policy=best applies a policy as it was stored"),
        (["lr_policy=range", GROUPS], "lr_policy in param_groups needs a policy of fixed steps, but lr_policy=range"),
        (["workload={_target_: a.B}", GROUPS], "needs the groups that param_groups makes, which a workload does not"),
        ([f"param_groups=[{{lr_policy: {CONSTANT}}}]"], "a group with an lr_policy needs a pattern as params"),
    ],
)
def test_what_cannot_follow_them_is_refused_before_anything_is_built(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        check_config(compose(overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["param_groups=[{params: '*.bias', lr_policy: linear}]"],
            "lr_policy must have the _target_ of a plain policy",
        ),
        (["momentum_policy=rising", "+momentum_policy.extra=1"], "unexpected keyword argument 'extra'"),
        (
            ["weight_decay_policy=linear", "~optimizer.weight_decay"],
            "the policy needs optimizer.weight_decay, got none",
        ),
    ],
)
def test_what_is_no_policy_is_one_line(overrides, message, tmp_path):
    result = run(tmp_path, *overrides)
    assert result.status == "failed"
    assert message in result.message
    assert "\n" not in result.message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["momentum_policy=rising", "momentum_policy.end_lr=1.5"],
            "the policy of momentum must give numbers in [0, 1)",
        ),
        (["momentum_policy=rising", "optimizer=adagrad"], "Adagrad has neither momentum nor betas; leave it out"),
        (
            ["momentum_policy=onecycle", "momentum_policy.milestones=[20]"],
            "policy of momentum: milestones must lie below",
        ),
        ([GROUPS.replace("*.bias", "nose")], "params='nose' takes no parameter of the model"),
    ],
)
def test_a_run_that_cannot_apply_them_fails_without_a_step(overrides, message, tmp_path):
    result = run(tmp_path, *overrides)
    assert (result.status, result.steps_run or 0) == ("failed", 0)
    assert message in result.message
    assert RunResult.read(tmp_path / "result.json") == result


def test_a_file_and_a_key_with_the_same_setting_are_refused(tmp_path):
    (tmp_path / "policy.yaml").write_text(
        "_target_: lrbench_pl.policies.OptimizerPolicy\nlr: {_target_: lrbench_pl.policies.Constant, lr: 0.1}\n"
        "momentum: {_target_: lrbench_pl.policies.Constant, lr: 0.8}\n"
    )
    with pytest.raises(UserError, match="momentum must be given once, but the policy has it already"):
        build_policy(compose([f"lr_policy_file={tmp_path}/policy.yaml", "momentum_policy=rising"]))


def test_the_callback_of_another_project_takes_them_or_refuses(tmp_path):
    cfg = compose(["lr_policy=onecycle", "+callbacks=lr_policy", "momentum_policy=onecycle"])
    assert instantiate(cfg.callbacks)["lr_policy"].policy == build_policy(cfg)
    cfg = compose(["lr_policy=auto", "+callbacks=lr_policy", "momentum_policy=onecycle"])
    with pytest.raises(
        InstantiationException, match="momentum_policy needs a policy of fixed steps, but lr_policy is LRP"
    ):
        instantiate(cfg.callbacks)
