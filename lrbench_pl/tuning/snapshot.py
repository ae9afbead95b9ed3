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
            self._state = {
                "tensors": {name: tensor.detach().clone() for name, tensor in _tensors(module)},
                "optimizers": [_copy(optimizer.state_dict()) for optimizer in trainer.optimizers],
                "precision": _copy(trainer.precision_plugin.state_dict()),
                "callbacks": {key: _copy(callback.state_dict()) for key, callback in self._with_state(trainer)},
                "random": _random_state(),
                "position": getattr(trainer.train_dataloader, "position", None),
            }

    @classmethod
    def of(cls, state: dict[str, Any], skip: Without = lambda callback: False) -> Snapshot:
        """The snapshot whose :meth:`state_dict` it was."""
        snapshot = cls.__new__(cls)
        snapshot._skip, snapshot._state = skip, state
        return snapshot

    def state_dict(self) -> dict[str, Any]:
        """All of it, for a checkpoint: tensors and plain data, if the other callbacks keep no other."""
        return self._state

    @property
    def is_exact(self) -> bool:
        """Whether the data position is part of it."""
        return self._state["position"] is not None

    def restore(self, trainer: Trainer, module: LightningModule) -> None:
        """Put the training back; may be done any number of times."""
        state = self._state
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor in _tensors(module):
                tensor.copy_(state["tensors"][name])
            for optimizer, kept in zip(trainer.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(_copy(kept))  # which keeps what it is given
            trainer.precision_plugin.load_state_dict(_copy(state["precision"]))
            for key, callback in self._with_state(trainer):
                if key in state["callbacks"]:  # a training that goes on may have others: a progress bar
                    callback.load_state_dict(_copy(state["callbacks"][key]))
        _set_random_state(state["random"])
        if self.is_exact:
            trainer.train_dataloader.position = state["position"]  # type: ignore[union-attr]

    def _with_state(self, trainer: Trainer) -> list[tuple[str, Any]]:
        return [
            (callback.state_key, callback)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if not isinstance(callback, Checkpoint) and not self._skip(callback)
        ]


def _tensors(module: LightningModule) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _copy(state: Any) -> Any:
    return copy.deepcopy(state)


def _random_state() -> dict[str, Any]:
    import numpy as np

    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))  # plain data
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy_state, "python": random.getstate()}


def _set_random_state(state: dict[str, Any]) -> None:
    import numpy as np

    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    inner = {**state["numpy"]["state"], "key": state["numpy"]["state"]["key"].numpy().astype(np.uint32)}
    np.random.set_state({**state["numpy"], "state": inner})
    random.setstate(state["python"])
