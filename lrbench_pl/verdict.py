"""Judge the checks of a training against a target. Standard library only."""

from __future__ import annotations

import math
import operator
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, SupportsFloat, get_args

from lrbench_pl.words import counted

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
        seconds: Seconds spent training before it, validation excluded; None if they were not measured.
    """

    step: int
    value: float
    seconds: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The outcome of a training with respect to its target. Fields that have no value are None.

    Args:
        status: ``reached``, ``missed``, ``diverged``, ``failed`` or ``stopped``.
        message: The status in words.
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


class TargetCheck:
    """Compares a metric with a target, check by check, and gives a verdict.

    For loops without Lightning; :class:`~lrbench_pl.callbacks.lr_policy.LRPolicyCallback` rests on it. Report each
    validation by :meth:`update`. The verdict is ``reached`` once the target is confirmed and ``missed`` once the budget
    is used: with ``max_steps`` at the check of that step, else after :meth:`finish`. Until then it is ``stopped``. A
    training that ends otherwise says so by :meth:`end`; later checks do not count.

    Args:
        target: Value that the metric has to reach (equality suffices), or None for no target.
        monitor: Name of the metric.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        confirmations: Checks in a row that must meet the target.
        max_steps: The budget in optimizer steps, or None if it is not known.

    Attributes:
        checks: Every check, in order.
        steps_run: Optimizer steps taken, as far as reported.

    Raises:
        ValueError: If ``target`` is not finite or out of the metric's range, ``mode`` is unknown, or ``confirmations``
            or ``max_steps`` is below 1.

    Example:
        >>> check = TargetCheck(target=0.9, monitor="val/accuracy", max_steps=300)
        >>> [check.update(step, accuracy) for step, accuracy in ((100, 0.7), (200, 0.93))]
        [False, True]
        >>> check.verdict.status, check.verdict.steps_to_target
        ('reached', 200)
    """

    def __init__(
        self,
        target: float | None = None,
        monitor: str = "val/accuracy",
        mode: Mode = "max",
        confirmations: int = 1,
        max_steps: int | None = None,
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
        check_target(target, monitor, mode)
        self.target = target
        self.monitor = monitor
        self.mode: Mode = mode
        self.confirmations = whole_number("confirmations", confirmations)
        self.max_steps = None if max_steps is None else whole_number("max_steps", max_steps)
        self.checks: list[Check] = []
        self.steps_run = 0
        self.ended_as: tuple[Status, str] | None = None
        self.is_finished = False  # the budget was used

    @property
    def hit(self) -> Check | None:
        """The check that reached the target, or None."""
        if self.target is None:
            return None
        return first_confirmed(self.checks, self.target, self.mode, self.confirmations)

    @property
    def verdict(self) -> Verdict:
        """The verdict so far."""
        return self.verdict_of(self.hit)

    def update(self, step: int, value: SupportsFloat, seconds: float | None = None) -> bool:
        """Report a check.

        Args:
            step: Optimizer steps taken before it.
            value: The metric, see :func:`plain_number`.
            seconds: Training seconds before it, if they are measured.

        Returns:
            Whether the target is reached and confirmed, so that training may stop.

        Raises:
            ValueError: If the step is not an integer or lies before that of the last check.
        """
        step = whole_number("step", step, least=0)
        if self.checks and step < self.checks[-1].step:
            raise ValueError(f"step must not go back: the last check was at step {self.checks[-1].step}, got {step}")
        if self.ended_as is None:
            self.steps_run = max(self.steps_run, step)
            self.checks.append(Check(step, plain_number(value, self.target), seconds))
        return self.hit is not None

    def finish(self, steps_run: int | None = None) -> None:
        """Report that the whole budget was used.

        Args:
            steps_run: Optimizer steps taken in all, if there were some after the last check.
        """
        self.steps_run = max(self.steps_run, steps_run or 0)
        self.is_finished = True

    def end(self, status: Status, message: str) -> None:
        """Report how the training ended before its budget: ``diverged``, ``failed`` or ``stopped``; the first counts.

        Args:
            status: One of the three.
            message: The reason, in one line.

        Raises:
            ValueError: If the status is unknown.
        """
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
        if self.ended_as is None:
            self.ended_as = (status, message)

    def verdict_of(self, hit: Check | None) -> Verdict:
        """Return the verdict if ``hit`` is the check that reached the target."""
        best = best_check(self.checks, self.mode)
        status, message = self.status_of(hit)
        return Verdict(
            status=status,
            message=message,
            steps_to_target=hit.step if hit else None,
            seconds_to_target=hit.seconds if hit else None,
            best_value=best.value if best else None,
            best_step=best.step if best else None,
            final_value=self.checks[-1].value if self.checks else None,
            steps_run=self.steps_run,
            checks=tuple(self.checks),
        )

    def status_of(self, hit: Check | None) -> tuple[Status, str]:
        """Return status and message if ``hit`` is the check that reached the target."""
        if hit is not None:
            return "reached", f"reached {self.target:g} at step {hit.step}"
        if self.ended_as is not None:
            return self.ended_as
        if not self.is_finished and (self.max_steps is None or self.steps_run < self.max_steps):
            return "stopped", f"at step {self.steps_run}: the training has not ended"
        best = best_check(self.checks, self.mode)
        if best is not None:
            best_words = f"best {best.value:.4g} at step {best.step}"
        elif self.checks:
            best_words = f"{self.monitor} was not a finite number at any of {counted(len(self.checks), 'check')}"
        else:
            best_words = f"{self.monitor} was never checked"
        if self.target is None:
            return "missed", f"no target was set; {best_words}"
        message = f"missed {self.target:g} within {counted(self.steps_run, 'step')}; {best_words}"
        if self.checks and self.checks[-1].step < self.steps_run:
            message += f"; the last check was at step {self.checks[-1].step}, so the steps after it were not judged"
        return "missed", message

    def state_dict(self) -> dict[str, Any]:
        """Return steps and checks as plain data, for a checkpoint."""
        return {"steps": self.steps_run, "checks": [asdict(check) for check in self.checks]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.checks = [Check(**check) for check in state["checks"]]
        self.steps_run = state["steps"]


def plain_number(metric: SupportsFloat, *targets: float | None) -> float:
    """Return a metric as the number that was meant.

    Metrics are mostly float32, in which 19 of 20 right is 0.949999988: a target of 0.95 would be missed at equality.
    Such a number is the target that has the same float32, or else has seven significant digits, which are what float32
    can tell apart. A float64, such as a quotient of counts, is exact and stays as it is.

    Args:
        metric: The metric.
        *targets: Targets that it is compared with.

    Example:
        >>> plain_number(0.949999988079071), plain_number(0.1), plain_number(286 / 300)
        (0.95, 0.1, 0.9533333333333334)
        >>> plain_number(0.9533333182334900, 286 / 300) == 286 / 300
        True
    """
    value = float(metric)
    if str(getattr(metric, "dtype", None)) == "torch.float64" or _as_float32(value) != value:
        return value
    same = [target for target in targets if target is not None and _as_float32(target) == value]
    return float(same[0]) if same else float(f"{value:.7g}")


def _as_float32(value: float) -> float | None:
    """Return the nearest float32; None beyond its range."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return None


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Return an integer, also one of NumPy's, as a plain one.

    Raises:
        ValueError: If it is none, or below ``least``.

    Example:
        >>> whole_number("confirmations", 0)
        Traceback (most recent call last):
        ValueError: confirmations must be an integer of at least 1, got 0
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return number


def meets(value: float, target: float, mode: Mode = "max") -> bool:
    """Return whether ``value`` reaches ``target``; equality does, NaN never does.

    Example:
        >>> meets(0.97, 0.97), meets(0.2, 0.1, mode="min")
        (True, False)
    """
    return value >= target if mode == "max" else value <= target


def first_confirmed(checks: Sequence[Check], target: float, mode: Mode = "max", confirmations: int = 1) -> Check | None:
    """Return the first check of the first ``confirmations`` in a row that meet the target, or None.

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
    """Return the first check with the best finite value, or None.

    Example:
        >>> best_check([Check(1, 0.5, 0.1), Check(2, 0.9, 0.2), Check(3, 0.9, 0.3)]).step
        2
    """
    sign = 1.0 if mode == "max" else -1.0
    finite = [check for check in checks if math.isfinite(check.value)]
    return max(finite, key=lambda check: sign * check.value, default=None)


def check_target(target: object, monitor: str, mode: str, name: str = "target") -> None:
    """Require a target that the monitored metric can reach.

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
