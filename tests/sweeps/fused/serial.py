"""Serial trainings to compare the engines with: each in a Trainer of its own, as a run trains it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
from lrbench_pl.sweeps.fused.engine import Replica
from lrbench_pl.workloads.classifier import Classifier
from lrbench_pl.workloads.data import TensorDataModule, digits, synthetic
from lrbench_pl.workloads.models import cifar_resnet, cnn3, lenet, mlp


def dropout_net(classes: int, shape: Sequence[int]) -> nn.Module:
    """A perceptron with dropout twice."""
    features = torch.Size(shape).numel()
    return nn.Sequential(
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(features, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, classes)
    )


def small_net(classes: int, shape: Sequence[int]) -> nn.Module:
    """A convolution, batch norm with ReLU, and a max pool."""
    conv = nn.Conv2d(shape[0], 4, 3, bias=False)
    return nn.Sequential(
        conv, nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, classes)
    )


class Branching(nn.Flatten):
    """A layer whose result depends on a decision of the host."""

    def forward(self, input: Tensor) -> Tensor:
        """Flatten, and double what is negative in all."""
        return super().forward(input) * (2 if float(input.sum()) < 0 else 1)


def branching_net(classes: int, shape: Sequence[int]) -> nn.Module:
    """A network that vmap cannot run."""
    return nn.Sequential(nn.Linear(shape[-1], 4), Branching(), nn.Linear(4 * shape[0] * shape[1], classes))


NETS: dict[str, tuple[Callable[..., nn.Module], tuple[int, int, int]]] = {
    "mlp": (mlp, (1, 8, 8)),
    "dropout": (dropout_net, (1, 8, 8)),
    "lenet": (lenet, (1, 16, 16)),
    "cnn3": (cnn3, (3, 8, 8)),
    "resnet": (partial(cifar_resnet, 8), (3, 8, 8)),
    "branching": (branching_net, (3, 8, 8)),
    "small": (small_net, (3, 8, 8)),
}


MOMENTUM = partial(torch.optim.SGD, lr=1.0, momentum=0.9)


@dataclass
class Case:
    """One network and how it is trained; ``jobs`` are (seed, peak) pairs."""

    net: str = "mlp"
    optimizer: Callable[..., torch.optim.Optimizer] = MOMENTUM
    settings: Sequence[dict[str, Any]] = ()  # of each job, beside those of the optimizer
    jobs: Sequence[tuple[int, float]] = ((0, 0.05), (0, 0.1), (1, 0.05), (1, 0.02))
    steps: int = 10
    precision: str = "32-true"
    param_groups: Sequence[dict[str, Any]] = ()
    augmented: bool = False
    batch: int = 16
    device: str = "cpu"
    datasets: dict[int, TensorDataModule] = field(default_factory=dict)

    def rates(self, peak: float) -> list[float]:
        """Return the rates of a job: no two steps are equal."""
        return [peak * (1 - 0.03 * step) for step in range(self.steps)]

    def data(self, seed: int) -> TensorDataModule:
        """Return the data of a seed, placed on the device."""
        if seed not in self.datasets:
            net = NETS[self.net]
            source: Any = digits
            if net[1] != (1, 8, 8):
                source = partial(synthetic, shape=net[1], classes=10, train=300, test=100, noise=1.0)
            data = TensorDataModule(
                source, 10, net[1], self.batch, seed, validation=60, mean=0.5, std=0.3,
                pad=2 if self.augmented else 0, flip=self.augmented,
            )  # fmt: skip
            data.trainer = self.trainer()  # which says where the data belong
            data.setup("fit")
            self.datasets[seed] = data
        return self.datasets[seed]

    def module(self, job: int) -> tuple[Classifier, Tensor]:
        """Return the module of a job as a run builds it, and the state of the random numbers after that."""
        seed = self.jobs[job][0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pl.seed_everything(seed, workers=True, verbose=False)
        make, shape = NETS[self.net]
        model = make(10, shape)
        settings = self.settings[job] if self.settings else {}
        module = Classifier(model, partial(self.optimizer, **settings), 10, self.param_groups, channels_last=True)
        return module, torch.get_rng_state()

    def trainer(self, *callbacks: pl.Callback) -> pl.Trainer:
        """Return a quiet Trainer."""
        return pl.Trainer(
            accelerator="gpu" if self.device == "cuda" else "cpu", devices=1, precision=self.precision,  # type: ignore[arg-type]
            max_steps=self.steps, max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=list(callbacks), val_check_interval=self.steps,
            check_val_every_n_epoch=None, num_sanity_val_steps=0, log_every_n_steps=1,
        )  # fmt: skip

    def serial(self, job: int) -> tuple[Classifier, dict[str, float], list[float]]:
        """Train a job alone; return its module, its last check and its losses."""
        seed, peak = self.jobs[job]
        module, _ = self.module(job)
        rates, watch = self.rates(peak), Losses()
        trainer = self.trainer(LRPolicyCallback(lambda step: rates[step]), watch)
        trainer.fit(module, datamodule=self.data(seed))
        checked = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        return module.cpu(), checked, watch.losses

    def replicas(self) -> tuple[list[Replica], list[Any], list[Any]]:
        """Return the jobs as an engine takes them, the training and the validation loaders of each stream."""
        seeds = sorted({seed for seed, _ in self.jobs})
        found = []
        for job, (seed, peak) in enumerate(self.jobs):
            module, state = self.module(job)
            found.append(Replica(module, self.rates(peak), seeds.index(seed), seed, state))
        loaders = [self.data(seed).train_dataloader() for seed in seeds]
        return found, loaders, [self.data(seed).val_dataloader() for seed in seeds]


class Losses(pl.Callback):
    """Records the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def weights(module: pl.LightningModule) -> Tensor:
    """Return all weights and buffers of a module's model as one vector."""
    state = module.model.state_dict()
    return torch.cat([tensor.detach().double().flatten().cpu() for tensor in state.values()])


def drift(found: Tensor, expected: Tensor) -> float:
    """Return the relative difference of two vectors."""
    return float((found - expected).norm() / expected.norm())


PLAIN_SGD = partial(torch.optim.SGD, lr=1.0)
CASES = {
    "mlp": Case(),
    "lenet": Case("lenet"),
    "cnn3": Case("cnn3"),
    "dropout": Case("dropout"),
    "groups": Case(
        optimizer=partial(PLAIN_SGD, momentum=0.9, weight_decay=5e-4),
        param_groups=[{"params": "*.bias", "lr_scale": 2.0, "weight_decay": 0.0}],
    ),
    "nesterov": Case(optimizer=partial(PLAIN_SGD, momentum=0.9, nesterov=True, weight_decay=1e-3)),
    "settings": Case(
        optimizer=PLAIN_SGD,
        settings=[{"momentum": 0.9}, {"momentum": 0.5, "weight_decay": 1e-3}, {}, {"weight_decay": 1e-2}],
    ),
}
