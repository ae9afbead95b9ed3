"""Which policy worked here, or nearest to here: a question and runs in, a ranking out. No torch."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lrbench_pl.policies import Policy, cut, stretched
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import UNSET, Task, canonical, differing, of_task, shown

# Optimizers for which one rate means about the same; any other is suited by its own name alone.
_OPTIMIZER_FAMILIES = (frozenset({"momentum", "nesterov"}), frozenset({"adam", "adamw"}))
_OPTIMIZER, _MODEL, _DATASET, _CHECK_ON = 1.0, 2.0, 3.0, 0.5  # distance of each, where it differs
_CONFIRMATIONS, _SETTING = 0.5, 0.5
_LEAST_ERROR = 1e-4  # a target nearer to perfect is as near as this
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Question:
    """What a policy is wanted for.

    Args:
        dataset: Name of the data set, as in ``result.json``.
        model: Name of the model.
        optimizer: Name of the optimizer.
        batch_size: Samples per optimizer step and process.
        max_steps: The budget, in optimizer steps.
        target: The value that the monitor has to reach.
        monitor: The metric that is compared with the target.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        check_on: ``validation`` or ``test``; None: either.
        confirmations: Checks in a row that must meet the target; None: any number.
        settings: Those of the task, see :class:`lrbench_pl.runs.spec.Task`; None: unknown, and so no reason to differ.

    Raises:
        ValueError: If ``batch_size`` or ``max_steps`` is below 1, the target no finite number, or ``mode`` unknown.
    """

    dataset: str
    model: str
    optimizer: str
    batch_size: int
    max_steps: int
    target: float
    monitor: str = "val/accuracy"
    mode: Literal["max", "min"] = "max"
    check_on: str | None = None
    confirmations: int | None = None
    settings: Mapping[str, Any] | None = field(default=None, hash=False)

    @classmethod
    def from_task(cls, task: Task) -> Question:
        """Ask for a policy for a task.

        Raises:
            ValueError: If it has no target.
        """
        plain = task.to_dict()
        return cls(**plain)

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        target = self.target
        if isinstance(target, bool) or not isinstance(target, (int, float)) or not math.isfinite(target):
            raise ValueError(f"target must be a finite number to look a policy up by, got {target!r}")
        if self.mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {self.mode!r}")


@dataclass(frozen=True)
class Recommendation:
    """A policy for a question, and why.

    Args:
        policy: The policy, stretched to the budget asked for.
        name: What the runs called it.
        seeds: Seeds that it was tried on there.
        reached: Those of them that reached the target.
        sure_share: What share of all seeds reaches it at least, at a confidence of 95 % (Wilson's lower bound).
        median_steps: Median steps to the target, a miss counting as infinitely many, on the time scale of the budget
            asked for.
        distance: How far the runs are from the question, 0 for none; see :func:`distance`.
        differences: What differs, in words.
        factor: By which the policy was stretched.
        run_ids: The runs that say so.
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
        """The recommendation in one line."""
        where = f"distance {self.distance:.2g}: {', '.join(self.differences)}" if self.differences else "exact match"
        stretch = f", time ×{self.factor:.4g}" if self.factor != 1 else ""
        seeds = "seed" if self.seeds == 1 else "seeds"
        return (
            f"{self.name} reached the target in {self.reached} of {self.seeds} {seeds} (in at least "
            f"{self.sure_share:.0%} at 95 % confidence), median {self.median_steps:.0f} steps; {where}{stretch}: "
            f"{self.policy!r}"
        )


@dataclass(frozen=True)
class Answer:
    """What a look-up found.

    Args:
        recommendations: The suitable policies, best first.
        looked_at: Number of runs asked.
        unsuitable: Why the others are not, with the number of runs.
    """

    recommendations: tuple[Recommendation, ...]
    looked_at: int
    unsuitable: tuple[tuple[str, int], ...]

    def why_none(self) -> str:
        """Why there is no recommendation, in one line.

        Example:
            >>> Answer((), 3, (("another optimizer", 2), ("another model", 1))).why_none()
            'nothing suitable among 3 runs (2 of another optimizer, 1 of another model)'
        """
        reasons = ", ".join(f"{count} of {reason}" for reason, count in self.unsuitable)
        return f"nothing suitable among {self.looked_at} runs" + (f" ({reasons})" if reasons else "")


def distance(question: Question, row: RunResult) -> tuple[float, tuple[str, ...]] | str:
    """How far a run is from a question, with what differs in words; or, as a string, why it is not suited at all.

    What differs adds up:

    =============================================== =====================================================
    the budget, the batch size                      1 for each doubling or halving
    the target                                      1 for each doubling or halving of the error it allows
    validation or test set to check on              0.5
    the confirmations                               0.5
    a setting of a like optimizer, model, data set  0.5 each
    the optimizer, of one family (adam and adamw)   1; of another family: not suited
    the model, of one family (resnet20, resnet32)   2; of another family: not suited
    the data set                                    3; with another model as well: not suited
    the monitor, the mode                           not suited
    =============================================== =====================================================

    Example:
        >>> row = RunResult(run_id="a", policy="tri", status="missed", dataset="cifar10", model="resnet20",
        ...     batch_size=64, optimizer="momentum", max_steps=32_000, target=0.9, monitor="val/accuracy")
        >>> distance(Question("cifar10", "resnet32", "momentum", 64, 64_000, 0.9), row)
        (3.0, ('model resnet20 instead of resnet32', 'budget 32000 instead of 64000'))
        >>> distance(Question("cifar10", "resnet20", "adam", 64, 64_000, 0.9), row)
        'another optimizer'
    """
    if row.max_steps is None or row.batch_size is None:
        return "unknown budget or batch size"
    if row.monitor != question.monitor:
        return "another monitor"
    if row.mode not in (None, question.mode):
        return "another mode"
    total, words = 0.0, []
    if row.dataset != question.dataset:
        if row.model != question.model:
            return "another data set"
        if row.target is None:
            return "another data set and no target"
        total += _DATASET
        words.append(f"dataset {row.dataset} instead of {question.dataset}")
    if row.model != question.model:
        if _model_family(row.model) != _model_family(question.model):
            return "another model"
        total += _MODEL
        words.append(f"model {row.model} instead of {question.model}")
    if row.optimizer != question.optimizer:
        if not any({row.optimizer, question.optimizer} <= family for family in _OPTIMIZER_FAMILIES):
            return "another optimizer"
        total += _OPTIMIZER
        words.append(f"optimizer {row.optimizer} instead of {question.optimizer}")
    for name, theirs, ours in (
        ("budget", row.max_steps, question.max_steps),
        ("batch size", row.batch_size, question.batch_size),
    ):
        if theirs != ours:
            total += abs(math.log2(ours / theirs))
            words.append(f"{name} {theirs} instead of {ours}")
    if row.target not in (None, question.target):
        errors = [_error(target, question.mode) for target in (row.target, question.target)]
        total += abs(math.log2(errors[0] / errors[1]))
        words.append(f"target {row.target:g} instead of {question.target:g}")
    if question.check_on is not None and row.check_on not in (None, question.check_on):
        total += _CHECK_ON
        words.append(f"checked on {row.check_on} instead of {question.check_on}")
    if question.confirmations is not None and row.confirmations not in (None, question.confirmations):
        total += _CONFIRMATIONS
        words.append(f"confirmations {row.confirmations} instead of {question.confirmations}")
    for key in _other_settings(question, row):
        total += _SETTING
        theirs, ours = (each.get(key, UNSET) for each in (row.settings or {}, question.settings or {}))
        words.append(f"{key} {shown(theirs)} instead of {shown(ours)}")
    return total, tuple(words)


def _other_settings(question: Question, row: RunResult) -> list[str]:
    """The settings that differ, of the parts that have the same name."""
    names = {"model.": row.model == question.model, "dataset.": row.dataset == question.dataset}
    like_optimizer = row.optimizer == question.optimizer
    names |= {"optimizer.": like_optimizer, "param_groups": like_optimizer}
    if question.settings is None or row.settings is None:
        return []
    like = tuple(prefix for prefix, is_like in names.items() if is_like)
    return [key for key in differing([of_task(row.settings), question.settings]) if key.startswith(like)]


def _model_family(name: str | None) -> str:
    """A model's name without its size."""
    return re.sub(r"[\d_.x-]+$", "", name or "")


def _error(target: float | None, mode: str) -> float:
    assert target is not None
    return max(_LEAST_ERROR, 1 - target if mode == "max" else target)


def recommend(question: Question, runs: Iterable[tuple[RunResult, Policy]], max_distance: float = 4.0) -> Answer:
    """Rank what finished runs know of a question.

    Runs of one policy under one condition are its evidence; a seed counts once. Where the target asked for is easier
    than theirs, their best checks tell who would have reached it, and when at the latest; where it is harder and they
    stopped at theirs, or on another data set, they speak of their own target and the distance says so. A policy that
    was composed while training counts from its own first step, and only if it reached its target. Each policy is
    stretched over the whole budget asked for, not cut where it reached the target: without its end it would be another.

    A policy is judged by its nearest evidence, and is suitable if more than half of the seeds reached the target there.
    Exact matches come first, then those at a distance of at most 1, of at most 2, …; among them first the policies of
    which it is sure (Wilson's lower bound at 95 %: three of three seeds suffice) that more than half of all seeds reach
    the target, the fastest first, then the others by that bound. So one lucky seed does not beat ten good ones.

    Args:
        question: What is wanted.
        runs: Finished runs and the policies that they ran.
        max_distance: Runs further away are not suited.

    Example:
        >>> from lrbench_pl.policies import Constant, Polynomial
        >>> def run(name, seed, steps, budget=1000):
        ...     return RunResult(name + str(seed), name, "reached", seed, budget, dataset="digits", model="mlp",
        ...                      optimizer="momentum", batch_size=64, target=0.95, monitor="val/accuracy",
        ...                      steps_to_target=steps)
        >>> known = [(run("lucky", 0, 90), Constant(0.5))]
        >>> known += [(run("linear", seed, 200 + seed), Polynomial(0.1, 1000)) for seed in range(3)]
        >>> question = Question("digits", "mlp", "momentum", 64, 2000, 0.95)
        >>> print(recommend(question, known).recommendations[0])
        linear reached the target in 3 of 3 seeds (in at least 53% at 95 % confidence), median 402 steps; distance 1: \
budget 1000 instead of 2000, time ×2: Polynomial(init_lr=0.1, decay_steps=2000, power=1.0, end_lr=0.0)

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209.
    """
    conditions: dict[tuple[Policy, tuple[object, ...]], list[RunResult]] = {}
    apart: dict[tuple[Policy, tuple[object, ...]], tuple[float, tuple[str, ...]]] = {}
    unsuitable: dict[str, int] = {}
    looked_at = 0
    for row, policy in runs:
        looked_at += 1
        found = distance(question, row)
        if not isinstance(found, str) and found[0] > max_distance:
            found = f"a distance above {max_distance:g}"
        if isinstance(found, str):
            unsuitable[found] = unsuitable.get(found, 0) + 1
            continue
        workload: tuple[object, ...] = (row.dataset, row.model, row.optimizer, row.batch_size)
        workload += (row.mode, row.confirmations, canonical(of_task(row.settings or {})))
        key = (policy, (*workload, row.max_steps, row.target, row.check_on, bool(row.tuning_steps)))
        conditions.setdefault(key, []).append(row)
        apart[key] = found
    nearest: dict[Policy, Recommendation] = {}
    for key, rows in conditions.items():
        judged = _judge(question, rows)
        try:
            each = _recommendation(question, key[0], rows, judged, *apart[key]) if judged else None
        except (ValueError, ArithmeticError):
            each = None
        if each is None:
            reason = "a policy that cannot be stretched" if judged else "a policy composed in vain"
            unsuitable[reason] = unsuitable.get(reason, 0) + len(rows)
            continue
        before = nearest.get(each.policy)
        if before is None or (each.distance, -each.seeds) < (before.distance, -before.seeds):
            nearest[each.policy] = each
    suitable = []
    for each in nearest.values():
        if 2 * each.reached <= each.seeds:
            reason = "a policy that mostly missed"
            unsuitable[reason] = unsuitable.get(reason, 0) + len(each.run_ids)
        else:
            suitable.append(each)
    return Answer(tuple(sorted(suitable, key=_order)), looked_at, tuple(unsuitable.items()))


def ask(
    question: Question, db: str | None, max_distance: float, say: Callable[[str], None]
) -> tuple[Answer | None, str]:
    """What the database knows of a question, and, if that is nothing, why.

    Args:
        question: The question.
        db: The database.
        max_distance: Runs further away are not suitable.
        say: Told of each row that is refused.

    Raises:
        DatabaseError: If there is a database and it cannot be read.
    """
    from lrbench_pl.selection.database import MissingDatabaseError, PolicyDatabase  # SQLAlchemy, for this alone

    try:
        with PolicyDatabase(db) as database:
            found = database.read(monitor=question.monitor)
    except MissingDatabaseError as error:
        return None, str(error)
    for refused in found.refused:
        say(f"refused: {refused.source}: {refused.reason}")
    answer = recommend(question, ((run.result, run.policy) for run in found.runs), max_distance)
    return answer, answer.why_none()


def _order(each: Recommendation) -> tuple[float, ...]:
    sure = each.sure_share > 0.5
    by_share = 0.0 if sure else -each.sure_share
    return math.ceil(each.distance - 1e-9), not sure, by_share, each.median_steps, each.distance, -each.seeds


def _judge(question: Question, rows: Sequence[RunResult]) -> dict[int | None, float]:
    """Steps to the target of each seed, infinitely many for a miss; on the time scale of the runs."""
    target, theirs = question.target, rows[0].target
    stopped_early = any(row.status == "reached" and (row.steps_run or 0) < (row.max_steps or 0) for row in rows)
    harder = theirs is not None and not _meets(theirs, target, question.mode)
    composed = any(row.tuning_steps for row in rows)
    own = rows[0].dataset != question.dataset or (harder and (stopped_early or composed))
    judged: dict[int | None, float] = {}
    for row in rows:
        steps = math.inf
        if row.status == "reached" and row.steps_to_target is not None and (own or not harder):
            steps = row.steps_to_target - (row.tuning_steps or 0)
        elif not own and not composed and _meets(row.best_value, target, question.mode):
            steps = row.best_step or row.max_steps or math.inf
        if not composed or steps < math.inf:
            judged.setdefault(row.seed, steps)
    return judged


def _meets(value: float | None, target: float, mode: str) -> bool:
    return value is not None and (value >= target if mode == "max" else value <= target)


def _recommendation(
    question: Question,
    policy: Policy,
    rows: Sequence[RunResult],
    judged: dict[int | None, float],
    apart: float,
    differences: tuple[str, ...],
) -> Recommendation:
    from scipy.stats import binomtest  # a training that looks nothing up does not need it

    assert rows[0].max_steps is not None
    factor = question.max_steps / rows[0].max_steps
    reached = sum(steps < math.inf for steps in judged.values())
    test = binomtest(reached, len(judged), alternative="greater")
    # a policy that was read from a file is named after it or, with a slash, after the file's folder
    names = sorted({row.policy for row in rows}, key=lambda name: (name in ("auto", "best"), "/" in name))
    return Recommendation(
        policy=cut(stretched(policy, factor), question.max_steps),
        name=names[0],
        seeds=len(judged),
        reached=reached,
        sure_share=float(test.proportion_ci(_CONFIDENCE, method="wilson").low),
        median_steps=factor * statistics.median(judged.values()),
        distance=apart,
        differences=differences,
        factor=factor,
        run_ids=tuple(row.run_id for row in rows),
    )
