"""Check a target against the metric that has to reach it. Standard library only."""

from __future__ import annotations

import math
import re

# Last words of names of metrics that lie in [0, 1], and of those that are only at most 1.
_SHARES = frozenset(
    "acc accuracy top ap map auc auroc auprc f1 fbeta hits precision recall sensitivity specificity iou miou dice "
    "jaccard".split()
)
_AT_MOST_ONE = frozenset("r2 kappa mcc corrcoef".split())
# Words that say how a metric was taken, not which one it is.
_DETAILS = frozenset("epoch step dataloader idx ema avg mean best macro micro weighted at k score".split())
_WORD = re.compile(r"m?IoU|[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*|[0-9]+")


def check_target(target: object, monitor: str, mode: str, name: str = "target_accuracy") -> None:
    """Refuse a target that the monitored metric cannot reach or cannot miss.

    A target is any finite number. One for an accuracy, or for another metric that lies in [0, 1] and grows, must lie
    in (0, 1]. The metric is known by the last word of its name (``val/acc``, ``BinaryAUROC``, ``val_f1_epoch``); a
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
        ValueError: target_accuracy must lie in (0, 1] for 'val/accuracy', got 95; did you mean 0.95?
    """
    if target is None:
        return
    if isinstance(target, bool) or not isinstance(target, (int, float)) or not math.isfinite(target):
        raise ValueError(f"{name} must be a finite number or None, got {target!r}")
    least = _least(monitor) if mode == "max" else None
    if least is None or least < target <= 1:
        return
    allowed = "lie in (0, 1]" if least == 0 else "be at most 1"
    meant = f"; did you mean {target / 100:g}?" if 2 <= target <= 100 else ""
    raise ValueError(f"{name} must {allowed} for {monitor!r}, got {target:g}{meant}")


def _least(monitor: str) -> float | None:
    """What a metric whose values are at most 1 is above; None if it may be larger."""
    words = [word.lower() for word in _WORD.findall(monitor) if not word.isdigit()]
    telling = [word for word in words if word not in _DETAILS]
    last = telling[-1] if telling else ""
    family = last.rstrip("0123456789")  # top5, acc1
    if last in _SHARES or family in _SHARES or family.endswith(("accuracy", "acc")):
        return 0.0
    return -math.inf if last in _AT_MOST_ONE or family in _AT_MOST_ONE else None
