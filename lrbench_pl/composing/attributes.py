"""Copying and restoring of tensors in attributes, such as averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # parameters, buffers, submodules, hooks


def named_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return the parameters and buffers of a module by name."""
    return [*module.named_parameters(), *module.named_buffers()]


def copy_attributes(owner: object, module: nn.Module) -> dict[str, Any]:
    """Copy the attributes that contain tensors or are None, an empty list or dict.

    Args:
        owner: A module or a callback. Parameters, buffers and submodules of a module are left out.
        module: The trained module, which is left out too.
    """
    attributes = [(name, value) for name, value in _attributes(owner) if value is not module]
    return {name: _copied(value) for name, value in attributes if _has_tensors(value) or _is_empty(value)}


def restore_attributes(owner: object, stored: dict[str, Any]) -> None:
    """Restore the attributes that :func:`copy_attributes` copied."""
    for name, value in list(_attributes(owner)):
        if name in stored and (value is None or _has_tensors(value)):
            vars(owner)[name] = _restored(value, stored[name])


def _attributes(owner: object) -> Iterator[tuple[str, Any]]:
    left_out = _OF_EVERY_MODULE if isinstance(owner, nn.Module) else ()
    return ((name, value) for name, value in vars(owner).items() if name not in left_out)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict | list) and not value)


def _has_tensors(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return bool(named_tensors(value))
    if isinstance(value, dict):
        return any(_has_tensors(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_has_tensors(item) for item in value)
    return isinstance(value, torch.Tensor)


def _copied(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return {name: tensor.detach().clone() for name, tensor in named_tensors(value)}
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items() if _has_tensors(item)}
    if isinstance(value, list | tuple):
        return [_copied(item) if _has_tensors(item) else None for item in value]
    return None if value is None else value.detach().clone()


def _restored(value: Any, stored: Any) -> Any:
    """Return the value with the stored tensors, changed in place where possible.

    Other objects may refer to the same tensors.
    """
    if isinstance(value, nn.Module) and isinstance(stored, dict):
        for name, tensor in named_tensors(value):
            if name in stored:
                tensor.copy_(stored[name])
        return value
    if isinstance(value, dict) and isinstance(stored, dict):
        return _restored_dict(value, stored)
    if isinstance(value, list | tuple) and isinstance(stored, list):
        return _restored_sequence(value, stored)
    if isinstance(stored, torch.Tensor):
        if isinstance(value, torch.Tensor) and _is_writable(value) and value.shape == stored.shape:
            return value.copy_(stored)
        return stored.clone()
    return copy.deepcopy(stored)


def _restored_dict(value: dict[Any, Any], stored: dict[Any, Any]) -> dict[Any, Any]:
    for name in list(value):
        if name in stored:
            value[name] = _restored(value[name], stored[name])
        elif _has_tensors(value[name]):
            del value[name]  # added after the snapshot
    return value


def _restored_sequence(value: list[Any] | tuple[Any, ...], stored: list[Any]) -> Any:
    pairs = zip(value, stored, strict=False)
    items = [item if part is None else _restored(item, part) for item, part in pairs]
    if isinstance(value, list):
        value[:] = [*items, *copy.deepcopy(stored[len(value) :])]
        return value
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def _is_writable(tensor: torch.Tensor) -> bool:
    return tensor.is_leaf and not tensor.is_inference()
