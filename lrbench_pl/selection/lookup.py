"""Look up the policies that finished runs recommend for a task."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from lrbench_pl.policies import Policy, cut, stretched
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import canonical, of_task
from lrbench_pl.selection.distance import Query, UnsuitableError, distance

MAX_DISTANCE = 4.0  # as in conf/lr_policy/best.yaml
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Recommendation:
    """A policy for a query, with its evidence.

    Args:
        policy: The policy, stretched to the budget of the query.
        name: Its name in the runs.
        seeds: Number of seeds.
        reached: Number of seeds that reached the target.
        sure_share: Lower bound of the share of seeds that reach the target (Wilson, 95 %).
        median_steps: Median steps to the target, on the time scale of the query; a miss is infinite.
        distance: Distance of the runs from the query, see :func:`~lrbench_pl.selection.distance.distance`.
        differences: What differs, in words.
        factor: Factor by which the policy was stretched.
        run_ids: The runs.
    """

    policy: Policy
    name: str
    seeds: int
    reached: int
    sure_share: float
    median_steps: float
    distance: float
    differences: tuple[str, ...]
    factor: float
    run_ids: tuple[str, ...]

    def __str__(self) -> str:
        """Return the recommendation in one line."""
        where = f"distance {self.distance:.2g}: {', '.join(self.differences)}" if self.differences else "exact match"
        stretch = f", time ×{self.factor:.4g}" if self.factor != 1 else ""
        seeds = "seed" if self.seeds == 1 else "seeds"
        return (
            f"{self.name} reached the target in {self.reached} of {self.seeds} {seeds} (in at least "
            f"{self.sure_share:.0%} at 95 % confidence), median {self.median_steps:.0f} steps; {where}{stretch}: "
            f"{self.policy!r}"
        )


@dataclass
class Answer:
    """Result of a look-up.

    Args:
        recommendations: Suitable policies, best first.
        runs: Number of runs considered.
        unsuitable: Number of runs without a suitable policy, by reason.
    """

    recommendations: tuple[Recommendation, ...] = ()
    runs: int = 0
    unsuitable: dict[str, int] = field(default_factory=dict)

    def reject(self, reason: str, runs: int = 1) -> None:
        """Count runs as unsuitable."""
        self.unsuitable[reason] = self.unsuitable.get(reason, 0) + runs

    @property
    def reason(self) -> str:
        """Why there is no recommendation, in one line.

        Example:
            >>> Answer((), 3, {"another optimizer": 2, "another model": 1}).reason
            'no suitable policy in 3 runs (2 with another optimizer, 1 with another model)'
        """
        reasons = ", ".join(f"{count} with {reason}" for reason, count in self.unsuitable.items())
        return f"no suitable policy in {self.runs} runs" + (f" ({reasons})" if reasons else "")


@dataclass
class _Evidence:
    """Runs of one policy under one condition."""

    policy: Policy
    distance: float
    differences: tuple[str, ...]
    runs: list[RunResult] = field(default_factory=list)


def recommend(query: Query, runs: Iterable[tuple[RunResult, Policy]], max_distance: float = MAX_DISTANCE) -> Answer:
    """Rank the policies of finished runs for a query.

    Runs of one policy under one condition are its evidence; a seed counts once. If the target of the query is easier
    than theirs, their best checks decide whether and when they would have reached it. If it is harder and they stopped
    at theirs, or if the data set differs, their own target decides, and the distance accounts for it. A policy that was
    composed while training counts from its own first step, and only if it reached its target, not with averaged
    weights, which the policy alone does not give. Each policy is stretched to the whole budget of the query, not cut at
    the target, since it would be another policy without its end.

    A policy is judged by its nearest evidence. It is suitable if more than half of the seeds reached the target.
    Recommendations are ordered by distance, rounded up to whole numbers, so exact matches come first. At one distance,
    policies that certainly reach the target with more than half of the seeds (Wilson's lower bound at 95 %, as with
    three of three seeds) come first, by median steps; the others follow by that bound. So one lucky seed is not ranked
    above ten good ones.

    Args:
        query: The task to recommend a policy for.
        runs: Finished runs and their policies.
        max_distance: Runs at a larger distance are unsuitable.

    Example:
        >>> from lrbench_pl.policies import Constant, Polynomial
        >>> def run(name, seed, steps, budget=1000):
        ...     return RunResult(name + str(seed), name, "reached", seed, budget, dataset="digits", model="mlp",
        ...                      optimizer="momentum", batch_size=64, target=0.95, monitor="val/accuracy",
        ...                      steps_to_target=steps)
        >>> known = [(run("lucky", 0, 90), Constant(0.5))]
        >>> known += [(run("linear", seed, 200 + seed), Polynomial(0.1, 1000)) for seed in range(3)]
        >>> query = Query("digits", "mlp", "momentum", 64, 2000, 0.95)
        >>> print(recommend(query, known).recommendations[0])
        linear reached the target in 3 of 3 seeds (in at least 53% at 95 % confidence), median 402 steps; distance 1: \
budget 1000 instead of 2000, time ×2: Polynomial(init_lr=0.1, decay_steps=2000, power=1.0, end_lr=0.0)

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209.
    """
    answer = Answer()
    nearest: dict[Policy, Recommendation] = {}
    for evidence in _evidence(query, runs, max_distance, answer):
        found = _recommendation(query, evidence, answer)
        if found is None:
            continue
        before = nearest.get(found.policy)
        if before is None or (found.distance, -found.seeds) < (before.distance, -before.seeds):
            nearest[found.policy] = found
    suitable = []
    for found in nearest.values():
        if 2 * found.reached <= found.seeds:
            answer.reject("a policy that mostly missed", len(found.run_ids))
        else:
            suitable.append(found)
    answer.recommendations = tuple(sorted(suitable, key=_order))
    return answer


def _evidence(
    query: Query, runs: Iterable[tuple[RunResult, Policy]], max_distance: float, answer: Answer
) -> list[_Evidence]:
    """Group the runs that are near enough by policy and condition; reject the others."""
    found: dict[tuple[Policy, tuple[object, ...]], _Evidence] = {}
    for run, policy in runs:
        answer.runs += 1
        try:
            apart, differences = distance(query, run)
            if _is_averaged(run):
                raise UnsuitableError("checks of averaged weights")
            if apart > max_distance:
                raise UnsuitableError(f"a distance above {max_distance:g}")
        except UnsuitableError as reason:
            answer.reject(str(reason))
            continue
        key = (policy, _condition(run))
        found.setdefault(key, _Evidence(policy, apart, differences)).runs.append(run)
    return list(found.values())


def _is_averaged(run: RunResult) -> bool:
    """Return whether the checks that count are of averaged weights, at least in part."""
    accepts = (run.settings or {}).get("lr_policy.accept_average")
    return run.weights is not None or (bool(accepts) and run.status != "reached")


def _condition(run: RunResult) -> tuple[object, ...]:
    """Return what runs must share to be evidence for the same thing."""
    task = run.task
    settings = canonical(of_task(run.settings or {}))
    own = {name: value for name, value in task.to_dict().items() if name != "settings"}
    return (*own.values(), settings, bool(run.tuning_steps))


def _recommendation(query: Query, evidence: _Evidence, answer: Answer) -> Recommendation | None:
    """Judge the evidence for a policy; None, with the reason counted, if there is nothing to recommend."""
    from scipy.stats import binomtest  # only look-ups need it

    runs = evidence.runs
    steps = _steps_by_seed(query, runs)
    if not steps:
        answer.reject("a composition that missed", len(runs))
        return None
    assert runs[0].max_steps is not None
    factor = query.max_steps / runs[0].max_steps
    try:
        policy = cut(stretched(evidence.policy, factor), query.max_steps)
    except (ValueError, ArithmeticError):
        answer.reject("a policy that cannot be stretched", len(runs))
        return None
    reached = sum(each < math.inf for each in steps.values())
    test = binomtest(reached, len(steps), alternative="greater")
    # prefer the name of the policy itself; that of a file is the folder's if it has a slash
    names = sorted({run.policy for run in runs}, key=lambda name: (name in ("auto", "best"), "/" in name))
    return Recommendation(
        policy=policy,
        name=names[0],
        seeds=len(steps),
        reached=reached,
        sure_share=float(test.proportion_ci(_CONFIDENCE, method="wilson").low),
        median_steps=factor * statistics.median(steps.values()),
        distance=evidence.distance,
        differences=evidence.differences,
        factor=factor,
        run_ids=tuple(run.run_id for run in runs),
    )


def _steps_by_seed(query: Query, runs: Sequence[RunResult]) -> dict[int | None, float]:
    """Return the steps to the target of each seed, on the time scale of the runs; a miss is infinite."""
    target, theirs = query.target, runs[0].target
    stopped_early = any(run.status == "reached" and (run.steps_run or 0) < (run.max_steps or 0) for run in runs)
    is_harder = theirs is not None and not _meets(theirs, target, query.mode)
    composed = any(run.tuning_steps for run in runs)
    by_own_target = runs[0].dataset != query.dataset or (is_harder and (stopped_early or composed))
    found: dict[int | None, float] = {}
    for run in runs:
        steps = math.inf
        if run.status == "reached" and run.steps_to_target is not None and (by_own_target or not is_harder):
            steps = run.steps_to_target - (run.tuning_steps or 0)
        elif not by_own_target and not composed and _meets(run.best_value, target, query.mode):
            steps = run.best_step or run.max_steps or math.inf
        if not composed or steps < math.inf:
            found.setdefault(run.seed, steps)
    return found


def _meets(value: float | None, target: float, mode: str) -> bool:
    return value is not None and (value >= target if mode == "max" else value <= target)


def _order(found: Recommendation) -> tuple[float, ...]:
    is_sure = found.sure_share > 0.5
    by_share = 0.0 if is_sure else -found.sure_share
    return math.ceil(found.distance - 1e-9), not is_sure, by_share, found.median_steps, found.distance, -found.seeds


def look_up(
    query: Query, db: str | None, max_distance: float, report: Callable[[str], None]
) -> tuple[tuple[Recommendation, ...], str]:
    """Look a policy up in the policy database.

    Args:
        query: The task to recommend a policy for.
        db: The database, see :class:`~lrbench_pl.selection.database.PolicyDatabase`.
        max_distance: Runs at a larger distance are unsuitable.
        report: Called with a line for each invalid record.

    Returns:
        The recommendations, best first, and why there are none.

    Raises:
        DatabaseError: If the database exists and cannot be read.
    """
    from lrbench_pl.selection.database import MissingDatabaseError, PolicyDatabase  # imports SQLAlchemy

    try:
        with PolicyDatabase(db) as database:
            found = database.read(monitor=query.monitor)
    except MissingDatabaseError as error:
        return (), str(error)
    for refused in found.refused:
        report(f"refused: {refused.source}: {refused.reason}")
    answer = recommend(query, ((run.result, run.policy) for run in found.runs), max_distance)
    return answer.recommendations, answer.reason
