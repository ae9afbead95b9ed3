"""Format counts, metrics and names of policies for messages. Standard library only."""

from __future__ import annotations

import re
from pathlib import Path

_ACCURACIES = ("accuracy", "acc", "acc.", "top1")
_STAGE = re.compile(r"^(val|valid|validation|dev|eval|test|train)[/_.-]+", re.IGNORECASE)
_NUMBERED = re.compile(r"^[\d_.:-]+$")  # a folder named by a number or a time
_WRITTEN_BY_RUNS = "policy"  # stem of the policy file of every run


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Format a number with its noun in singular or plural.

    Args:
        number: The number.
        noun: The noun, in the singular.
        plural: Its plural; by default with ``s``, or ``ies`` for a ``y`` after a consonant.

    Example:
        >>> counted(1, "step"), counted(0, "job"), counted(2, "policy"), counted(3, "batch", "batches")
        ('1 step', '0 jobs', '2 policies', '3 batches')
    """
    if number == 1:
        return f"{number} {noun}"
    regular = f"{noun[:-1]}ies" if re.search(r"[^aeiou]y$", noun) else f"{noun}s"
    return f"{number} {plural or regular}"


def metric_name(monitor: str | None) -> str:
    """Return the name of a monitor without its stage; ``value`` if there is none.

    Example:
        >>> [metric_name(name) for name in ("val/accuracy", "val_acc", "val/loss", "val/top_5", None)]
        ['accuracy', 'accuracy', 'loss', 'top_5', 'value']
    """
    if monitor is None:
        return "value"
    name = _STAGE.sub("", monitor) or monitor
    return "accuracy" if name.lower() in _ACCURACIES else name


def is_accuracy(monitor: str | None) -> bool:
    """Return whether a monitor is an accuracy, by its name.

    Example:
        >>> is_accuracy("val/accuracy"), is_accuracy("val/loss"), is_accuracy(None)
        (True, False, False)
    """
    return metric_name(monitor) == "accuracy"


def metric_title(monitor: str | None) -> str:
    """Return the title of a monitor's column.

    Example:
        >>> [metric_title(name) for name in ("val/accuracy", "val/loss", None)]
        ['acc.', 'loss', 'value']
    """
    return "acc." if is_accuracy(monitor) else metric_name(monitor)


def in_test(monitor: str) -> str:
    """Return the name under which a module logs the monitored metric on the test set.

    Example:
        >>> [in_test(name) for name in ("val/accuracy", "val_loss", "valid/f1", "score")]
        ['test/accuracy', 'test_loss', 'test/f1', 'test/score']
    """
    stage = _STAGE.match(monitor)
    return f"test/{monitor}" if stage is None else f"test{monitor[stage.end(1) :]}"


def metric_value(monitor: str | None, value: float, digits: int = 3) -> str:
    """Format a value of the monitor: accuracies with decimals, others with digits.

    Example:
        >>> metric_value("val/accuracy", 0.9), metric_value("val/loss", 0.0475), metric_value("val/perplexity", 35.2)
        ('0.900', '0.0475', '35.2')
    """
    return f"{value:.{digits}f}" if is_accuracy(monitor) else f"{value:.{digits + 1}g}"


def policy_file_name(path: str | Path) -> str:
    """Return the name of a policy from its file.

    It is the stem of the file or, for the ``policy.yaml`` of a run, the folder.

    The name of a folder that is only a number or a time includes the folder above.

    Example:
        >>> [policy_file_name(path) for path in ("mine/warm.yaml", "multirun/select/policy.yaml")]
        ['warm', 'select']
        >>> [policy_file_name(path) for path in ("multirun/first/0/policy.yaml", "policy.yaml")]
        ['first/0', 'policy']
    """
    path = Path(path)
    if path.stem != _WRITTEN_BY_RUNS:
        return path.stem
    folders = [part for part in path.parent.parts if part not in ("", "/", "..", "~")]
    if not folders:
        return path.stem
    start = len(folders) - 1
    while start > 0 and _NUMBERED.match(folders[start]):
        start -= 1
    return "/".join(folders[start:])
