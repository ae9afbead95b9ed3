"""The running average of a training's weights: what a decay to zero would reach, without the steps of the decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

_SAMPLES = 50  # states in a window


class WeightAverage:
    """Exponential average of a module's floating-point parameters and buffers, in float32, over a growing window.

    At step ``t`` the window is about ``share * t`` steps, so the average forgets the start as the training goes on. It
    stands in for a cooldown: averaged weights are about as accurate as those after a decay of the rate.

    Args:
        module: Whose tensors are averaged; never changed but by :meth:`swap`.
        share: Window as a share of the steps so far, in (0, 1).

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(layer.weight, 0.0)
        >>> average = WeightAverage(layer, share=0.5)
        >>> for t in (1, 2, 3, 4):
        ...     _ = torch.nn.init.constant_(layer.weight, float(t))
        ...     average.update(layer, t)
        >>> average.swap(layer)
        >>> round(layer.weight.item(), 2)  # 1, 2, then two thirds of the way to 3, half of that to 4
        3.33
        >>> average.swap(layer)
        >>> layer.weight.item()
        4.0

    Source: Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations" (NeurIPS 2024).
    """

    def __init__(self, module: nn.Module, share: float) -> None:
        self._share = share
        with torch.inference_mode(False), torch.no_grad():
            self._average = [tensor.detach().float().clone() for tensor in _averaged(module)]
        self._own: list[torch.Tensor] | None = None  # the module's own tensors while it shows the average
        self._last = 0

    def update(self, module: nn.Module, t: int) -> None:
        """Take in the weights after ``t`` steps, about fifty times in a window."""
        window = self._share * t
        if t - self._last < window / _SAMPLES:
            return
        weight = min(1.0, (t - self._last) / max(window, 1.0))
        self._last = t
        with torch.no_grad():
            current = [tensor.detach().float() for tensor in _averaged(module)]
            torch._foreach_lerp_(self._average, current, weight)

    def state_dict(self) -> dict[str, Any]:
        """The average and the step of its last sample, for a checkpoint."""
        return {"average": self._average, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for tensor, kept in zip(self._average, state["average"], strict=True):
            tensor.copy_(kept)
        self._last = state["last"]

    def swap(self, module: nn.Module) -> None:
        """Exchange the module's tensors and their average; a second call puts them back, bit for bit."""
        with torch.inference_mode(False), torch.no_grad():
            tensors = _averaged(module)
            if self._own is None:
                shown, self._own = self._average, [tensor.detach().clone() for tensor in tensors]
            else:
                shown, self._own = self._own, None
            for tensor, value in zip(tensors, shown, strict=True):
                tensor.copy_(value)


def _averaged(module: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
