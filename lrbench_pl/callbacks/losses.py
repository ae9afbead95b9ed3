"""Training losses as the hooks of a callback receive them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from lrbench_pl.composing.divergence import LossWatch

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def loss_of(outputs: Any) -> torch.Tensor | None:
    """Return the loss in the outputs of ``training_step``, detached, or None; the mean if it has several values."""
    loss = outputs.get("loss") if type(outputs) is dict or isinstance(outputs, Mapping) else outputs
    if not isinstance(loss, torch.Tensor) or not loss.numel():
        return None
    return loss.detach().reshape(()) if loss.numel() == 1 else loss.detach().float().mean()


def mean_losses(trainer: Trainer, losses: list[torch.Tensor]) -> list[float]:
    """Return losses averaged over all processes; synchronizes with the device."""
    means = trainer.strategy.reduce(torch.stack(losses), reduce_op="mean").tolist()
    # Lightning divides the loss of a batch by the number of accumulated batches
    return [mean * trainer.accumulate_grad_batches for mean in means]


class LossMonitor:
    """Loss of the current step, and detection of divergence from all losses."""

    def __init__(self) -> None:
        self._watch = LossWatch()
        self._pending: list[torch.Tensor] = []  # losses that the watch has not seen yet
        self._last: torch.Tensor | None = None  # last loss of the current step

    def add_batch(self, outputs: Any) -> None:
        """Add the outputs of ``training_step`` for a batch of the current step."""
        if (loss := loss_of(outputs)) is not None:
            self._last = loss.float()

    def take(self) -> torch.Tensor | None:
        """Return the loss of the step just taken, or None, and start the next step."""
        loss, self._last = self._last, None
        return loss

    def defer(self, loss: torch.Tensor) -> None:
        """Add the loss of a step, for the next :meth:`has_diverged`."""
        self._pending.append(loss)

    def has_diverged(self, trainer: Trainer) -> bool:
        """Return whether a deferred loss shows a divergence; synchronizes the device."""
        if not self._pending:
            return False
        losses, self._pending = mean_losses(trainer, self._pending), []
        return any([self._watch.update(loss) for loss in losses])  # a list: the watch must see all of them

    @property
    def has_learned(self) -> bool:
        """Return whether the losses that :meth:`has_diverged` has seen fell by more than their noise."""
        return self._watch.has_learned

    @property
    def has_memorised(self) -> bool:
        """Return whether the losses that :meth:`has_diverged` has seen came near zero."""
        return self._watch.has_memorised

    def drop_deferred(self) -> None:
        """Drop the deferred losses: they belong to a segment that has ended."""
        self._pending = []

    def reset(self) -> None:
        """Forget all losses but the first, when training goes back."""
        self._watch.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {"watch": self._watch.state_dict(), "unwatched": [float(loss) for loss in self._pending]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned; version 0.1 had none."""
        if "watch" in state:
            self._watch.load_state_dict(state["watch"])
        self._pending = [torch.tensor(loss) for loss in state.get("unwatched", ())]

    def to(self, device: torch.device) -> None:
        """Move the deferred losses to a device."""
        self._pending = [loss.to(device) for loss in self._pending]
