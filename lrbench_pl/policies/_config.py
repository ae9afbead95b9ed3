"""A policy as plain data, and back; what comes back can be nothing but a policy of this package."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceABC
from dataclasses import fields
from typing import Any

from lrbench_pl.policies._basic import (
    Constant,
    Exponential,
    InverseTime,
    MultiStep,
    Polynomial,
    Sigmoid,
    SqrtDecay,
    Step,
)
from lrbench_pl.policies._compose import Policy, Sequential
from lrbench_pl.policies._cyclic import Cyclic

_PREFIX = "lrbench_pl.policies."
_TYPES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Constant,
        Step,
        MultiStep,
        Exponential,
        InverseTime,
        Polynomial,
        Sigmoid,
        SqrtDecay,
        Cyclic,
        Sequential,
    )
}


def to_config(policy: Policy) -> dict[str, Any]:
    """The constructor call as plain data: what Hydra instantiates and ``policy.yaml`` holds.

    Raises:
        TypeError: If the policy, or a part of it, is not a type of this package.

    Example:
        >>> to_config(MultiStep(0.1, 0.5, (10, 20)))
        {'_target_': 'lrbench_pl.policies.MultiStep', 'init_lr': 0.1, 'gamma': 0.5, 'milestones': [10, 20]}
    """
    if _TYPES.get(type(policy).__name__) is not type(policy):
        raise TypeError(f"expected a policy of lrbench_pl.policies ({', '.join(_TYPES)}), got {policy!r}")
    plain: dict[str, Any] = {"_target_": _PREFIX + type(policy).__name__}
    for field in fields(policy):  # type: ignore[arg-type]
        value = getattr(policy, field.name)
        if field.name == "policies":
            value = [to_config(part) for part in value]
        plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def from_config(config: Mapping[str, Any]) -> Policy:
    """The policy that plain data describes; anything but the policy types of this package is refused.

    Raises:
        ValueError: If ``_target_`` names something else, or a field is missing, unknown or out of its range.

    Example:
        >>> from_config({"_target_": "lrbench_pl.policies.Constant", "lr": 0.1})
        Constant(lr=0.1)
        >>> from_config({"_target_": "os.system", "command": "true"})
        Traceback (most recent call last):
        ...
        ValueError: _target_ must be lrbench_pl.policies.X with X one of Constant, Step, MultiStep, Exponential, \
InverseTime, Polynomial, Sigmoid, SqrtDecay, Cyclic, Sequential; got 'os.system'
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"expected a mapping with _target_, got {config!r}")
    arguments = dict(config)
    target = arguments.pop("_target_", None)
    arguments.pop("_convert_", None)  # Hydra's own word, in every composite of conf/
    kind = _TYPES.get(target.removeprefix(_PREFIX)) if isinstance(target, str) and target.startswith(_PREFIX) else None
    if kind is None:
        raise ValueError(f"_target_ must be {_PREFIX}X with X one of {', '.join(_TYPES)}; got {target!r}")
    known = [field.name for field in fields(kind)]
    if unknown := [name for name in arguments if name not in known]:
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}; it takes {', '.join(known)}")
    parts = arguments.get("policies")
    if kind is Sequential and isinstance(parts, SequenceABC) and not isinstance(parts, str):
        arguments["policies"] = tuple(from_config(part) for part in parts)
    try:
        policy: Policy = kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {str(error).removeprefix(kind.__name__ + '.__init__() ')}") from error
    return policy
