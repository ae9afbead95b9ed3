"""Models that do what machines do to trainings."""

from __future__ import annotations

import os
import signal
from typing import Any

from torch import Tensor, nn

from lrbench_pl.workloads.models import mlp


class Hungry(nn.Module):
    """An MLP whose process is killed after so many steps, as by a machine without memory."""

    def __init__(self, steps: int, **arguments: Any) -> None:
        super().__init__()
        self.inner = mlp(**arguments)
        self.steps = steps

    def forward(self, images: Tensor) -> Tensor:
        """Logits, for a while."""
        if self.training:
            self.steps -= 1
        if self.steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(images)


def model(seed: int, doomed: int, steps: int, **arguments: Any) -> nn.Module:
    """A model that is killed if the seed is the doomed one."""
    return Hungry(steps, **arguments) if seed == doomed else mlp(**arguments)
