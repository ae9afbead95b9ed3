"""The distance between a look-up query and a finished run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import UNSET, Task, differing, of_task, shown

# Optimizers for which one learning rate has about the same effect.
_OPTIMIZER_FAMILIES = (frozenset({"momentum", "nesterov"}), frozenset({"adam", "adamw"}))
_OPTIMIZER, _MODEL, _DATASET, _CHECK_ON = 1.0, 2.0, 3.0, 0.5  # distance if they differ
_CONFIRMATIONS, _SETTING = 0.5, 0.5
_LEAST_ERROR = 1e-4  # smallest error that a target is taken to allow


@dataclass(frozen=True)
class Query:
    """The task that a policy is looked up for.

    Args:
        dataset: Name of the data set, as in ``result.json``.
        model: Name of the model.
        optimizer: Name of the optimizer.
        batch_size: Samples per optimizer step and process.
        max_steps: The budget, in optimizer steps.
        target: The value that the monitor must reach.
        monitor: Name of the monitored metric.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        check_on: ``validation`` or ``test``; None for either.
        confirmations: Consecutive checks that must meet the target; None for any number.
        settings: Settings of the task, see :class:`lrbench_pl.runs.spec.Task`; None if unknown, which matches any.

    Raises:
        ValueError: If ``batch_size`` or ``max_steps`` is below 1, the target is not a finite number, or ``mode`` is
            unknown.
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
    def from_task(cls, task: Task) -> Query:
        """Build the query for a task.

        Raises:
            ValueError: If it has no target.
        """
        return cls(**task.to_dict())

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


class UnsuitableError(ValueError):
    """Raised if a run is no evidence for a query; the message says what differs."""


_Difference = tuple[float, str]


def distance(query: Query, run: RunResult) -> tuple[float, tuple[str, ...]]:
    """Compute the distance of a run from a query, with the differences in words.

    The distance is the sum over all differences:

    =================================================== =====================================================
    budget, batch size                                  1 per doubling or halving
    target                                              1 per doubling or halving of the error it allows
    validation or test set to check on                  0.5
    confirmations                                       0.5
    a setting of an equal optimizer, model or data set  0.5 each
    optimizer of one family (adam and adamw)            1; of another family: unsuitable
    model of one family (resnet20 and resnet32)         2; of another family: unsuitable
    data set                                            3; with another model as well: unsuitable
    monitor, mode                                       unsuitable
    =================================================== =====================================================

    Raises:
        UnsuitableError: If the run is no evidence for the query.

    Example:
        >>> run = RunResult(run_id="a", policy="tri", status="missed", dataset="cifar10", model="resnet20",
        ...     batch_size=64, optimizer="momentum", max_steps=32_000, target=0.9, monitor="val/accuracy")
        >>> distance(Query("cifar10", "resnet32", "momentum", 64, 64_000, 0.9), run)
        (3.0, ('model resnet20 instead of resnet32', 'budget 32000 instead of 64000'))
        >>> distance(Query("cifar10", "resnet20", "adam", 64, 64_000, 0.9), run)
        Traceback (most recent call last):
        ...
        lrbench_pl.selection.distance.UnsuitableError: another optimizer
    """
    if run.max_steps is None or run.batch_size is None:
        raise UnsuitableError("unknown budget or batch size")
    if run.monitor != query.monitor:
        raise UnsuitableError("another monitor")
    if run.mode not in (None, query.mode):
        raise UnsuitableError("another mode")
    found = [difference for compare in _COMPARISONS for difference in compare(query, run)]
    return sum(each for each, _ in found), tuple(words for _, words in found)


def _compare_dataset(query: Query, run: RunResult) -> Iterator[_Difference]:
    if run.dataset != query.dataset:
        if run.model != query.model:
            raise UnsuitableError("another data set")
        if run.target is None:
            raise UnsuitableError("another data set and no target")
        yield _DATASET, f"dataset {run.dataset} instead of {query.dataset}"


def _compare_model(query: Query, run: RunResult) -> Iterator[_Difference]:
    if run.model != query.model:
        if _model_family(run.model) != _model_family(query.model):
            raise UnsuitableError("another model")
        yield _MODEL, f"model {run.model} instead of {query.model}"


def _compare_optimizer(query: Query, run: RunResult) -> Iterator[_Difference]:
    if run.optimizer != query.optimizer:
        if not any({run.optimizer, query.optimizer} <= family for family in _OPTIMIZER_FAMILIES):
            raise UnsuitableError("another optimizer")
        yield _OPTIMIZER, f"optimizer {run.optimizer} instead of {query.optimizer}"


def _compare_scale(query: Query, run: RunResult) -> Iterator[_Difference]:
    for name, theirs, ours in (
        ("budget", run.max_steps, query.max_steps),
        ("batch size", run.batch_size, query.batch_size),
    ):
        if theirs is not None and theirs != ours:
            yield abs(math.log2(ours / theirs)), f"{name} {theirs} instead of {ours}"


def _compare_target(query: Query, run: RunResult) -> Iterator[_Difference]:
    if run.target is not None and run.target != query.target:
        ratio = _error(run.target, query.mode) / _error(query.target, query.mode)
        yield abs(math.log2(ratio)), f"target {run.target:g} instead of {query.target:g}"
    if query.check_on is not None and run.check_on not in (None, query.check_on):
        yield _CHECK_ON, f"checked on {run.check_on} instead of {query.check_on}"
    if query.confirmations is not None and run.confirmations not in (None, query.confirmations):
        yield _CONFIRMATIONS, f"confirmations {run.confirmations} instead of {query.confirmations}"


def _compare_settings(query: Query, run: RunResult) -> Iterator[_Difference]:
    """Compare the settings of those parts that have the same name."""
    if query.settings is None or run.settings is None:
        return
    same_optimizer = run.optimizer == query.optimizer
    is_same = {"model.": run.model == query.model, "dataset.": run.dataset == query.dataset}
    is_same |= {"optimizer.": same_optimizer, "param_groups": same_optimizer}
    compared = tuple(prefix for prefix, same in is_same.items() if same)
    for key in differing([of_task(run.settings), query.settings]):
        if key.startswith(compared):
            theirs, ours = (each.get(key, UNSET) for each in (run.settings, query.settings))
            yield _SETTING, f"{key} {shown(theirs)} instead of {shown(ours)}"


_COMPARISONS: tuple[Callable[[Query, RunResult], Iterator[_Difference]], ...] = (
    _compare_dataset,
    _compare_model,
    _compare_optimizer,
    _compare_scale,
    _compare_target,
    _compare_settings,
)


def _model_family(name: str | None) -> str:
    """Return the name of a model without its size."""
    return re.sub(r"[\d_.x-]+$", "", name or "")


def _error(target: float, mode: str) -> float:
    return max(_LEAST_ERROR, 1 - target if mode == "max" else target)
