"""Small networks: a perceptron, Caffe's LeNet and Caffe's CNN3 for CIFAR-10."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d


def mlp(num_classes: int, input_shape: Sequence[int], hidden: Sequence[int] = (64,)) -> nn.Sequential:
    """Build a multi-layer perceptron with ReLU.

    Args:
        num_classes: Number of outputs.
        input_shape: Shape of an input: (C, H, W) for an image, (F,) for a row of a table.
        hidden: Widths of the hidden layers.

    Example:
        >>> sum(p.numel() for p in mlp(10, (1, 8, 8), hidden=[64]).parameters())
        4810
    """
    widths = [math.prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))


def lenet(num_classes: int, input_shape: Sequence[int]) -> nn.Sequential:
    """Build Caffe's LeNet: conv 20@5x5, max-pool 2, conv 50@5x5, max-pool 2, 500 ReLU units; Xavier weights.

    Args:
        num_classes: Number of outputs.
        input_shape: Shape of an image: (C, H, W), at least 16 x 16.

    Raises:
        ValueError: If the images are smaller.

    Example:
        >>> sum(p.numel() for p in lenet(10, (1, 28, 28)).parameters())
        431080

    Source: BVLC/caffe, examples/mnist/lenet_train_test.prototxt (after LeCun et al. 1998).
    """
    channels, height, width = input_shape
    if min(height, width) < 16:
        raise ValueError(f"lenet needs images of at least 16 x 16 pixels, got {height} x {width}; use model=mlp")
    features = 50 * ((((height - 4) // 2) - 4) // 2) * ((((width - 4) // 2) - 4) // 2)
    net = nn.Sequential(
        nn.Conv2d(channels, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(features, 500),
        nn.ReLU(),
        nn.Linear(500, num_classes),
    )
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            bound = math.sqrt(3 / layer.weight[0].numel())  # Caffe's Xavier counts the inputs only
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(_bias(layer))
    return net


class LocalResponseNorm(nn.Module):
    """Local response normalisation within each channel, as in Caffe.

    y = x / (1 + alpha * mean of x ** 2 over size x size) ** 0.75, the image padded with zeros

    Args:
        size: Width of the window, odd.
        alpha: Strength.

    Source: BVLC/caffe, LRNLayer with WITHIN_CHANNEL; all its networks use beta = 0.75.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5) -> None:
        super().__init__()
        self.size, self.alpha = size, alpha

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        energy = avg_pool2d(x * x, self.size, stride=1, padding=self.size // 2)
        root = torch.rsqrt(1 + self.alpha * energy)
        return x * root * root.sqrt()  # ** -0.75 without a slow power


def cnn3(num_classes: int, input_shape: Sequence[int]) -> nn.Sequential:
    """Build Caffe's cifar10_full, the paper's CNN3: three 5x5 convolutions, pooled, two of them normalised.

    It expects pixels in 0..255 with the mean image subtracted, and learning rates and weight decays that differ by
    parameter, as in ``experiment=cifar10_cnn3``.

    Args:
        num_classes: Number of outputs.
        input_shape: Shape of an image: (C, H, W), at least 8 x 8.

    Raises:
        ValueError: If the images are smaller.

    Example:
        >>> sum(p.numel() for p in cnn3(10, (3, 32, 32)).parameters())
        89578

    Source: BVLC/caffe, examples/cifar10/cifar10_full_train_test.prototxt.
    """
    channels, height, width = input_shape
    if min(height, width) < 8:
        raise ValueError(f"cnn3 needs images of at least 8 x 8 pixels, got {height} x {width}; use model=mlp")
    features = 64 * math.prod(_pooled(_pooled(_pooled(size))) for size in (height, width))
    net = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 32, 5, padding=2),
            pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            relu1=nn.ReLU(),
            norm1=LocalResponseNorm(),
            conv2=nn.Conv2d(32, 32, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.AvgPool2d(3, 2, ceil_mode=True),
            norm2=LocalResponseNorm(),
            conv3=nn.Conv2d(32, 64, 5, padding=2),
            relu3=nn.ReLU(),
            pool3=nn.AvgPool2d(3, 2, ceil_mode=True),
            flat=nn.Flatten(),
            ip1=nn.Linear(features, num_classes),
        )
    )
    layers = [layer for layer in net if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for layer, std in zip(layers, (1e-4, 0.01, 0.01, 0.01), strict=True):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(_bias(layer))
    return net


def _pooled(size: int) -> int:
    """Return the width after a 3x3 pooling of stride 2, rounded up."""
    return -(-(size - 3) // 2) + 1


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    assert layer.bias is not None
    return layer.bias
