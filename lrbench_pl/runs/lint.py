"""Lint a policy in its budget before it is trained. Needs only the policies."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from lrbench_pl.policies import (
    AdaptivePolicy,
    PlateauPolicy,
    Policy,
    check_values,
    fields_of,
    settings_of,
    stages,
    table,
)
from lrbench_pl.policies import _checks as check
from lrbench_pl.policies._fields import Kind
from lrbench_pl.words import counted

Level = Literal["error", "warning"]

JUMP = 10.0  # a larger factor between consecutive steps is a jump
END = 0.1  # largest share of the peak at which a decay may end
_ALIVE = 0.01  # a decay has died where less than this share of its height is left ...
_EARLY = 0.01  # ... and has died early within this share of the budget
_TOLERANCE = 0.02  # share of the budget by which a horizon may miss it, since fractions are rounded


@dataclass(frozen=True)
class TrainingPlan:
    """A policy and the steps, checks and batches of the training that it is for.

    Args:
        policy: The policy.
        max_steps: The budget, in optimizer steps, at least 1.
        check_every: Steps between checks, at least 1.
        batch_size: Samples per batch and process.
        accumulate: Batches per optimizer step.
        processes: Number of processes that train together.

    Raises:
        ValueError: If a field is out of its range.
    """

    policy: Policy | AdaptivePolicy
    max_steps: int
    check_every: int = 1
    batch_size: int = 1
    accumulate: int = 1
    processes: int = 1

    def __post_init__(self) -> None:
        for name in ("max_steps", "check_every", "batch_size", "accumulate", "processes"):
            check.count(name, getattr(self, name))


@dataclass(frozen=True)
class Finding:
    """A finding of one rule.

    Args:
        rule: Name of the rule.
        level: ``error``: the training would not follow its configuration; ``warning``: it may be intended.
        message: The problem.
        fix: The remedy.
    """

    rule: str
    level: Level
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.message}; {self.fix}"


@dataclass(frozen=True)
class _Part:
    """A plain part of a policy and its steps [start, end), which may be empty."""

    policy: Any
    start: int
    end: int


def training_plan(cfg: Any, policy: Policy | AdaptivePolicy) -> TrainingPlan:
    """Return the training plan of a configuration.

    Args:
        cfg: A configuration, such as :func:`lrbench_pl.runs.config.compose` returns.
        policy: Its policy, from :func:`lrbench_pl.runs.config.build_policy`.
    """
    devices = cfg.trainer.get("devices", 1)
    if isinstance(devices, str):  # "auto" is resolved only where it runs; "0,1" are two
        devices = max(1, devices.count(",") + 1)
    elif not isinstance(devices, int):
        devices = len(devices)
    return TrainingPlan(
        policy=policy,
        max_steps=cfg.max_steps,
        check_every=cfg.check_every,
        batch_size=cfg.batch_size,
        accumulate=cfg.trainer.get("accumulate_grad_batches", 1),
        processes=max(1, devices) * cfg.trainer.get("num_nodes", 1),
    )


MOST_STEPS = 1_000_000  # of a budget, whose rates are all looked at


def lint(plan: TrainingPlan) -> list[Finding]:
    """Apply all rules to a training plan; return the findings, errors first.

    Example:
        >>> from lrbench_pl.policies import Exponential
        >>> print(*lint(TrainingPlan(Exponential(init_lr=0.1, gamma=0.99994), max_steps=1000)))
        the rate ends at 94 % of its peak, though the policy is meant to decay; with gamma=0.995405 1 % is left
    """
    lr, *others = settings_of(plan.policy).items()
    values = list(_values(plan))
    plan = replace(plan, policy=lr[1])
    of_others = [finding for name, part in others for finding in _of_other(name, replace(plan, policy=part))]
    if isinstance(plan.policy, AdaptivePolicy):
        found = [*_never_adapts(plan), *_batches(plan)]
    elif plan.max_steps > MOST_STEPS:
        found = [
            Finding(
                "long",
                "warning",
                f"the rules look at up to {MOST_STEPS} steps, got max_steps={plan.max_steps}",
                "lint a smaller budget: the shape is the same",
            ),
            *_batches(plan),
        ]
    else:
        rates = table(plan.policy, plan.max_steps)
        parts = list(_parts(plan.policy, 0, plan.max_steps))
        found = [finding for rule in _RULES for finding in rule(plan, rates, parts)]
    return sorted([*found, *values, *of_others], key=lambda finding: finding.level != "error")


def _values(plan: TrainingPlan) -> Iterator[Finding]:
    """Find values of momentum and weight decay that are out of their range."""
    try:
        check_values(plan.policy, plan.max_steps)
    except ValueError as error:
        yield Finding("range", "error", str(error), "the run would be refused")


def _of_other(name: str, plan: TrainingPlan) -> Iterator[Finding]:
    """Apply the rules to a policy beside that of the rate: all to the rate of a group, else that of parts."""
    if plan.max_steps > MOST_STEPS:
        return
    values, parts = table(plan.policy, plan.max_steps), list(_parts(plan.policy, 0, plan.max_steps))
    of_rate = re.fullmatch(r"(optimizer_\d+/)?lr(/.*)?", name, re.DOTALL) is not None
    rules = _RULES if of_rate else (_never_runs,)
    for finding in (finding for rule in rules if rule is not _batches for finding in rule(plan, values, parts)):
        yield replace(finding, message=f"{name}: {finding.message}")
    if not of_rate and not any(values):
        yield Finding(
            "never-runs", "error", f"{name} is 0 at every step", f"give optimizer.{name}, or leave {name}_policy out"
        )


def summary(findings: Sequence[Finding]) -> str | None:
    """Summarize findings in one line; return None if there are none.

    Example:
        >>> summary([Finding("jump", "warning", "the rate jumps", "warm up"), Finding("short", "warning", "…", "…")])
        'lint: the rate jumps; warm up (and 1 more: lrbench lint)'
    """
    if not findings:
        return None
    more = f" (and {len(findings) - 1} more: lrbench lint)" if len(findings) > 1 else ""
    return f"lint: {findings[0]}{more}"


# -- the rules ----------------------------------------------------------------------------------------------------


def _never_runs(plan: TrainingPlan, rates: Sequence[float], parts: Sequence[_Part]) -> Iterator[Finding]:
    """Find parts and drops that lie after the budget."""
    for part in parts:
        policy, length = part.policy, part.end - part.start
        name = type(policy).__name__
        if length <= 0:
            yield Finding(
                "never-runs",
                "error",
                f"{name} would begin at step {part.start}, but its part ends at step {part.end}: it never runs",
                "lower its milestone or raise max_steps",
            )
            continue
        for stones in fields_of(policy, "milestones").values():
            if late := [stone for stone in stones if stone >= length]:
                yield Finding(
                    "never-runs",
                    "error",
                    f"the drop at step {part.start + late[0]} is never reached: its part ends at step {part.end}",
                    "lower the milestone or raise max_steps",
                )
        for field, steps in fields_of(policy, "interval").items():
            if steps >= length and policy(steps) != policy(0):
                yield Finding(
                    "never-runs",
                    "error",
                    f"{name} would drop first after {counted(steps, 'step')}, but has {length}: it is constant",
                    f"set {field} to a share of the budget, such as {max(1, length // 3)}",
                )


def _never_adapts(plan: TrainingPlan) -> Iterator[Finding]:
    policy = plan.policy
    if isinstance(policy, PlateauPolicy):
        first = (policy.patience + 1) * plan.check_every  # the first check sets the best
        if first >= plan.max_steps:
            yield Finding(
                "never-runs",
                "error",
                f"the policy could change at step {first} at the earliest, after the budget of {plan.max_steps}",
                f"check more often (check_every={max(1, plan.max_steps // (5 * policy.patience))}) or lower patience",
            )


def _horizon(plan: TrainingPlan, rates: Sequence[float], parts: Sequence[_Part]) -> Iterator[Finding]:
    """Find a decay that misses the end of the budget, or a cycle that it cuts."""
    yield from _decay_horizon(plan, rates, _last(parts))
    if rates[-1] > END * max(rates):
        yield from _cut_cycle(plan, rates, _last(parts))


def _decay_horizon(plan: TrainingPlan, rates: Sequence[float], last: _Part) -> Iterator[Finding]:
    policy, length = last.policy, last.end - last.start
    slack = _TOLERANCE * plan.max_steps + 1
    for field, steps in fields_of(policy, "horizon").items():
        horizon = last.start + steps
        if policy(steps) >= policy(0):
            continue
        if plan.max_steps - horizon > slack:
            rest = plan.max_steps - horizon
            yield Finding(
                "horizon",
                "warning",
                f"the decay is over at step {horizon} of {plan.max_steps}: {counted(rest, 'step')} run "
                f"at {policy(steps):g}",
                f"set {field} to {length} or max_steps to {horizon}",
            )
        elif horizon - plan.max_steps > slack:
            yield Finding(
                "horizon",
                "warning",
                f"the decay would take until step {horizon}, but the budget ends at {plan.max_steps}, "
                f"at {_share(rates[-1], rates)} of the peak",
                f"set {field} to {length} or max_steps to {horizon}",
            )


def _cut_cycle(plan: TrainingPlan, rates: Sequence[float], last: _Part) -> Iterator[Finding]:
    policy, length = last.policy, last.end - last.start
    for field, period in fields_of(policy, "period").items():
        cycles, over, restarts = _cycles(policy, period, length)
        rounding = 0.5 * (cycles + 1) + 1
        missing = period - over
        if over > (rounding if restarts else max(rounding, 0.1 * period)) and missing > max(rounding, 0.1 * period):
            whole = max(1, cycles if over < missing else cycles + 1)
            yield Finding(
                "horizon",
                "warning",
                f"the budget ends {100 * over / period:.0f} % into a cycle of {counted(period, 'step')}, "
                f"at {_share(rates[-1], rates)} of the peak",
                f"set {field} to {max(1, length // whole)} or max_steps to {plan.max_steps + missing}",
            )


def _rises(plan: TrainingPlan, rates: Sequence[float], parts: Sequence[_Part]) -> Iterator[Finding]:
    """Find a rate that still rises at the end of the budget."""
    if any(_horizon(plan, rates, parts)):
        return
    low = len(rates) - 1
    while low and rates[low - 1] < rates[low]:
        low -= 1
    policy: Policy = plan.policy
    stride = max(1, plan.max_steps // 1000)
    later = max(policy(t) for t in range(plan.max_steps, 2 * plan.max_steps, stride))
    climbing = len(rates) - 1 - low > _TOLERANCE * plan.max_steps + 1
    if climbing or later > 1.01 * max(rates):
        words = (
            f"its peak of {later:.3g} comes later" if later > 1.01 * max(rates) else "the budget ends during the rise"
        )
        yield Finding(
            "rises",
            "warning",
            f"the rate still rises after the budget of {counted(plan.max_steps, 'step')}: {words}",
            "shorten the rise, or raise max_steps",
        )


def _jump(plan: TrainingPlan, rates: Sequence[float], parts: Sequence[_Part]) -> Iterator[Finding]:
    """Find jumps by a factor above 10, up to a new maximum or down to a level."""
    ran = [part for part in parts if part.end > part.start]
    for before, after in itertools.pairwise(ran):
        yield from _jump_between(before, after, rates)
    for part in ran:
        yield from _jump_within(part)


def _jump_between(before: _Part, after: _Part, rates: Sequence[float]) -> Iterator[Finding]:
    at = after.start
    old, new = rates[at - 1], rates[at]
    levels = max(rates[before.start : at]), max(rates[at : after.end])
    if new > JUMP * old and new > 1.01 * max(rates[:at]):
        yield Finding(
            "jump",
            "warning",
            f"the rate jumps from {old:.3g} to {new:.3g} at step {at}, higher than ever before",
            "warm up to it, or lower the peak of the part that begins there",
        )
    elif levels[0] > 1.1 * JUMP * levels[1]:  # whole steps miss the tip of a cycle
        yield Finding(
            "jump",
            "warning",
            f"the peak falls from {levels[0]:.3g} to {levels[1]:.3g} at step {at}, to less than a tenth",
            "insert a level between them",
        )


def _jump_within(part: _Part) -> Iterator[Finding]:
    firsts = [stones[0] for stones in fields_of(part.policy, "milestones").values() if stones]
    for drop in (*firsts, *fields_of(part.policy, "interval").values()):
        before_it = part.policy(drop - 1)
        left = part.policy(drop) / before_it if before_it > 0 else 1.0
        if drop < part.end - part.start and left < 0.999 / JUMP:
            how = "".join(f"set {field} to {1 / JUMP:g} or more, or " for field in fields_of(part.policy, "factor"))
            yield Finding(
                "jump",
                "warning",
                f"the rate drops to {left:.2g} of itself at step {part.start + drop}",
                f"{how}use more drops",
            )


def _end(plan: TrainingPlan, rates: Sequence[float], parts: Sequence[_Part]) -> Iterator[Finding]:
    """Find a decay that has hardly begun at the end of the budget."""
    if any(_horizon(plan, rates, parts)) or any(_never_runs(plan, rates, parts)):
        return
    last = _last(parts)
    policy, length = last.policy, last.end - last.start
    left, allowed = rates[-1] / max(rates) if max(rates) > 0 else 0.0, END
    per_step, speed, moment = (
        _used(policy, "factor per step"),
        fields_of(policy, "per step"),
        fields_of(policy, "moment"),
    )
    ends = {field: policy(steps) for field, steps in fields_of(policy, "horizon").items() if policy(steps) < policy(0)}
    if per_step:
        ((field, value),) = list(per_step.items())[:1]
        left = float(value) ** plan.max_steps if fields_of(policy, "period") else left  # the wave hides the decay
        fix = f"with {field}={0.01 ** (1 / length):.6g} 1 % is left"
    elif any(value < 1 for value in fields_of(policy, "factor").values()):
        fix = f"lower {next(iter(fields_of(policy, 'factor')))}, or let it drop more often"
    elif moment and any(value < 0 for value in speed.values()):
        fix = f"set {next(iter(moment))} to {length // 2} and {next(iter(speed))} to {-12 / length:.3g}"
    elif ends:
        names = [field for field, rate in fields_of(policy, "rate").items() if rate in ends.values()]
        fix = f"lower {names[0] if names else 'its last rate'} to {END * max(rates):.3g} or less"
    elif speed and not moment:  # a slow decay by design: report only one without effect
        allowed, fix = 0.9, f"set {next(iter(speed))} to {1 / length:.3g}, one over the budget, or more"
    else:
        return
    if left > allowed * (1 + 1e-9):
        yield Finding(
            "end",
            "warning",
            f"the rate ends at {left * 100:.0f} % of its peak, though the policy is meant to decay",
            fix,
        )


def _dies(plan: TrainingPlan, rates: Sequence[float], parts: Sequence[_Part]) -> Iterator[Finding]:
    """Find a decay that is over at once, such as TRIEXP with a gamma of 0.1 per step."""
    floor, peak = min(rates), max(rates)
    if peak - floor <= 1e-9 * peak:
        return
    alive = max(t for t, rate in enumerate(rates) if rate - floor > _ALIVE * (peak - floor)) + 1
    if alive <= _EARLY * plan.max_steps:
        per_step = [field for part in parts for field in _used(part.policy, "factor per step")]
        leaves = f"acts on every step: {0.01 ** (1 / plan.max_steps):.6g} leaves 1 % after the budget"
        yield Finding(
            "dies",
            "error",
            f"the decay is dead after {alive} of {counted(plan.max_steps, 'step')}, at a rate of {rates[alive]:.3g}",
            f"{per_step[0]} {leaves}" if per_step else "slow the decay down",
        )


def _short(plan: TrainingPlan, rates: Sequence[float], parts: Sequence[_Part]) -> Iterator[Finding]:
    """Find levels and cycles that fit between two checks."""
    for part in parts:
        policy, length = part.policy, part.end - part.start
        stretches = [(steps, "a cycle") for steps in fields_of(policy, "period").values()]
        stretches += [(steps, "a level") for steps in fields_of(policy, "interval").values()]
        for stones in fields_of(policy, "milestones").values():
            edges = (0, *(stone for stone in stones if stone < length), length)
            stretches += [(b - a, "a level") for a, b in itertools.pairwise(edges)]
        if len(parts) > 1 and length > 0 and not _is_warmup(policy):
            stretches.append((length, f"the part from step {part.start}"))
        steps, what = min(stretches, default=(plan.check_every, ""))
        if steps < plan.check_every:
            yield Finding(
                "short",
                "warning",
                f"{what} takes {counted(steps, 'step')}, but checks are {plan.check_every} apart and miss it",
                f"set check_every to {steps} or less, or make it longer",
            )


def _batches(plan: TrainingPlan, *_: object) -> Iterator[Finding]:
    """Find steps that consist of several batches."""
    per_step = plan.accumulate * plan.processes
    if per_step == 1:
        return
    why = [f"accumulate_grad_batches={plan.accumulate}"] * (plan.accumulate > 1)
    why += [f"{plan.processes} processes"] * (plan.processes > 1)
    yield Finding(
        "batches",
        "warning",
        f"a step is {per_step} batches ({', '.join(why)}): {counted(plan.max_steps, 'step')} read "
        f"{plan.max_steps * per_step} batches, {counted(plan.batch_size * per_step, 'sample')} each step",
        f"count max_steps, milestones and check_every in optimizer steps; batch_size="
        f"{max(1, plan.batch_size // per_step)} keeps {counted(plan.batch_size, 'sample')} a step",
    )


_Rule = Callable[[TrainingPlan, Sequence[float], Sequence[_Part]], Iterator[Finding]]
_RULES: tuple[_Rule, ...] = (_never_runs, _dies, _horizon, _rises, _end, _jump, _short, _batches)


# -- helpers -----------------------------------------------------------------------------------------------------


def _parts(policy: Any, start: int, end: int) -> Iterator[_Part]:
    """Iterate over the plain parts of a policy; those never reached have no steps."""
    composite = False
    for begins, ends, part in stages(policy):
        composite = True
        yield from _parts(part, start + begins, end if ends is None else min(start + ends, end))
    if not composite:
        yield _Part(policy, start, end)


def _last(parts: Sequence[_Part]) -> _Part:
    return max((part for part in parts if part.end > part.start), key=lambda part: part.start)


def _share(rate: float, rates: Sequence[float]) -> str:
    return f"{100 * rate / max(rates):.0f} %" if max(rates) > 0 else "0 %"


def _cycles(policy: Policy, period: int, length: int) -> tuple[int, int, bool]:
    """Return the cycles in ``length`` steps, the rest, and whether they restart.

    A cycle ends at its lowest rate.
    """
    bottom = min(range(period), key=policy)
    rise = max(policy(t) for t in range(bottom, bottom + period)) - policy(bottom)
    restarts = policy(bottom + 1) - policy(bottom) > 0.75 * rise
    cycles, over = divmod(length - bottom - restarts, period)
    return max(0, cycles + (bottom > 0)), over, restarts


def _used(policy: Any, kind: Kind) -> dict[str, Any]:
    """Return the fields of a kind that differ from their defaults."""
    defaults = {field.name: field.default for field in fields(policy)} if (found := fields_of(policy, kind)) else {}
    return {name: value for name, value in found.items() if value != defaults[name]}


def _is_warmup(policy: Any) -> bool:
    return any(policy(steps) > policy(0) for steps in fields_of(policy, "horizon").values())
