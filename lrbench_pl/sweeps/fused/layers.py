"""Layers of a network whose kernels compute all replicas at once, for the stacked engine on a GPU.

Under ``torch.func.vmap`` a convolution becomes a grouped one and a batch norm a copy of its input. The layers here call
the operations of :mod:`lrbench_pl.sweeps.fused.operations` instead.
"""

from __future__ import annotations

import itertools
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lrbench_pl.sweeps.fused.operations import average_pool, batch_normalise, convolve, max_pool, response_normalise
from lrbench_pl.workloads.models import LocalResponseNorm
from lrbench_pl.workloads.models.resnet import Block

_MOST_CHANNELS = 1024  # of a norm, that a program holds at once


def replace_layers(model: nn.Module) -> int:
    """Let the layers of a network that is trained under ``vmap`` use the kernels; return the number of them.

    Replaced are two-dimensional convolutions without groups, batch norms, poolings, the package's ``LocalResponseNorm``
    and the blocks of its ResNets; a ReLU behind a batch norm in an ``nn.Sequential`` becomes part of it. Parameters and
    buffers stay what and where they are.

    Args:
        model: The network, changed in place. Its inputs are images.
    """
    count = 0
    for layer in model.modules():
        found = _replacement(layer)
        if found is not None:
            layer.__class__ = found  # the same parameters, another forward
            count += 1
    for parent in list(model.modules()):
        if type(parent) is nn.Sequential:
            for (_, norm), (name, after) in itertools.pairwise(list(parent.named_children())):
                if type(norm) is _BatchNorm2d and type(after) is nn.ReLU and not _has_hooks(after):
                    norm.has_relu = True
                    setattr(parent, name, nn.Identity())
    return count


def _has_hooks(layer: nn.Module) -> bool:
    return any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks))


def _replacement(layer: nn.Module) -> type[nn.Module] | None:
    """Return the class whose forward computes the same for all replicas at once."""
    if _has_hooks(layer):
        return None
    if type(layer) is nn.Conv2d:
        is_plain = layer.groups == 1 and layer.padding_mode == "zeros" and layer.dilation == (1, 1)
        return _Conv2d if is_plain and not isinstance(layer.padding, str) else None
    if type(layer) is nn.BatchNorm2d:
        is_plain = layer.num_features <= _MOST_CHANNELS and layer.affine and layer.momentum is not None
        return _BatchNorm2d if is_plain else None
    if type(layer) is nn.MaxPool2d:
        is_plain = not layer.return_indices and _pair(layer.dilation) == (1, 1)
        return _MaxPool2d if is_plain and math.prod(_pair(layer.kernel_size)) < 255 else None
    if type(layer) is nn.AvgPool2d:
        return _AvgPool2d if layer.divisor_override is None else None
    if type(layer) is nn.AdaptiveAvgPool2d:
        return _MeanPool2d if layer.output_size in (1, (1, 1)) else None
    if type(layer) is Block:
        norms = (type(layer.norm1), type(layer.norm2))
        return _Block if norms == (nn.BatchNorm2d, nn.BatchNorm2d) or norms == (_BatchNorm2d, _BatchNorm2d) else None
    return _LocalResponseNorm if type(layer) is LocalResponseNorm else None


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _cast(x: Tensor) -> Tensor:
    """Return the input in the precision that autocast gives to a convolution."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class _Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        padding = [int(each) for each in self.padding]
        found: Tensor = convolve(_cast(input), self.weight, self.bias, list(self.stride), padding)
        return found


class _BatchNorm2d(nn.BatchNorm2d):
    has_relu = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, H, W) by the batch in training, else by the running statistics."""
        return self.normalise(input, None, self.has_relu)

    def normalise(self, x: Tensor, residual: Tensor | None, has_relu: bool) -> Tensor:
        """Normalise, add a residual, and apply ReLU."""
        if not self.training and self.running_mean is not None and self.running_var is not None:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            found: Tensor = (x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
            found = found if residual is None else found + residual
            return found.relu() if has_relu else found
        found, mean, variance = batch_normalise(x, self.weight, self.bias, residual, self.eps, has_relu)
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            count = x.shape[0] * x.shape[2] * x.shape[3]
            with torch.no_grad():
                self.running_mean.mul_(1 - self.momentum).add_(mean * self.momentum)
                self.running_var.mul_(1 - self.momentum).add_(variance * (self.momentum * count / max(1, count - 1)))
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        return found


class _Block(Block):
    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        first, second = cast("_BatchNorm2d", self.norm1), cast("_BatchNorm2d", self.norm2)
        y = self.conv2(first.normalise(self.conv1(x), None, True))
        return second.normalise(y, self.shortcut(x).to(y.dtype), True)

    def shortcut(self, x: Tensor) -> Tensor:
        """Return what is added to the residual branch, padded in the layout of the kernels."""
        if not self.added:
            return x
        inputs = x.permute(0, 2, 3, 1)[:, :: self.stride, :: self.stride]
        return pad(inputs, (self.added // 2, self.added // 2)).permute(0, 3, 1, 2)


class _MaxPool2d(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        """Pool (B, C, H, W)."""
        sizes = [*_pair(self.kernel_size), *_pair(self.stride), *_pair(self.padding)]
        found: Tensor = max_pool(input, sizes, self.ceil_mode)[0]
        return found


class _AvgPool2d(nn.AvgPool2d):
    def forward(self, input: Tensor) -> Tensor:
        """Pool (B, C, H, W)."""
        sizes = [*_pair(self.kernel_size), *_pair(self.stride), *_pair(self.padding)]
        found: Tensor = average_pool(input, sizes, self.ceil_mode, self.count_include_pad)
        return found


class _MeanPool2d(nn.AdaptiveAvgPool2d):
    def forward(self, input: Tensor) -> Tensor:
        """Average (B, C, H, W) to (B, C, 1, 1), without the strides for which vmap has no rule."""
        return input.mean((-1, -2), keepdim=True)


class _LocalResponseNorm(LocalResponseNorm):
    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        found: Tensor = response_normalise(x, self.size, self.alpha / self.size**2)
        return found
