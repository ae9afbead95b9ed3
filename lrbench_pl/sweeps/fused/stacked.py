"""The engine that trains dense networks as one: every operation works on the stacked parameters of all replicas."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lrbench_pl.sweeps.fused.engine import CannotFuse, Replica
from lrbench_pl.sweeps.fused.program import Program
from lrbench_pl.workloads.data.loaders import StreamLoader


class StackedEngine(Program):
    """Trains replicas under ``torch.func.vmap``: a matrix product of one network becomes a batch of them.

    Worth it for networks whose kernels are too small for the machine one by one. On a GPU, convolutions and norms of
    images run kernels of the package (:mod:`lrbench_pl.sweeps.fused.layers`); on the CPU, or without Triton, ``vmap``
    makes grouped convolutions of them, which gain little.

    Raises:
        CannotFuse: Also if the network does something that ``vmap`` cannot, or draws random numbers on a device or
            elsewhere than in ``nn.Dropout``.
    """

    name = "stacked"

    def __init__(
        self, replicas: Sequence[Replica], loaders: Sequence[StreamLoader], precision: str, device: torch.device
    ) -> None:
        self._masks = _Masks()
        super().__init__(replicas, loaders, precision, device)
        if self.draws_random_numbers:
            self._find_dropout()
        try:
            self._compute_gradients({stream: self._batch(stream) for stream in self._streams})
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # of vmap, of the model, or of Triton, which compiles kernels
            hint = "; hydra.launcher.engine=captured can" if device.type == "cuda" else ""
            raise CannotFuse(f"torch.func.vmap cannot run the model ({' '.join(str(error).split())}){hint}") from error
        finally:
            self._restart()

    def _find_dropout(self) -> None:
        """Record the calls of dropout layers in one step.

        Raises:
            CannotFuse: If the masks cannot be drawn for each replica.
        """
        if self._device.type != "cpu":
            raise CannotFuse("on a device the stacked engine draws no random numbers for each replica (dropout)")
        stream = self._replicas[0].stream
        inputs, _ = self._batch(stream)
        model, masks = copy.deepcopy(self._replicas[0].module.model), self._masks
        _replace_dropout(model, masks)
        masks.shapes.clear()
        with torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            with torch.no_grad(), self._precision():
                model(inputs)
            if not torch.equal(before, torch.get_rng_state()):
                raise CannotFuse("the model draws random numbers elsewhere than in nn.Dropout")

    def _restart(self) -> None:
        """Undo the trial step, whose only traces are buffers and random numbers."""
        self._buffers = self._buffers_of_modules()
        self._random = [self._generator(replica) for replica in self._replicas] if self._random else []
        self._bind()

    def _bind(self) -> None:
        base = copy.deepcopy(self._replicas[0].module.model).to(self._device)
        if uses_kernels(base, self._device):
            from lrbench_pl.sweeps.fused.layers import replace_layers

            replace_layers(base)
        self._trained = base
        self._evaluated = copy.deepcopy(base).eval()
        _replace_dropout(base, self._masks)
        views = self._layout.stacked(self._parameters)
        self._leaves = [view.detach().requires_grad_() for view in views]
        self._gradient_views = self._layout.stacked(self._gradients)
        streams = [self._replicas[replica].stream for replica in self._rows]
        self._is_shared = len(self._streams) == 1
        self._stream_of_row = torch.tensor([self._streams.index(stream) for stream in streams], device=self._device)
        data = None if self._is_shared else 0
        self._losses_of = vmap(self._loss, in_dims=(0, 0, 0, data, data))

    def _loss(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], masks: tuple[Tensor, ...], x: Tensor, y: Tensor
    ) -> Tensor:
        self._masks.begin(masks)
        with self._precision():
            output = functional_call(self._trained, {**parameters, **buffers}, (x,))
            return self._objective.stacked_loss(output, y).float()

    def _compute_gradients(self, batches: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        x, y = self._data(batches)
        masks = self._masks.draw(self._random)
        losses = self._losses_of(dict(zip(self._layout.names, self._leaves, strict=True)), self._buffers, masks, x, y)
        gradients = torch.autograd.grad(losses.sum(), self._leaves)
        with torch.no_grad():
            torch._foreach_copy_(self._gradient_views, gradients)
            self._losses.copy_(losses)

    def _data(self, batches: Mapping[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the batch, or that of each row."""
        if self._is_shared:
            return batches[self._streams[0]]
        inputs, targets = zip(*(batches[stream] for stream in self._streams), strict=True)
        rows = self._stream_of_row
        return torch.stack(inputs).index_select(0, rows), torch.stack(targets).index_select(0, rows)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        yield

    def _evaluate_batch(self, replicas: Sequence[int], inputs: Tensor, target: Tensor) -> Tensor:
        places = [self._rows.index(replica) for replica in replicas]
        parameters, buffers = self._leaves, self._buffers
        if places != list(range(len(self._rows))):
            index = torch.tensor(places, device=self._device)
            parameters = self._layout.stacked(self._parameters.index_select(0, index))
            buffers = {name: tensor.index_select(0, index) for name, tensor in buffers.items()}

        def sums(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            with self._precision():
                output = functional_call(self._evaluated, {**parameters, **buffers}, (inputs,))
                return self._objective.sums(output, target)

        found: Tensor = vmap(sums)(dict(zip(self._layout.names, parameters, strict=True)), buffers)
        return found


def uses_kernels(model: nn.Module, device: torch.device) -> bool:
    """Return whether layers of a network run kernels of the package on a device."""
    return any(isinstance(layer, nn.Conv2d | nn.BatchNorm2d) for layer in model.modules()) and _has_kernels(device)


def _has_kernels(device: torch.device) -> bool:
    """Return whether the kernels run there: on a GPU from Ampere on, where Triton is installed."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


@dataclass
class _Masks:
    """The masks of the dropout layers of one step, in the order of their calls.

    Attributes:
        shapes: Shape and probability of each call, as a first call without masks records them.
    """

    shapes: list[tuple[tuple[int, ...], torch.dtype, float]] = field(default_factory=list)
    _due: Any = None

    def draw(self, generators: Sequence[torch.Generator]) -> tuple[Tensor, ...]:
        """Return masks of shape (rows, ...), each row's numbers from its own generator as dropout draws them."""
        masks = [torch.empty(len(generators), *shape, dtype=dtype) for shape, dtype, _ in self.shapes]
        for row, generator in enumerate(generators):
            for mask, (_, _, p) in zip(masks, self.shapes, strict=True):
                mask[row].bernoulli_(1 - p, generator=generator).div_(1 - p)
        return tuple(masks)

    def begin(self, masks: Sequence[Tensor]) -> None:
        """Give these masks to the coming calls."""
        self._due = iter(masks)

    def apply(self, x: Tensor, p: float) -> Tensor:
        """Return the input under the next mask."""
        mask = next(self._due, None) if self._due is not None else None
        if mask is None:
            self.shapes.append((tuple(x.shape), x.dtype, p))
            return x
        masked: Tensor = x * mask
        return masked


class _Dropout(nn.Module):
    """Dropout whose mask is drawn outside."""

    def __init__(self, p: float, masks: _Masks) -> None:
        super().__init__()
        self.p, self._masks = p, masks

    def forward(self, x: Tensor) -> Tensor:
        """Return the input under its mask."""
        return (
            self._masks.apply(x, self.p)
            if self.training and 0 < self.p < 1
            else nn.functional.dropout(x, self.p, self.training)
        )


def _replace_dropout(model: nn.Module, masks: _Masks) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, _Dropout(child.p, masks).train(child.training))
