"""The composer with modules and losses of every kind."""

import json
import math

import pytest
import pytorch_lightning as pl
import torch

from lrbench_pl.callbacks import composer_request
from lrbench_pl.callbacks.composer import LRPolicyComposer
from lrbench_pl.callbacks.lr_policy import LRPolicyError
from lrbench_pl.callbacks.lr_range_test import LRRangeTest
from lrbench_pl.policies import table
from tests.helpers import TinyModule, blobs, tiny_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:the training loader has no `position`"),
    pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`"),
    pytest.mark.filterwarnings("ignore:.*never checked in"),
]


class Module(TinyModule):
    """Module with a given accuracy, so that no decision depends on the course of its training.

    Args:
        offset: Added to the loss.
        limit: The loss is NaN where the rate is above it.
        silent: Which batches, by their number, return no loss.
        optimizer: The optimizer.
    """

    def __init__(self, offset=0.0, limit=math.inf, silent=lambda batch: False, optimizer=torch.optim.SGD):
        super().__init__()
        self.offset, self.limit, self.silent, self.optimizer = offset, limit, silent, optimizer

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx) + self.offset
        if self.optimizers().param_groups[0]["lr"] > self.limit:
            loss = loss * math.nan
        return None if self.silent(self.batches_seen - 1) else loss

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", 0.1 + 1e-6 * self.trainer.global_step)  # never identical: training does not restart

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=0.05)


class Manual(Module):
    def __init__(self, returns=True, optimizers=1):
        super().__init__()
        self.automatic_optimization = False
        self.returns, self.count = returns, optimizers

    def training_step(self, batch, batch_idx):
        loss = TinyModule.training_step(self, batch, batch_idx)
        for optimizer in [self.optimizers()] if self.count == 1 else self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(loss, retain_graph=True)
            optimizer.step()
        return loss if self.returns else None

    def configure_optimizers(self):
        return [torch.optim.SGD([parameter], lr=0.05) for parameter in list(self.parameters())[: self.count]]


def compose(module, steps=400, check_every=10, trainer_class=pl.Trainer, budget=None, **arguments):
    composer = LRPolicyComposer(**{"target": 0.9, "max_steps": steps, "repeats": 2, **arguments})
    trainer = tiny_trainer(
        composer, max_steps=budget or steps, val_check_interval=check_every, trainer_class=trainer_class
    )
    trainer.fit(module)
    return composer


def decisions(composer):
    return [(record["kind"], record["policy_step"], record["steps"], record["rates"]) for record in composer.records]


@pytest.mark.parametrize("repeats", [0, 2])
def test_a_manual_training_that_hides_its_loss_is_refused_at_its_first_step(repeats):
    module = Manual(returns=False)
    with pytest.raises(LRPolicyError, match="took a step and returned none; return the loss from training_step"):
        compose(module, steps=800, repeats=repeats)
    assert module.batches_seen == 1


def test_a_manual_range_test_that_hides_its_loss_is_refused_too():
    module = Manual(returns=False)
    with pytest.raises(LRPolicyError, match="a range test needs the training loss"):
        tiny_trainer(LRRangeTest(lr=0.1, steps=10)).fit(module)
    assert module.batches_seen == 1


@pytest.mark.slow
def test_a_manual_training_that_returns_its_loss_composes_as_an_automatic_one():
    manual, automatic = compose(Manual(), steps=800), compose(Module(), steps=800)
    assert [record[:3] for record in decisions(manual)][:3] == [("range", 0, 50), ("range", 0, 50), ("stable", 0, 40)]
    assert [record[:3] for record in decisions(manual)][:3] == [record[:3] for record in decisions(automatic)][:3]


def test_segments_count_the_steps_of_the_driven_optimizer():
    """Lightning counts the steps of both."""
    composer = compose(Manual(optimizers=2), steps=400, budget=800, optimizer_index=1, repeats=0)
    assert composer.verdict.steps_run == sum(record["steps"] for record in composer.records) == 400


@pytest.mark.slow
@pytest.mark.parametrize("silent", [lambda batch: batch % 3 == 0, lambda batch: batch % 50 >= 45])
def test_a_batch_without_a_loss_is_a_step_of_the_range_test_too(silent):
    composer = compose(Module(silent=silent), steps=800)
    assert [record[:3] for record in decisions(composer)][:3] == [("range", 0, 50), ("range", 0, 50), ("stable", 0, 40)]
    assert composer.verdict.status == "missed"


def test_each_loss_of_a_range_test_is_at_its_own_step():
    test = LRRangeTest(lr=0.1, steps=12)
    module = Module(silent=lambda batch: batch in (0, 4, 5))
    tiny_trainer(test, max_steps=12).fit(module)
    whole = LRRangeTest(lr=0.1, steps=12)
    tiny_trainer(whole, max_steps=12).fit(Module())
    assert len(test.losses) == len(whole.losses) == 12
    assert test.losses[0] == test.losses[1]  # a missing loss is that of the next step
    assert test.losses[4] == test.losses[5] == test.losses[6]


def test_a_training_that_never_returns_a_loss_is_refused_after_the_first_pass():
    module = Module(silent=lambda batch: True)
    with pytest.raises(LRPolicyError, match=r"training_step returned none in 50 steps; return it, or leave out"):
        compose(module, steps=800)
    assert module.batches_seen == 50


@pytest.mark.slow
@pytest.mark.parametrize("offset", [-5.0, -0.5, 100.0])
def test_a_shift_of_the_loss_changes_no_decision(offset):
    plain, shifted = compose(Module(), steps=800), compose(Module(offset=offset), steps=800)
    assert decisions(shifted) == decisions(plain)
    assert shifted.verdict.message == plain.verdict.message


def test_a_validation_that_does_not_measure_the_monitor_ends_no_segment():
    class Sometimes(Module):
        validations = 0

        def validation_step(self, batch, batch_idx):
            if batch_idx == 0:
                self.validations += 1
            if self.validations % 2 == 0:  # the sanity check was the first
                super().validation_step(batch, batch_idx)

    composer = compose(Sometimes(), steps=200, repeats=0, average=0.0)
    assert composer.verdict.checks
    assert all(math.isfinite(check.value) for check in composer.verdict.checks)
    assert {check.step % 20 for check in composer.verdict.checks} == {10}


def test_what_was_avoided_is_recorded_and_reported(tmp_path):
    composer = compose(Module(limit=0.02), steps=300, repeats=0)
    assert composer.avoided == [
        "stable phase at 0.05: diverged after policy step 0",
        "stable phase at 0.025: diverged after policy step 0",
    ]
    assert [record["avoided"] for record in composer.records[:3]] == [[message] for message in composer.avoided] + [[]]
    assert composer.avoided == composer.found.avoided
    assert composer.verdict.message.endswith(f"; avoided: {'; '.join(composer.avoided)}")
    assert json.loads(json.dumps(composer.records)) == composer.records


def test_many_that_were_avoided_are_counted_in_the_message():
    composer = compose(Module(limit=0.002), steps=300, repeats=0)
    assert len(composer.avoided) > 4
    assert composer.verdict.message.endswith(f"{composer.avoided[2]}; {len(composer.avoided) - 3} more")


def test_a_reached_target_reports_what_was_avoided():
    class Late(Module):
        def validation_step(self, batch, batch_idx):
            self.log("val/accuracy", 0.95 if self.trainer.global_step >= 60 else 0.1)

    composer = compose(Late(limit=0.02), steps=300, repeats=0)
    assert composer.verdict.status == "reached"
    assert "avoided: stable phase at 0.05" in composer.verdict.message


def test_a_second_fit_starts_from_the_beginning():
    class Good(Module):
        def validation_step(self, batch, batch_idx):
            self.log("val/accuracy", 0.95)

    composer = LRPolicyComposer(target=0.9, repeats=0)
    tiny_trainer(composer, max_steps=80).fit(Good())
    assert composer.verdict.status == "reached"
    tiny_trainer(composer, max_steps=80).fit(Module(limit=0.02))
    fresh = LRPolicyComposer(target=0.9, repeats=0)
    tiny_trainer(fresh, max_steps=80).fit(Module(limit=0.02))
    assert composer.verdict.status == "missed"
    assert (decisions(composer), composer.avoided) == (decisions(fresh), fresh.avoided)
    assert composer.verdict.steps_run == fresh.verdict.steps_run == 80


@pytest.mark.parametrize("batches", [8, 10])
def test_going_back_in_mid_accumulation_leaves_no_gradient_of_the_abandoned_segment(batches):
    from torch.utils.data import DataLoader

    from tests.helpers import blobs

    class Data(Module):
        def train_dataloader(self):
            return DataLoader(blobs(8 * batches), batch_size=8)

    composer = LRPolicyComposer(target=0.9, repeats=0)
    module = Data(limit=0.02)
    trainer = tiny_trainer(composer, max_steps=60, val_check_interval=8, accumulate_grad_batches=4)
    trainer.fit(module)
    assert [record["why"] for record in composer.records[:2]] == ["diverged", "diverged"]
    assert [record["rates"][-1] for record in composer.records if record["why"] == "diverged"] == [0.05, 0.025]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())


@pytest.mark.slow
def test_a_pass_whose_steps_are_all_skipped_ends():
    """A GradScaler skips every step once the weights are not finite, and a skipped step does not count."""

    class Skips(Module):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            loss = optimizer_closure()
            if bool(torch.isfinite(loss)):
                optimizer.optimizer.step()

    composer = compose(Skips(limit=0.5), steps=800)
    passes = [record for record in composer.records if record["kind"] == "range"]
    assert [record["steps"] for record in passes] == [37, 37]  # the rate is above 0.5 from step 37 of 50 on
    assert composer.avoided[0] == "rates of 0.524 and above: the range test diverged"
    assert composer.verdict.status == "missed"


@pytest.mark.parametrize(
    ("optimizer", "rules"),
    [(torch.optim.SGD, "holding"), (torch.optim.AdamW, "comparison"), (torch.optim.RMSprop, "comparison")],
)
def test_the_rules_on_a_long_budget_depend_on_the_optimizer(optimizer, rules):
    composer = compose(Module(optimizer=optimizer), steps=1100, budget=130, repeats=None)
    assert composer._state.request["rules"] == rules
    assert composer.records[0]["kind"] == "stable"


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("stored", [{}, {"is_adaptive": False}])
def test_a_checkpoint_from_when_a_long_budget_began_with_a_range_test_resumes(tmp_path, monkeypatch, stored):
    """Such a checkpoint does not say by which rules it was planned, and its plan is kept."""
    path, steps = tmp_path / "a.ckpt", 1100
    trainer = tiny_trainer(LRPolicyComposer(target=0.9, max_steps=steps), max_steps=130, val_check_interval=10)
    with monkeypatch.context() as then:
        then.setattr(composer_request, "rules_for", lambda *given: "range test")
        trainer.fit(Module(optimizer=torch.optim.SGD))
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path)
    (request,) = [each["composition"]["request"] for each in checkpoint["callbacks"].values() if "composition" in each]
    del request["rules"]
    request.update(stored)
    torch.save(checkpoint, path)

    second = LRPolicyComposer(target=0.9, max_steps=steps)
    tiny_trainer(second, max_steps=160, val_check_interval=10).fit(Module(optimizer=torch.optim.SGD), ckpt_path=path)
    assert second.verdict.steps_run == 160
    assert [record["kind"] for record in second.records][:3] == ["range", "range", "stable"]


# -- checks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        pytest.param({"limit_val_batches": 0}, {}, "this fit runs no validation; give the Trainer", id="no-validation"),
        pytest.param({"val_check_interval": "00:00:01:00"}, {}, "val_check_interval to a number of batches", id="time"),
        pytest.param({}, {"optimizer_index": 1}, "the steps of all 2 optimizers; give max_steps", id="optimizers"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*val_check_interval")
def test_composing_is_refused_where_steps_or_checks_cannot_be_counted(arguments, given, message):
    module = Manual(optimizers=2) if given else Module()
    with pytest.raises(LRPolicyError, match=message):
        tiny_trainer(LRPolicyComposer(**given), max_steps=200, **arguments).fit(module)
    assert module.batches_seen == 0


@pytest.mark.parametrize(("accumulate", "epochs", "steps"), [(8, 4, 8), (4, 2, 6), (5, 3, 6), (1, 1, 10), (3, 1, 4)])
def test_an_epoch_ends_with_a_step_of_fewer_batches(accumulate, epochs, steps):
    """An epoch has ten batches."""
    seen = []

    class Ten(Module):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(blobs(40), batch_size=4)

        def on_validation_start(self):
            if not self.trainer.sanity_checking:
                seen.append(self.trainer.global_step)

    composer = LRPolicyComposer(0.9, max_steps=80, repeats=0)
    arguments = {"val_check_interval": 1.0, "check_val_every_n_epoch": epochs, "accumulate_grad_batches": accumulate}
    tiny_trainer(composer, max_steps=80, **arguments).fit(Ten())
    assert seen[0] == composer._state.request["steps between checks"] == steps


def test_the_rate_after_a_check_in_mid_accumulation_is_that_of_the_next_segment():
    """The first batches of the step have run at the end of the segment before."""
    applied = []

    class Noting(Module):
        def optimizer_step(self, epoch, batch_idx, optimizer, closure):
            super().optimizer_step(epoch, batch_idx, optimizer, closure)
            applied.append(optimizer.param_groups[0]["lr"])

        def train_dataloader(self):
            return torch.utils.data.DataLoader(blobs(40), batch_size=4)

    composer = LRPolicyComposer(0.9, max_steps=60, repeats=0)
    arguments = {"val_check_interval": 0.5, "check_val_every_n_epoch": 1, "accumulate_grad_batches": 4}
    tiny_trainer(composer, max_steps=60, **arguments).fit(Noting())
    kept = table(composer.policy.realised(), composer.policy_step)
    assert len(kept) > 20
    assert applied[: len(kept)] == pytest.approx(kept)
