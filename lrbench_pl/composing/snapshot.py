"""All of a training's state in memory, to go back to: weights, optimizer, scaler, callbacks, random numbers, data."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

Without = Callable[[Callback], bool]

# Callbacks of Lightning by name, since each of its two packages has its own. Their files and clocks go on.
_GOES_ON = ("Checkpoint", "Timer")
_NOT_RESTORABLE = {
    "BaseFinetuning": "changes what is trained at an epoch, and epochs are not gone back to; set up the groups and "
    "what is frozen in the module",
    "ModelPruning": "replaces parameters of the module; prune after composing",
}


class ChangedModuleError(RuntimeError):
    """A snapshot of a module that has other parameters or buffers by now."""


class Snapshot:
    """The state of a training between two batches.

    Restoring is exact: what is trained after it equals, bit for bit on a CPU, what would have been trained had nothing
    come between. It puts back parameters and buffers, and which are trained; other tensors that the module or a
    callback holds in an attribute, alone, in a list or a dict, or in a module such as an averaged model; pending
    gradients; the optimizers with their parameter groups, the schedulers and the scaler; what each callback's
    ``state_dict`` says; and the random numbers. That holds for the data too if the training loader has a ``position``
    that it reads at each batch, as :class:`~lrbench_pl.workloads.data.TrainLoader` does; any other loader goes on where
    it is.

    The step count and the epoch of the Trainer are not part of it: steps that were spent stay spent.

    Args:
        trainer: A Trainer that is fitting.
        module: Its module.
        skip: Which callbacks keep their state; checkpoints and timers always do, since files stay and clocks go on.
        gradients: Whether gradients wait for a step; else there are none after going back.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        skip: Without = lambda callback: False,
        gradients: bool = True,
    ) -> None:
        self._skip = skip
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        with torch.inference_mode(False), torch.no_grad():  # a check runs in inference mode, whose tensors cannot train
            self._state = {
                "tensors": {name: tensor.detach().clone() for name, tensor in _tensors(module)},
                "frozen": [name for name, parameter in module.named_parameters() if not parameter.requires_grad],
                "gradients": {
                    name: parameter.grad.detach().clone()
                    for name, parameter in module.named_parameters()
                    if gradients and parameter.grad is not None
                },
                "held": {name: held for name, part in module.named_modules() if (held := _held(part, module))},
                "groups": [
                    [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
                    for optimizer in trainer.optimizers
                ],
                "optimizers": [_copy(optimizer.state_dict()) for optimizer in trainer.optimizers],
                "schedulers": [_copy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
                "precision": _copy(trainer.precision_plugin.state_dict()),
                "callbacks": {key: _copy(callback.state_dict()) for key, callback in self._with_state(trainer)},
                "held by callbacks": {key: _held(callback, module) for key, callback in self._with_state(trainer)},
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
        """Put the training back; may be done any number of times.

        Raises:
            ChangedModuleError: If the module has other parameters or buffers by now.
        """
        state = self._state
        tensors = dict(_tensors(module))
        if changed := sorted(tensors.keys() ^ state["tensors"].keys()):
            raise ChangedModuleError(
                f"the training cannot go back: {changed[0]!r} was added to the module or taken from it since; add "
                "and take parameters and buffers before training"
            )
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(state["tensors"][name])
            frozen, gradients = (
                state.get("frozen"),
                state.get("gradients", {}),
            )  # absent from checkpoints of version 0.1
            for name, parameter in module.named_parameters():
                if frozen is not None and parameter.requires_grad is (name in frozen):
                    parameter.requires_grad_(name not in frozen)
                _restore_gradient(parameter, gradients.get(name))
            for name, part in module.named_modules():
                _restore_held(part, state.get("held", {}).get(name, {}))
            parameters = dict(module.named_parameters())
            groups = state.get("groups", [None] * len(trainer.optimizers))
            for optimizer, kept, names in zip(trainer.optimizers, state["optimizers"], groups, strict=True):
                if names is not None:
                    _restore_groups(
                        optimizer, kept["param_groups"], [[parameters[n] for n in group] for group in names]
                    )
                optimizer.load_state_dict(_copy(kept))  # which keeps what it is given
            for config, kept in zip(trainer.lr_scheduler_configs, state.get("schedulers", ()), strict=False):
                config.scheduler.load_state_dict(_copy(kept))
            trainer.precision_plugin.load_state_dict(_copy(state["precision"]))
            for key, callback in self._with_state(trainer):
                if key in state["callbacks"]:  # a training that goes on may have others: a progress bar
                    callback.load_state_dict(_copy(state["callbacks"][key]))
                    _restore_held(callback, state.get("held by callbacks", {}).get(key, {}))
        _set_random_state(state["random"])
        if self.is_exact:
            trainer.train_dataloader.position = state["position"]  # type: ignore[union-attr]

    def _with_state(self, trainer: Trainer) -> list[tuple[str, Any]]:
        return [
            (callback.state_key, callback)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if _is_any_of(callback, _GOES_ON) is None and not self._skip(callback)
        ]


def why_not_restorable(trainer: Trainer, module: LightningModule) -> str | None:
    """What a snapshot of this training could not put back, by name; None if nothing."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if (name := _is_any_of(callback, tuple(_NOT_RESTORABLE))) is not None:
            return f"{type(callback).__name__} {_NOT_RESTORABLE[name]}"
    strategy = type(trainer.strategy).__name__
    if strategy.startswith("DeepSpeed"):
        return f"{strategy} keeps weights of its own, which cannot be put back; use another strategy"
    known = {id(parameter) for parameter in module.parameters()}
    for index, optimizer in enumerate(trainer.optimizers):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in known:
                    shape = tuple(parameter.shape)
                    what = f"optimizer {index} trains a tensor of shape {shape}"
                    return f"{what} that is no parameter of the module; make it one"
    return None


def _is_any_of(callback: object, names: tuple[str, ...]) -> str | None:
    """The name of the class of Lightning, in either of its packages, that a callback is of."""
    for kind in type(callback).__mro__:
        if kind.__name__ in names and kind.__module__.startswith(("pytorch_lightning.", "lightning.")):
            return kind.__name__
    return None


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _copy(state: Any) -> Any:
    return copy.deepcopy(state)


def _restore_gradient(parameter: nn.Parameter, kept: torch.Tensor | None) -> None:
    if kept is None:
        parameter.grad = None
    elif parameter.grad is None:
        parameter.grad = kept.clone()
    else:
        parameter.grad.copy_(kept)


def _restore_groups(optimizer: Any, kept: list[dict[str, Any]], groups: list[list[nn.Parameter]]) -> None:
    """Give an optimizer its parameter groups back, if others were added or taken since."""
    now = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    if now != [[id(parameter) for parameter in group] for group in groups]:
        optimizer.param_groups[:] = [
            {**_copy(group), "params": parameters} for group, parameters in zip(kept, groups, strict=True)
        ]


_OF_A_MODULE = frozenset(vars(nn.Module()))  # parameters, buffers, modules, hooks


def _attributes(owner: object) -> Iterator[tuple[str, Any]]:
    """Attributes in which tensors may be held, beside the parameters and buffers of a module."""
    own = _OF_A_MODULE if isinstance(owner, nn.Module) else ()
    return ((name, value) for name, value in vars(owner).items() if name not in own)


def _held(owner: object, module: nn.Module) -> dict[str, Any]:
    """The tensors in the attributes of an object, and which attributes are None or empty."""
    attributes = [(name, value) for name, value in _attributes(owner) if value is not module]
    return {name: _kept(value) for name, value in attributes if _has_tensors(value) or _is_empty(value)}


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict | list) and not value)


def _has_tensors(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return bool(_tensors(value))
    if isinstance(value, dict):
        return any(_has_tensors(each) for each in value.values())
    if isinstance(value, list | tuple):
        return any(_has_tensors(each) for each in value)
    return isinstance(value, torch.Tensor)


def _kept(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return {name: tensor.detach().clone() for name, tensor in _tensors(value)}
    if isinstance(value, dict):
        return {name: _kept(each) for name, each in value.items() if _has_tensors(each)}
    if isinstance(value, list | tuple):
        return [_kept(each) if _has_tensors(each) else None for each in value]
    return None if value is None else value.detach().clone()


def _restore_held(owner: object, kept: dict[str, Any]) -> None:
    for name, value in list(_attributes(owner)):
        if name in kept and (value is None or _has_tensors(value)):
            vars(owner)[name] = _restored(value, kept[name])


def _restored(value: Any, kept: Any) -> Any:
    """A value with the tensors that were kept, in place where that can be: others may hold it too."""
    if isinstance(value, nn.Module) and isinstance(kept, dict):
        for name, tensor in _tensors(value):
            if name in kept:
                tensor.copy_(kept[name])
        return value
    if isinstance(value, dict) and isinstance(kept, dict):
        for name in list(value):
            if name in kept:
                value[name] = _restored(value[name], kept[name])
            elif _has_tensors(value[name]):
                del value[name]  # it came later
        return value
    if isinstance(value, list | tuple) and isinstance(kept, list):
        pairs = zip(value, kept, strict=False)
        parts = [_restored(each, part) if part is not None else each for each, part in pairs]
        if isinstance(value, list):
            value[:] = [*parts, *_copy(kept[len(value) :])]
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(kept, torch.Tensor):
        if isinstance(value, torch.Tensor) and value.is_leaf and not value.is_inference() and value.shape == kept.shape:
            return value.copy_(kept)
        return kept.clone()
    return _copy(kept)


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
