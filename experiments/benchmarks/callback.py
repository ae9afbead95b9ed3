"""Cost of the callback per optimizer step, against no callback and against torch's own scheduler.

    python experiments/benchmarks/callback.py [--steps 2000] [--rounds 15]

One tiny model, where overhead shows, is trained for the same steps in three ways that alternate: with a constant rate
and nothing else; with `LRPolicyCallback` (a composite policy, no target, no check); and with
`torch.optim.lr_scheduler.SequentialLR`, stepped by Lightning, over the same schedule. Each round gives paired
differences; the table shows their medians and quartiles.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
from lrbench_pl.policies import Constant, Polynomial, Sequential

WARMUP = 0.1  # of the budget


class Tiny(pl.LightningModule):
    """A linear layer, so that a step is mostly overhead."""

    def __init__(self, scheduler: Callable[[torch.optim.Optimizer], Any] | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.scheduler = scheduler

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss of one linear layer."""
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        """Return SGD, with or without torch's scheduler."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}


def torch_schedule(steps: int) -> Callable[[torch.optim.Optimizer], SequentialLR]:
    """Hold the rate, then decay linearly: as `policy`, in torch's terms."""
    hold = int(WARMUP * steps)

    def build(optimizer: torch.optim.Optimizer) -> SequentialLR:
        parts = [ConstantLR(optimizer, 1.0, hold), LinearLR(optimizer, 1.0, 0.01, steps - hold)]
        return SequentialLR(optimizer, parts, milestones=[hold])

    return build


def policy(steps: int) -> Sequential:
    """Hold the rate, then decay linearly."""
    hold = int(WARMUP * steps)
    return Sequential((Constant(0.1), Polynomial(0.1, steps - hold, end_lr=0.001)), milestones=(hold,))


def seconds_per_step(steps: int, callbacks: list[pl.Callback], scheduler: Any = None) -> float:
    """Train once and return the seconds per step of the fit loop alone."""
    clock: list[float] = []

    class Clock(pl.Callback):
        def on_train_start(self, *_: Any) -> None:
            clock.append(time.perf_counter())

        def on_train_end(self, *_: Any) -> None:
            clock.append(time.perf_counter())

    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[*callbacks, Clock()], limit_val_batches=0,
    )  # fmt: skip
    data = DataLoader(TensorDataset(torch.zeros(steps * 2, 4)), batch_size=2)
    trainer.fit(Tiny(scheduler), data)
    return (clock[1] - clock[0]) / steps


def main() -> None:
    """Measure in rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    steps = arguments.steps
    ways: dict[str, Callable[[], float]] = {
        "nothing": lambda: seconds_per_step(steps, []),
        "callback": lambda: seconds_per_step(steps, [LRPolicyCallback(policy(steps))]),
        "SequentialLR": lambda: seconds_per_step(steps, [], torch_schedule(steps)),
    }
    for way in ways.values():
        way()  # warm up
    rounds = []
    for index in range(arguments.rounds):
        names = list(ways) if index % 2 == 0 else list(reversed(ways))  # so that no way always runs on a warmer machine
        measured = {name: ways[name]() * 1e6 for name in names}
        rounds.append(measured)
        print(f"round {index + 1}: " + ", ".join(f"{name} {measured[name]:.1f}" for name in ways), flush=True)
    print(f"\nmicroseconds per step, {arguments.rounds} paired rounds of {steps} steps: median [quartiles]")
    added = {name: [r[name] - r["nothing"] for r in rounds] for name in ("callback", "SequentialLR")}
    print(f"  nothing                {_spread([r['nothing'] for r in rounds])}")
    for name, values in added.items():
        print(f"  added by {name:<13} {_spread(values)}")
    ratio = [mine / theirs for mine, theirs in zip(added["callback"], added["SequentialLR"], strict=True)]
    print(f"  callback / SequentialLR {_spread(ratio, '.2f')}  (to reach: at most 1, and 20 microseconds)")


def _spread(values: list[float], form: str = ".1f") -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


if __name__ == "__main__":
    main()
