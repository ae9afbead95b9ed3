"""What is wrong with a policy in its budget, said before the training is paid for. Needs policies alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from lrbench_pl.policies import AdaptivePolicy, PlateauPolicy, Policy, meant, table, turns
from lrbench_pl.policies import _checks as check
from lrbench_pl.policies._fields import Kind
from lrbench_pl.words import counted

Level = Literal["error", "warning"]

JUMP = 10.0  # a larger factor from one step to the next is a jump
END = 0.1  # what a decay may leave of the peak
_ALIVE = 0.01  # a decay is dead where it has less than this of its height ...
_EARLY = 0.01  # ... and dies early within this share of the budget
_TOLERANCE = 0.02  # of the budget, by which a horizon may miss it: rounding of fractions


@dataclass(frozen=True)
class Plan:
    """What a training is going to do, as far as its rates are concerned.

    Args:
        policy: The policy.
        max_steps: The budget, in optimizer steps, at least 1.
        check_every: Steps between checks, at least 1.
        batch_size: Samples per batch and process.
        accumulate: Batches per optimizer step.
        processes: Processes that train together.

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
    """One thing to look at.

    Args:
        rule: Its short name.
        level: ``error``: the training would not do what its configuration says; ``warning``: it may be meant.
        message: What is so.
        fix: What to do about it.
    """

    rule: str
    level: Level
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.message}; {self.fix}"


@dataclass(frozen=True)
class _Part:
    """A part of a policy that is no composite, and the steps [start, end) in which it runs; none if end <= start."""

    policy: Any
    start: int
    end: int


def plan(cfg: Any, policy: Policy | AdaptivePolicy) -> Plan:
    """The plan of a configuration.

    Args:
        cfg: A configuration, such as :func:`lrbench_pl.runs.config.compose` gives.
        policy: What :func:`lrbench_pl.runs.config.build_policy` makes of it.
    """
    devices = cfg.trainer.get("devices", 1)
    if isinstance(devices, str):  # "auto" is known only where it runs; "0,1" names two
        devices = max(1, devices.count(",") + 1)
    elif not isinstance(devices, int):
        devices = len(devices)
    return Plan(
        policy=policy,
        max_steps=cfg.max_steps,
        check_every=cfg.check_every,
        batch_size=cfg.batch_size,
        accumulate=cfg.trainer.get("accumulate_grad_batches", 1),
        processes=max(1, devices) * cfg.trainer.get("num_nodes", 1),
    )


def lint(plan: Plan) -> list[Finding]:
    """Everything that is suspicious, errors first.

    Example:
        >>> from lrbench_pl.policies import Exponential
        >>> print(*lint(Plan(Exponential(init_lr=0.1, gamma=0.99994), max_steps=1000)))
        the rate ends at 94 % of its peak, though the policy is meant to decay; with gamma=0.995405 1 % is left
    """
    if isinstance(plan.policy, AdaptivePolicy):
        found = [*_never_adapts(plan), *_batches(plan)]
    else:
        rates = table(plan.policy, plan.max_steps)
        parts = list(_parts(plan.policy, 0, plan.max_steps))
        found = [finding for rule in _RULES for finding in rule(plan, rates, parts)]
    return sorted(found, key=lambda finding: finding.level != "error")


def summary(findings: Sequence[Finding]) -> str | None:
    """The findings as one line for the start of a training, or None.

    Example:
        >>> summary([Finding("jump", "warning", "the rate jumps", "warm up"), Finding("short", "warning", "…", "…")])
        'lint: the rate jumps; warm up (and 1 more: lrbench lint)'
    """
    if not findings:
        return None
    more = f" (and {len(findings) - 1} more: lrbench lint)" if len(findings) > 1 else ""
    return f"lint: {findings[0]}{more}"


# -- the rules ----------------------------------------------------------------------------------------------------


def _never_runs(plan: Plan, rates: Sequence[float], parts: Sequence[_Part]) -> Iterator[Finding]:
    """A part, or a drop, that the budget never comes to."""
    for part in parts:
        policy, length = part.policy, part.end - part.start
        name = type(policy).__name__
        if length <= 0:
            yield Finding(
                "never-runs",
                "error",
                f"{name} would begin at step {part.start}, but its turn ends at step {part.end}: it never runs",
                "lower its milestone or raise max_steps",
            )
            continue
        for stones in meant(policy, "milestones").values():
            if late := [stone for stone in stones if stone >= length]:
                yield Finding(
                    "never-runs",
                    "error",
                    f"the drop at step {part.start + late[0]} never comes: its turn ends at step {part.end}",
                    "lower the milestone or raise max_steps",
                )
        for field, steps in meant(policy, "interval").items():
            if steps >= length and policy(steps) != policy(0):
                yield Finding(
                    "never-runs",
                    "error",
                    f"{name} would drop first after {counted(steps, 'step')}, but has {length}: it is constant",
                    f"set {field} to a share of the budget, such as {max(1, length // 3)}",
                )


def _never_adapts(plan: Plan) -> Iterator[Finding]:
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


def _horizon(plan: Plan, rates: Sequence[float], parts: Sequence[_Part]) -> Iterator[Finding]:
    """A decay that is over long before the budget or is cut by it; a cycle cut in its middle."""
    last = _last(parts)
    policy, length = last.policy, last.end - last.start
    ends_at = _share(rates[-1], rates)
    slack = _TOLERANCE * plan.max_steps + 1
    for field, steps in meant(policy, "horizon").items():
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
                f"at {ends_at} of the peak",
                f"set {field} to {length} or max_steps to {horizon}",
            )
    for field, period in meant(policy, "period").items():
        if rates[-1] <= END * max(rates):
            continue
        cycles, over, restarts = _cycles(policy, period, length)
        rounding = 0.5 * (cycles + 1) + 1
        missing = period - over
        if over > (rounding if restarts else max(rounding, 0.1 * period)) and missing > max(rounding, 0.1 * period):
            whole = max(1, cycles if over < missing else cycles + 1)
            yield Finding(
                "horizon",
                "warning",
                f"the budget ends {100 * over / period:.0f} % into a cycle of {counted(period, 'step')}, "
                f"at {ends_at} of the peak",
                f"set {field} to {max(1, length // whole)} or max_steps to {plan.max_steps + missing}",
            )


def _rises(plan: Plan, rates: Sequence[float], parts: Sequence[_Part]) -> Iterator[Finding]:
    """A rate that is still on its way up when the budget ends."""
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
        words = f"its peak of {later:.3g} comes later" if later > 1.01 * max(rates) else "the budget ends in the rise"
        yield Finding(
            "rises",
            "warning",
            f"the rate still rises after the budget of {counted(plan.max_steps, 'step')}: {words}",
            "shorten the rise, or raise max_steps",
        )


def _jump(plan: Plan, rates: Sequence[float], parts: Sequence[_Part]) -> Iterator[Finding]:
    """A factor of more than 10 at once: up, where the rate was never so high, or down from one level to the next."""
    ran = [part for part in parts if part.end > part.start]
    for before, after in itertools.pairwise(ran):
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
                "put a level between them",
            )
    for part in ran:
        firsts = [stones[0] for stones in meant(part.policy, "milestones").values() if stones]
        for drop in (*firsts, *meant(part.policy, "interval").values()):
            before_it = part.policy(drop - 1)
            left = part.policy(drop) / before_it if before_it > 0 else 1.0
            if drop < part.end - part.start and left < 0.999 / JUMP:
                how = "".join(f"set {field} to {1 / JUMP:g} or more, or " for field in meant(part.policy, "factor"))
                yield Finding(
                    "jump",
                    "warning",
                    f"the rate drops to {left:.2g} of itself at step {part.start + drop}",
                    f"{how}use more drops",
                )


def _end(plan: Plan, rates: Sequence[float], parts: Sequence[_Part]) -> Iterator[Finding]:
    """A decay that has hardly begun when the budget ends."""
    if any(_horizon(plan, rates, parts)) or any(_never_runs(plan, rates, parts)):
        return
    last = _last(parts)
    policy, length = last.policy, last.end - last.start
    left, allowed = rates[-1] / max(rates) if max(rates) > 0 else 0.0, END
    per_step, speed, moment = _used(policy, "factor per step"), meant(policy, "per step"), meant(policy, "moment")
    ends = {field: policy(steps) for field, steps in meant(policy, "horizon").items() if policy(steps) < policy(0)}
    if per_step:
        ((field, value),) = list(per_step.items())[:1]
        left = float(value) ** plan.max_steps if meant(policy, "period") else left  # a wave hides how far it decayed
        fix = f"with {field}={0.01 ** (1 / length):.6g} 1 % is left"
    elif any(value < 1 for value in meant(policy, "factor").values()):
        fix = f"lower {next(iter(meant(policy, 'factor')))}, or let it drop more often"
    elif moment and any(value < 0 for value in speed.values()):
        fix = f"set {next(iter(moment))} to {length // 2} and {next(iter(speed))} to {-12 / length:.3g}"
    elif ends:
        names = [field for field, rate in meant(policy, "rate").items() if rate in ends.values()]
        fix = f"lower {names[0] if names else 'its last rate'} to {END * max(rates):.3g} or less"
    elif speed and not moment:  # a slow decay by design: only one that does nothing is suspicious
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


def _dies(plan: Plan, rates: Sequence[float], parts: Sequence[_Part]) -> Iterator[Finding]:
    """A height that is gone at once: TRIEXP with a gamma of 0.1 per step."""
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


def _short(plan: Plan, rates: Sequence[float], parts: Sequence[_Part]) -> Iterator[Finding]:
    """A stretch between two milestones, or a cycle, that falls between two checks."""
    for part in parts:
        policy, length = part.policy, part.end - part.start
        stretches = [(steps, "a cycle") for steps in meant(policy, "period").values()]
        stretches += [(steps, "a level") for steps in meant(policy, "interval").values()]
        for stones in meant(policy, "milestones").values():
            edges = (0, *(stone for stone in stones if stone < length), length)
            stretches += [(b - a, "a level") for a, b in itertools.pairwise(edges)]
        if len(parts) > 1 and length > 0 and not _is_warmup(policy):
            stretches.append((length, f"the part from step {part.start}"))
        steps, what = min(stretches, default=(plan.check_every, ""))
        if steps < plan.check_every:
            yield Finding(
                "short",
                "warning",
                f"{what} takes {counted(steps, 'step')}, but checks are {plan.check_every} apart and do not see it",
                f"set check_every to {steps} or less, or make it longer",
            )


def _batches(plan: Plan, *_: object) -> Iterator[Finding]:
    """Steps that are not batches."""
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


_Rule = Callable[[Plan, Sequence[float], Sequence[_Part]], Iterator[Finding]]
_RULES: tuple[_Rule, ...] = (_never_runs, _dies, _horizon, _rises, _end, _jump, _short, _batches)


# -- what they share ----------------------------------------------------------------------------------------------


def _parts(policy: Any, start: int, end: int) -> Iterator[_Part]:
    """Every plain part with its turn, the unreached ones with an empty turn."""
    composite = False
    for begins, ends, part in turns(policy):
        composite = True
        yield from _parts(part, start + begins, end if ends is None else min(start + ends, end))
    if not composite:
        yield _Part(policy, start, end)


def _last(parts: Sequence[_Part]) -> _Part:
    return max((part for part in parts if part.end > part.start), key=lambda part: part.start)


def _share(rate: float, rates: Sequence[float]) -> str:
    return f"{100 * rate / max(rates):.0f} %" if max(rates) > 0 else "0 %"


def _cycles(policy: Policy, period: int, length: int) -> tuple[int, int, bool]:
    """Whole cycles after ``length`` steps, the steps of the next, and whether each starts with a jump to its top.

    A cycle ends at its lowest rate.
    """
    bottom = min(range(period), key=policy)
    rise = max(policy(t) for t in range(bottom, bottom + period)) - policy(bottom)
    restarts = policy(bottom + 1) - policy(bottom) > 0.75 * rise
    cycles, over = divmod(length - bottom - restarts, period)
    return max(0, cycles + (bottom > 0)), over, restarts


def _used(policy: Any, kind: Kind) -> dict[str, Any]:
    """The fields of a kind that are not left at their default."""
    defaults = {field.name: field.default for field in fields(policy)} if (found := meant(policy, kind)) else {}
    return {name: value for name, value in found.items() if value != defaults[name]}


def _is_warmup(policy: Any) -> bool:
    return any(policy(steps) > policy(0) for steps in meant(policy, "horizon").values())
