"""What a field of a policy may be; each says the field, the rule and the value."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any


def number(
    name: str, value: Any, rule: str = "be a finite number", holds: Callable[[float], bool] | None = None
) -> None:
    """Refuse what is no finite number, or breaks the rule."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or (holds is not None and not holds(value)):
        raise ValueError(f"{name} must {rule}, got {value!r}")


def rate(name: str, value: Any) -> None:
    """Refuse what is no learning rate."""
    number(name, value, "be a finite number of at least 0", lambda v: v >= 0)


def factor(name: str, value: Any) -> None:
    """Refuse a decay factor outside (0, 1]."""
    number(name, value, "lie in (0, 1]", lambda v: 0 < v <= 1)


def count(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def milestones(value: Iterable[Any]) -> tuple[int, ...]:
    """The milestones as a tuple: positive integers, each above the one before."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ValueError(f"milestones must be a list of integers, got {value!r}")
    result = tuple(value)
    for milestone in result:
        count("milestones", milestone)
    if any(later <= earlier for earlier, later in itertools.pairwise(result)):
        raise ValueError(f"milestones must increase strictly, got {result}")
    return result
