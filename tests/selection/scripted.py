"""A metric that says what a test needs, whatever the training learns."""

from __future__ import annotations

import pytorch_lightning as pl


class Scripted(pl.Callback):
    """Logs ``val/given``: the share of ``steps`` that have been taken."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log it at every check."""
        pl_module.log("val/given", min(1.0, trainer.global_step / self.steps))
