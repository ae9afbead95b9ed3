"""The loss and the metrics of a check, as functions of one batch that hold for every replica."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lrbench_pl.sweeps.fused.engine import CannotFuse
from lrbench_pl.workloads.classifier import Classifier
from lrbench_pl.workloads.language_model import LanguageModel
from lrbench_pl.workloads.module import SupervisedModule
from lrbench_pl.workloads.regressor import Regressor


@dataclass(frozen=True)
class Objective:
    """Loss and metrics of a module of the package.

    Args:
        module: The module, whose ``loss`` needs no state.

    Raises:
        CannotFuse: If the module is of another class, which may train and check otherwise.
    """

    module: SupervisedModule

    def __post_init__(self) -> None:
        """Refuse a module whose steps are its own."""
        if type(self.module) not in (Classifier, Regressor, LanguageModel):
            raise CannotFuse(
                f"{type(self.module).__name__} may define training and validation steps of its own; "
                "Classifier, Regressor and LanguageModel can be fused"
            )

    def inputs(self, inputs: Tensor) -> Tensor:
        """Return the inputs in the module's memory format."""
        return inputs.contiguous(memory_format=self.module.memory_format) if inputs.ndim == 4 else inputs

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return self.module.loss(output, target)

    def stacked_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch in a form that is fast under ``vmap`` on the CPU.

        There a softmax over the last dimension takes ten times as long as over another one.
        """
        if isinstance(self.module, Classifier) and output.ndim == 2 and output.device.type == "cpu":
            return -output.float().t().contiguous().log_softmax(0).gather(0, target.unsqueeze(0)).mean()
        return self.loss(output, target)

    def sums(self, output: Tensor, target: Tensor) -> Tensor:
        """Return what a check adds up over its batches, in float64: the loss, and the correct predictions."""
        if isinstance(self.module, Regressor):
            difference = output.squeeze(1).float() - target
            return (difference * difference).sum().double().unsqueeze(0)
        if isinstance(self.module, LanguageModel):
            return cross_entropy(output.flatten(0, 1).float(), target.flatten(), reduction="sum").double().unsqueeze(0)
        output = output.float()
        correct = (output.argmax(1) == target).sum()
        return torch.stack((cross_entropy(output, target, reduction="sum").double(), correct.double()))

    def metrics(self, sums: Tensor, count: int, target_std: float) -> Mapping[str, float]:
        """Return the metrics of a check as they are logged: an accuracy in float64, a loss in float32.

        Args:
            sums: The sum over all batches.
            count: Number of predictions.
            target_std: Unit of the error of a regression.
        """
        loss = (sums[0] / count).float()
        if isinstance(self.module, Regressor):
            return {"val/loss": loss.item(), "val/rmse": (loss.sqrt() * target_std).item()}
        if isinstance(self.module, LanguageModel):
            return {"val/loss": loss.item()}
        return {"val/accuracy": (sums[1] / count).item(), "val/loss": loss.item()}
