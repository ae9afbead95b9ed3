"""Composite policies, and functions of any policy: parts, warm-up, rates, id."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, is_dataclass

from lrbench_pl.policies import _checks as check
from lrbench_pl.policies._basic import Polynomial
from lrbench_pl.policies._fields import Milestones, Stages, fields_of, meanings, register_policy
from lrbench_pl.policies._protocols import AdaptivePolicy as AdaptivePolicy
from lrbench_pl.policies._protocols import Policy as Policy
from lrbench_pl.policies._settings import settings_of


@register_policy
@dataclass(frozen=True)
class Sequential:
    """Composite of policies that run one after the other, joined at milestones.

    It can contain other composites.

    lr(t) = policies[i](t - milestones[i - 1]), where i is the number of milestones <= t

    At a milestone the next policy starts (left-closed, as in torch's ``SequentialLR``), at its own step 0.

    Args:
        policies: At least one policy.
        milestones: Steps at which the next policy starts: one fewer than policies, positive and strictly increasing.

    Raises:
        ValueError: If a part is not a policy, or the milestones do not match the policies.

    Example:
        >>> from lrbench_pl.policies import Constant
        >>> policy = Sequential((Constant(0.1), Polynomial(0.1, decay_steps=100)), milestones=(50,))
        >>> [policy(t) for t in (49, 50, 100, 150)]
        [0.1, 0.1, 0.05, 0.0]

    Source: Wu & Liu, ACM TIST 2023, arXiv 2210.12936, section on composite policies.
    """

    policies: Stages
    milestones: Milestones = ()

    def __post_init__(self) -> None:
        if not self.policies or len(self.milestones) != len(self.policies) - 1:
            raise ValueError(
                f"milestones must be one fewer than policies, got {len(self.milestones)} for {len(self.policies)}"
            )

    def __call__(self, t: int) -> float:
        """Return the learning rate of step ``t``."""
        part = bisect_right(self.milestones, t)
        return self.policies[part](t - self.milestones[part - 1] if part else t)

    @property
    def is_homogeneous(self) -> bool:
        """Return whether all parts have the same function (homogeneous in the paper).

        Example:
            >>> from lrbench_pl.policies import Constant
            >>> Sequential((Constant(0.1), Constant(0.2)), (5,)).is_homogeneous
            True
        """
        return len({_function(policy) for _, policy in segments(self)}) == 1


def _function(policy: Policy) -> tuple[object, ...]:
    return type(policy), *fields_of(policy, "choice").values()


def stages(policy: Policy) -> Iterator[tuple[int, int | None, Policy]]:
    """Yield the parts of a composite as (start, end, policy); none for others.

    Example:
        >>> from lrbench_pl.policies import Constant
        >>> list(stages(Sequential((Constant(0.3), Constant(0.2)), (10,))))
        [(0, 10, Constant(lr=0.3)), (10, None, Constant(lr=0.2))]
    """
    for name, parts in fields_of(policy, "stages").items():
        stones = getattr(policy, meanings(type(policy))[name].refers_to)
        yield from zip((0, *stones), (*stones, None), parts, strict=True)


def segments(policy: Policy) -> list[tuple[int, Policy]]:
    """Return the parts of a policy as (start, policy), flattened.

    Nested composites are replaced by their parts. Parts that are never reached are left out.

    Example:
        >>> from lrbench_pl.policies import Constant
        >>> inner = Sequential((Constant(0.3), Constant(0.2)), (10,))
        >>> segments(Sequential((inner, Constant(0.1)), (15,)))
        [(0, Constant(lr=0.3)), (10, Constant(lr=0.2)), (15, Constant(lr=0.1))]
    """
    parts = [
        (start + at, inner)
        for start, end, part in stages(policy)
        for at, inner in segments(part)
        if end is None or start + at < end
    ]
    return parts or [(0, policy)]


def warmup(policy: Policy, steps: int) -> Sequential:
    """Prepend a linear warm-up of ``steps`` steps to a policy.

    lr(t) = policy(0) * (t + 1) / (steps + 1) for t < steps, then policy(t - steps). No step has rate 0.

    Raises:
        ValueError: If ``steps`` is not an integer of at least 1, or the policy starts at rate 0.

    Example:
        >>> from lrbench_pl.policies import Constant
        >>> [round(warmup(Constant(0.4), 3)(t), 3) for t in range(5)]
        [0.1, 0.2, 0.3, 0.4, 0.4]

    Source: Goyal et al. 2017, arXiv 1706.02677 (gradual warm-up).
    """
    check.count("steps", steps)
    peak = policy(0)
    if peak <= 0:
        raise ValueError(f"policy must start above 0 for a warm-up, got {peak!r} at t = 0 from {policy!r}")
    return Sequential((Polynomial(peak / (steps + 1), steps, end_lr=peak), policy), (steps,))


def table(policy: Policy, n: int) -> list[float]:
    """Return the rates of the first ``n`` steps.

    Example:
        >>> from lrbench_pl.policies import Step
        >>> table(Step(1.0, 0.5, 2), 5)
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    check.count("n", n, least=0)
    return [policy(t) for t in range(n)]


def policy_id(policy: Policy, max_steps: int) -> str:
    """Return a short hash of the rates over a budget, equal for equal rates.

    Policies with equal rates have the same id, however they are defined. Rates are rounded to 13 significant digits.
    Momentum, weight decay and the rates of groups are part of the id if the policy sets them. Beyond
    :data:`EXACT_STEPS` steps not all rates are computed: the id is that of the policy as it is written and of samples
    of its rates, so that only equal policies have the same id.

    Example:
        >>> from lrbench_pl.policies import Constant, Step
        >>> policy_id(Constant(0.1), 100) == policy_id(Step(0.1, 0.5, 100), 100) != policy_id(Step(0.1, 0.5, 99), 100)
        True
    """
    digest = hashlib.sha256()
    for name, part in settings_of(policy).items():
        if name != "lr":
            digest.update(f"{name}:".encode())
        if max_steps > EXACT_STEPS:
            digest.update(f"{max_steps} steps of {_as_written(part)};".encode())
        for t in sampled(part, max_steps):
            digest.update(b"%.12e;" % (part(t) + 0.0))  # + 0.0 turns -0.0 into 0.0
    return digest.hexdigest()[:12]


def _as_written(policy: Policy) -> str:
    """Return a frozen dataclass as the call that builds it; nothing for another function of the step."""
    return repr(policy) if is_dataclass(policy) else ""


EXACT_STEPS = 10_000_000  # up to so many, every rate of a budget is computed
_SAMPLES = 100_000


def sampled(policy: Policy, n: int) -> Iterable[int]:
    """Return steps of a budget that represent its rates: all, or evenly spaced ones where there are too many.

    Beyond :data:`EXACT_STEPS`, the first and last steps of all parts of a composite are among them.

    Example:
        >>> from lrbench_pl.policies import Constant
        >>> list(sampled(Constant(0.1), 3)), len(sampled(Constant(0.1), 2**40))
        ([0, 1, 2], 100000)
    """
    check.count("n", n, least=0)
    if n <= EXACT_STEPS:
        return range(n)
    edges = [t for start, _ in segments(settings_of(policy)["lr"]) for t in (start - 1, start) if 0 <= t < n]
    return sorted({*(i * (n - 1) // (_SAMPLES - 1) for i in range(_SAMPLES)), *edges})


def peak(policy: Policy, n: int) -> float:
    """Return the largest rate of the first ``n`` steps, at least 1, see :func:`sampled`.

    Example:
        >>> from lrbench_pl.policies import Step
        >>> peak(Step(1.0, 0.5, 2), 5)
        1.0
    """
    return max(map(policy, sampled(policy, n)))
