"""Composing within one fit: exactness, every way to end, and the result."""

import itertools
import json
import os
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lrbench_pl.callbacks import composer_request
from lrbench_pl.callbacks.composer import LRPolicyComposer
from lrbench_pl.callbacks.lr_policy import LRPolicyError
from lrbench_pl.runs.build import Classifier, build
from lrbench_pl.runs.config import compose
from lrbench_pl.runs.run import run
from tests import forks
from tests.helpers import TinyModule, explode, script, tiny_trainer

BASE = ["logger=none", "max_steps=300", "check_every=10", "dataset=synthetic", "trainer=cpu"]


class Net(nn.Module):
    """Batch statistics and dropout, which an incomplete restore changes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.LazyLinear(16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, num_classes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def fit(*overrides):
    config = compose([*BASE, *overrides])
    pl.seed_everything(config.seed, workers=True, verbose=False)
    parts = build(config)
    parts.trainer.fit(parts.module, datamodule=parts.data)
    return parts


def weights(parts):
    return {name: value.clone() for name, value in parts.module.state_dict().items()}


OWN = ["model._target_=tests.callbacks.test_composer.Net"]


@pytest.mark.parametrize("optimizer", ["momentum", pytest.param("adam", marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", [pytest.param("1.0", marks=pytest.mark.slow), "0.3"])
def test_the_composed_policy_alone_reproduces_the_training_bitwise(tmp_path, optimizer, target):
    from omegaconf import OmegaConf

    from lrbench_pl.policies import to_config

    common = ["model=mlp", *OWN, "~model.hidden", "~model.input_shape", f"optimizer={optimizer}", "dataset.flip=true"]
    composed = fit(
        *common, "lr_policy=auto", f"target={target}", "lr_policy.growth=1.5", "lr_policy.repeats=2", "max_steps=700"
    )
    composer = composed.verifier
    if target == "1.0":
        assert composer.tuning_steps > 60  # branches were abandoned before it ended
    OmegaConf.save(OmegaConf.create(to_config(composer.realised())), tmp_path / "policy.yaml")
    alone = fit(*common, f"lr_policy_file={tmp_path}/policy.yaml", f"max_steps={composer.policy_step}", "target=null")
    theirs = weights(alone)
    assert theirs
    for name, value in weights(composed).items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.slow
def test_a_restarted_composition_is_reproduced_bitwise_too(tmp_path, monkeypatch):
    """The checks are identical for 600 steps, as with a network that has memorised its data."""
    from omegaconf import OmegaConf

    from lrbench_pl.policies import to_config

    monitor = script(monkeypatch, lambda step: 0.5 if step < 600 else 0.9)
    common = ["model=mlp", *OWN, "~model.hidden", "~model.input_shape", "dataset.flip=true", monitor]
    composed = fit(*common, "lr_policy=auto", "lr_policy.repeats=2", "target=0.8", "check_every=20", "max_steps=1000")
    composer = composed.verifier
    assert composer.verdict.status == "reached"
    starts = [record for record in composer.records if record["kind"] == "stable" and record["policy_step"] == 0]
    assert len(starts) > 2
    assert len({record["why"] for record in starts}) == len(starts)  # another peak each time
    assert [record["kept"] for record in starts] == [False] * (len(starts) - 1) + [True]
    OmegaConf.save(OmegaConf.create(to_config(composer.realised())), tmp_path / "policy.yaml")
    policy = f"lr_policy_file={tmp_path}/policy.yaml"
    alone = fit(*common, policy, f"max_steps={composer.policy_step}", "target=null")
    theirs = weights(alone)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(composed).items())


def test_a_run_reports_both_step_counts_and_keeps_its_records(tmp_path, monkeypatch):
    monitor = script(monkeypatch, lambda step: 0.5 + 0.01 * (step // 10 % 3))
    row = run(compose([*BASE, "lr_policy=auto", "target=1.0", monitor, "max_steps=200"]), tmp_path)
    assert row.status == "missed"
    assert 0 < row.tuning_steps < row.steps_run <= 200
    assert "policy step" in row.message
    records = json.loads((tmp_path / "tuning.json").read_text())
    assert {record["kind"] for record in records} >= {"stable", "branch"}
    assert sum(record["steps"] for record in records) == row.steps_run
    best = max(record["value"] for record in records if record["kind"] == "branch")
    kept = [record for record in records if record["kind"] == "branch" and record["kept"]]
    assert kept[-1]["value"] == best
    path = [record for record in records if record["kept"]]
    assert path[-1] == kept[-1]
    assert path[0]["policy_step"] == 0
    assert all(a["policy_step"] + a["steps"] == b["policy_step"] for a, b in itertools.pairwise(path))
    assert "lrbench_pl.policies" in (tmp_path / "policy.yaml").read_text()


@pytest.mark.parametrize(
    ("optimizer", "given", "margin"),
    [("momentum", "null", None), ("adam", "null", 9.0), ("adamw", "null", 9.0), ("adam", "4.0", 4.0)],
)
def test_an_optimizer_whose_steps_do_not_shrink_with_the_gradient_gets_a_wider_margin(
    monkeypatch, optimizer, given, margin
):
    margins = []

    def spy(settings, *arguments):
        margins.append(settings.margin)
        return plan(settings, *arguments)

    plan = composer_request.plan_segments
    monkeypatch.setattr(composer_request, "plan_segments", spy)
    fit("lr_policy=auto", "target=0.05", f"optimizer={optimizer}", f"lr_policy.margin={given}")
    assert margins == [margin]


def test_a_target_met_in_the_stable_phase_ends_the_training(monkeypatch):
    monitor = script(monkeypatch, lambda step: 0.5)
    composer = fit("lr_policy=auto", "target=0.05", monitor).verifier
    assert composer.verdict.status == "reached"
    assert composer.verdict.steps_to_target == composer.verdict.steps_run == composer.tuning_steps + 10
    assert [record["kind"] for record in composer.records][-1] == "stable"


def test_without_a_target_one_policy_takes_the_budget():
    composer = fit("lr_policy=auto", "target=null").verifier
    last = composer.records[-1]["why"]
    assert sum(record["steps"] for record in composer.records if record["why"] == last) > 150
    assert composer.verdict.steps_run == 300


@pytest.mark.parametrize("budget", [10, 20, 40])
def test_a_tiny_budget_gives_a_policy_too(monkeypatch, budget):
    monitor = script(monkeypatch, lambda step: step / 1000)
    composer = fit("lr_policy=auto", "target=1.0", f"max_steps={budget}", monitor).verifier
    assert composer.verdict.status == "missed"
    assert composer.realised()(0) >= 0
    assert composer.verdict.steps_run <= budget


def test_a_rate_that_diverges_is_avoided_and_training_continues(monkeypatch):
    explode(monkeypatch, above=0.01)
    rate = ("optimizer=sgd", "lr=0.08", "optimizer.lr=0.08", "lr_policy.repeats=0")
    composer = fit("lr_policy=auto", "target=1.0", *rate, script(monkeypatch, lambda step: step / 1000)).verifier
    assert composer.verdict.status == "missed"
    phases = [record["why"] for record in composer.records if record["kind"] == "stable"]
    assert phases[:4] == ["diverged"] * 3 + ["peak 0.01"]
    assert "diverged" not in phases[3:]  # the losses of abandoned segments are forgotten
    assert [message.partition(":")[0] for message in composer.found.avoided[:3]] == [
        f"stable phase at {peak}" for peak in (0.08, 0.04, 0.02)
    ]
    assert composer.found.avoided[0].startswith("stable phase at 0.08: diverged")


@pytest.mark.filterwarnings("ignore:the training loader has no `position`")
def test_it_works_in_a_plain_trainer_with_accumulation():
    module = TinyModule()
    composer = LRPolicyComposer(target=2.0, monitor="val/score", max_steps=60, repeats=0)
    tiny_trainer(composer, max_steps=60, val_check_interval=4, accumulate_grad_batches=2).fit(module)
    assert composer.verdict.status == "missed"
    assert composer.verdict.steps_run == 60
    assert all(record["steps"] % 2 == 0 for record in composer.records)


@pytest.mark.filterwarnings("ignore:the training loader has no `position`")
def test_the_composer_s_own_budget_ends_a_trainer_without_one():
    composer = LRPolicyComposer(target=2.0, monitor="val/score", max_steps=60, repeats=0)
    tiny_trainer(composer, max_steps=-1, max_epochs=20).fit(TinyModule())
    assert composer.verdict.status == "missed"
    assert composer.verdict.steps_run == 60


def test_what_cannot_be_composed_is_refused():
    with pytest.raises(LRPolicyError, match="must be a multiple of accumulate_grad_batches"):
        tiny_trainer(LRPolicyComposer(1.0), val_check_interval=3, accumulate_grad_batches=2).fit(TinyModule())
    with pytest.raises(LRPolicyError, match="composing needs a check within 1 step, but the first one is after 2"):
        tiny_trainer(LRPolicyComposer(1.0, max_steps=1)).fit(TinyModule())


def test_averaged_weights_are_checked_and_removed():
    """A check of the average is a forecast: it is not part of the verdict and changes nothing."""
    parts = fit("lr_policy=auto", "target=1.0", "lr_policy.growth=1.5", "lr_policy.repeats=0")
    composer = parts.verifier
    averaged = [record for record in composer.records if record["averaged"]]
    assert len(averaged) == len(composer.forecasts) > 3
    steps = {check.step for check in composer.verdict.checks}
    assert not steps & {check.step for check in composer.forecasts}
    assert max(steps) == composer.verdict.steps_run
    again = parts.trainer.validate(parts.module, parts.data, verbose=False)[0]["val/accuracy"]
    kept = max(record["value"] for record in composer.records if record["kind"] == "branch")
    assert again == pytest.approx(kept, abs=1e-6)


def generous_to_averages(monkeypatch):
    """Let checks of averaged weights find 1.0 and others at most 0.5; return the weights of each."""
    from lrbench_pl.callbacks.composer import LRPolicyComposer as Composer

    start, read, seen = Composer.on_validation_start, Composer._read_monitor, []

    def look(self, trainer, pl_module):
        start(self, trainer, pl_module)
        seen.append([parameter.detach().clone() for parameter in pl_module.parameters()])

    def generous(self, trainer):
        running = self._state.running
        averaged = running.segment.averaged and running.is_complete(self._steps_run)
        return 1.0 if averaged else min(0.5, read(self, trainer))

    monkeypatch.setattr(Composer, "on_validation_start", look)
    monkeypatch.setattr(Composer, "_read_monitor", generous)
    return seen


def test_an_average_that_meets_the_target_does_not_reach_it(monkeypatch):
    generous_to_averages(monkeypatch)
    composer = fit("lr_policy=auto", "target=0.9", "lr_policy.repeats=0").verifier
    assert composer.forecasts[-1].value == 1.0
    assert (composer.verdict.status, composer.weights) == ("missed", None)
    assert composer.verdict.best_value == 0.5


def test_an_accepted_average_is_the_trained_model(monkeypatch, tmp_path):
    checked = generous_to_averages(monkeypatch)
    accepting = ("lr_policy=auto", "target=0.9", "lr_policy.repeats=0", "lr_policy.accept_average=true")
    parts = fit(*accepting)
    parts.trainer.save_checkpoint(tmp_path / "end.ckpt")
    composer = parts.verifier
    verdict = composer.verdict
    assert (verdict.status, verdict.best_value, composer.weights) == ("reached", 1.0, "averaged")
    assert "averaged weights" in verdict.message
    assert verdict.checks[-1] == composer.forecasts[-1]
    assert verdict.steps_to_target == verdict.steps_run == composer.records[-1]["spent"] + composer.records[-1]["steps"]
    model = list(parts.module.parameters())
    assert all(torch.equal(*pair) for pair in zip(model, checked[-1], strict=True))
    stored = torch.load(tmp_path / "end.ckpt", weights_only=False)
    assert all(torch.equal(*pair) for pair in zip(stored["state_dict"].values(), model, strict=False))

    resumed = build(compose([*BASE, *accepting]))
    resumed.trainer.fit(resumed.module, datamodule=resumed.data, ckpt_path=tmp_path / "end.ckpt")
    assert (resumed.verifier.verdict, resumed.verifier.weights) == (verdict, "averaged")
    assert all(torch.equal(*pair) for pair in zip(resumed.module.parameters(), checked[-1], strict=True))


def test_an_average_ends_where_training_went_back(monkeypatch):
    """The values fall after 700 steps, so that training returns to the best branch."""
    from lrbench_pl.callbacks.composer import LRPolicyComposer as Composer

    seen = []

    def read(self, trainer):
        t = self._steps_run
        average = self._average
        seen.append((self._state.running.policy_step(t), 0 if average is None else average.last_step))
        return 0.1 + 0.005 * (t // 20 % 2) if 700 <= t < 760 else min(0.6, 0.1 + t / 1200) + 1e-6 * t

    monkeypatch.setattr(Composer, "_read_monitor", read)
    composer = fit("lr_policy=auto", "target=1.0", "max_steps=1100", "check_every=20").verifier
    assert any("the values of the checks fell" in message for message in composer.avoided)
    steps = [step for step, _ in seen]
    assert any(after < before for before, after in itertools.pairwise(steps))
    assert any(last for _, last in seen)
    assert all(last <= step for step, last in seen)


@pytest.mark.parametrize("target", ["1.0", "null"])
def test_steps_after_the_last_check_are_not_trained(target):
    composer = fit("lr_policy=auto", f"target={target}", "max_steps=305", "lr_policy.repeats=0").verifier
    verdict = composer.verdict
    assert (verdict.status, verdict.steps_run) == ("missed", 300)
    assert composer.found.policy == composer.realised()
    assert "None" not in verdict.message


@pytest.mark.slow
def test_the_range_test_ends_between_two_checks(tmp_path):
    composer = fit("lr_policy=auto", "lr_policy.repeats=2", "target=1.0", "max_steps=700", "check_every=50").verifier
    kinds = [(record["kind"], record["policy_step"], record["steps"]) for record in composer.records]
    assert kinds[:2] == [("range", 0, 50), ("range", 0, 50)]
    assert kinds[2][:2] == ("stable", 0)
    composer = fit(
        "lr_policy=auto", "lr_policy.repeats=2", "target=1.0", "max_steps=2000", "check_every=80", "model=mlp"
    ).verifier
    assert [record["steps"] for record in composer.records[:2]] == [80, 80]
    composer = fit("lr_policy=auto", "lr_policy.repeats=2", "target=1.0", "max_steps=1100", "check_every=150").verifier
    assert [record["steps"] for record in composer.records[:2]] == [75, 75]
    assert composer.records[2]["spent"] == 150


class Save(pl.Callback):
    """Writes one checkpoint, after a step or at the end of the fit."""

    def __init__(self, path, step=None):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer, pl_module):
        if self.step is None:
            trainer.save_checkpoint(self.path)


def plain(path, *callbacks, steps=200, check_every=2, optimizer_lr=99.0, jumps_at=None, **arguments):
    """Compose in a plain Trainer, optionally from a checkpoint that Lightning loads with its defaults."""

    class Module(TinyModule):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + 1000.0 * (self.trainer.global_step == jumps_at)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=optimizer_lr)

    composer = LRPolicyComposer(**{"target": 2.0, "monitor": "val/score", "growth": 1.5, "repeats": 2, **arguments})
    trainer = tiny_trainer(composer, *callbacks, max_steps=steps, val_check_interval=check_every)
    trainer.fit(Module(), ckpt_path=path)
    return composer


@pytest.mark.filterwarnings("ignore:the training loader has no `position`")
class TestResumingInAPlainTrainer:
    @pytest.mark.slow
    def test_a_checkpoint_contains_plain_data_and_the_snapshots(self, tmp_path):
        plain(None, Save(tmp_path / "a.ckpt", 60), Save(tmp_path / "b.ckpt", 500), steps=700)
        for name, snapshots in (("a", {"start"}), ("b", {"start", "stable", "best"})):
            checkpoint = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
            (state,) = [kept for kept in checkpoint["callbacks"].values() if "composition" in kept]
            assert set(state["composition"]["snapshots"]) == snapshots

    def test_other_settings_are_refused_with_the_difference(self, tmp_path):
        plain(None, Save(tmp_path / "a.ckpt", 50))
        for other, change in (
            ({"growth": 2.0}, "growth: 1.5 -> 2.0"),
            ({"target": 3.0}, "target: 2.0 -> 3.0"),
            ({"steps": 300}, "max_steps: 200 -> 300"),
            ({"optimizer_lr": 9.0, "decay": "cosine"}, "decay: linear -> cosine; lr: 99.0 -> 9.0"),
        ):
            with pytest.raises(LRPolicyError) as refused:
                plain(tmp_path / "a.ckpt", **other)
            assert str(refused.value) == (
                f"the checkpoint contains a composition with other settings ({change}); use the same ones"
            )

    def test_another_plan_is_refused(self, tmp_path, monkeypatch):
        from lrbench_pl.composing import plan

        plain(None, Save(tmp_path / "a.ckpt", 100))
        monkeypatch.setattr(plan, "_PASS_STEPS", 10)
        with pytest.raises(
            LRPolicyError,
            match=r"segment 2 of the plan \(range, 10 steps from step 0\) differs from that of the checkpoint",
        ):
            plain(tmp_path / "a.ckpt")

    def test_a_checkpoint_without_a_composition_is_refused(self, tmp_path):
        tiny_trainer(Save(tmp_path / "a.ckpt", 4)).fit(TinyModule())
        with pytest.raises(LRPolicyError, match="contains no composition; start without the checkpoint"):
            plain(tmp_path / "a.ckpt")

    @pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
    def test_a_loss_that_jumped_before_the_checkpoint_is_remembered(self, tmp_path):
        """The running mean is low again at the checkpoint, but the segment has still diverged."""
        longer = {"check_every": 100, "optimizer_lr": 0.1}
        first = plain(None, Save(tmp_path / "a.ckpt", 95), jumps_at=3, **longer)
        again = plain(tmp_path / "a.ckpt", **longer)
        assert again.records[0]["why"] == first.records[0]["why"] == "diverged"

    @pytest.mark.parametrize(("steps", "target"), [(-1, 2.0), (60, 2.0), (-1, 0.1)])
    def test_a_finished_composition_stays_finished(self, tmp_path, steps, target):
        first = plain(None, Save(tmp_path / "a.ckpt"), steps=steps, target=target, max_steps=60)
        again = plain(tmp_path / "a.ckpt", steps=steps, target=target, max_steps=60)
        assert again.verdict == first.verdict
        assert again.verdict.status == ("missed" if target == 2.0 else "reached")
        assert again.forecasts == first.forecasts
        assert (again.records, again.found, again.realised()) == (first.records, first.found, first.realised())


@pytest.mark.slow
@pytest.mark.parametrize("check_every", [20, 50])  # the first pass ends between two checks, or at one
def test_the_second_pass_of_a_range_test_sees_other_batches(monkeypatch, check_every):
    step, batches = Classifier.training_step, []

    def training_step(self, batch, batch_idx):
        batches.append(self.trainer.train_dataloader.position - 1)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    fit("lr_policy=auto", "lr_policy.repeats=2", "target=1.0", "max_steps=700", f"check_every={check_every}")
    assert batches[:100] == list(range(100))
    assert batches[100:120] == list(range(20))


@pytest.mark.slow
def test_two_processes_compose_together(tmp_path):
    """All processes decide from the same numbers, so that they train the same segments."""
    words = [
        *(sys.executable, Path(__file__).resolve().parents[2] / "run.py"),
        *("trainer=ddp", "trainer.accelerator=cpu", "lr_policy=auto", "dataset=synthetic", "lr_policy.growth=1.5"),
        *("max_steps=300", "check_every=10", "monitor=val/loss", "mode=min", "target=1e-9"),
        f"hydra.run.dir={tmp_path}/run",
    ]
    done = forks.run(words, tmp_path, {**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads((tmp_path / "run" / "result.json").read_text())
    assert row["status"] == "missed"
    records = json.loads((tmp_path / "run" / "tuning.json").read_text())
    assert sum(record["kind"] == "branch" for record in records) > 1
    assert sum(record["steps"] for record in records) == row["steps_run"] == 300
