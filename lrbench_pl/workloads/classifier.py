"""The LightningModule of classification: images, rows of a table, or anything else with a label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lrbench_pl.workloads.metrics import Accuracy, Confidence, CrossEntropy
from lrbench_pl.workloads.module import SupervisedModule, output_shape


class Classifier(SupervisedModule):
    """Softmax cross-entropy on ``(inputs, labels)`` batches.

    Logs ``train/loss`` on the steps that the Trainer logs, ``val/accuracy`` and ``val/loss`` at each check, and
    ``test/{accuracy,top5,loss,confidence,confidence_std,cdac}`` (top5 from six classes on).

    Args:
        model: Maps images (B, C, H, W), or rows (B, F), to logits (B, num_classes).
        optimizer: Builds the optimizer from the parameters. The policy replaces its learning rate at each step.
        num_classes: Number of classes.
        param_groups: Parameters with options of their own, see :class:`SupervisedModule`.
        channels_last: Whether images and kernels use the channels-last memory format (NHWC).
        compile: Whether to compile the model with ``torch.compile``.

    Raises:
        ValueError: At the start of a fit, if the model does not take the inputs or gives another number of classes, or
            if a pattern matches no parameter.

    Example:
        >>> from functools import partial
        >>> module = Classifier(nn.Flatten(), partial(torch.optim.SGD, lr=0.1), num_classes=4)
        >>> tuple(module(torch.zeros(2, 1, 2, 2)).shape)
        (2, 4)
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
        self.val_accuracy = Accuracy()
        self.val_loss = CrossEntropy()
        tested: dict[str, Any] = {
            "accuracy": Accuracy(),
            "loss": CrossEntropy(),
            "confidence": Confidence(num_classes),
        }
        if num_classes > 5:
            tested["top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5, validate_args=False)
        self.test_metrics = MetricCollection(tested, compute_groups=False)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits (B, num_classes) and labels (B,)."""
        return cross_entropy(output, target)

    def check_output(self, input_shape: tuple[int, ...]) -> None:
        """Refuse a model that does not take the inputs or gives another number of classes."""
        check_fits(self.model, input_shape, self.num_classes)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update the metrics of a check with one batch."""
        inputs, labels = batch
        logits = self(inputs).float()
        self.val_accuracy.update(logits, labels)
        self.val_loss.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Log the check."""
        self.log_dict({"val/accuracy": self.val_accuracy, "val/loss": self.val_loss})

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update the metrics of the test with one batch."""
        inputs, labels = batch
        logits = self(inputs).float()
        self.test_metrics.update(logits, labels)

    def on_test_epoch_end(self) -> None:
        """Log the test."""
        self.log_dict({f"test/{name}": value.float() for name, value in self.test_metrics.compute().items()})
        self.test_metrics.reset()


def check_fits(model: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> None:
    """Pass one blank input through a model, which is left as it was.

    Raises:
        ValueError: If the model fails on it or gives another number of classes.

    Example:
        >>> check_fits(nn.Flatten(), (1, 2, 2), num_classes=10)
        Traceback (most recent call last):
        ...
        ValueError: the model gives 4 classes, but the data set has 10; set model.num_classes=${dataset.num_classes}
    """
    shape = output_shape(model, input_shape, noun="images" if len(input_shape) == 3 else "inputs")
    if shape != (1, num_classes):
        given = f"{shape[1]} classes" if len(shape) == 2 else f"output of shape {shape}"
        raise ValueError(
            f"the model gives {given}, but the data set has {num_classes}; "
            "set model.num_classes=${dataset.num_classes}"
        )
