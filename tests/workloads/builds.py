"""Workloads that differ in the optimizer they build."""

from typing import Any

import torch

from tests.workloads.own import Regression


class WithSGD(Regression):
    """SGD with momentum 0.9, whatever the configuration says."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class WithGiven(Regression):
    """The optimizer that the configuration hands over."""

    def __init__(self, lr: float, optimizer: Any) -> None:
        super().__init__(lr)
        self.build = optimizer

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.build(self.parameters())
        return optimizer
