"""Learning-rate range test as a training: the callback of ``lr_policy=range``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lrbench_pl.callbacks.losses import loss_of, mean_losses
from lrbench_pl.callbacks.lr_policy import LRPolicyCallback, LRPolicyError
from lrbench_pl.composing.range_test import RateRamp, analyse
from lrbench_pl.verdict import Mode

if TYPE_CHECKING:
    import torch
    from pytorch_lightning import LightningModule, Trainer


class LRRangeTest(LRPolicyCallback):
    """Raises the rate exponentially and records the loss of each step.

    Args:
        lr: Centre of the rates, on a logarithmic scale.
        steps: Optimizer steps.
        span: The rates go from ``lr / span`` to ``lr * span``; above 1.
        monitor: Name under which the module logs the metric in validation.
        mode: ``max`` if larger values are better, ``min`` if smaller ones are.

    Attributes:
        losses: Training loss of each step.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> round(LRRangeTest(lr=0.1, steps=100).policy(99), 6)
        10.0
    """

    def __init__(
        self, lr: float, steps: int, span: float = 100.0, monitor: str = "val/accuracy", mode: Mode = "max"
    ) -> None:
        self._ramp = RateRamp(lr / span, lr * span, steps)
        super().__init__(self._ramp, None, monitor, mode)

    def _reset(self) -> None:
        super()._reset()
        self.losses: list[float] = []
        self._loss: torch.Tensor | None = None  # last loss since the last step
        self._seen_step = 0  # last step whose loss was recorded

    @property
    def records(self) -> list[dict[str, Any]]:
        """One record: the losses, and the usable rates or the reason why there are none."""
        losses = [loss if math.isfinite(loss) else None for loss in self.losses]  # JSON has no NaN
        record: dict[str, Any] = {"kind": "range", "losses": losses}
        try:
            found = analyse(self._ramp, [self.losses])
        except ValueError as error:
            return [{**record, "why": str(error)}]
        usable = {name: getattr(found, name) for name in ("low", "high", "peak", "diverged_at")}
        return [{**record, **usable}]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss of each step."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if (loss := loss_of(outputs)) is not None:
            self._loss = loss
        missing = self._steps_run - len(self.losses)
        if not missing or self._steps_run == self._seen_step:  # the step needs more batches
            return
        loss, self._loss, self._seen_step = self._loss, None, self._steps_run
        if loss is not None:  # steps without a loss get that of the next step
            self.losses += mean_losses(trainer, [loss]) * missing
        elif not pl_module.automatic_optimization:
            raise LRPolicyError(
                "a range test needs the training loss, but training_step took a step and returned none; "
                "return the loss from training_step, also with manual optimization"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state, including the losses."""
        return {**super().state_dict(), "losses": list(self.losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.losses = list(state_dict["losses"])
