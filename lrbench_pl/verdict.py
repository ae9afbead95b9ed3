"""Judge the checks of a training against a target. Standard library only."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["max", "min"]
Status = Literal["reached", "missed", "diverged", "failed", "stopped"]
STATUSES: tuple[Status, ...] = get_args(Status)

# Last words of names of metrics that are at most 1.
_AT_MOST_ONE = re.compile(
    r"(.*acc|.*accuracy|top|m?ap|auc|auroc|auprc|fbeta|hits|precision|recall|sensitivity|specificity|m?iou|dice|jaccard"
    r"|kappa|mcc|corrcoef)[0-9]*|f1|r2"
)
# Words that say how a metric was taken, not which one it is.
_DETAIL = re.compile(r"epoch|step|dataloader|idx|ema|avg|mean|best|macro|micro|weighted|at|k|score|[0-9]+")
_WORD = re.compile(r"m?IoU|[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*|[0-9]+")


@dataclass(frozen=True)
class Check:
    """One validation during training.

    Args:
        step: Optimizer steps taken before it.
        value: The monitored metric.
        seconds: Seconds spent training before it, validation excluded.
    """

    step: int
    value: float
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """What a training said about its policy. Fields that have no value are None.

    Args:
        status: ``reached``, ``missed``, ``diverged``, ``failed`` or ``stopped``.
        message: The same in words.
        steps_to_target: Optimizer steps at the check that reached the target.
        seconds_to_target: Training seconds there, validation excluded.
        best_value: Best monitored value of all checks.
        best_step: Step of the first check with it.
        final_value: Monitored value at the last check.
        steps_run: Optimizer steps taken.
        checks: Every check, in order.
    """

    status: Status
    message: str
    steps_to_target: int | None
    seconds_to_target: float | None
    best_value: float | None
    best_step: int | None
    final_value: float | None
    steps_run: int
    checks: tuple[Check, ...]


def meets(value: float, target: float, mode: Mode = "max") -> bool:
    """Whether ``value`` reaches ``target``; equality does, NaN never does.

    Example:
        >>> meets(0.97, 0.97), meets(0.2, 0.1, mode="min")
        (True, False)
    """
    return value >= target if mode == "max" else value <= target


def first_confirmed(checks: Sequence[Check], target: float, mode: Mode = "max", confirmations: int = 1) -> Check | None:
    """The first check of the first ``confirmations`` in a row that meet the target, or None.

    Example:
        >>> checks = [Check(100, 0.96, 1.0), Check(200, 0.98, 2.0), Check(300, 0.97, 3.0)]
        >>> first_confirmed(checks, 0.97).step
        200
        >>> first_confirmed(checks, 0.97, confirmations=3) is None
        True
    """
    in_a_row = 0
    for index, check in enumerate(checks):
        in_a_row = in_a_row + 1 if meets(check.value, target, mode) else 0
        if in_a_row == confirmations:
            return checks[index - confirmations + 1]
    return None


def best_check(checks: Sequence[Check], mode: Mode = "max") -> Check | None:
    """The first check with the best finite value, or None.

    Example:
        >>> best_check([Check(1, 0.5, 0.1), Check(2, 0.9, 0.2), Check(3, 0.9, 0.3)]).step
        2
    """
    sign = 1.0 if mode == "max" else -1.0
    finite = [check for check in checks if math.isfinite(check.value)]
    return max(finite, key=lambda check: sign * check.value, default=None)


def check_target(target: object, monitor: str, mode: str, name: str = "target") -> None:
    """Refuse a target that the monitored metric cannot reach.

    A target is any finite number. One for an accuracy, or for another growing metric of at most 1, must be at most 1.
    The metric is known by the last word of its name (``val/acc``, ``BinaryAUROC``, ``val_f1_epoch``); a
    percentage may be a target under a name that says so (``val/acc_percent``).

    Args:
        target: The target; None is none.
        monitor: Name of the monitored metric.
        mode: ``max`` or ``min``.
        name: What the message calls the target.

    Raises:
        ValueError: If the target is not a finite number, or outside the range of the metric; the message says what
            was probably meant.

    Example:
        >>> check_target(0.95, "val/accuracy", "max")
        >>> check_target(3.5, "val/loss", "min")
        >>> check_target(95, "val/accuracy", "max")
        Traceback (most recent call last):
        ValueError: target must be at most 1 for 'val/accuracy', got 95; did you mean 0.95?
    """
    if target is None:
        return
    if isinstance(target, bool) or not isinstance(target, (int, float)) or not math.isfinite(target):
        raise ValueError(f"{name} must be a finite number or None, got {target!r}")
    if mode == "max" and target > 1 and _is_at_most_one(monitor):
        meant = f"; did you mean {target / 100:g}?" if 2 <= target <= 100 else ""
        raise ValueError(f"{name} must be at most 1 for {monitor!r}, got {target:g}{meant}")


def _is_at_most_one(monitor: str) -> bool:
    words = [word.lower() for word in _WORD.findall(monitor)]
    telling = [word for word in words if not _DETAIL.fullmatch(word)]
    return bool(telling and _AT_MOST_ONE.fullmatch(telling[-1]))
