"""Optimizers that update all replicas at once, each replica with its own rate and settings.

The arithmetic is that of torch's optimizers, operation by operation, so that a row of the result is bitwise what torch
computes for that replica alone.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lrbench_pl.sweeps.fused.engine import CannotFuse
from lrbench_pl.sweeps.fused.layout import Layout

# A setting of one group: a number if all replicas share it, else a column.
Setting = float | Tensor


class Update(ABC):
    """Applies the gradients of all replicas.

    Args:
        optimizers: The optimizer of each row, over that row's own module. Only its settings are read.
        layout: Where the parameters are.
        rows: The parameters, of shape (rows, columns).
    """

    is_capturable = True  # whether a CUDA graph may contain the update
    coefficients = 1  # numbers that each step needs for each group and row

    def __init__(self, optimizers: Sequence[Optimizer], layout: Layout, rows: Tensor) -> None:
        self._kind = type(optimizers[0])
        self._groups = [optimizer.param_groups for optimizer in optimizers]
        self._layout = layout
        self._names = self._state_names()
        self.state = {name: torch.zeros_like(rows) for name in self._names}
        self._read_settings(rows.device)

    @abstractmethod
    def _state_names(self) -> tuple[str, ...]:
        """Return the names of the tensors that each parameter has beside it."""

    @abstractmethod
    def _read_settings(self, device: torch.device) -> None:
        """Read the settings of the rows that there are."""

    @abstractmethod
    def table(self, rates: np.ndarray, step: int) -> np.ndarray:
        """Return the coefficients of coming steps, of shape (steps, coefficients, groups, rows), in float64.

        Args:
            rates: Of shape (steps, groups, rows).
            step: Steps taken before.
        """

    @abstractmethod
    def apply(self, rows: Tensor, gradients: Tensor, coefficients: Tensor) -> None:
        """Take one step.

        Args:
            rows: The parameters.
            gradients: Of the same shape. They may be overwritten.
            coefficients: Of shape (coefficients, groups, rows, 1).
        """

    def keep(self, rows: Tensor, places: Sequence[int]) -> None:
        """Continue with some of the rows."""
        index = torch.tensor(places, device=rows.device)
        self._groups = [self._groups[place] for place in places]
        self.state = {name: tensor.index_select(0, index) for name, tensor in self.state.items()}
        self._read_settings(rows.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all rows."""
        return {name: tensor.cpu().clone() for name, tensor in self.state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of the same rows."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])

    def _setting(self, read: Callable[[Mapping[str, Any]], float], group: int, device: torch.device) -> Setting:
        values = [read(groups[group]) for groups in self._groups]
        if all(value == values[0] for value in values):
            return float(values[0])
        return torch.tensor(values, dtype=torch.float64).float().unsqueeze(1).to(device)

    def _parts(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Return the columns of each group."""
        return [tuple(tensor[:, first:last] for tensor in tensors) for first, last in self._layout.groups]


class SGDUpdate(Update):
    """SGD with or without momentum and Nesterov's form of it, without dampening."""

    def _state_names(self) -> tuple[str, ...]:
        return ("momentum",) if any(group["momentum"] for groups in self._groups for group in groups) else ()

    def _read_settings(self, device: torch.device) -> None:
        each = range(len(self._layout.groups))
        self._momentum = [self._setting(lambda g: g["momentum"], group, device) for group in each]
        self._decay = [self._setting(lambda g: g["weight_decay"], group, device) for group in each]
        self._nesterov = [bool(group["nesterov"]) for group in self._groups[0]]

    def table(self, rates: np.ndarray, step: int) -> np.ndarray:
        """Return the negative rates."""
        return -rates[:, None]

    def apply(self, rows: Tensor, gradients: Tensor, coefficients: Tensor) -> None:
        """Take one step."""
        parts = self._parts(rows, gradients, *self.state.values())
        for group, (parameter, gradient, *state) in enumerate(parts):
            decay, momentum = self._decay[group], self._momentum[group]
            if not _is_zero(decay):
                add_product(gradient, parameter, decay)
            if state:
                state[0].mul_(momentum).add_(gradient)
                if self._nesterov[group]:
                    add_product(gradient, state[0], momentum)
                else:
                    gradient = state[0]
            add_product(parameter, gradient, coefficients[0, group])


class AdamUpdate(Update):
    """Adam, and AdamW with its decoupled weight decay, without AMSGrad."""

    coefficients = 3

    def _state_names(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _read_settings(self, device: torch.device) -> None:
        each = range(len(self._layout.groups))
        self._decay = [self._setting(lambda g: g["weight_decay"], group, device) for group in each]
        self._eps = [self._setting(lambda g: g["eps"], group, device) for group in each]
        self._new1 = [self._setting(lambda g: 1 - g["betas"][0], group, device) for group in each]
        self._old2 = [self._setting(lambda g: g["betas"][1], group, device) for group in each]
        self._new2 = [self._setting(lambda g: 1 - g["betas"][1], group, device) for group in each]
        is_adamw = self._kind is AdamW
        self._decoupled = [bool(group.get("decoupled_weight_decay", is_adamw)) for group in self._groups[0]]

    def table(self, rates: np.ndarray, step: int) -> np.ndarray:
        """Return the negative step sizes, the root of the second bias correction and the factor of the decay."""
        table = np.empty((len(rates), 3, *rates.shape[1:]))
        powers: dict[float, np.ndarray] = {}

        def correction(beta: float) -> np.ndarray:
            if beta not in powers:
                powers[beta] = np.array([1 - beta ** float(step + i + 1) for i in range(len(rates))])
            return powers[beta]

        for row, groups in enumerate(self._groups):
            for number, group in enumerate(groups):
                beta1, beta2 = group["betas"]
                rate = rates[:, number, row]
                table[:, 0, number, row] = -(rate / correction(beta1))
                table[:, 1, number, row] = correction(beta2) ** 0.5
                table[:, 2, number, row] = 1 - rate * group["weight_decay"]
        return table

    def apply(self, rows: Tensor, gradients: Tensor, coefficients: Tensor) -> None:
        """Take one step."""
        parts = self._parts(rows, gradients, self.state["exp_avg"], self.state["exp_avg_sq"])
        for group, (parameter, gradient, average, square) in enumerate(parts):
            decay, new2 = self._decay[group], self._new2[group]
            step_size, correction, factor = coefficients[:, group]
            if not _is_zero(decay):
                if self._decoupled[group]:
                    parameter.mul_(factor)
                else:
                    add_product(gradient, parameter, decay)
            average.lerp_(gradient, self._new1[group])
            square.mul_(self._old2[group])
            if isinstance(new2, Tensor):
                square.addcmul_(gradient * new2, gradient)
            else:
                square.addcmul_(gradient, gradient, value=new2)
            denominator = (square.sqrt() / correction).add_(self._eps[group])
            if parameter.is_cuda:
                add_product(parameter, average / denominator, step_size)
            else:
                parameter.addcdiv_(average * step_size, denominator)


class TorchUpdate(Update):
    """Any other optimizer: torch's own, one for each replica."""

    is_capturable = False

    def __init__(self, optimizers: Sequence[Optimizer], layout: Layout, rows: Tensor) -> None:
        self._optimizers = [copy.deepcopy(optimizer) for optimizer in optimizers]
        super().__init__(optimizers, layout, rows)

    def _state_names(self) -> tuple[str, ...]:
        return ()

    def _read_settings(self, device: torch.device) -> None:
        pass

    def table(self, rates: np.ndarray, step: int) -> np.ndarray:
        """Return the rates."""
        return rates[:, None]

    def bind(self, rows: Tensor, gradients: Tensor) -> None:
        """Let the optimizers work on these rows."""
        for optimizer, row, gradient in zip(self._optimizers, rows, gradients, strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            views = zip(parameters, self._layout.of_row(row), self._layout.of_row(gradient), strict=True)
            for parameter, value, grad in views:
                parameter.data, parameter.grad = value, grad

    def take_step(self, rates: np.ndarray, on: Sequence[bool]) -> None:
        """Take one step with these rates (groups, rows) of the rows that are on."""
        for row, optimizer in enumerate(self._optimizers):
            if on[row]:
                for number, group in enumerate(optimizer.param_groups):
                    if isinstance(group["lr"], Tensor):
                        group["lr"].fill_(float(rates[number, row]))
                    else:
                        group["lr"] = float(rates[number, row])
                optimizer.step()

    def apply(self, rows: Tensor, gradients: Tensor, coefficients: Tensor) -> None:
        """Do nothing: :meth:`take_step` is called outside a graph."""

    def keep(self, rows: Tensor, places: Sequence[int]) -> None:
        """Continue with some of the rows."""
        self._groups = [self._groups[place] for place in places]
        self._optimizers = [self._optimizers[place] for place in places]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all optimizers."""
        return {"optimizers": [_plain(optimizer.state_dict()["state"]) for optimizer in self._optimizers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of the same rows."""
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": copy.deepcopy(saved)})


def make_update(optimizers: Sequence[Optimizer], layout: Layout, rows: Tensor) -> Update:
    """Return the update for the optimizers of all rows.

    Raises:
        CannotFuse: If they are of several classes, or differ in more than their rates and scalar settings.
    """
    kinds = sorted({type(optimizer).__name__ for optimizer in optimizers})
    if len(kinds) > 1:
        raise CannotFuse(f"the jobs have optimizers of several classes: {', '.join(kinds)}")
    for switch in ("nesterov", "amsgrad", "maximize", "decoupled_weight_decay", "centered"):
        if len({tuple(group.get(switch) for group in optimizer.param_groups) for optimizer in optimizers}) > 1:
            raise CannotFuse(f"the jobs differ in {switch} of {kinds[0]}, which is no number")
    kind = type(optimizers[0])
    if kind is SGD and all(_is_plain(optimizer, "dampening") for optimizer in optimizers):
        return SGDUpdate(optimizers, layout, rows)
    if kind in (Adam, AdamW) and all(_is_plain(optimizer, "amsgrad") for optimizer in optimizers):
        return AdamUpdate(optimizers, layout, rows)
    return TorchUpdate(optimizers, layout, rows)


def add_product(total: Tensor, factor: Tensor, other: Setting) -> None:
    """Add ``factor * other`` to ``total`` in place, rounded once, as ``total.add_(factor, alpha=other)`` does.

    A column of factors needs ``addcmul``, which rounds alike.
    """
    if isinstance(other, Tensor):
        total.addcmul_(factor, other)
    else:
        total.add_(factor, alpha=other)


def _is_zero(setting: Setting) -> bool:
    return not isinstance(setting, Tensor) and setting == 0


def _is_plain(optimizer: Optimizer, switch: str) -> bool:
    """Return whether an optimizer has only options that the stacked updates know."""
    groups = optimizer.param_groups
    if any(group.get(option) for group in groups for option in (switch, "maximize", "differentiable")):
        return False
    settings = [value for group in groups for value in (group["weight_decay"], *group.get("betas", ()))]
    return not any(isinstance(value, Tensor) for value in settings)


def _plain(value: Any) -> Any:
    """Return a copy on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value
