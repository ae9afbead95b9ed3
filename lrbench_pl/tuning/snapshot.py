"""All of a training's state in memory, to go back to: weights, optimizer, scaler, callbacks, random numbers, data."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.callbacks import Callback, Checkpoint

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

Without = Callable[[Callback], bool]


class Snapshot:
    """The state of a training between two optimizer steps.

    Restoring is exact: what is trained after it equals, bit for bit on a CPU, what would have been trained had nothing
    come between. That holds for the data too if the training loader has a ``position`` that it reads at each batch, as
    :class:`~lrbench_pl.workloads.data.TrainLoader` does; any other loader goes on where it is.

    The step count of the Trainer is not part of it: steps that were spent stay spent.

    Args:
        trainer: A Trainer that is fitting.
        module: Its module.
        skip: Which callbacks keep their state; checkpoints always do, since their files stay too.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, skip: Without = lambda callback: False) -> None:
        self._skip = skip
        with torch.inference_mode(False), torch.no_grad():  # a check runs in inference mode, whose tensors cannot train
            self._tensors = {name: tensor.detach().clone() for name, tensor in _tensors(module)}
            self._optimizers = [_copy(optimizer.state_dict()) for optimizer in trainer.optimizers]
            self._precision = _copy(trainer.precision_plugin.state_dict())
            self._callbacks = [_copy(callback.state_dict()) for callback in self._with_state(trainer)]
        self._random = _random_state()
        self._position = getattr(trainer.train_dataloader, "position", None)

    @property
    def is_exact(self) -> bool:
        """Whether the data position is part of it."""
        return self._position is not None

    def restore(self, trainer: Trainer, module: LightningModule) -> None:
        """Put the training back; may be done any number of times."""
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor in _tensors(module):
                tensor.copy_(self._tensors[name])
            for optimizer, state in zip(trainer.optimizers, self._optimizers, strict=True):
                optimizer.load_state_dict(_copy(state))  # which keeps what it is given
            trainer.precision_plugin.load_state_dict(_copy(self._precision))
            for callback, state in zip(self._with_state(trainer), self._callbacks, strict=True):
                callback.load_state_dict(_copy(state))
        _set_random_state(self._random)
        if self._position is not None:
            trainer.train_dataloader.position = self._position  # type: ignore[union-attr]

    def _with_state(self, trainer: Trainer) -> list[Any]:
        return [
            callback
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if not isinstance(callback, Checkpoint) and not self._skip(callback)
        ]


def _tensors(module: LightningModule) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _copy(state: Any) -> Any:
    return copy.deepcopy(state)


def _random_state() -> dict[str, Any]:
    import numpy as np

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": np.random.get_state(legacy=False),
        "python": random.getstate(),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    import numpy as np

    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
