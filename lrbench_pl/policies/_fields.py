"""Meaning of policy fields, declared once in the field's annotation.

Validation, serialization, stretching, cutting, lint and preview read it with :func:`meanings`, and depend on no policy
type.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lrbench_pl.policies import _checks as check
from lrbench_pl.policies._protocols import Policy

Kind = Literal[
    "rate",
    "number",
    "choice",
    "factor",
    "factor per step",
    "per step",
    "steps",
    "horizon",
    "interval",
    "period",
    "phase",
    "moment",
    "milestones",
    "nested",
    "optional",
    "parts",
    "stages",
    "group",
]


def _same(value: Any, factor: float) -> Any:
    return value


@dataclass(frozen=True)
class Meaning:
    """Meaning of a field: its valid values and its change when time is stretched.

    Args:
        kind: Kind of the field, for lint and other code that handles fields of one kind.
        check: Called with name and value of the field. Returns the value to store or raises ``ValueError``.
        stretch: Called with the value and the factor by which time is stretched. Returns the new value.
        refers_to: Another field of the same policy that this one refers to: the milestones of ``stages``, the period of
            a ``phase``. The period must be declared before its phase.
    """

    kind: Kind
    check: Callable[[str, Any], Any]
    stretch: Callable[[Any, float], Any] = _same
    refers_to: str = ""

    @property
    def is_nested(self) -> bool:
        """Return whether the value is a policy, a tuple of policies, or None instead of a policy."""
        return self.kind in ("nested", "optional", "parts", "stages")


def _length(steps: int, factor: float) -> int:
    return max(1, round(steps * factor))


def _longer(steps: float, factor: float) -> float:
    return steps * factor


def _slower(speed: float, factor: float) -> float:
    return speed / factor


def _per_step(gamma: float, factor: float) -> float:
    """Return the factor per step that gives ``gamma`` over ``factor`` steps; never 0."""
    return max(math.pow(gamma, 1 / factor), sys.float_info.min)


def _moved(stones: Iterable[int], factor: float) -> tuple[int, ...]:
    moved: list[int] = []
    for stone in stones:
        moved.append(max(_length(stone, factor), moved[-1] + 1 if moved else 1))
    return tuple(moved)


def _shifted(steps: int, factor: float) -> int:
    return round(steps * factor)


Rate = Annotated[float, Meaning("rate", check.rate)]
"""Learning rate, at least 0."""
Number = Annotated[float, Meaning("number", check.number)]
"""Finite number, independent of time."""
NonNegative = Annotated[float, Meaning("number", check.rate)]
"""Number of at least 0, independent of time, such as an exponent."""
Positive = Annotated[float, Meaning("number", check.positive)]
"""Number above 0, independent of time."""
Factor = Annotated[float, Meaning("factor", check.factor)]
"""Factor of one drop, in (0, 1]."""
FactorPerStep = Annotated[float, Meaning("factor per step", check.factor, _per_step)]
"""Factor applied at every step, in (0, 1]."""
PerStep = Annotated[float, Meaning("per step", check.rate, _slower)]
"""Speed per step, at least 0."""
SignedPerStep = Annotated[float, Meaning("per step", check.number, _slower)]
"""Speed per step; the sign is the direction."""
Steps = Annotated[int, Meaning("steps", check.count, _length)]
"""Number of steps, at least 1."""
Horizon = Annotated[int, Meaning("horizon", check.count, _length)]
"""Number of steps, at least 1, after which the rate is constant."""
Interval = Annotated[int, Meaning("interval", check.count, _length)]
"""Number of steps, at least 1, between two drops."""
Period = Annotated[int, Meaning("period", check.count, _length)]
"""Number of steps, at least 1, of a full cycle."""
Moment = Annotated[float, Meaning("moment", check.rate, _longer)]
"""Point in time, in steps, at least 0 and not rounded, such as the midpoint of a smooth change."""
Milestones = Annotated[tuple[int, ...], Meaning("milestones", check.milestones, _moved)]
"""Steps at which something changes, positive and strictly increasing."""
Nested = Annotated[Policy, Meaning("nested", check.policy)]
"""Policy that is evaluated at the same step as the one that contains it."""
Stages = Annotated[tuple[Policy, ...], Meaning("stages", check.policies, refers_to="milestones")]
"""Policies that run one after the other, each from its own step 0. They change at the field ``milestones``."""


def phase_of(period: str) -> Meaning:
    """Return the meaning of a phase, the steps by which a cycle is shifted ahead.

    Args:
        period: Name of the field that holds the steps of a cycle.
    """
    return Meaning("phase", check.integer, _shifted, period)


_REGISTERED: dict[str, type[Any]] = {}
_MEANINGS: dict[type[Any], dict[str, Meaning]] = {}
_PACKAGE = __name__.rpartition(".")[0]
_T = TypeVar("_T", bound=type[Any])


def register_policy(cls: _T) -> _T:
    """Register a frozen dataclass as a policy type (class decorator).

    A registered type can be validated, stored, loaded, stretched, cut and linted. Annotate each field with its meaning:
    :data:`Rate`, :data:`Steps`, :data:`FactorPerStep` and so on, a ``Literal`` of the valid values, or ``Annotated``
    with your own :class:`Meaning`. The fields of a new policy are validated before its ``__post_init__`` runs.

    Raises:
        TypeError: If the class is not a frozen dataclass, has no ``__call__``, is not at the top level of a module, or
            has a field without a meaning.

    Example::

        @register_policy
        @dataclass(frozen=True)
        class Linear:
            init_lr: Rate
            decay_steps: Horizon

            def __call__(self, t: int) -> float:
                return self.init_lr * max(0.0, 1 - t / self.decay_steps)

        stretched(Linear(0.1, 100), 3)  # Linear(init_lr=0.1, decay_steps=300)
        Linear(0.1, 0)  # ValueError: decay_steps must be an integer of at least 1, got 0
    """
    parameters = getattr(cls, "__dataclass_params__", None)
    if parameters is None or "__dataclass_fields__" not in vars(cls) or not parameters.frozen:
        raise TypeError(f"{cls.__qualname__} must be a frozen dataclass: write @dataclass(frozen=True) below this line")
    if not any("__call__" in vars(base) for base in cls.__mro__):
        raise TypeError(f"{cls.__qualname__} must have __call__(self, t) that returns the learning rate of step t")
    if "<locals>" in cls.__qualname__:
        raise TypeError(
            f"{cls.__qualname__} must be defined at the top level of a module: stored policies name it there"
        )
    found = {field.name: _meaning(cls, field.name, hint) for field, hint in _hints(cls)}
    for name, meaning in found.items():
        if meaning.refers_to and meaning.refers_to not in found:
            raise TypeError(f"{cls.__qualname__}.{name} needs the field {meaning.refers_to!r} too")
    _MEANINGS[cls] = found
    _check_first(cls, found)
    _REGISTERED[target_of(cls)] = cls
    return cls


def _hints(cls: type[Any]) -> list[tuple[Any, Any]]:
    try:
        hints = get_type_hints(cls, localns={cls.__name__: cls}, include_extras=True)
    except NameError as error:
        where = f"import the names in its annotations at the top of {cls.__module__}"
        raise TypeError(f"{cls.__qualname__}: {error}; {where}") from error
    return [(field, hints[field.name]) for field in fields(cls) if field.init]


def _meaning(cls: type[Any], name: str, hint: Any) -> Meaning:
    if get_origin(hint) is Literal:
        return Meaning("choice", functools.partial(_choice, get_args(hint)))
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, Meaning):
            return extra
    raise TypeError(
        f"{cls.__qualname__}.{name} must be annotated with its meaning, such as Rate, Steps or Number of {_PACKAGE}, "
        f"or a Literal; got {hint!r}"
    )


def _choice(known: tuple[Any, ...], name: str, value: Any) -> Any:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")
    return value


def _check_first(cls: Any, found: Mapping[str, Meaning]) -> None:
    """Validate the fields of every new ``cls``, before its own ``__post_init__``."""
    own: Callable[..., None] | None = getattr(cls, "__post_init__", None)

    def checked(self: Any) -> None:
        for name, meaning in found.items():
            object.__setattr__(self, name, meaning.check(name, getattr(self, name)))

    if own is None:  # the dataclass's __init__ calls no __post_init__
        init = cls.__init__

        @functools.wraps(init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            init(self, *args, **kwargs)
            checked(self)

        cls.__init__ = __init__
    else:

        @functools.wraps(own)
        def __post_init__(self: Any) -> None:  # noqa: N807
            checked(self)
            own(self)

        cls.__post_init__ = __post_init__


def target_of(cls: type[Any]) -> str:
    """Return the ``_target_`` that names a policy type in stored data."""
    ours = cls.__module__.startswith(f"{_PACKAGE}._")  # named by the package, not by its private module
    return f"{_PACKAGE if ours else cls.__module__}.{cls.__qualname__}"


def registered() -> Mapping[str, type[Any]]:
    """Return the registered policy types by their ``_target_``."""
    return MappingProxyType(_REGISTERED)


def meanings(cls: type[Any]) -> Mapping[str, Meaning]:
    """Return the meaning of each field of a type; empty if it is not registered."""
    return _MEANINGS.get(cls, {})


def fields_of(policy: object, kind: Kind) -> dict[str, Any]:
    """Return name and value of the fields of a kind; empty for unregistered types.

    Example:
        >>> from lrbench_pl.policies import Polynomial
        >>> fields_of(Polynomial(0.1, 500), "rate")
        {'init_lr': 0.1, 'end_lr': 0.0}
    """
    found = meanings(type(policy)).items()
    return {name: getattr(policy, name) for name, meaning in found if meaning.kind == kind}


def require_registered(policy: object) -> Mapping[str, Meaning]:
    """Return the meaning of each field of a policy.

    Raises:
        TypeError: If exactly this type is not registered.
    """
    if type(policy) not in _MEANINGS:
        raise TypeError(
            f"expected a policy of {_PACKAGE}, got {policy!r}; register its type with {_PACKAGE}.register_policy"
        )
    return _MEANINGS[type(policy)]


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply ``change`` to each policy in the value of a nested field."""
    if value is None:
        return None
    return tuple(change(part) for part in value) if isinstance(value, tuple) else change(value)
