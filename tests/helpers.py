"""A module as small as Lightning allows, on data that it can learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def blobs(n: int = 64, seed: int = 0) -> TensorDataset:
    """Two separable clouds: x is (n, 4), y is (n,) in {0, 1}."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 4, generator=generator) + 3.0 * (y[:, None] - 0.5)
    return TensorDataset(x, y)


class TinyModule(pl.LightningModule):
    """A linear classifier that notes the rate of every optimizer step it takes.

    Args:
        values: What the checks report instead of the real accuracy, in order.
        nan_from: From this batch on the loss is NaN.
    """

    def __init__(self, values: Sequence[float] | None = None, nan_from: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2)
        self.values = None if values is None else list(values)
        self.nan_from = nan_from
        self.rates: list[list[float]] = []
        self.batches_seen = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.layer(x), y)
        self.batches_seen += 1
        if self.nan_from is not None and batch_idx >= self.nan_from:
            loss = loss * float("nan")
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        self.rates.append([float(group["lr"]) for group in optimizer.param_groups])
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        accuracy = (self.layer(x).argmax(1) == y).float().mean()
        self.log("val/accuracy", accuracy, sync_dist=True)
        self.log("val/score", accuracy, sync_dist=True)  # a name that allows a target above 1

    def on_validation_epoch_end(self) -> None:
        if self.values is not None and not self.trainer.sanity_checking:
            self.log("val/given", self.values.pop(0))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=99.0)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(blobs(), batch_size=8)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(blobs(32, seed=1), batch_size=32)


def tiny_trainer(*callbacks: Any, trainer_class: Any = pl.Trainer, **arguments: Any) -> Any:
    """A quiet CPU Trainer of 10 steps with a check every 2, unless told otherwise."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 10,
        "max_epochs": -1,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return trainer_class(callbacks=list(callbacks), **{**defaults, **arguments})


def script(monkeypatch: Any, value: Callable[[int], float]) -> str:
    """Let every ``Classifier`` log ``val/given``: a metric that is a formula of the steps taken, whatever it learns."""
    from lrbench_pl.workloads.classifier import Classifier

    def log(self: Any) -> None:
        self.log("val/given", value(self.trainer.global_step))

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", log)
    return "monitor=val/given"


def explode(monkeypatch: Any, above: float) -> None:
    """Let the loss of every ``Classifier`` jump at each step whose rate is above a limit."""
    from lrbench_pl.workloads.classifier import Classifier

    step = Classifier.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        return step(self, batch, batch_idx) * (1000.0 if rate > above else 1.0)

    monkeypatch.setattr(Classifier, "training_step", training_step)
