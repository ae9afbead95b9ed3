"""Check a target against the metric that has to reach it. Standard library only."""

from __future__ import annotations

import math
import re

# Last words of names of metrics that are at most 1.
_AT_MOST_ONE = re.compile(
    r"(.*acc|.*accuracy|top|m?ap|auc|auroc|auprc|fbeta|hits|precision|recall|sensitivity|specificity|m?iou|dice|jaccard"
    r"|kappa|mcc|corrcoef)[0-9]*|f1|r2"
)
# Words that say how a metric was taken, not which one it is.
_DETAIL = re.compile(r"epoch|step|dataloader|idx|ema|avg|mean|best|macro|micro|weighted|at|k|score|[0-9]+")
_WORD = re.compile(r"m?IoU|[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*|[0-9]+")


def check_target(target: object, monitor: str, mode: str, name: str = "target_accuracy") -> None:
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
        ValueError: target_accuracy must be at most 1 for 'val/accuracy', got 95; did you mean 0.95?
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
