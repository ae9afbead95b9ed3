"""Residual networks for CIFAR (He et al. 2016): 6n + 2 layers, shortcuts without parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import pad, relu


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation and an identity shortcut (option A: subsampled, zero-padded)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        return relu(self.shortcut(x) + y)

    def shortcut(self, x: Tensor) -> Tensor:
        """Return what is added to the residual branch: the input, subsampled and padded if the shapes differ."""
        if not self.added:
            return x
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added // 2, self.added // 2))


def cifar_resnet(depth: int, num_classes: int, input_shape: Sequence[int]) -> nn.Sequential:
    """Build ResNet-``depth`` for small images: 16, 32 and 64 channels, ``(depth - 2) / 6`` blocks each.

    Args:
        depth: Number of layers with weights: 20, 32, 44, 56, 110, or any 6n + 2.
        num_classes: Number of outputs.
        input_shape: Shape of an image: (C, H, W).

    Raises:
        ValueError: If ``depth`` is not 6n + 2.

    Example:
        >>> sum(p.numel() for p in cifar_resnet(20, 10, (3, 32, 32)).parameters())
        269722

    Source: He et al. 2016, Deep Residual Learning for Image Recognition, section 4.2, arXiv 1512.03385.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6 n + 2 with n of at least 1, got {depth}")
    layers: list[nn.Module] = [
        nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    inputs = 16
    for outputs in (16, 32, 64):
        for index in range((depth - 2) // 6):
            layers.append(Block(inputs, outputs, stride=2 if index == 0 and outputs > 16 else 1))
            inputs = outputs
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
    return net
