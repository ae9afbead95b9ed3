"""Everything that a step can change is restored; the rest is refused by name."""

import importlib
import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lrbench_pl.callbacks.composer import LRPolicyComposer
from lrbench_pl.callbacks.lr_policy import LRPolicyError
from lrbench_pl.composing.snapshot import ChangedModuleError, Snapshot
from tests.helpers import TinyModule, tiny_trainer

PACKAGES = ["pytorch_lightning", "lightning.pytorch"]


class GoesBack(pl.Callback):
    """Takes a snapshot after a batch, restores it after a later one, and records the state.

    Args:
        look: Called with Trainer and module when the snapshot is taken, before going back, and after.
        take: Batches before the snapshot.
        back: Batches before going back.
        gradients: As in the snapshot.
    """

    def __init__(self, look, take=4, back=6, gradients=True, spoil=lambda trainer, module: None):
        self.look, self.take, self.back, self.gradients, self.spoil = look, take, back, gradients, spoil
        self.seen = []
        self.batches = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1
        if self.batches == self.take:
            self.snapshot = Snapshot(trainer, pl_module, lambda callback: callback is self, self.gradients)
            self.seen.append(self.look(trainer, pl_module))
        elif self.batches == self.back:
            self.spoil(trainer, pl_module)
            self.seen.append(self.look(trainer, pl_module))
            self.snapshot.restore(trainer, pl_module)
            self.seen.append(self.look(trainer, pl_module))


def gone_back(look, *callbacks, module=None, trainer_class=pl.Trainer, accumulate=1, **arguments):
    """Return the state at the snapshot, just before the restore, and after it."""
    goes_back = GoesBack(look, **arguments)
    trainer = tiny_trainer(
        *callbacks,
        goes_back,
        trainer_class=trainer_class,
        max_steps=10,
        val_check_interval=8,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=any(type(callback).__name__ == "ModelCheckpoint" for callback in callbacks),
    )
    trainer.fit(module or TinyModule())
    taken, before, after = goes_back.seen
    return taken, before, after


class Small(TinyModule):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def gradients(trainer, module):
    return {name: None if p.grad is None else p.grad.tolist() for name, p in module.named_parameters()}


def test_pending_gradients_go_back():
    taken, before, after = gone_back(gradients, take=6, back=7, accumulate=4, module=Small())
    assert taken != before
    assert after == taken


def test_without_pending_gradients_there_are_none_after_a_restore():
    _, before, after = gone_back(gradients, take=4, back=7, accumulate=4, gradients=False, module=Small())
    assert any(gradient is not None for gradient in before.values())
    assert set(after.values()) == {None}


class Grows(Small):
    """Trains its bias later, in a separate group."""

    def configure_optimizers(self):
        self.layer.bias.requires_grad_(False)
        return torch.optim.SGD([self.layer.weight], lr=0.01, momentum=0.9)

    def on_train_batch_start(self, batch, batch_idx):
        if self.trainer.global_step == 5 and len(self.trainer.optimizers[0].param_groups) == 1:
            self.layer.bias.requires_grad_(True)
            self.trainer.optimizers[0].add_param_group({"params": [self.layer.bias]})


def groups(trainer, module):
    (optimizer,) = trainer.optimizers
    trained = [len(group["params"]) for group in optimizer.param_groups]
    return trained, [p.requires_grad for p in module.parameters()], len(optimizer.state)


def test_groups_that_were_added_go_and_what_was_frozen_is_frozen_again():
    taken, before, after = gone_back(groups, module=Grows())
    assert before == ([1, 1], [True, True], 2)
    assert after == taken == ([1], [True, False], 1)


def test_groups_that_were_taken_away_come_back():
    def spoil(trainer, module):
        del trainer.optimizers[0].param_groups[1:]

    taken, before, after = gone_back(groups, take=7, back=8, module=Grows(), spoil=spoil)
    assert before[0] == [1]
    assert after == taken == ([1, 1], [True, True], 2)


@pytest.mark.filterwarnings("ignore:the training loader has no `position`")
def test_a_composition_continues_when_a_group_was_added():
    class Diverges(Grows):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * math.nan if self.optimizers().param_groups[0]["lr"] > 0.004 else loss

    composer = LRPolicyComposer(target=1.0, repeats=0)
    trainer = tiny_trainer(composer, max_steps=60, val_check_interval=10)
    trainer.fit(module := Diverges())
    assert composer.avoided
    assert composer.verdict.steps_run == 60
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())


@pytest.mark.parametrize("package", PACKAGES)
def test_an_averaged_model_goes_back(package):
    package = pytest.importorskip(package)
    if not hasattr(package.callbacks, "EMAWeightAveraging"):
        pytest.skip("came with Lightning 2.6")
    average = package.callbacks.EMAWeightAveraging(decay=0.5)

    def look(trainer, module):
        return [p.tolist() for p in average._average_model.parameters()], int(average._average_model.n_averaged)

    taken, before, after = gone_back(look, average, trainer_class=package.Trainer, module=module_of(package)())
    assert taken != before
    assert after == taken


def module_of(package):
    """A module of either package."""

    body = {
        name: value for name, value in vars(TinyModule).items() if name not in ("__init__", "__doc__", "__module__")
    }

    def init(self):
        package.LightningModule.__init__(self)
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2)
        self.values = self.nan_from = None
        self.rates, self.batches_seen = [], 0

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        package.LightningModule.optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure)

    return type("Module", (package.LightningModule,), {**body, "__init__": init, "optimizer_step": optimizer_step})


class Shadow(pl.Callback):
    """Average of the weights in a dict of tensors, filled at the first step that it sees."""

    def __init__(self, since=1):
        self.since = since
        self.shadow = {}
        self.newest = None
        self.history = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step >= self.since:
            self.newest = pl_module.layer.bias.detach().clone()
            self.history.append(self.newest)
            for name, parameter in pl_module.named_parameters():
                if name in self.shadow:
                    self.shadow[name].lerp_(parameter.detach(), 0.5)
                else:
                    self.shadow[name] = parameter.detach().clone()


@pytest.mark.parametrize("since", [1, 5])
def test_tensors_that_a_callback_holds_go_back(since):
    shadow = Shadow(since)

    def look(trainer, module):
        newest = None if shadow.newest is None else shadow.newest.tolist()
        return {name: t.tolist() for name, t in shadow.shadow.items()}, newest, len(shadow.history)

    taken, before, after = gone_back(look, shadow)
    assert taken != before
    assert after == taken


def test_tensors_that_the_module_holds_beside_its_buffers_go_back():
    class Holds(Small):
        def __init__(self):
            super().__init__()
            self.total = torch.zeros(())
            self.alias = [self.layer.weight]

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.total = self.total + loss.detach()
            return loss

    taken, before, after = gone_back(lambda trainer, module: float(module.total), module=(module := Holds()))
    assert taken != before
    assert after == taken
    assert module.alias[0] is module.layer.weight


def test_a_scheduler_of_another_optimizer_goes_back():
    class Two(TinyModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()
            self.lr_schedulers().step()

        def optimizer_step(self, *arguments):
            raise AssertionError

        def configure_optimizers(self):
            first, second = (torch.optim.SGD([p], lr=0.1) for p in self.parameters())
            return [first, second], [torch.optim.lr_scheduler.StepLR(second, 1, 0.5)]

    def look(trainer, module):
        return trainer.lr_scheduler_configs[0].scheduler.last_epoch, trainer.optimizers[1].param_groups[0]["lr"]

    taken, before, after = gone_back(look, module=Two(), take=2, back=4)
    assert taken != before
    assert after == taken


@pytest.mark.parametrize("package", PACKAGES)
def test_checkpoints_and_timers_are_not_restored(package, tmp_path):
    """Files stay, and time does not go back."""
    package = pytest.importorskip(package)
    files = package.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    timer = package.callbacks.Timer(duration="00:01:00:00")

    def look(trainer, module):
        return files.best_model_path, timer._offset

    taken, before, after = gone_back(look, files, timer, trainer_class=package.Trainer, module=module_of(package)())
    assert taken != before
    assert after == before


def test_a_snapshot_is_plain_data(tmp_path):
    average = Shadow()
    goes_back = GoesBack(lambda trainer, module: None)
    tiny_trainer(average, goes_back, max_steps=10, val_check_interval=8).fit(Grows())
    torch.save(goes_back.snapshot.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    assert Snapshot.from_state_dict(state).state_dict().keys() == goes_back.snapshot.state_dict().keys()


def test_a_module_with_other_parameters_is_refused_by_name():
    def spoil(trainer, module):
        module.late = nn.Linear(1, 1, bias=False)

    with pytest.raises(ChangedModuleError, match=r"cannot go back: 'late\.weight' was added to the module or removed"):
        gone_back(lambda trainer, module: None, spoil=spoil)


def refused(*callbacks, module=None, trainer_class=pl.Trainer):
    module = module or Small()
    composer = LRPolicyComposer(target=1.0, repeats=0)
    with pytest.raises(LRPolicyError) as error:
        tiny_trainer(composer, *callbacks, trainer_class=trainer_class).fit(module)
    assert module.batches_seen == 0
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("package", PACKAGES)
def test_callbacks_whose_changes_cannot_be_undone_are_refused_before_the_first_step(package):
    package = pytest.importorskip(package)
    callbacks = importlib.import_module(f"{package.__name__}.callbacks")

    class Unfreezes(callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module):
            pass

        def finetune_function(self, pl_module, epoch, optimizer):
            pass

    assert "but Unfreezes changes the trained parameters at an epoch" in refused(
        Unfreezes(), module=module_of(package)(), trainer_class=package.Trainer
    )
    assert "but ModelPruning replaces parameters of the module" in refused(
        callbacks.ModelPruning("l1_unstructured", amount=0.1),
        module=module_of(package)(),
        trainer_class=package.Trainer,
    )


def test_a_trained_tensor_that_is_not_a_parameter_is_refused():
    class Loose(Small):
        def configure_optimizers(self):
            self.loose = torch.zeros(3, 2, requires_grad=True)
            return torch.optim.SGD([self.layer.weight, self.loose], lr=0.1)

    assert "optimizer 0 trains a tensor of shape (3, 2) that is not a parameter" in refused(module=Loose())
