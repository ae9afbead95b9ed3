"""The LightningModule that trains any image classifier and logs what a run's row needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parameter import is_lazy
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lrbench_pl.workloads.metrics import Confidence, CrossEntropy


class Classifier(pl.LightningModule):
    """Softmax cross-entropy on ``(images, labels)`` batches.

    Logs ``train/loss`` on the steps that the Trainer logs, ``val/accuracy`` and ``val/loss`` at each check, and
    ``test/{accuracy,top5,loss,confidence,confidence_std,cdac}`` (top5 from six classes on).

    Args:
        model: Maps images (B, C, H, W) to logits (B, num_classes).
        optimizer: Builds the optimizer from the parameters; its own rate is replaced by the policy's at each step.
        num_classes: Number of classes.
        param_groups: Parameters that are treated unlike the rest, each a mapping with ``params``, a pattern of names
            such as ``*.bias``, and options of their group, such as ``lr_scale``, the factor of the policy's rate, or
            ``weight_decay``. The first pattern that matches a name counts.
        channels_last: Whether images and kernels lie in memory channel by channel within each pixel (NHWC).
        compile: Whether to compile the model with ``torch.compile``.

    Raises:
        ValueError: At the start of a fit, if the model does not take the images or gives another number of classes, or
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
        super().__init__()
        self.model = model
        if compile:
            self.model.compile()
        self.optimizer = optimizer
        self.num_classes = num_classes
        self.param_groups = param_groups
        self.memory_format = torch.channels_last if channels_last else torch.preserve_format
        for parameter in model.parameters():
            if channels_last and not is_lazy(parameter) and parameter.ndim == 4:
                parameter.data = parameter.data.clone(memory_format=self.memory_format)
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.val_loss = CrossEntropy()
        tested: dict[str, Any] = {
            "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            "loss": CrossEntropy(),
            "confidence": Confidence(num_classes),
        }
        if num_classes > 5:
            tested["top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5, validate_args=False)
        self.test_metrics = MetricCollection(tested, compute_groups=False)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the one that Lightning sets 40 times a step goes past torch: 50 us less a step."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (B, num_classes)."""
        logits: Tensor = self.model(images.contiguous(memory_format=self.memory_format) if images.ndim == 4 else images)
        return logits

    def setup(self, stage: str) -> None:
        """Refuse a model that does not fit the data."""
        shape = getattr(getattr(self.trainer, "datamodule", None), "input_shape", None)
        if stage == "fit" and shape is not None:
            check_fits(self.model, tuple(shape), self.num_classes)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer over all parameters that train."""
        return self.optimizer(group_parameters(self.model, self.param_groups))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        images, labels = batch
        loss = cross_entropy(self(images), labels)
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy and loss of one batch of a check."""
        images, labels = batch
        logits = self(images).float()
        self.val_accuracy.update(logits, labels)
        self.val_loss.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Log the check."""
        self.log_dict({"val/accuracy": self.val_accuracy, "val/loss": self.val_loss})

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Every metric of one batch of the test set."""
        images, labels = batch
        logits = self(images).float()
        self.test_metrics.update(logits, labels)

    def on_test_epoch_end(self) -> None:
        """Log the test."""
        self.log_dict({f"test/{name}": value.float() for name, value in self.test_metrics.compute().items()})
        self.test_metrics.reset()


def group_parameters(model: nn.Module, param_groups: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """The parameters of a model in groups, as optimizers take them; those that match no pattern come first.

    Raises:
        ValueError: If a group has no pattern, or one that takes no parameter.

    Example:
        >>> first, biases = group_parameters(nn.Linear(2, 3), [{"params": "*bias", "lr_scale": 2.0}])
        >>> len(first["params"]), len(biases["params"]), biases["lr_scale"]
        (1, 1, 2.0)
    """
    groups = [{**group, "params": []} for group in ({}, *param_groups)]
    patterns = [str(group.get("params", "")) for group in param_groups]
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name, parameter in trained:
        index = next((i for i, pattern in enumerate(patterns, 1) if fnmatchcase(name, pattern)), 0)
        groups[index]["params"].append(parameter)
    for pattern, group in zip(patterns, groups[1:], strict=True):
        if not group["params"]:
            raise ValueError(
                f"param_groups: params={pattern!r} takes no parameter of the model; "
                f"its names are {', '.join(name for name, _ in trained)}"
            )
    return [group for group in groups if group["params"]]


def check_fits(model: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> None:
    """Pass one blank image through a model, which is left as it was.

    Raises:
        ValueError: If the model fails on it or gives another number of classes.

    Example:
        >>> check_fits(nn.Flatten(), (1, 2, 2), num_classes=10)
        Traceback (most recent call last):
        ...
        ValueError: the model gives 4 classes, but the data set has 10; set model.num_classes=${dataset.num_classes}
    """
    was_training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    try:
        with torch.no_grad():
            logits = model.forward(torch.zeros(1, *input_shape, device=device))  # not its compiled form
    except Exception as error:
        raise ValueError(
            f"the model cannot take images of shape {input_shape}: {' '.join(str(error).split())}"
        ) from error
    finally:
        model.train(was_training)
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        given = f"{logits.shape[1]} classes" if logits.ndim == 2 else f"output of shape {tuple(logits.shape)}"
        raise ValueError(
            f"the model gives {given}, but the data set has {num_classes}; "
            "set model.num_classes=${dataset.num_classes}"
        )
