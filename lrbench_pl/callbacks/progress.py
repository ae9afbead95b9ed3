"""Progress of a training: a bar on a terminal, a few lines of text elsewhere."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from pytorch_lightning import Callback
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_LINES = 5  # lines per training


class StepProgressBar(TQDMProgressBar):
    """Progress bar of the training, with the rate and the last check.

    Args:
        monitor: The metric to show.
    """

    def __init__(self, monitor: str) -> None:
        super().__init__(refresh_rate=10)
        self._monitor = monitor

    def init_train_tqdm(self) -> Tqdm:
        """Return the bar of optimizer steps."""
        bar = super().init_train_tqdm()
        bar.leave = False
        return bar

    def init_validation_tqdm(self) -> Tqdm:
        """Return no bar: checks are short and frequent."""
        return Tqdm(disable=True)

    def init_test_tqdm(self) -> Tqdm:
        """Return no bar."""
        return Tqdm(disable=True)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Set the name of the bar."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("steps")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the rate and the last check."""
        return _shown(trainer, self._monitor)


class ProgressLines(Callback):
    """Prints a line about five times per training, for logs and pipes.

    A line has the range of the rates since the line before: a single one would always be the same if the lines are as
    far apart as the policy's period.

    Args:
        monitor: The metric to print.
    """

    def __init__(self, monitor: str) -> None:
        self._monitor = monitor
        self._next = 0  # step from which the next line is due
        self._low, self._high = math.inf, -math.inf  # of the rates since the last line

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the step of the first line."""
        self._next = trainer.max_steps // _LINES
        self._low, self._high = math.inf, -math.inf

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Note the rate of the step."""
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        if isinstance(lr, float):  # reading a tensor could wait for the device
            self._low, self._high = min(self._low, lr), max(self._high, lr)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print a line if it is due."""
        if trainer.is_global_zero and trainer.max_steps > 0 and self._next <= trainer.global_step < trainer.max_steps:
            self._next = trainer.global_step + trainer.max_steps // _LINES
            shown = _shown(trainer, self._monitor)
            low, high = f"{self._low:.3g}", f"{self._high:.3g}"
            if self._low <= self._high and low != high:
                shown["lr"] = f"{low} to {high}"
            self._low, self._high = math.inf, -math.inf
            metrics = ", ".join(f"{name} {value}" for name, value in shown.items())
            print(f"  step {trainer.global_step} of {trainer.max_steps}: {metrics}", flush=True)


def progress(monitor: str) -> Callback:
    """Return the progress bar on a terminal, the lines elsewhere."""
    return StepProgressBar(monitor) if sys.stdout.isatty() else ProgressLines(monitor)


def _shown(trainer: Trainer, monitor: str) -> dict[str, str]:
    shown = {"lr": f"{trainer.optimizers[0].param_groups[0]['lr']:.3g}"}
    if monitor in trainer.callback_metrics:
        shown[monitor] = f"{float(trainer.callback_metrics[monitor]):.4f}"
    return shown
