"""The same policy on another horizon."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from lrbench_pl.policies import _checks as check
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

# Whole numbers of steps are fields of these; what has no field here stretches in a way of its own.
_LENGTHS: dict[type[Any], str] = {Step: "step_size", Polynomial: "decay_steps", SqrtDecay: "decay_steps"}


def stretched(policy: Policy, factor: float) -> Policy:
    """The policy with its time stretched: at ``factor * t`` it gives the rate that ``policy`` gives at ``t``.

    Lengths and milestones are rounded to whole steps, at least one each and one between milestones, so that the n-th
    cycle or drop may be n / 2 steps off.

    Args:
        policy: A policy of this package, composite or not.
        factor: Above 1 stretches, below 1 squeezes.

    Raises:
        ValueError: If ``factor`` is no finite number above 0.
        TypeError: If the policy, or a part of it, is not a type of this package.

    Example:
        >>> stretched(MultiStep(0.1, 0.5, (10, 20)), 2.5)
        MultiStep(init_lr=0.1, gamma=0.5, milestones=(25, 50))
        >>> round(stretched(Exponential(1.0, 0.25), 2)(4), 6) == round(Exponential(1.0, 0.25)(2), 6)
        True
    """
    check.number("factor", factor, "be a finite number above 0", lambda v: v > 0)
    kind = type(policy)
    if kind is Constant:
        return policy
    if kind in _LENGTHS:
        name = _LENGTHS[kind]
        return replace(policy, **{name: _length(getattr(policy, name), factor)})  # type: ignore[type-var]
    if type(policy) is MultiStep:
        return replace(policy, milestones=_milestones(policy.milestones, factor))
    if type(policy) is Exponential:
        return replace(policy, gamma=_per_step(policy.gamma, factor))
    if type(policy) is InverseTime:
        return replace(policy, gamma=policy.gamma / factor)
    if type(policy) is Sigmoid:
        return replace(policy, gamma=policy.gamma / factor, midpoint=policy.midpoint * factor)
    if type(policy) is Cyclic:
        period = _length(policy.period, factor)
        phase = round(policy.phase * period / policy.period)  # the same part of a cycle
        return replace(policy, period=period, phase=phase, gamma=_per_step(policy.gamma, factor))
    if type(policy) is Sequential:
        parts = tuple(stretched(part, factor) for part in policy.policies)
        return Sequential(parts, _milestones(policy.milestones, factor))
    raise TypeError(f"expected a policy of lrbench_pl.policies, got {policy!r}")


def cut(policy: Policy, max_steps: int) -> Policy:
    """The policy without the parts and drops that begin at ``max_steps`` or later; its rates before that are the same.

    Raises:
        ValueError: If ``max_steps`` is no integer of at least 1.

    Example:
        >>> cut(Sequential((Constant(0.1), MultiStep(0.1, 0.5, (5, 40))), (10,)), 30)
        Sequential(policies=(Constant(lr=0.1), MultiStep(init_lr=0.1, gamma=0.5, milestones=(5,))), milestones=(10,))
        >>> cut(Sequential((Constant(0.1), Constant(0.2)), (10,)), 10)
        Constant(lr=0.1)
    """
    check.count("max_steps", max_steps)
    if type(policy) is MultiStep:
        return replace(policy, milestones=tuple(stone for stone in policy.milestones if stone < max_steps))
    if type(policy) is not Sequential:
        return policy
    stones = tuple(stone for stone in policy.milestones if stone < max_steps)
    starts, ends = (0, *stones), (*policy.milestones[: len(stones)], max_steps)
    parts = tuple(
        cut(part, min(end, max_steps) - start) for part, start, end in zip(policy.policies, starts, ends, strict=False)
    )
    return parts[0] if len(parts) == 1 else Sequential(parts, stones)


def _length(steps: int, factor: float) -> int:
    return max(1, round(steps * factor))


def _per_step(gamma: float, factor: float) -> float:
    """The factor per step whose power over ``factor`` steps is ``gamma``; not so small that it is none at all."""
    return max(math.pow(gamma, 1 / factor), sys.float_info.min)


def _milestones(stones: Iterable[int], factor: float) -> tuple[int, ...]:
    moved: list[int] = []
    for stone in stones:
        moved.append(max(_length(stone, factor), moved[-1] + 1 if moved else 1))
    return tuple(moved)
