"""Policies on another horizon: stretched in time, or cut at a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lrbench_pl.policies import _checks as check
from lrbench_pl.policies._compose import Policy, stages
from lrbench_pl.policies._fields import each, fields_of, meanings, require_registered


def stretched(policy: Policy, factor: float) -> Policy:
    """Stretch a policy in time: its rate at ``t`` moves to ``factor * t``.

    Lengths and milestones are rounded to whole steps, with at least one step each and between milestones. The n-th
    cycle or drop may therefore be off by n / 2 steps.

    Args:
        policy: A policy of a registered type, composite or not.
        factor: Factor of the time, above 0: above 1 stretches, below 1 compresses.

    Raises:
        ValueError: If ``factor`` is not a finite number above 0.
        TypeError: If the type of the policy or of one of its parts is not registered.

    Example:
        >>> from lrbench_pl.policies import Exponential, MultiStep
        >>> stretched(MultiStep(0.1, 0.5, (10, 20)), 2.5)
        MultiStep(init_lr=0.1, gamma=0.5, milestones=(25, 50))
        >>> round(stretched(Exponential(1.0, 0.25), 2)(4), 6) == round(Exponential(1.0, 0.25)(2), 6)
        True
    """
    check.positive("factor", factor)
    new: dict[str, Any] = {}
    for name, meaning in require_registered(policy).items():
        value = getattr(policy, name)
        if meaning.is_nested:
            new[name] = each(value, lambda part: stretched(part, factor))
        else:  # a phase keeps its share of the cycle, also if the period was rounded
            of = meaning.refers_to
            new[name] = meaning.stretch(value, new[of] / getattr(policy, of) if of else factor)
    return replace(policy, **new)  # type: ignore[type-var]


def cut(policy: Policy, max_steps: int) -> Policy:
    """Remove the parts and drops that start at ``max_steps`` or later.

    Rates before ``max_steps`` do not change.

    Raises:
        ValueError: If ``max_steps`` is not an integer of at least 1.

    Example:
        >>> from lrbench_pl.policies import Constant, MultiStep, Sequential
        >>> cut(Sequential((Constant(0.1), MultiStep(0.1, 0.5, (5, 40))), (10,)), 30)
        Sequential(policies=(Constant(lr=0.1), MultiStep(init_lr=0.1, gamma=0.5, milestones=(5,))), milestones=(10,))
        >>> cut(Sequential((Constant(0.1), Constant(0.2)), (10,)), 10)
        Constant(lr=0.1)
    """
    check.count("max_steps", max_steps)
    new: dict[str, Any] = {}
    for name, stones in fields_of(policy, "milestones").items():
        new[name] = tuple(stone for stone in stones if stone < max_steps)
    for kind in ("nested", "optional", "parts"):
        for name, inner in fields_of(policy, kind).items():
            new[name] = each(inner, lambda part: cut(part, max_steps))
    for name in fields_of(policy, "stages"):
        started = [part for part in stages(policy) if part[0] < max_steps]
        parts = tuple(cut(part, min(max_steps, end or max_steps) - start) for start, end, part in started)
        if len(parts) == 1 and len(meanings(type(policy))) == 2:  # the type has only parts and milestones
            return parts[0]
        new[name] = parts
    return replace(policy, **new) if new else policy  # type: ignore[type-var]
