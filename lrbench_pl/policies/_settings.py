"""Policies of more than one setting: momentum, weight decay, parameter groups and several optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from lrbench_pl.policies import _checks as check
from lrbench_pl.policies._fields import Meaning, register_policy
from lrbench_pl.policies._protocols import AdaptivePolicy, Policy

# Settings beside the rate: the upper bound that they must not reach, and the rule in words.
RANGES = {"momentum": (1.0, "numbers in [0, 1)"), "weight_decay": (math.inf, "finite numbers of at least 0")}
# Their keys in the configuration.
OTHER_POLICIES = {f"{name}_policy": name for name in RANGES}
_OTHERS = (*RANGES, "groups")
_POINTS = 10_000  # values of a budget that are checked before training


def _group(name: str, value: Any) -> Any:
    is_index = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not (is_index or (isinstance(value, str) and value)):
        raise ValueError(f"{name} must be the name or the index of a parameter group, got {value!r}")
    return value


def _single(name: str, value: Any) -> Any:
    """Require a plain policy of one setting."""
    several = isinstance(value, (OptimizerPolicy, PerOptimizer, GroupPolicy))
    if several or not callable(value) or isinstance(value, (type, AdaptivePolicy)):
        raise ValueError(f"{name} must be a plain policy of one setting, t -> value, got {value!r}")
    return value


def _single_or_none(name: str, value: Any) -> Any:
    return None if value is None else _single(name, value)


def _groups(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise ValueError(f"{name} must be a list of GroupPolicy, got {value!r}")
    for each in value:
        if not isinstance(each, GroupPolicy):
            raise ValueError(f"{name} must be a list of GroupPolicy, got {each!r}")
    names = [each.group for each in value]
    if twice := [each for each in names if names.count(each) > 1]:
        raise ValueError(f"{name} must name each parameter group once, got {twice[0]!r} twice")
    return tuple(value)


def _per_optimizer(name: str, value: Any) -> tuple[Any, ...]:
    result = check.policies(name, value)
    if not result or any(isinstance(each, (PerOptimizer, GroupPolicy)) for each in result):
        raise ValueError(f"{name} must be one policy for each optimizer, got {value!r}")
    return result


@register_policy
@dataclass(frozen=True)
class GroupPolicy:
    """Learning rate of one parameter group, as part of an :class:`OptimizerPolicy`.

    Args:
        group: The ``name`` of the group in the optimizer, or its index.
        lr: Policy of its rate.

    Raises:
        ValueError: If ``group`` is neither text nor an index.

    Example:
        >>> from lrbench_pl.policies import Constant
        >>> GroupPolicy("head", Constant(0.2))(0)
        0.2
    """

    group: Annotated[str | int, Meaning("group", _group)]
    lr: Annotated[Policy, Meaning("nested", _single)]

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t``."""
        return self.lr(t)


@register_policy
@dataclass(frozen=True)
class OptimizerPolicy:
    """Policies of several settings of one optimizer, on one clock.

    As a function of the step it is the policy of the learning rate.

    Args:
        lr: Policy of the learning rate of all groups that have none of their own.
        momentum: Policy of ``momentum``, or of the first of ``betas``; values in [0, 1). None leaves it alone.
        weight_decay: Policy of the weight decay; values of at least 0. None leaves it alone.
        groups: Learning rates of single parameter groups.

    Raises:
        ValueError: If a part is not a plain policy of one setting, or a group is named twice.

    Example:
        >>> from lrbench_pl.policies import Constant, Polynomial
        >>> policy = OptimizerPolicy(Polynomial(0.1, 100), momentum=Polynomial(0.95, 100, end_lr=0.85))
        >>> policy(50), round(policy.momentum(50), 6)
        (0.05, 0.9)

    Source: Smith & Topin 2018, arXiv 1708.07120 (momentum); Loshchilov & Hutter 2019, arXiv 1711.05101 (weight decay).
    """

    lr: Annotated[Policy, Meaning("nested", _single)]
    momentum: Annotated[Policy | None, Meaning("optional", _single_or_none)] = None
    weight_decay: Annotated[Policy | None, Meaning("optional", _single_or_none)] = None
    groups: Annotated[tuple[GroupPolicy, ...], Meaning("parts", _groups)] = ()

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t``."""
        return self.lr(t)


@register_policy
@dataclass(frozen=True)
class PerOptimizer:
    """One policy for each optimizer of a training, each on the clock of its own optimizer.

    As a function of the step it is the learning rate of the first optimizer.

    Args:
        policies: One for each optimizer, in the order in which the module returns them; :class:`OptimizerPolicy` too.

    Raises:
        ValueError: If there is none, or one is not a plain policy.

    Example:
        >>> from lrbench_pl.policies import Constant
        >>> PerOptimizer((Constant(0.02), Constant(0.003)))(0)
        0.02
    """

    policies: Annotated[tuple[Policy, ...], Meaning("parts", _per_optimizer)]

    def __call__(self, t: int) -> float:
        """Return the learning rate of the first optimizer at its step ``t``."""
        return self.policies[0](t)


class AdaptiveOptimizerPolicy:
    """An :class:`OptimizerPolicy` whose learning rate adapts; momentum, weight decay and groups are plain policies.

    Args:
        lr: The adaptive policy.
        momentum: Policy of the momentum, or None.
        weight_decay: Policy of the weight decay, or None.
        groups: Learning rates of single parameter groups.
    """

    def __init__(
        self,
        lr: AdaptivePolicy,
        momentum: Policy | None = None,
        weight_decay: Policy | None = None,
        groups: tuple[GroupPolicy, ...] = (),
    ) -> None:
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.groups = groups
        self.realised()  # which validates them

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t``, given the observations so far."""
        return self.lr(t)

    def __repr__(self) -> str:
        parts = (f"{name}={getattr(self, name)!r}" for name in ("lr", *_OTHERS))
        return f"OptimizerPolicy({', '.join(parts)})"

    def observe(self, t: int, value: float) -> None:
        """Observe the metric of a check before step ``t``."""
        self.lr.observe(t, value)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return self.lr.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned."""
        self.lr.load_state_dict(state)

    @property
    def reset(self) -> Callable[[], None] | None:
        """The ``reset`` of the adaptive policy; None if it has none."""
        return getattr(self.lr, "reset", None)

    def realised(self) -> OptimizerPolicy:
        """Return the schedules that were applied, as plain policies."""
        return OptimizerPolicy(self.lr.realised(), self.momentum, self.weight_decay, self.groups)


def combined(
    policy: Any,
    momentum: Policy | None = None,
    weight_decay: Policy | None = None,
    groups: Mapping[str | int, Policy] | Sequence[GroupPolicy] | None = None,
) -> Any:
    """Combine the policy of the learning rate with those of other settings and of single groups.

    Args:
        policy: The policy; an :class:`OptimizerPolicy` must not have the settings that are given beside it.
        momentum: Policy of the momentum.
        weight_decay: Policy of the weight decay.
        groups: Learning rates of groups by name or index.

    Returns:
        The policy as it was given if there is nothing else.

    Raises:
        ValueError: If a part is no policy, or has been given twice.

    Example:
        >>> from lrbench_pl.policies import Constant
        >>> combined(Constant(0.1)), combined(Constant(0.1), groups={"head": Constant(0.2)}).groups
        (Constant(lr=0.1), (GroupPolicy(group='head', lr=Constant(lr=0.2)),))
    """
    items = groups.items() if isinstance(groups, Mapping) else None
    parts = tuple(GroupPolicy(*each) for each in items) if items is not None else tuple(groups or ())
    given = {"momentum": momentum, "weight_decay": weight_decay, "groups": parts}
    given = {name: value for name, value in given.items() if value not in (None, ())}
    if not given:
        return policy
    if isinstance(policy, PerOptimizer):
        raise ValueError(
            f"{' and '.join(given)} must be given for each optimizer, within an OptimizerPolicy of the list of policies"
        )
    known = {}
    if isinstance(policy, (OptimizerPolicy, AdaptiveOptimizerPolicy)):
        known = {name: value for name in _OTHERS if (value := getattr(policy, name)) not in (None, ())}
        if twice := sorted(known.keys() & given.keys()):
            raise ValueError(f"{twice[0]} must be given once, but the policy has it already: {policy!r}")
        policy = policy.lr
    kind: Any = AdaptiveOptimizerPolicy if isinstance(policy, AdaptivePolicy) else OptimizerPolicy
    return kind(policy, **known, **given)


def settings_of(policy: Any) -> dict[str, Any]:
    """Return the policies of single settings in a policy, by the name under which each is logged.

    These are ``lr``, ``lr/GROUP`` for a group with its own, ``momentum`` and ``weight_decay``. Names of the second
    optimizer begin with ``optimizer_1/``, and so on.

    Example:
        >>> from lrbench_pl.policies import Constant
        >>> settings_of(Constant(0.1))
        {'lr': Constant(lr=0.1)}
        >>> list(settings_of(PerOptimizer((combined(Constant(0.1), Constant(0.9)), Constant(0.2)))))
        ['lr', 'momentum', 'optimizer_1/lr']
    """
    found: dict[str, Any] = {}
    for index, each in enumerate(policy.policies if isinstance(policy, PerOptimizer) else (policy,)):
        prefix = f"optimizer_{index}/" if index else ""
        found |= {f"{prefix}{name}": part for name, part in _settings_of_one(each)}
    return found


def _settings_of_one(policy: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(policy, (OptimizerPolicy, AdaptiveOptimizerPolicy)):
        yield "lr", policy
        return
    yield "lr", policy.lr
    for group in policy.groups:
        yield f"lr/{group.group}", group.lr
    for name in RANGES:
        if (part := getattr(policy, name)) is not None:
            yield name, part


def check_values(policy: Any, max_steps: int | None) -> None:
    """Check before a training that momentum and weight decay stay in their range.

    Args:
        policy: Any policy.
        max_steps: The budget; None if it is not known.

    Raises:
        ValueError: If a momentum is outside [0, 1) or a weight decay below 0.

    Example:
        >>> from lrbench_pl.policies import Constant, Polynomial
        >>> check_values(combined(Constant(0.1), momentum=Polynomial(0.9, 10, end_lr=1.0)), 20)
        Traceback (most recent call last):
        ...
        ValueError: the policy of momentum must give numbers in [0, 1), got 1.0 for step 10
    """
    steps = max_steps or 1
    points = sorted({*range(0, steps, max(1, steps // _POINTS)), steps - 1})
    for each in policy.policies if isinstance(policy, PerOptimizer) else (policy,):
        for name, (below, rule) in RANGES.items():
            part = getattr(each, name) if isinstance(each, (OptimizerPolicy, AdaptiveOptimizerPolicy)) else None
            if part is None:
                continue
            for t in points:
                if not _lies_below(below, value := part(t)):
                    raise ValueError(f"the policy of {name} must give {rule}, got {value!r} for step {t}")


def _lies_below(below: float, value: Any) -> bool:
    try:
        return 0 <= float(value) < below
    except (TypeError, ValueError):
        return False
