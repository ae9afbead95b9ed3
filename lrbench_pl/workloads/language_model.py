"""The LightningModule of language modelling: predict each symbol of a text from those before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lrbench_pl.workloads.metrics import CrossEntropy
from lrbench_pl.workloads.module import SupervisedModule, output_shape


class LanguageModel(SupervisedModule):
    """Next-symbol cross-entropy on ``(symbols, next symbols)`` batches, in nats per symbol.

    Logs ``train/loss`` on the steps that the Trainer logs, ``val/loss`` at each check, and ``test/loss``.

    Args:
        model: Maps symbols (B, T) to logits (B, T, num_classes); position t sees symbols 0 to t alone.
        optimizer: Builds the optimizer from the parameters. The policy replaces its learning rate at each step.
        num_classes: Number of symbols.
        param_groups: Parameters with options of their own, see :class:`SupervisedModule`.
        channels_last: No effect on text.
        compile: Whether to compile the model with ``torch.compile``.

    Raises:
        ValueError: At the start of a fit, if the model does not map (B, T) to (B, T, num_classes), or if a pattern
            matches no parameter.

    Example:
        >>> from functools import partial
        >>> from lrbench_pl.workloads.models import GPT
        >>> module = LanguageModel(GPT(5, context=8, width=4), partial(torch.optim.AdamW, lr=0.1), num_classes=5)
        >>> tuple(module(torch.zeros(2, 8, dtype=torch.long)).shape)
        (2, 8, 5)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Any], torch.optim.Optimizer],
        num_classes: int,
        param_groups: Sequence[Mapping[str, Any]] = (),
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(model, optimizer, num_classes, param_groups, channels_last, compile)
        self.val_loss, self.test_loss = CrossEntropy(), CrossEntropy()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits (B, T, num_classes) and symbols (B, T)."""
        return cross_entropy(output.flatten(0, 1), target.flatten())

    def check_output(self, input_shape: tuple[int, ...]) -> None:
        """Refuse a model that does not give logits for each position."""
        remedy = "; text takes a model such as model=gpt"
        shape = output_shape(self.model, input_shape, torch.long, "symbols", remedy)
        if shape != (1, *input_shape, self.num_classes):
            raise ValueError(
                f"the model gives output of shape {shape}, but text of {self.num_classes} symbols takes "
                f"{(1, *input_shape, self.num_classes)}, logits for each position{remedy}"
            )

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update the loss of a check with one batch."""
        self._update(self.val_loss, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the check."""
        self.log("val/loss", self.val_loss)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update the loss of the test with one batch."""
        self._update(self.test_loss, batch)

    def on_test_epoch_end(self) -> None:
        """Log the test."""
        self.log("test/loss", self.test_loss)

    def _update(self, metric: CrossEntropy, batch: tuple[Tensor, Tensor]) -> None:
        symbols, following = batch
        metric.update(self(symbols).flatten(0, 1).float(), following.flatten())
