"""Cost of the callback per optimizer step, against no callback and against torch's own scheduler.

    python experiments/benchmarks/callback.py [--steps 500] [--rounds 15]

One tiny model, where overhead shows, is trained for the same steps in three ways that alternate: with a constant rate
and nothing else; with `LRPolicyCallback` (a composite policy, no target, no check); and with
`torch.optim.lr_scheduler.SequentialLR`, stepped by Lightning, over the same schedule.

Timed are the calls of a step in which the three ways differ, where they stand in the fit loop: the hooks of all
callbacks, the step of the optimizer without its closure, and Lightning's call of the scheduler. A training gives the
median of its steps, a round the paired differences from nothing, and the table their medians and quartiles. The whole
step takes about five times as long as what is timed here, and its noise hides the differences.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer import call
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


class Watch:
    """Adds up the time of the calls of a step that a policy or a scheduler makes longer."""

    def __init__(self) -> None:
        self.spent = 0
        self.of_steps: list[int] = []

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, whose time is added."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter_ns()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent += time.perf_counter_ns() - start

        return call

    def step(self, optimizer: Any, closure: Callable[[], Any]) -> None:
        """Take a step of the optimizer; forward and backward, in the closure, are not counted."""

        def uncounted() -> Any:
            start = time.perf_counter_ns()
            try:
                return closure()
            finally:
                self.spent -= time.perf_counter_ns() - start

        self.timed(optimizer.step)(closure=uncounted)

    def whole(self, advance: Callable[..., Any]) -> Callable[..., Any]:
        """Return Lightning's step, after which the sum is noted."""

        def step(*args: Any) -> None:
            self.spent = 0
            advance(*args)
            self.of_steps.append(self.spent)

        return step


PER_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


def microseconds_per_step(steps: int, callbacks: list[pl.Callback], scheduler: Any = None) -> float:
    """Train once and return the microseconds of the timed calls, in the median step."""
    watch, hooks = Watch(), call._call_callback_hooks
    timed_hooks = watch.timed(hooks)

    def callback_hooks(trainer: Any, name: str, *args: Any, **kwargs: Any) -> None:
        (timed_hooks if name in PER_STEP else hooks)(trainer, name, *args, **kwargs)

    class Watched(Tiny):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            watch.step(optimizer, optimizer_closure)

    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks, limit_val_batches=0,
    )  # fmt: skip
    loop = trainer.fit_loop.epoch_loop
    loop.advance = watch.whole(loop.advance)  # type: ignore[method-assign]
    loop.update_lr_schedulers = watch.timed(loop.update_lr_schedulers)  # type: ignore[method-assign]
    data = DataLoader(TensorDataset(torch.zeros(steps * 2, 4)), batch_size=2)
    with mock.patch.object(call, "_call_callback_hooks", callback_hooks):
        trainer.fit(Watched(scheduler), data)
    return statistics.median(watch.of_steps) / 1e3


def main() -> None:
    """Measure in rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    steps = arguments.steps
    ways: dict[str, Callable[[], float]] = {
        "nothing": lambda: microseconds_per_step(steps, []),
        "callback": lambda: microseconds_per_step(steps, [LRPolicyCallback(policy(steps))]),
        "SequentialLR": lambda: microseconds_per_step(steps, [], torch_schedule(steps)),
    }
    for way in ways.values():
        way()  # warm up
    rounds = []
    for index in range(arguments.rounds):
        names = list(ways) if index % 2 == 0 else list(reversed(ways))  # so that no way always runs on a warmer machine
        measured = {name: ways[name]() for name in names}
        rounds.append(measured)
        print(f"round {index + 1}: " + ", ".join(f"{name} {measured[name]:.1f}" for name in ways), flush=True)
    print(f"\nmicroseconds of the timed calls per step, {arguments.rounds} rounds of {steps} steps: median [quartiles]")
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
