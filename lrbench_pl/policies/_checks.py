"""Validation of field values.

Each function returns the value or raises ``ValueError`` with field, rule and value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

from lrbench_pl.policies._protocols import AdaptivePolicy


def number(
    name: str, value: Any, rule: str = "be a finite number", holds: Callable[[float], bool] | None = None
) -> Any:
    """Require a finite number that satisfies ``holds``; ``rule`` is its description."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or (holds is not None and not holds(value)):
        raise ValueError(f"{name} must {rule}, got {value!r}")
    return value


def rate(name: str, value: Any) -> Any:
    """Require a learning rate: a finite number of at least 0, and at most :data:`LARGEST_RATE`."""
    number(name, value, "be a finite number of at least 0", lambda v: v >= 0)
    return number(
        name, value, f"be at most {LARGEST_RATE:g}, since weights would overflow", lambda v: v <= LARGEST_RATE
    )


LARGEST_RATE = 1e30  # what optimizers compute from it is still a number of 32 bits


def positive(name: str, value: Any) -> Any:
    """Require a finite number above 0."""
    return number(name, value, "be a finite number above 0", lambda v: v > 0)


def factor(name: str, value: Any) -> Any:
    """Require a decay factor in (0, 1]."""
    return number(name, value, "lie in (0, 1]", lambda v: 0 < v <= 1)


def integer(name: str, value: Any) -> Any:
    """Require an integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    return value


def count(name: str, value: Any, least: int = 1) -> Any:
    """Require an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return value


def milestones(name: str, value: Iterable[Any]) -> tuple[int, ...]:
    """Require positive, strictly increasing integers and return them as a tuple."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list of integers, got {value!r}")
    result = tuple(value)
    for milestone in result:
        count(name, milestone)
    if any(later <= earlier for earlier, later in itertools.pairwise(result)):
        raise ValueError(f"{name} must increase strictly, got {result}")
    return result


def policy(name: str, value: Any) -> Any:
    """Require a policy that is not adaptive."""
    if not callable(value) or isinstance(value, (type, AdaptivePolicy)):
        raise ValueError(f"{name} must be a plain policy, t -> learning rate, got {value!r}")
    return value


def policies(name: str, value: Any) -> tuple[Any, ...]:
    """Require policies that are not adaptive and return them as a tuple."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list of policies, got {value!r}")
    result = tuple(value)
    for part in result:
        if not callable(part) or isinstance(part, (type, AdaptivePolicy)):
            raise ValueError(f"{name} must be plain policies, t -> learning rate, got {part!r}")
    return result
