"""The range test as a training of its own: what ``lr_policy=range`` runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from lrbench_pl.callbacks.lr_policy import LRPolicyCallback, LRPolicyError
from lrbench_pl.composing.range_test import Sweep, analyse
from lrbench_pl.verdict import Mode

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class LRRangeTest(LRPolicyCallback):
    """Lets the rate rise exponentially over a training and keeps the loss of each step.

    Args:
        lr: The middle of the rates, on a logarithmic scale.
        steps: Optimizer steps.
        span: The rates go from ``lr / span`` to ``lr * span``; above 1.
        monitor: Name under which the module logs the metric in validation.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.

    Attributes:
        losses: Training loss of each step.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> round(LRRangeTest(lr=0.1, steps=100).policy(99), 6)
        10.0
    """

    def __init__(
        self, lr: float, steps: int, span: float = 100.0, monitor: str = "val/accuracy", mode: Mode = "max"
    ) -> None:
        self._sweep = Sweep(lr / span, lr * span, steps)
        super().__init__(self._sweep, None, monitor, mode)

    def _reset(self) -> None:
        super()._reset()
        self.losses: list[float] = []
        self._loss: torch.Tensor | None = None  # the last one since the last step
        self._seen_step = 0  # the last step that was looked at

    @property
    def records(self) -> list[dict[str, Any]]:
        """One entry: the losses, and what they say of the rates."""
        losses = [loss if math.isfinite(loss) else None for loss in self.losses]  # JSON knows no NaN
        record: dict[str, Any] = {"kind": "range", "losses": losses}
        try:
            found = analyse(self._sweep, [self.losses])
        except ValueError as error:
            return [{**record, "why": str(error)}]
        usable = {name: getattr(found, name) for name in ("low", "high", "peak", "diverged_at")}
        return [{**record, **usable}]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss of each step."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, torch.Tensor):
            self._loss = loss.detach()
        missing = self._steps_run - len(self.losses)
        if not missing or self._steps_run == self._seen_step:  # more batches to this step
            return
        loss, self._loss, self._seen_step = self._loss, None, self._steps_run
        if loss is not None:  # a step without one takes that of the next
            number = float(trainer.strategy.reduce(loss, reduce_op="mean"))
            self.losses += [number * trainer.accumulate_grad_batches] * missing  # Lightning hands out a batch's share
        elif not pl_module.automatic_optimization:
            raise LRPolicyError(
                "a range test judges rates by the training loss, but training_step took a step and returned none; "
                "return the loss from training_step, also with manual optimization"
            )

    def state_dict(self) -> dict[str, Any]:
        """What cannot be computed again, the losses too."""
        return {**super().state_dict(), "losses": list(self.losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        super().load_state_dict(state_dict)
        self.losses = list(state_dict["losses"])
