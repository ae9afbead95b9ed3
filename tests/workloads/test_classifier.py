"""The LightningModule: what it logs, how it groups parameters, and training that resumes to the last bit."""

import copy
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from torch import nn

from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
from lrbench_pl.policies import Cyclic
from lrbench_pl.workloads.classifier import Classifier
from lrbench_pl.workloads.data import TensorDataModule, synthetic
from lrbench_pl.workloads.module import group_parameters
from tests.helpers import tiny_trainer
from tests.workloads import numbered

SGD = partial(torch.optim.SGD, lr=99.0, momentum=0.9)
POLICY = Cyclic(base_lr=0.001, max_lr=0.05, period=8, wave="triangle")


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.0), nn.Linear(64, 3)
    )


def data(**changes):
    source = partial(synthetic, shape=(2, 6, 6), classes=3, train=53, test=20, noise=1.0)
    defaults = {"num_classes": 3, "input_shape": (2, 6, 6), "batch_size": 8, "validation": 13, "pad": 1, "flip": True}
    return TensorDataModule(source, **{**defaults, **changes})


class Memory(Logger):
    """Keeps what is logged."""

    name, version = "memory", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


class Watch(pl.Callback):
    """Keeps the batches that are trained on."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, module, batch, index):
        self.batches.append(batch)


def test_the_loss_is_logged_on_the_steps_that_the_trainer_logs():
    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            losses.append(outputs["loss"].item())

    logger, losses = Memory(), []
    trainer = tiny_trainer(Losses(), logger=logger, log_every_n_steps=4, limit_val_batches=0)
    trainer.fit(Classifier(net(), partial(torch.optim.SGD, lr=0.01), 3), data())
    logged = {step: row["train/loss"] for step, row in logger.rows if "train/loss" in row}
    assert logged == {3: losses[3], 7: losses[7]}


def test_a_check_counts_every_sample_once_whatever_the_batches():
    module, samples = numbered.module(), numbered.data(eval_batch_size=5)
    found = tiny_trainer().validate(module, samples.val_dataloader(), verbose=False)[0]
    images, labels = (torch.cat(parts) for parts in zip(*samples.val_dataloader(), strict=True))
    logits = module(images)
    assert found["val/accuracy"] == pytest.approx((logits.argmax(1) == labels).sum().item() / numbered.HELD_OUT)
    assert found["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)


def test_there_is_no_top5_among_five_classes():
    tested = tiny_trainer().test(Classifier(net(), SGD, 3), data(), verbose=False)[0]
    assert "test/accuracy" in tested
    assert "test/top5" not in tested


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_resumed_in_mid_epoch_is_the_unbroken_one_to_the_last_bit(tmp_path):
    """40 samples in batches of 8: step 7 lies within the second epoch."""

    def train(**arguments):
        checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=7, save_top_k=-1, filename="{step}")
        watch, module = Watch(), Classifier(net(), SGD, 3)
        trainer = tiny_trainer(
            LRPolicyCallback(POLICY), checkpoint, watch, max_steps=17, val_check_interval=5, enable_checkpointing=True
        )
        trainer.fit(module, datamodule=data(), **arguments)
        return trainer, module, watch.batches

    trainer, whole, batches = train()
    again, resumed, rest = train(ckpt_path=tmp_path / "step=7.ckpt", weights_only=False)
    assert trainer.global_step == again.global_step == 17
    assert len(rest) == 10
    for (x, y), (x2, y2) in zip(batches[7:], rest, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    first, second = whole.state_dict(), resumed.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert trainer.callback_metrics["val/loss"] == again.callback_metrics["val/loss"]


def test_a_branch_leaves_no_trace_once_its_snapshot_is_restored():
    class Branch(pl.Callback):
        """Train on from step 6 to step 12, then go back and on along the trunk."""

        def on_validation_end(self, trainer, module):
            loader = trainer.train_dataloader
            if trainer.global_step == 6:
                optimizer = trainer.optimizers[0]
                self.snapshot = copy.deepcopy((module.state_dict(), optimizer.state_dict())), loader.position
            elif trainer.global_step == 12:
                (weights, state), loader.position = self.snapshot
                module.load_state_dict(weights)
                trainer.optimizers[0].load_state_dict(state)

    def train(steps, *callbacks):
        module = Classifier(net(), partial(torch.optim.SGD, lr=0.05, momentum=0.9), 3)
        tiny_trainer(*callbacks, max_steps=steps, val_check_interval=6).fit(module, data())
        return module.state_dict()

    straight, branched = train(14), train(20, Branch())
    assert all(torch.equal(straight[name], branched[name]) for name in straight)


# -- parameters -----------------------------------------------------------------------------------------------


def test_groups_by_name_the_first_pattern_counts():
    model = nn.ModuleDict({"conv": nn.Conv2d(1, 2, 3), "head": nn.Linear(2, 3)})
    model["conv"].bias.requires_grad = False
    options = [{"params": "head.bias", "lr_scale": 3.0, "weight_decay": 0.0}, {"params": "head.*", "weight_decay": 1.0}]
    rest, bias, head = group_parameters(model, options)
    assert [len(group["params"]) for group in (rest, bias, head)] == [1, 1, 1]
    assert rest["params"][0] is model["conv"].weight
    assert (bias["params"][0] is model["head"].bias, bias["lr_scale"]) == (True, 3.0)
    assert (head["params"][0] is model["head"].weight, head["weight_decay"], "lr_scale" in head) == (True, 1.0, False)


def test_a_group_has_its_own_rate_in_training():
    module = Classifier(net(), SGD, 3, param_groups=[{"params": "*.bias", "lr_scale": 2.0}])
    rates = []

    class Rates(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append([group["lr"] for group in optimizer.param_groups])

    tiny_trainer(LRPolicyCallback(POLICY), Rates(), max_steps=3, limit_val_batches=0).fit(module, data())
    assert rates == [[POLICY(t), 2 * POLICY(t)] for t in range(3)]


@pytest.mark.parametrize("group", [{"params": "*.scale"}, {"lr_scale": 2.0}])
def test_a_pattern_that_takes_nothing_is_refused(group):
    with pytest.raises(ValueError, match=r"takes no parameter of the model; its names are weight, bias"):
        group_parameters(nn.Linear(1, 1), [group])


# -- what does not fit, and what only speeds up ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(72, 4)), "the model gives 4 classes, but the data set has 3"),
        (nn.Conv2d(2, 3, 3), r"the model gives output of shape \(1, 3, 4, 4\), but the data set has 3"),
        (nn.Conv2d(5, 3, 3), r"the model cannot take images of shape \(2, 6, 6\): .*expected input\[1, 2, 6, 6\]"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_that_does_not_fit_is_refused_before_it_trains(model, message, compiled):
    with pytest.raises(ValueError, match=message):
        tiny_trainer().fit(Classifier(model, SGD, 3, compile=compiled), data())


def test_the_look_at_a_model_leaves_it_as_it_was():
    model = net()
    before = copy.deepcopy(model.state_dict())
    module = Classifier(model, SGD, 3)
    tiny_trainer(max_steps=0).fit(module, data())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training


def test_channels_last_changes_the_layout_and_not_the_numbers():
    plain, fast = Classifier(net(), SGD, 3), Classifier(net(), SGD, 3, channels_last=True)
    kernel = fast.model[0].weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    images = torch.randn(4, 2, 6, 6)
    torch.testing.assert_close(plain(images), fast(images))
    seen = []
    fast.model[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].stride()))
    fast(images)
    assert seen == [images.contiguous(memory_format=torch.channels_last).stride()]


def test_channels_last_leaves_kernels_of_other_ranks_alone():
    volumes = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.LazyLinear(3))
    module = Classifier(volumes, SGD, 3, channels_last=True)
    assert module(torch.zeros(2, 1, 4, 4, 4)).shape == (2, 3)


def test_a_compiled_model_is_compiled():
    assert Classifier(net(), SGD, 3, compile=True).model._compiled_call_impl is not None
    assert Classifier(net(), SGD, 3).model._compiled_call_impl is None
