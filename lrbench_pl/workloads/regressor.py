"""The LightningModule of regression: predict a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torchmetrics.regression import MeanSquaredError

from lrbench_pl.workloads.module import SupervisedModule, output_shape


class Regressor(SupervisedModule):
    """Mean squared error on ``(inputs, targets)`` batches.

    Logs ``train/loss`` on the steps that the Trainer logs, ``val/loss`` and ``val/rmse`` at each check, and
    ``test/loss`` and ``test/rmse``. The loss is that of the targets as the batches give them. If they are standardised,
    the data module says by which standard deviation in ``target_std``, and the RMSE is in the target's own unit.

    Args:
        model: Maps inputs (B, ...) to predictions (B, 1).
        optimizer: Builds the optimizer from the parameters. The policy replaces its learning rate at each step.
        num_classes: Outputs of the model; 1.
        param_groups: Parameters with options of their own, see :class:`SupervisedModule`.
        channels_last: Whether images and kernels use the channels-last memory format (NHWC).
        compile: Whether to compile the model with ``torch.compile``.

    Raises:
        ValueError: At the start of a fit, if the model does not give one number per input, or if a pattern matches no
            parameter.

    Example:
        >>> from functools import partial
        >>> module = Regressor(nn.Linear(3, 1), partial(torch.optim.SGD, lr=0.1))
        >>> float(module.loss(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0])))
        2.0
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Any], torch.optim.Optimizer],
        num_classes: int = 1,
        param_groups: Sequence[Mapping[str, Any]] = (),
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(model, optimizer, num_classes, param_groups, channels_last, compile)
        self.val_error, self.test_error = MeanSquaredError(), MeanSquaredError()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error of predictions (B, 1) and targets (B,)."""
        return mse_loss(output.squeeze(1), target)

    def check_output(self, input_shape: tuple[int, ...]) -> None:
        """Refuse a model that does not give one number per input."""
        shape = output_shape(self.model, input_shape)
        if shape != (1, 1):
            raise ValueError(
                f"the model gives output of shape {shape}, but a regression takes (1, 1); set model.num_classes=1"
            )

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update the error of a check with one batch."""
        self._update(self.val_error, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the check."""
        self._log_error("val", self.val_error)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update the error of the test with one batch."""
        self._update(self.test_error, batch)

    def on_test_epoch_end(self) -> None:
        """Log the test."""
        self._log_error("test", self.test_error)

    def _update(self, metric: MeanSquaredError, batch: tuple[Tensor, Tensor]) -> None:
        inputs, target = batch
        metric.update(self(inputs).squeeze(1).float(), target)

    def _log_error(self, stage: str, metric: MeanSquaredError) -> None:
        scale = getattr(getattr(self.trainer, "datamodule", None), "target_std", 1.0)
        loss = metric.compute()
        metric.reset()
        self.log_dict({f"{stage}/loss": loss, f"{stage}/rmse": loss.sqrt() * scale}, sync_dist=True)
