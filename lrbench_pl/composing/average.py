"""Running average of the weights, which forecasts the result of a decay branch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

_SAMPLES = 50  # samples per window


class WeightAverage:
    """Exponential average of a module's floating-point tensors, in float32.

    The window grows: at step ``t`` it is about ``share * t`` steps, so that the average forgets the start of the
    training. Averaged weights are about as accurate as the weights after a decay of the rate.

    Args:
        module: Module whose tensors are averaged. Only :meth:`swap` changes it.
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
            self._average = [tensor.detach().float().clone() for tensor in _averaged_tensors(module)]
        self._backup: list[torch.Tensor] | None = None  # the module's tensors while it holds the average
        self._last = 0

    @property
    def last_step(self) -> int:
        """Step of the last weights in the average."""
        return self._last

    @property
    def is_swapped(self) -> bool:
        """Return whether the module holds the average."""
        return self._backup is not None

    def update(self, module: nn.Module, t: int) -> None:
        """Add the weights after ``t`` steps to the average, about fifty times per window."""
        window = self._share * t
        if t - self._last < window / _SAMPLES:
            return
        weight = min(1.0, (t - self._last) / max(window, 1.0))
        self._last = t
        with torch.no_grad():
            current = [tensor.detach().float() for tensor in _averaged_tensors(module)]
            torch._foreach_lerp_(self._average, current, weight)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the step of its last sample, for a checkpoint."""
        return {"average": self._average, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned."""
        for tensor, stored in zip(self._average, state["average"], strict=True):
            tensor.copy_(stored)
        self._last = state["last"]

    def swap(self, module: nn.Module) -> None:
        """Swap the module's tensors and their average; a second call swaps them back."""
        with torch.inference_mode(False), torch.no_grad():
            tensors = _averaged_tensors(module)
            if self._backup is None:
                values, self._backup = self._average, [tensor.detach().clone() for tensor in tensors]
            else:
                values, self._backup = self._backup, None
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)


def _averaged_tensors(module: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
