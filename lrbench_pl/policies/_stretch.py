"""The same policy on another horizon."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lrbench_pl.policies import _checks as check
from lrbench_pl.policies._compose import Policy, turns
from lrbench_pl.policies._fields import each, meanings, meant, require_registered


def stretched(policy: Policy, factor: float) -> Policy:
    """The policy with its time stretched: at ``factor * t`` it gives the rate that ``policy`` gives at ``t``.

    Lengths and milestones are rounded to whole steps, at least one each and one between milestones, so that the n-th
    cycle or drop may be n / 2 steps off.

    Args:
        policy: A policy of a registered type, composite or not.
        factor: Above 1 stretches, below 1 squeezes.

    Raises:
        ValueError: If ``factor`` is no finite number above 0.
        TypeError: If the type of the policy, or of a part of it, is not registered.

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
        else:  # a phase keeps its part of the cycle, however the period was rounded
            of = meaning.beside
            new[name] = meaning.stretch(value, new[of] / getattr(policy, of) if of else factor)
    return replace(policy, **new)  # type: ignore[type-var]


def cut(policy: Policy, max_steps: int) -> Policy:
    """The policy without the parts and drops that begin at ``max_steps`` or later; its rates before that are the same.

    Raises:
        ValueError: If ``max_steps`` is no integer of at least 1.

    Example:
        >>> from lrbench_pl.policies import Constant, MultiStep, Sequential
        >>> cut(Sequential((Constant(0.1), MultiStep(0.1, 0.5, (5, 40))), (10,)), 30)
        Sequential(policies=(Constant(lr=0.1), MultiStep(init_lr=0.1, gamma=0.5, milestones=(5,))), milestones=(10,))
        >>> cut(Sequential((Constant(0.1), Constant(0.2)), (10,)), 10)
        Constant(lr=0.1)
    """
    check.count("max_steps", max_steps)
    new: dict[str, Any] = {}
    for name, stones in meant(policy, "milestones").items():
        new[name] = tuple(stone for stone in stones if stone < max_steps)
    for name, inner in meant(policy, "nested").items():
        new[name] = cut(inner, max_steps)
    for name in meant(policy, "turns"):
        begun = [turn for turn in turns(policy) if turn[0] < max_steps]
        parts = tuple(cut(part, min(max_steps, end or max_steps) - start) for start, end, part in begun)
        if len(parts) == 1 and len(meanings(type(policy))) == 2:  # nothing but parts and their milestones
            return parts[0]
        new[name] = parts
    return replace(policy, **new) if new else policy  # type: ignore[type-var]
