"""Policies of groups, momentum and weight decay, and of several optimizers, in a Trainer."""

import csv
import json
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from pytorch_lightning.loggers import CSVLogger

from lrbench_pl import LRPolicyCallback
from lrbench_pl.callbacks.composer import LRPolicyComposer
from lrbench_pl.callbacks.lr_policy import LRPolicyError
from lrbench_pl.policies import (
    Constant,
    OptimizerPolicy,
    PerOptimizer,
    PlateauPolicy,
    Polynomial,
    combined,
    from_config,
    policy_id,
    table,
)
from lrbench_pl.reading import read_yaml
from tests.helpers import TinyModule, tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")

LINE, MOMENTUM, DECAY = Polynomial(0.1, 20), Polynomial(0.95, 20, end_lr=0.85), Polynomial(0.02, 20)
MATRICES, REST = Polynomial(0.02, 20), Polynomial(0.003, 20)


class Watched(TinyModule):
    """Notes the settings with which its optimizers really step."""

    keys = ("lr", "momentum", "weight_decay")

    def __init__(self):
        super().__init__()
        self.stepped = {}

    def watch(self, index, optimizer):
        def note(optimizer, *_):
            values = [[group[key] for key in self.keys if key in group] for group in optimizer.param_groups]
            self.stepped.setdefault(index, []).append(values)

        optimizer.register_step_post_hook(note)
        return optimizer

    def configure_optimizers(self):
        groups = [{"params": [self.layer.weight]}, {"params": [self.layer.bias], "weight_decay": 0.0, "name": "bias"}]
        return self.watch(0, torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1))


class MuonAndAdamW(Watched):
    """A user's module: Muon for the matrices, AdamW for the rest, which steps every second batch only."""

    keys = ("lr",)

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        matrices = [p for p in self.parameters() if p.ndim == 2]
        rest = [p for p in self.parameters() if p.ndim != 2]
        return [self.watch(0, torch.optim.Muon(matrices, lr=1.0)), self.watch(1, torch.optim.AdamW(rest, lr=1.0))]

    def training_step(self, batch, batch_idx):
        muon, adamw = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        muon.step()
        muon.zero_grad()
        if batch_idx % 2:
            adamw.step()
            adamw.zero_grad()
        return loss


class Saves(pl.Callback):
    """Saves a checkpoint after six steps of all optimizers."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 6:
            trainer.save_checkpoint(self.path)


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


# -- one optimizer ------------------------------------------------------------------------------------------------


def test_groups_momentum_and_weight_decay_of_every_step(tmp_path):
    callback = LRPolicyCallback(
        LINE, groups={"bias": Constant(0.5)}, momentum_policy=MOMENTUM, weight_decay_policy=DECAY,
        save_to=tmp_path / "run", target=2.0, monitor="val/score",
    )  # fmt: skip
    module = Watched()
    logger = CSVLogger(tmp_path, name="log", version="")
    trainer = tiny_trainer(callback, accumulate_grad_batches=2, val_check_interval=4, logger=logger)
    trainer.fit(module)
    assert module.stepped[0] == [[[LINE(t), MOMENTUM(t), DECAY(t)], [0.5, MOMENTUM(t), 0.0]] for t in range(10)]

    logged = [row for row in rows(tmp_path / "log") if row["momentum"]]
    assert [int(row["step"]) for row in logged] == list(range(10))
    for name, policy in (("lr", LINE), ("lr/bias", Constant(0.5)), ("momentum", MOMENTUM), ("weight_decay", DECAY)):
        assert [float(row[name]) for row in logged] == table(policy, 10)

    policy = combined(LINE, MOMENTUM, DECAY, {"bias": Constant(0.5)})
    assert callback.policy == policy == from_config(read_yaml(tmp_path / "run" / "policy.yaml"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["policy_id"] == policy_id(policy, 10) != policy_id(LINE, 10)
    assert result["policy_repr"] == repr(policy)
    saved = [row for row in rows(tmp_path / "run") if row["momentum"]]
    assert [float(row["weight_decay"]) for row in saved] == table(DECAY, 10)


def test_a_second_writer_of_the_momentum_fails_the_fit():
    class Another(pl.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            if trainer.global_step == 4:
                optimizer.param_groups[0]["momentum"] = 0.5

    callback = LRPolicyCallback(LINE, momentum_policy=MOMENTUM)
    with pytest.raises(LRPolicyError, match=r"set the momentum of step 4 to 0.93, but the optimizer found 0.5"):
        tiny_trainer(callback, Another()).fit(Watched())
    assert callback.verdict.steps_run == 4


def test_it_resumes_with_the_values_of_the_unbroken_fit(tmp_path):
    def fit(*callbacks, **arguments):
        module = Watched()
        callback = LRPolicyCallback(LINE, groups={1: DECAY}, momentum_policy=MOMENTUM, weight_decay_policy=DECAY)
        tiny_trainer(callback, *callbacks).fit(module, **arguments)
        return module

    unbroken = fit(Saves(tmp_path / "six.ckpt"))
    resumed = fit(ckpt_path=tmp_path / "six.ckpt")
    assert resumed.stepped[0] == unbroken.stepped[0][6:]


def plateau(mode="max"):
    return PlateauPolicy((Constant(0.01), Constant(0.1)), 1, 1, 0.0, 0, 0.0, max_steps=10, mode=mode)


def test_an_adaptive_rate_beside_a_momentum(tmp_path):
    callback = LRPolicyCallback(plateau(), momentum_policy=MOMENTUM, monitor="val/given", save_to=tmp_path)
    module = Watched()
    module.values = [0.5, 0.4, 0.4, 0.4, 0.4]
    tiny_trainer(callback).fit(module)
    assert [step[0][:2] for step in module.stepped[0]] == [[0.1 if t < 4 else 0.01, MOMENTUM(t)] for t in range(10)]
    assert from_config(read_yaml(tmp_path / "policy.yaml")) == callback.policy.realised()
    assert callback.policy.realised().momentum == MOMENTUM


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ({"groups": {"head": LINE}}, "no parameter group has the name or index 'head' .* there are 0, 1 \\('bias'\\)"),
        (
            {"momentum_policy": Polynomial(0.9, 5, end_lr=1.0)},
            r"momentum must give numbers in \[0, 1\), got 1.0 for step 5",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(policies, message, tmp_path):
    module = Watched()
    with pytest.raises(LRPolicyError, match=message):
        tiny_trainer(LRPolicyCallback(LINE, save_to=tmp_path / "run", **policies)).fit(module)
    assert module.stepped == {}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["momentum_policy", "weight_decay_policy"])
def test_what_is_no_policy_is_refused(name):
    with pytest.raises(ValueError, match=f"{name.removesuffix('_policy')} must be a plain policy of one setting"):
        LRPolicyCallback(LINE, **{name: 0.9})


def test_a_composer_takes_no_other_policies():
    with pytest.raises(ValueError, match=r"composing sets the rate alone, .* got momentum_policy; leave it out"):
        LRPolicyComposer(0.9, 100, momentum_policy=MOMENTUM)


# -- two optimizers -----------------------------------------------------------------------------------------------


def test_muon_for_the_matrices_and_adamw_for_the_rest(tmp_path):
    """A user's program: each optimizer has its policy and its clock, the training one verdict."""
    callback = LRPolicyCallback([MATRICES, REST], target=2.0, monitor="val/score", save_to=tmp_path / "run")
    module = MuonAndAdamW()
    logger = CSVLogger(tmp_path, name="log", version="")
    tiny_trainer(callback, max_steps=15, logger=logger).fit(module)  # Lightning counts the steps of both
    assert module.stepped[0] == [[[lr]] for lr in table(MATRICES, 10)]
    assert module.stepped[1] == [[[lr]] for lr in table(REST, 5)]
    assert (callback.verdict.status, callback.verdict.steps_run) == ("missed", 10)
    assert [check.step for check in callback.checks] == [2, 4, 6, 8, 10]

    logged = rows(tmp_path / "log")
    assert [float(row["lr"]) for row in logged if row["lr"]] == table(MATRICES, 10)
    of_rest = [row for row in logged if row["optimizer_1/lr"]]
    assert [(int(row["step"]), float(row["optimizer_1/lr"])) for row in of_rest] == list(enumerate(table(REST, 5)))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["optimizer"], result["lr"]) == ("Muon+AdamW", 0.02)
    policy = PerOptimizer((MATRICES, REST))
    assert from_config(read_yaml(tmp_path / "run" / "policy.yaml")) == policy
    assert (result["max_steps"], result["policy_id"]) == (10, policy_id(policy, 10))  # those of the first optimizer


def test_two_optimizers_resume_each_at_its_own_step(tmp_path):
    def fit(*callbacks, **arguments):
        module = MuonAndAdamW()
        callback = LRPolicyCallback([MATRICES, OptimizerPolicy(REST, momentum=Constant(0.8))])
        tiny_trainer(callback, *callbacks, max_steps=12).fit(module, **arguments)
        return module

    unbroken = fit(Saves(tmp_path / "six.ckpt"))
    resumed = fit(ckpt_path=tmp_path / "six.ckpt")
    assert [len(unbroken.stepped[index]) for index in (0, 1)] == [8, 4]
    assert resumed.stepped == {0: unbroken.stepped[0][4:], 1: unbroken.stepped[1][2:]}


def test_two_optimizers_that_are_set_up_again_keep_their_clocks():
    class Renew(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 6:
                trainer.strategy.setup_optimizers(trainer)

    module = MuonAndAdamW()
    tiny_trainer(Renew(), LRPolicyCallback([MATRICES, REST]), max_steps=12).fit(module)
    assert module.stepped == {
        0: [[[lr]] for lr in table(MATRICES, 8)],
        1: [[[lr]] for lr in table(REST, 4)],
    }


def test_the_verdict_counts_the_steps_of_the_optimizer_that_is_named():
    module, callback = MuonAndAdamW(), LRPolicyCallback([MATRICES, REST], optimizer_index=1)
    tiny_trainer(callback, max_steps=12).fit(module)
    assert callback.verdict.steps_run == len(module.stepped[1]) == 4
    assert module.stepped[1] == [[[lr]] for lr in table(REST, 4)]


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (
            lambda: [LRPolicyCallback([LINE])],
            "expected a policy for each of the module's optimizers, which are 2, got 1",
        ),
        (lambda: [LRPolicyCallback([LINE] * 2, optimizer_index=2)], r"optimizer_index must lie in \[0, 1\], got 2"),
        (lambda: [LRPolicyCallback(LINE)], "2 optimizers; say which one .* optimizer_index=, or give a list"),
    ],
)
def test_which_policy_drives_which_optimizer_must_be_clear(callbacks, message):
    made = callbacks()
    module = MuonAndAdamW()
    with pytest.raises(LRPolicyError, match=message):
        tiny_trainer(*made).fit(module)
    assert module.stepped == {}


def test_a_list_holds_plain_policies():
    with pytest.raises(ValueError, match="policies must be plain policies"):
        LRPolicyCallback([LINE, plateau()])
    with pytest.raises(ValueError, match="momentum must be given for each optimizer, within an OptimizerPolicy"):
        LRPolicyCallback([LINE, LINE], momentum_policy=MOMENTUM)


def test_a_checkpoint_without_the_clocks_is_refused(tmp_path):
    module = MuonAndAdamW()
    trainer = tiny_trainer(max_steps=6)
    trainer.fit(module)
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(LRPolicyError, match="not known how many of the 6 steps so far each optimizer took"):
        tiny_trainer(LRPolicyCallback([MATRICES, REST])).fit(MuonAndAdamW(), ckpt_path=tmp_path / "other.ckpt")


def test_in_a_job_of_hydra_the_result_names_the_policies_of_all_settings(tmp_path, monkeypatch):
    choices = {"lr_policy": "linear", "momentum_policy": "rising", "weight_decay_policy": "none"}
    chosen = SimpleNamespace(runtime=SimpleNamespace(choices=choices))
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: chosen)
    for name, policies in (("plain", {}), ("both", {"momentum_policy": MOMENTUM})):
        tiny_trainer(LRPolicyCallback(LINE, save_to=tmp_path / name, **policies), max_steps=2).fit(Watched())
    names = [json.loads((tmp_path / name / "result.json").read_text())["policy"] for name in ("plain", "both")]
    assert names == ["linear", "linear + momentum rising"]
