"""Policies as plain data and back; only registered types are instantiated."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from collections.abc import Sequence as SequenceABC
from typing import Any

from lrbench_pl.policies._compose import Policy
from lrbench_pl.policies._fields import each, meanings, registered, require_registered, target_of

ENTRY_POINTS = "lrbench_pl.policies"  # entry-point group of packages that bring policies


def to_config(policy: Policy) -> dict[str, Any]:
    """Return the constructor call as plain data, as in ``policy.yaml``.

    Raises:
        TypeError: If the type of the policy or of one of its parts is not registered.

    Example:
        >>> from lrbench_pl.policies import MultiStep
        >>> to_config(MultiStep(0.1, 0.5, (10, 20)))
        {'_target_': 'lrbench_pl.policies.MultiStep', 'init_lr': 0.1, 'gamma': 0.5, 'milestones': [10, 20]}
    """
    plain: dict[str, Any] = {}
    for name, meaning in require_registered(policy).items():
        value = getattr(policy, name)
        value = each(value, to_config) if meaning.is_nested else value
        plain[name] = list(value) if isinstance(value, tuple) else value
    return {"_target_": target_of(type(policy)), **plain}


def from_config(config: Mapping[str, Any]) -> Policy:
    """Build a policy from plain data; only registered types are instantiated.

    Registered are the types of this package, those passed to :func:`~lrbench_pl.policies.register_policy`, and those of
    installed packages with an entry point in the group ``lrbench_pl.policies``. A module that only the data names is
    never imported.

    Raises:
        ValueError: If ``_target_`` is not a registered type, or a field is missing, unknown or out of range.

    Example:
        >>> from_config({"_target_": "lrbench_pl.policies.Constant", "lr": 0.1})
        Constant(lr=0.1)
        >>> from_config({"_target_": "os.system", "command": "true"})
        Traceback (most recent call last):
        ...
        ValueError: _target_ must be lrbench_pl.policies.X with X one of Constant, Step, MultiStep, Exponential, \
InverseTime, Polynomial, SqrtDecay, Sigmoid, GroupPolicy, OptimizerPolicy, PerOptimizer, Sequential, Cyclic, or a type \
registered with register_policy by a module that this program imports or by an entry point lrbench_pl.policies; got \
'os.system'
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"expected a mapping with _target_, got {config!r}")
    arguments = dict(config)
    target = arguments.pop("_target_", None)
    arguments.pop("_convert_", None)  # a setting of Hydra, in every composite of conf/
    kind = _type_named(target)
    known = meanings(kind)
    if unknown := [name for name in arguments if name not in known]:
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}; it takes {', '.join(known)}")
    for name, value in arguments.items():
        if known[name].is_nested:
            arguments[name] = _loaded(value)
    try:
        policy: Policy = kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {str(error).removeprefix(kind.__name__ + '.__init__() ')}") from error
    return policy


def _loaded(value: Any) -> Any:
    """Build the value of a nested field; invalid values are left to its validation."""
    if isinstance(value, Mapping):
        return from_config(value)
    if isinstance(value, SequenceABC) and not isinstance(value, (str, bytes)):
        return tuple(from_config(part) for part in value)
    return value


def _type_named(target: object) -> type[Any]:
    if isinstance(target, str):
        if target not in registered():
            _load_entry_points()
        if target in registered():
            return registered()[target]
    prefix = f"{__package__}."
    ours = ", ".join(name.removeprefix(prefix) for name in registered() if name.startswith(prefix))
    raise ValueError(
        f"_target_ must be {prefix}X with X one of {ours}, or a type registered with register_policy by a module that "
        f"this program imports or by an entry point {ENTRY_POINTS}; got {target!r}"
    )


@functools.cache
def _load_entry_points() -> None:
    """Import the policies of installed packages, once."""
    from importlib.metadata import entry_points  # imported here: it is slow, and most programs do not need it

    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:
            raise ValueError(
                f"the policies of entry point {entry.name} ({entry.value}) cannot be imported: {error}; "
                f"repair or uninstall that package"
            ) from error
