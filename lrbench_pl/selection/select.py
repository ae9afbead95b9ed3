"""Selecting a policy from a pool: the plan, as a generator of batches of jobs. No torch, no Lightning, no Hydra."""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lrbench_pl.composing.range_test import RangeTest, RateRamp, analyse
from lrbench_pl.policies import _checks as check
from lrbench_pl.words import counted, policy_file_name

Kind = Literal["range", "rung", "confirm", "shorten"]

SPAN = 100.0  # a range test covers the optimizer's own rate divided and multiplied by this
_SWEEP_SHARE = 0.01  # of the budget, steps of one sweep of the range test ...
_SWEEP_STEPS = (50, 200)  # ... but at least and at most these
_RANGE_SHARE = 0.25  # of the budget, at most, for all sweeps; in a smaller one the optimizer's own rate is the peak


@dataclass(frozen=True)
class Settings:
    """How a policy is selected.

    Args:
        shapes: Names in ``conf/lr_policy``.
        rates: Peak rates as shares of the peak that the range test suggests, each above 0.
        repeats: Sweeps of the range test, each from the weights of another seed; 0 takes the optimizer's own rate.
        first: Horizon of the first rung as a share of the budget, in (0, 1].
        growth: Factor from one horizon to the next, above 1.
        eta: One in ``eta`` candidates goes on to the next rung; above 1.
        confirm: Fresh seeds on which the winner must reach the target, all of them.
        bisections: Shorter horizons tried for the winner, at most.
        tuning_budget: Optimizer steps in all, as a multiple of the budget, above 0.

    Raises:
        ValueError: If a field is out of its range.
    """

    shapes: tuple[str, ...] = ("cosine", "wsd", "onecycle", "nstep", "tri2", "composite_tri_cosine")
    rates: tuple[float, ...] = (1.0, 0.3)
    repeats: int = 2
    first: float = 1 / 32
    growth: float = 2.0
    eta: float = 2.0
    confirm: int = 2
    bisections: int = 2
    tuning_budget: float = 4.0

    def __post_init__(self) -> None:
        for name in ("shapes", "rates"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence) or not value:
                raise ValueError(f"{name} must be a list of at least one, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        for rate in self.rates:
            check.number("rates", rate, "be finite numbers above 0", lambda v: v > 0)
        check.count("repeats", self.repeats, least=0)
        check.number("first", self.first, "lie in (0, 1]", lambda v: 0 < v <= 1)
        check.number("growth", self.growth, "be a finite number above 1", lambda v: v > 1)
        check.number("eta", self.eta, "be a finite number above 1", lambda v: v > 1)
        check.count("confirm", self.confirm, least=0)
        check.count("bisections", self.bisections, least=0)
        check.number("tuning_budget", self.tuning_budget, "be a finite number above 0", lambda v: v > 0)


@dataclass(frozen=True)
class Task:
    """What a policy is selected for.

    Args:
        max_steps: The budget of one training, in optimizer steps.
        interval: Steps between two checks; every horizon is a whole number of them.
        optimizers: The optimizers of the pool, each with its own rate.
        seeds: Seeds that all candidates of a rung share.
        mode: Whether a larger or a smaller value is better.
        files: Paths of policies from elsewhere, each with the optimizer it is tried with; they have their own rates and
            come first.
        rates: Peak rates to try instead of those around a range test's peak.

    Raises:
        ValueError: If no check fits the budget, or a rate is not above 0.
    """

    max_steps: int
    interval: int
    optimizers: Mapping[str, float]
    seeds: tuple[int, ...] = (0,)
    mode: Literal["max", "min"] = "max"
    files: tuple[tuple[str, str], ...] = ()
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.interval > self.max_steps:
            raise ValueError(
                f"check_every must not exceed max_steps ({self.max_steps}), got {self.interval}: "
                "nothing would be checked"
            )
        for rate in self.rates:
            check.number("lr", rate, "be finite numbers above 0", lambda v: v > 0)


def exact(lr: float) -> str:
    """A rate with every digit, so that two rates never have one name.

    Example:
        >>> exact(0.0123456789), exact(1.0), exact(1e-05)
        ('0.0123456789', '1', '1e-05')
    """
    return repr(float(lr)).removesuffix(".0")


@dataclass(frozen=True)
class Candidate:
    """A policy at a peak rate with an optimizer.

    Args:
        policy: Name of a shape, or the path of a policy (which brings its rates).
        optimizer: Name of the optimizer.
        lr: Its peak rate; None for a file.

    Example:
        >>> print(Candidate("cosine", "adam", 0.002), "|", Candidate("a/policy.yaml", "sgd"))
        cosine at 0.002 (adam) | a (sgd)
    """

    policy: str
    optimizer: str
    lr: float | None = None

    def __str__(self) -> str:
        return (
            f"{policy_file_name(self.policy)} ({self.optimizer})"
            if self.lr is None
            else f"{self.policy} at {exact(self.lr)} ({self.optimizer})"
        )


@dataclass(frozen=True)
class Job:
    """One training of a candidate: a complete policy over ``horizon`` steps."""

    kind: Kind
    candidate: Candidate
    horizon: int
    seed: int


@dataclass(frozen=True)
class Row:
    """What came of a job.

    Args:
        status: As in a result row.
        steps: Optimizer steps taken.
        steps_to_target: Those at the check that reached the target; None if none did.
        value: Best checked value of the metric; None if there was no check.
        seconds: Of training.
        message: Why the status is what it is.
        losses: Training loss of each step, only of a range test.
    """

    status: str
    steps: int
    steps_to_target: int | None = None
    value: float | None = None
    seconds: float = 0.0
    message: str = ""
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Standing:
    """How a candidate did at the longest horizon that it came to.

    Args:
        candidate: Which.
        horizon: Steps of its last rung.
        reached: Trainings of that rung that reached the target.
        runs: Trainings of it.
        steps: Median of the steps to the target; None if half of them or more missed.
        value: Mean of the best values; None if one had no value.
        diverged: Trainings that diverged or failed.
    """

    candidate: Candidate
    horizon: int
    reached: int
    runs: int
    steps: float | None
    value: float | None
    diverged: int


@dataclass
class Selection:
    """What is known; filled while the plan goes on.

    Args:
        winner: The recommended candidate: at first the best so far.
        horizon: Steps of its policy.
        status: ``reached``, or ``missed`` if no candidate reached the target within the budget (of tuning or training).
        confirmed: Fresh seeds on which the winner reached the target at this horizon.
        asked: Fresh seeds that were tried there.
        ranking: Candidates, best first.
        avoided: Choices that were found bad or not tried, and why.
        lines: One line for each finished batch.
        ranges: The range test of each optimizer.
        steps: Optimizer steps spent.
        seconds: Of training.
        jobs: Trainings.
        steps_to_first: Steps spent up to and with the first training that reached the target, one after the other.
        steps_to_confirmed: Steps spent when the winner was confirmed, before its horizon was shortened.
    """

    winner: Candidate | None = None
    horizon: int = 0
    status: Literal["reached", "missed"] = "missed"
    confirmed: int = 0
    asked: int = 0
    ranking: list[Standing] = field(default_factory=list)
    avoided: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    ranges: dict[str, RangeTest] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    jobs: int = 0
    steps_to_first: int | None = None
    steps_to_confirmed: int | None = None


Plan = Generator[list[Job], Sequence[Row], Selection]


def horizons(settings: Settings, max_steps: int, interval: int) -> list[int]:
    """The steps of each rung: whole intervals between checks, growing up to the budget.

    Example:
        >>> horizons(Settings(), 10_000, 100)
        [300, 600, 1200, 2500, 5000, 10000]
    """
    last = max_steps // interval * interval
    found: list[int] = []
    exact = settings.first * max_steps
    while exact < 0.999 * max_steps:
        steps = min(last, interval * max(1, round(exact / interval)))
        if not found or steps > found[-1]:
            found.append(steps)
        exact *= settings.growth
    return found if found and found[-1] == last else [*found, last]


def select(settings: Settings, task: Task, found: Selection | None = None) -> Plan:
    """The plan: range tests, rungs of complete policies at growing horizons, confirmation on fresh seeds, bisection.

    It yields batches of jobs that may run in parallel and is sent their rows in the same order. Being a pure function
    of the rows, it can be played again from those of an interrupted selection. No batch is begun that could exceed the
    tuning budget.

    Args:
        settings: How.
        task: For what.
        found: Filled while it goes on; returned in the end.

    Example:
        >>> settings = Settings(shapes=("fix", "linear"), rates=(1.0,), repeats=0, confirm=1, bisections=0)
        >>> plan = select(settings, Task(max_steps=320, interval=10, optimizers={"sgd": 0.1}))
        >>> [f"{job.candidate}, {job.horizon} steps" for job in next(plan)]
        ['fix at 0.1 (sgd), 10 steps', 'linear at 0.1 (sgd), 10 steps']
        >>> rows = [Row("missed", 10, value=0.5), Row("reached", 10, 10, 0.9)]
        >>> [(job.kind, str(job.candidate), job.seed) for job in plan.send(rows)]
        [('confirm', 'linear at 0.1 (sgd)', 1)]
    """
    found = Selection() if found is None else found
    budget = math.floor(settings.tuning_budget * task.max_steps)
    alive = yield from _candidates(settings, task, found, budget)
    rungs = horizons(settings, task.max_steps, task.interval)
    missed_at: dict[Candidate, int] = {}
    for number, horizon in enumerate(rungs, 1):
        fits = (budget - found.steps) // (horizon * len(task.seeds))
        if fits < len(alive):
            left_out = ", ".join(map(str, alive[fits:]))
            found.avoided.append(
                f"{left_out}: not tried at {counted(horizon, 'step')}, the tuning budget of {budget} does not allow it"
            )
            alive = alive[:fits]
        if not alive:
            break
        jobs = [Job("rung", candidate, horizon, seed) for candidate in alive for seed in task.seeds]
        rows = yield jobs
        _count(found, rows)
        of: dict[Candidate, list[Row]] = {candidate: [] for candidate in alive}
        for job, row in zip(jobs, rows, strict=True):
            of[job.candidate].append(row)
        standings = _standings(of, horizon, task.mode)
        _rank(found, standings)
        _say_rung(found, f"rung {number} of {len(rungs)}", standings)
        missed_at |= {standing.candidate: horizon for standing in standings if standing.steps is None}
        for standing in _better(standings, settings):
            if standing.steps is None:
                break
            fresh = yield from _confirmed(settings, task, found, standing.candidate, horizon, budget)
            if found.steps_to_confirmed is not None:
                yield from _shorten(settings, task, found, missed_at.get(standing.candidate, 0), budget)
                return found
            of[standing.candidate] += fresh
            missed_at[standing.candidate] = horizon
        standings = _standings(of, horizon, task.mode)  # those that were lucky have moved
        _rank(found, standings)
        kept = _better(standings, settings)
        _note_left_behind(found, standings, kept, of, last=number == len(rungs))
        alive = [standing.candidate for standing in kept]
    return found


def _candidates(
    settings: Settings, task: Task, found: Selection, budget: int
) -> Generator[list[Job], Sequence[Row], list[Candidate]]:
    """The pool: files first, then every shape at the best rate, then at the next one."""
    peaks = dict(task.optimizers)
    least, most = _SWEEP_STEPS
    steps = max(least, min(most, round(_SWEEP_SHARE * task.max_steps)))
    in_all = steps * settings.repeats * len(peaks)
    if settings.repeats and not task.rates and in_all <= min(_RANGE_SHARE * task.max_steps * len(peaks), budget / 2):
        seeds = range(task.seeds[0], task.seeds[0] + settings.repeats)
        jobs = [Job("range", Candidate("range", name, lr), steps, seed) for name, lr in peaks.items() for seed in seeds]
        rows = yield jobs
        _count(found, rows)
        for index, (name, lr) in enumerate(task.optimizers.items()):
            mine = rows[index * settings.repeats : (index + 1) * settings.repeats]
            try:
                test = analyse(RateRamp(lr / SPAN, lr * SPAN, steps), [row.losses for row in mine if row.losses])
            except ValueError as error:
                found.avoided.append(f"the range test of {name}: {error}; its own rate {exact(lr)} stands")
                continue
            found.ranges[name], peaks[name] = test, test.peak
            if test.diverged_at is not None:
                found.avoided.append(f"{name} at {test.diverged_at:.3g} and above: the range test diverged")
        said = ", ".join(f"{name} {t.low:.2g} to {t.high:.2g}, peak {t.peak:.2g}" for name, t in found.ranges.items())
        found.lines.append(f"range test: {said or 'none usable'}; {counted(found.steps, 'step')} spent")
    pool = [Candidate(path, name) for path, name in task.files]
    for rate in task.rates or settings.rates:
        for shape in settings.shapes:
            for name, peak in peaks.items():
                lr = _rate(rate, peak, name in found.ranges) if not task.rates else rate
                if name in found.ranges and lr > found.ranges[name].high:
                    found.avoided.append(f"{shape} at {exact(lr)} ({name}): above the usable rates")
                else:
                    pool.append(Candidate(shape, name, lr))
    return list(dict.fromkeys(pool))


def _rate(share: float, peak: float, measured: bool) -> float:
    """A share of a peak: of a given one as exact as it is, of one that a range test measured no more than that."""
    if share == 1 and not measured:
        return peak
    return float(f"{share * peak:.{3 if measured else 12}g}")  # 3 * 0.1 is 0.3


def _confirmed(
    settings: Settings, task: Task, found: Selection, candidate: Candidate, horizon: int, budget: int
) -> Generator[list[Job], Sequence[Row], Sequence[Row]]:
    """The rows of a candidate that reached the target on fresh seeds; if all of them did, that is the answer."""
    if found.status != "reached":
        found.winner, found.horizon, found.status = candidate, horizon, "reached"
    seeds = _fresh(settings, task)
    fits = min(len(seeds), (budget - found.steps) // horizon)
    if fits < len(seeds):
        found.avoided.append(
            f"confirming {candidate} on {len(seeds) - fits} more seeds: the tuning budget of {budget} does not allow it"
        )
    rows: Sequence[Row] = ()
    if fits:
        rows = yield [Job("confirm", candidate, horizon, seed) for seed in seeds[:fits]]
        _count(found, rows)
    good = sum(row.status == "reached" for row in rows)
    if rows:
        on = f"on {good} of {len(rows)}"
        found.lines.append(
            f"fresh seeds: {candidate} reaches the target within {counted(horizon, 'step')} {on}; "
            f"{counted(found.steps, 'step')} spent"
        )
        if good < len(rows):
            found.avoided.append(f"{candidate} over {counted(horizon, 'step')}: reached the target {on} fresh seeds")
        if not found.asked or good / len(rows) > found.confirmed / found.asked:  # of equals the shorter
            found.winner, found.horizon, found.confirmed, found.asked = candidate, horizon, good, len(rows)
    if good == len(seeds):
        found.steps_to_confirmed = found.steps
    return rows


def _shorten(
    settings: Settings, task: Task, found: Selection, below: int, budget: int
) -> Generator[list[Job], Sequence[Row], None]:
    """Bisect the winner's horizon between the longest known to miss and the shortest known to do."""
    assert found.winner is not None
    seeds = _fresh(settings, task) or list(task.seeds)
    for _ in range(settings.bisections):
        middle = (below + found.horizon) // 2 // task.interval * task.interval
        if middle <= below:
            return
        over = f"{found.winner} over {counted(middle, 'step')}"
        if middle * len(seeds) > budget - found.steps:
            found.avoided.append(f"{over}: not tried, the tuning budget of {budget} does not allow it")
            return
        rows = yield [Job("shorten", found.winner, middle, seed) for seed in seeds]
        _count(found, rows)
        good = sum(row.status == "reached" for row in rows)
        on = f"on {good} of {len(rows)}"
        found.lines.append(
            f"shorter: {found.winner} reaches the target within {counted(middle, 'step')} {on}; "
            f"{counted(found.steps, 'step')} spent"
        )
        if good == len(rows):
            found.horizon = middle
        else:
            below = middle
            found.avoided.append(f"{over}: reached the target {on} seeds")


def _fresh(settings: Settings, task: Task) -> list[int]:
    first = max(task.seeds) + 1
    return list(range(first, first + settings.confirm))


def _count(found: Selection, rows: Sequence[Row]) -> None:
    for row in rows:
        found.steps += row.steps
        found.seconds += row.seconds
        found.jobs += 1
        if row.status == "reached" and found.steps_to_first is None:
            found.steps_to_first = found.steps


def _standings(of: Mapping[Candidate, Sequence[Row]], horizon: int, mode: str) -> list[Standing]:
    """The candidates of a rung, best first: by share of seeds that reached, median steps to it, mean value.

    To reach on half of the seeds or fewer counts as a miss.
    """
    sign = 1.0 if mode == "max" else -1.0
    standings = []
    for candidate, mine in of.items():
        steps = statistics.median(math.inf if r.steps_to_target is None else r.steps_to_target for r in mine)
        values = [row.value for row in mine if row.value is not None and math.isfinite(row.value)]
        standings.append(
            Standing(
                candidate=candidate,
                horizon=horizon,
                reached=sum(row.status == "reached" for row in mine),
                runs=len(mine),
                steps=steps if math.isfinite(steps) else None,
                value=statistics.fmean(values) if len(values) == len(mine) else None,
                diverged=sum(row.status in ("diverged", "failed") for row in mine),
            )
        )

    def key(standing: Standing) -> tuple[float, ...]:
        value = math.inf if standing.value is None else -sign * standing.value
        if standing.steps is None:
            return 0.0, standing.diverged, math.inf, value
        return -standing.reached / standing.runs, standing.diverged, standing.steps, value

    return sorted(standings, key=key)


def _better(standings: Sequence[Standing], settings: Settings) -> list[Standing]:
    """Those that go on: one in ``eta``, and none that diverged with every seed."""
    kept = standings[: math.ceil(len(standings) / settings.eta)]
    return [standing for standing in kept if standing.diverged < standing.runs]


def _rank(found: Selection, standings: list[Standing]) -> None:
    """The candidates of the longest horizon come first; the best of them is recommended until one reached."""
    now = {standing.candidate for standing in standings}
    found.ranking = [*standings, *(standing for standing in found.ranking if standing.candidate not in now)]
    best = standings[0]
    if found.status == "missed" and best.diverged < best.runs:
        found.winner, found.horizon = best.candidate, best.horizon


def _note_left_behind(
    found: Selection,
    standings: Sequence[Standing],
    kept: Sequence[Standing],
    of: Mapping[Candidate, Sequence[Row]],
    last: bool,
) -> None:
    for standing in standings:
        over = f"{standing.candidate} over {counted(standing.horizon, 'step')}"
        bad = [row for row in of[standing.candidate] if row.status in ("diverged", "failed")]
        if bad:
            found.avoided.append(f"{over}: {bad[0].message or bad[0].status}")
        elif standing not in kept and not last:
            found.avoided.append(f"{over}: {_did(standing)}" + (f", the last kept {_did(kept[-1])}" if kept else ""))


def _did(standing: Standing) -> str:
    if standing.steps is not None:
        return f"reached at {standing.steps:g}"
    return "no value" if standing.value is None else f"{standing.value:.4g}"


def _say_rung(found: Selection, name: str, standings: Sequence[Standing]) -> None:
    best = standings[0]
    reached = sum(standing.steps is not None for standing in standings)
    candidates = counted(len(standings), "candidate")
    found.lines.append(
        f"{name}, {counted(best.horizon, 'step')} each: {candidates}, {reached} reached; "
        f"best {best.candidate}: {_did(best)}; {counted(found.steps, 'step')} spent"
    )
