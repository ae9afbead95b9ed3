"""A model, a data set and a whole workload of a user's own, as docs/own-model-and-data.md describes them."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.helpers import blobs


class TwoClouds(pl.LightningDataModule):
    """Any LightningDataModule will do."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(blobs(640), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(blobs(64, seed=1), 64)


class Linear(nn.Module):
    """Any nn.Module that maps a batch to logits will do."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(x)
        return logits


class Regression(pl.LightningModule):
    """A whole workload: its own loss, its own optimizer, its own metric."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.lr = lr

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return (self.layer(x).squeeze(1) - y).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/error", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
