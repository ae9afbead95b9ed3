"""Snapshots of a whole training in memory, which can be restored exactly."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.callbacks import Callback

from lrbench_pl.composing.attributes import copy_attributes, named_tensors, restore_attributes

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer
    from torch import nn

# Callbacks of Lightning are recognised by the name of their class, since each of its two packages has its own.
_NEVER_RESTORED = ("Checkpoint", "Timer")  # files and clocks do not go back
_NOT_RESTORABLE = {
    "BaseFinetuning": "changes the trained parameters at an epoch, and epochs are not restored; set up parameter "
    "groups and frozen parameters in the module",
    "ModelPruning": "replaces parameters of the module; prune after composing",
}


class ChangedModuleError(RuntimeError):
    """Raised if the parameters or buffers of a module are not those of its snapshot."""


class Snapshot:
    """State of a training between two batches, which can be restored exactly.

    On a CPU the training after a restore is bitwise identical to one that was never interrupted. A snapshot contains

    - parameters and buffers, which parameters are trained, and pending gradients;
    - other tensors in attributes of the module and of the callbacks, also inside lists, dicts and modules such as an
      averaged model;
    - optimizers with their parameter groups, schedulers and the gradient scaler;
    - the ``state_dict`` of each callback, and the random state;
    - the position in the data, if the training loader has a ``position`` that it reads at each batch, as
      :class:`~lrbench_pl.workloads.data.TrainLoader` does. Any other loader continues at its current batch.

    The step count and the epoch of the Trainer are not restored: steps that were taken still count.

    Args:
        trainer: Trainer that is fitting the module.
        module: Trained module.
        skip: Returns whether a callback keeps its state. Checkpoint callbacks and timers always do.
        gradients: Whether there are gradients to keep. If false, the gradients are None after a restore.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        skip: Callable[[Callback], bool] = lambda callback: False,
        gradients: bool = True,
    ) -> None:
        self._skip = skip
        callbacks = self._restored_callbacks(trainer)
        with torch.inference_mode(False), torch.no_grad():  # tensors made in inference mode cannot be trained
            self._state = {
                **_copy_parameters(module, gradients),
                "held": {
                    name: held for name, part in module.named_modules() if (held := copy_attributes(part, module))
                },
                "groups": _parameter_groups(trainer, module),
                "optimizers": [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers],
                "schedulers": [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
                "precision": copy.deepcopy(trainer.precision_plugin.state_dict()),
                "callbacks": {key: copy.deepcopy(callback.state_dict()) for key, callback in callbacks},
                "held by callbacks": {key: copy_attributes(callback, module) for key, callback in callbacks},
                "random": _random_state(),
                "position": getattr(trainer.train_dataloader, "position", None),
            }

    @classmethod
    def from_state_dict(
        cls, state: dict[str, Any], skip: Callable[[Callback], bool] = lambda callback: False
    ) -> Snapshot:
        """Build a snapshot from its :meth:`state_dict`."""
        snapshot = cls.__new__(cls)
        snapshot._skip, snapshot._state = skip, state
        return snapshot

    def state_dict(self) -> dict[str, Any]:
        """Return the state: tensors, plain data and the states of other callbacks."""
        return self._state

    @property
    def is_exact(self) -> bool:
        """Return whether the snapshot contains the position in the data."""
        return self._state["position"] is not None

    def restore(self, trainer: Trainer, module: LightningModule) -> None:
        """Restore the training; can be called any number of times.

        Raises:
            ChangedModuleError: If the module has other parameters or buffers than at the snapshot.
        """
        self._check_names(module)
        with torch.inference_mode(False), torch.no_grad():
            self._restore_module(module)
            self._restore_optimizers(trainer, module)
            trainer.precision_plugin.load_state_dict(copy.deepcopy(self._state["precision"]))
            self._restore_callbacks(trainer)
        _set_random_state(self._state["random"])
        if self.is_exact:
            trainer.train_dataloader.position = self._state["position"]  # type: ignore[union-attr]

    def _check_names(self, module: nn.Module) -> None:
        if changed := sorted(dict(named_tensors(module)).keys() ^ self._state["tensors"].keys()):
            raise ChangedModuleError(
                f"the training cannot go back: {changed[0]!r} was added to the module or removed from it; add and "
                "remove parameters and buffers before training"
            )

    # Checkpoints of version 0.1 lack the keys that are read with `get`.

    def _restore_module(self, module: nn.Module) -> None:
        for name, tensor in named_tensors(module):
            tensor.copy_(self._state["tensors"][name])
        frozen, gradients = self._state.get("frozen"), self._state.get("gradients", {})
        for name, parameter in module.named_parameters():
            if frozen is not None and parameter.requires_grad is (name in frozen):
                parameter.requires_grad_(name not in frozen)
            _restore_gradient(parameter, gradients.get(name))
        for name, part in module.named_modules():
            restore_attributes(part, self._state.get("held", {}).get(name, {}))

    def _restore_optimizers(self, trainer: Trainer, module: nn.Module) -> None:
        parameters = dict(module.named_parameters())
        groups = self._state.get("groups", [None] * len(trainer.optimizers))
        for optimizer, stored, names in zip(trainer.optimizers, self._state["optimizers"], groups, strict=True):
            if names is not None:
                _restore_groups(
                    optimizer, stored["param_groups"], [[parameters[name] for name in group] for group in names]
                )
            optimizer.load_state_dict(copy.deepcopy(stored))  # it keeps the objects that it is given
        for config, stored in zip(trainer.lr_scheduler_configs, self._state.get("schedulers", ()), strict=False):
            config.scheduler.load_state_dict(copy.deepcopy(stored))

    def _restore_callbacks(self, trainer: Trainer) -> None:
        for key, callback in self._restored_callbacks(trainer):
            if key in self._state["callbacks"]:  # a resumed training may have others, such as a progress bar
                callback.load_state_dict(copy.deepcopy(self._state["callbacks"][key]))
                restore_attributes(callback, self._state.get("held by callbacks", {}).get(key, {}))

    def _restored_callbacks(self, trainer: Trainer) -> list[tuple[str, Any]]:
        return [
            (callback.state_key, callback)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if _lightning_class(callback, _NEVER_RESTORED) is None and not self._skip(callback)
        ]


def why_not_restorable(trainer: Trainer, module: LightningModule) -> str | None:
    """Return why a snapshot of this training could not be restored; None if it could."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if (name := _lightning_class(callback, tuple(_NOT_RESTORABLE))) is not None:
            return f"{type(callback).__name__} {_NOT_RESTORABLE[name]}"
    strategy = type(trainer.strategy).__name__
    if strategy.startswith("DeepSpeed"):
        return f"{strategy} keeps its own copy of the weights, which cannot be restored; use another strategy"
    known = {id(parameter) for parameter in module.parameters()}
    for index, optimizer in enumerate(trainer.optimizers):
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            if id(parameter) not in known:
                tensor = f"a tensor of shape {tuple(parameter.shape)}"
                return f"optimizer {index} trains {tensor} that is not a parameter of the module; make it one"
    return None


def _lightning_class(callback: object, names: tuple[str, ...]) -> str | None:
    """Return the name of the Lightning class of a callback, if it is one of these."""
    for kind in type(callback).__mro__:
        if kind.__name__ in names and kind.__module__.startswith(("pytorch_lightning.", "lightning.")):
            return kind.__name__
    return None


def _copy_parameters(module: nn.Module, gradients: bool) -> dict[str, Any]:
    parameters = list(module.named_parameters())
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in named_tensors(module)},
        "frozen": [name for name, parameter in parameters if not parameter.requires_grad],
        "gradients": {
            name: parameter.grad.detach().clone()
            for name, parameter in parameters
            if gradients and parameter.grad is not None
        },
    }


def _parameter_groups(trainer: Trainer, module: nn.Module) -> list[list[list[str]]]:
    """Return the names of the parameters in each group of each optimizer."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [
        [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
        for optimizer in trainer.optimizers
    ]


def _restore_gradient(parameter: nn.Parameter, stored: torch.Tensor | None) -> None:
    if stored is None:
        parameter.grad = None
    elif parameter.grad is None:
        parameter.grad = stored.clone()
    else:
        parameter.grad.copy_(stored)


def _restore_groups(optimizer: Any, stored: list[dict[str, Any]], groups: list[list[nn.Parameter]]) -> None:
    """Restore the parameter groups of an optimizer if groups were added or removed."""
    current = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    if current != [[id(parameter) for parameter in group] for group in groups]:
        optimizer.param_groups[:] = [
            {**copy.deepcopy(group), "params": parameters} for group, parameters in zip(stored, groups, strict=True)
        ]


def _random_state() -> dict[str, Any]:
    """Return the state of all random number generators as tensors and plain data."""
    import numpy as np

    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
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
