"""What the fields of a policy mean: said once, in the field's annotation, and read by everything that handles policies.

Validation, storing, stretching, cutting, lint and preview know no policy type. They ask :func:`meanings`.
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
    "turns",
]


def _same(value: Any, factor: float) -> Any:
    return value


@dataclass(frozen=True)
class Meaning:
    """What a field means: which values it takes, and what becomes of one when time is stretched.

    Args:
        kind: What lint and the like recognise it by.
        check: Called with the field's name and value; returns the value to keep or raises ``ValueError``.
        stretch: Called with the value and the factor by which time is stretched; returns the new value.
        beside: The field of the same policy that this one goes with: the milestones of ``turns``, the period of a
            ``phase``. It must stand before a phase.
    """

    kind: Kind
    check: Callable[[str, Any], Any]
    stretch: Callable[[Any, float], Any] = _same
    beside: str = ""

    @property
    def is_nested(self) -> bool:
        """Whether the value is a policy, or a tuple of policies."""
        return self.kind in ("nested", "turns")


def _length(steps: int, factor: float) -> int:
    return max(1, round(steps * factor))


def _longer(steps: float, factor: float) -> float:
    return steps * factor


def _slower(speed: float, factor: float) -> float:
    return speed / factor


def _per_step(gamma: float, factor: float) -> float:
    """The factor per step whose power over ``factor`` steps is ``gamma``; never underflows to 0."""
    return max(math.pow(gamma, 1 / factor), sys.float_info.min)


def _moved(stones: Iterable[int], factor: float) -> tuple[int, ...]:
    moved: list[int] = []
    for stone in stones:
        moved.append(max(_length(stone, factor), moved[-1] + 1 if moved else 1))
    return tuple(moved)


def _shifted(steps: int, factor: float) -> int:
    return round(steps * factor)


Rate = Annotated[float, Meaning("rate", check.rate)]
"""A learning rate, at least 0."""
Number = Annotated[float, Meaning("number", check.number)]
"""A finite number that has nothing to do with time."""
NonNegative = Annotated[float, Meaning("number", check.rate)]
"""A number of at least 0 that has nothing to do with time, such as an exponent."""
Positive = Annotated[float, Meaning("number", check.positive)]
"""A number above 0 that has nothing to do with time."""
Factor = Annotated[float, Meaning("factor", check.factor)]
"""The factor of one drop, in (0, 1]."""
FactorPerStep = Annotated[float, Meaning("factor per step", check.factor, _per_step)]
"""The factor of every step, in (0, 1]."""
PerStep = Annotated[float, Meaning("per step", check.rate, _slower)]
"""A speed per step, at least 0."""
SignedPerStep = Annotated[float, Meaning("per step", check.number, _slower)]
"""A speed per step; its sign is the direction."""
Steps = Annotated[int, Meaning("steps", check.count, _length)]
"""A number of steps, at least 1."""
Horizon = Annotated[int, Meaning("horizon", check.count, _length)]
"""The number of steps, at least 1, after which the rate is constant."""
Interval = Annotated[int, Meaning("interval", check.count, _length)]
"""The number of steps, at least 1, from one drop to the next."""
Period = Annotated[int, Meaning("period", check.count, _length)]
"""The number of steps, at least 1, of a full cycle."""
Moment = Annotated[float, Meaning("moment", check.rate, _longer)]
"""A point in time in steps, at least 0 and not rounded: where a smooth change is half done."""
Milestones = Annotated[tuple[int, ...], Meaning("milestones", check.milestones, _moved)]
"""The steps at which something changes, positive and strictly increasing."""
Nested = Annotated[Policy, Meaning("nested", check.policy)]
"""A policy on the same clock as the one that holds it."""
Turns = Annotated[tuple[Policy, ...], Meaning("turns", check.policies, beside="milestones")]
"""Policies one after the other, each on its own clock, the next from each step of the field ``milestones`` on."""


def phase_of(period: str) -> Meaning:
    """The meaning of a number of steps by which a cycle is ahead; the field ``period`` says how long a cycle is."""
    return Meaning("phase", check.integer, _shifted, period)


_REGISTERED: dict[str, type[Any]] = {}
_MEANINGS: dict[type[Any], dict[str, Meaning]] = {}
_PACKAGE = __name__.rpartition(".")[0]
_T = TypeVar("_T", bound=type[Any])


def register_policy(cls: _T) -> _T:
    """Class decorator: from here on, this frozen dataclass can be validated, stored, loaded, stretched, cut and linted.

    Every field is annotated with what it means: :data:`Rate`, :data:`Steps`, :data:`FactorPerStep` and so on, a
    ``Literal`` of the values it may take, or ``Annotated`` with a :class:`Meaning` of your own. Each new policy is
    checked by these before its own ``__post_init__`` runs. Stored data may name the class once it is registered.

    Raises:
        TypeError: If the class is no frozen dataclass, cannot be called, is not at the top of a module or has a field
            that does not say what it means.

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
        raise TypeError(f"{cls.__qualname__} must have __call__(self, t): the learning rate of step t")
    if "<locals>" in cls.__qualname__:
        raise TypeError(f"{cls.__qualname__} must be defined at the top of a module, where stored data can name it")
    meant = {field.name: _meaning(cls, field.name, hint) for field, hint in _hints(cls)}
    for name, meaning in meant.items():
        if meaning.beside and meaning.beside not in meant:
            raise TypeError(f"{cls.__qualname__}.{name} needs a field {meaning.beside!r} beside it")
    _MEANINGS[cls] = meant
    _check_first(cls, meant)
    _REGISTERED[target_of(cls)] = cls
    return cls


def _hints(cls: type[Any]) -> list[tuple[Any, Any]]:
    try:
        hints = get_type_hints(cls, localns={cls.__name__: cls}, include_extras=True)
    except NameError as error:
        where = f"import what its annotations name at the top of {cls.__module__}"
        raise TypeError(f"{cls.__qualname__}: {error}; {where}") from error
    return [(field, hints[field.name]) for field in fields(cls) if field.init]


def _meaning(cls: type[Any], name: str, hint: Any) -> Meaning:
    if get_origin(hint) is Literal:
        return Meaning("choice", functools.partial(_choice, get_args(hint)))
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, Meaning):
            return extra
    raise TypeError(
        f"{cls.__qualname__}.{name} must be annotated with what it means, such as Rate, Steps or Number of "
        f"{_PACKAGE}, or a Literal; got {hint!r}"
    )


def _choice(known: tuple[Any, ...], name: str, value: Any) -> Any:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")
    return value


def _check_first(cls: Any, meant: Mapping[str, Meaning]) -> None:
    """Make every new value of ``cls`` check its fields, before its own ``__post_init__`` if it has one."""
    own: Callable[..., None] | None = getattr(cls, "__post_init__", None)

    def checked(self: Any) -> None:
        for name, meaning in meant.items():
            object.__setattr__(self, name, meaning.check(name, getattr(self, name)))

    if own is None:  # then the dataclass's __init__ would not call it
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
    """The ``_target_`` by which stored data names a policy type; those of this package stand in the package itself."""
    ours = cls.__module__.startswith(f"{_PACKAGE}._")
    return f"{_PACKAGE if ours else cls.__module__}.{cls.__qualname__}"


def registered() -> Mapping[str, type[Any]]:
    """The registered policy types by their ``_target_``."""
    return MappingProxyType(_REGISTERED)


def meanings(cls: type[Any]) -> Mapping[str, Meaning]:
    """What each field of a policy type means; empty if exactly this type is not registered."""
    return _MEANINGS.get(cls, {})


def meant(policy: object, kind: Kind) -> dict[str, Any]:
    """The fields of a policy that are of a kind, with their values; empty if its type is not registered.

    Example:
        >>> from lrbench_pl.policies import Polynomial
        >>> meant(Polynomial(0.1, 500), "rate")
        {'init_lr': 0.1, 'end_lr': 0.0}
    """
    found = meanings(type(policy)).items()
    return {name: getattr(policy, name) for name, meaning in found if meaning.kind == kind}


def require_registered(policy: object) -> Mapping[str, Meaning]:
    """What each field of a policy means.

    Raises:
        TypeError: If exactly this type is not registered.
    """
    if type(policy) not in _MEANINGS:
        raise TypeError(
            f"expected a policy of {_PACKAGE}, got {policy!r}; register its type with {_PACKAGE}.register_policy"
        )
    return _MEANINGS[type(policy)]


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value of a nested field, a policy or a tuple of policies, with each policy changed."""
    return tuple(change(part) for part in value) if isinstance(value, tuple) else change(value)
