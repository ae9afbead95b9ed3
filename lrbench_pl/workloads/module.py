"""The base of the LightningModules that train a model on (input, target) batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class SupervisedModule(pl.LightningModule):
    """A model, its optimizer and its parameter groups. Subclasses add the loss and the metrics.

    Logs ``train/loss`` on the steps that the Trainer logs.

    Args:
        model: Maps a batch of inputs to predictions.
        optimizer: Builds the optimizer from the parameters. The policy replaces its learning rate at each step.
        num_classes: Outputs of the model per prediction: classes, symbols, or 1 for regression.
        param_groups: Parameters with options of their own. Each is a mapping with ``params``, a pattern of names such
            as ``*.bias``, and options of the group, such as ``lr_scale``, a factor of the policy's rate, or
            ``weight_decay``. A parameter belongs to the first pattern that matches its name. The pattern is also the
            ``name`` of the group in the optimizer.
        channels_last: Whether images and kernels use the channels-last memory format (NHWC).
        compile: Whether to compile the model with ``torch.compile``.

    Raises:
        ValueError: At the start of a fit, if the model does not fit the data, or if a pattern matches no parameter.
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

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, bypassing torch for the one that Lightning sets 40 times a step (saves 50 us a step)."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the model's output for a batch of inputs."""
        output: Tensor = self.model(inputs.contiguous(memory_format=self.memory_format) if inputs.ndim == 4 else inputs)
        return output

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch."""

    @abstractmethod
    def check_output(self, input_shape: tuple[int, ...]) -> None:
        """Raise a ValueError if the model does not take inputs of this shape or returns something else than needed."""

    def setup(self, stage: str) -> None:
        """Refuse a model that does not fit the data."""
        shape = getattr(getattr(self.trainer, "datamodule", None), "input_shape", None)
        if stage == "fit" and shape is not None:
            self.check_output(tuple(shape))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer over all trainable parameters."""
        return self.optimizer(group_parameters(self.model, self.param_groups))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        inputs, target = batch
        loss = self.loss(self(inputs), target)
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss)
        return loss


def group_parameters(model: nn.Module, param_groups: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Return the trainable parameters in optimizer groups, those that match no pattern first.

    Raises:
        ValueError: If a group has no pattern, a pattern matches no parameter, or a group has a policy, which the
            callback takes.

    Example:
        >>> first, biases = group_parameters(nn.Linear(2, 3), [{"params": "*bias", "lr_scale": 2.0}])
        >>> len(first["params"]), len(biases["params"]), biases["lr_scale"], biases["name"]
        (1, 1, 2.0, '*bias')
    """
    patterns = [str(group.get("params", "")) for group in param_groups]
    for pattern, group in zip(patterns, param_groups, strict=True):
        if "lr_policy" in group:
            raise ValueError(
                f"param_groups: lr_policy of {pattern!r} must be given to the callback that applies it, as "
                f"LRPolicyCallback(..., groups={{{pattern!r}: ...}})"
            )
    named = ({"name": pattern, **group} for pattern, group in zip(patterns, param_groups, strict=True))
    groups = [{**group, "params": []} for group in ({}, *named)]
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


def output_shape(
    model: nn.Module,
    input_shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    noun: str = "inputs",
    remedy: str = "",
) -> tuple[int, ...]:
    """Return the shape of a model's output for one blank input. The model is left as it was.

    Args:
        model: The model.
        input_shape: Of one input, without the batch.
        dtype: Of the input.
        noun: What the inputs are called in the message.
        remedy: What the message says to do.

    Raises:
        ValueError: If the model fails on the input.

    Example:
        >>> output_shape(nn.Linear(4, 3), (4,))
        (1, 3)
    """
    was_training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    try:
        with torch.no_grad():
            output = model.forward(torch.zeros(1, *input_shape, dtype=dtype, device=device))  # not its compiled form
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the model cannot take {noun} of shape {input_shape}: {reason}{remedy}") from error
    finally:
        model.train(was_training)
    return tuple(output.shape)
