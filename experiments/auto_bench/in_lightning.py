"""A training of the bench as users have it: the callbacks in a Lightning Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from cases import HELD_OUT, OPTIMIZERS, Case, tensors
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lrbench_pl import LRPolicyCallback, LRPolicyComposer
from lrbench_pl.policies import Cyclic


class Batches(Iterator[tuple[Tensor, Tensor]]):
    """Endless batches, a function of seed and position."""

    def __init__(self, x: Tensor, y: Tensor, size: int, seed: int) -> None:
        self.position, self._x, self._y, self._size, self._seed = 0, x, y, min(size, len(x)), seed
        self._per_epoch, self._order = len(x) // self._size, (-1, torch.empty(0))

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        epoch, number = divmod(self.position, self._per_epoch)
        if self._order[0] != epoch:
            order = torch.randperm(len(self._x), generator=torch.Generator().manual_seed(1000 * self._seed + epoch))
            self._order = (epoch, order)
        chosen = self._order[1][number * self._size : (number + 1) * self._size]
        self.position += 1
        return self._x[chosen], self._y[chosen]


class Perceptron(pl.LightningModule):
    """Two hidden layers; classes by cross-entropy, numbers by the mean squared error."""

    def __init__(self, case: Case, inputs: int, classes: int | None) -> None:
        super().__init__()
        self.case, self.classes, width = case, classes, case.width
        self.net = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes or 1)
        )

    def _loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        out = self.net(batch[0])
        if self.classes is None:
            loss = functional.mse_loss(out.flatten(), batch[1])
            return loss, loss
        return functional.cross_entropy(out, batch[1]), (out.argmax(1) == batch[1]).float().mean()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return self._loss(batch)[0]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss of a regression, the accuracy of a classification."""
        name = "val/mse" if self.classes is None else "val/accuracy"
        self.log(name, self._loss(batch)[1], batch_size=len(batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The case's optimizer at its own rate."""
        kind, _, more = OPTIMIZERS[self.case.optimizer]
        return kind(self.parameters(), lr=self.case.rate, **more)


def fit(case: Case, seed: int, way: str, target: float | None, settings: Mapping[str, Any]) -> LRPolicyCallback:
    """Train once and return the callback that saw it."""
    x, y = tensors(case.data)
    classes = None if y.is_floating_point() else int(y.max()) + 1
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held = round(HELD_OUT * len(x))
    pl.seed_everything(seed, verbose=False)
    model = Perceptron(case, x.shape[1], classes)
    loader = Batches(x[order[held:]], y[order[held:]], case.batch, seed)
    checked = DataLoader(TensorDataset(x[order[:held]], y[order[:held]]), held)
    monitor = {"monitor": "val/mse" if classes is None else "val/accuracy", "mode": "max" if classes else "min"}
    callback: LRPolicyCallback
    if way == "auto":
        callback = LRPolicyComposer(target, max_steps=case.steps, **monitor, **settings)
    else:
        rate = case.rate
        callback = LRPolicyCallback(Cyclic(0.0, rate, case.steps, "half_cosine"), target, **monitor)
    trainer = pl.Trainer(
        max_steps=case.steps,
        val_check_interval=case.interval,
        check_val_every_n_epoch=None,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=0,
    )
    trainer.fit(model, loader, checked)
    return callback
