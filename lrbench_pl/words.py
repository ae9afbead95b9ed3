"""Format counts, metrics and names for messages, and make text of others safe to show. Standard library only."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def clean(text: str) -> str:
    r"""Return text that is safe to show and to write: :func:`printable`, and without passwords.

    Names, paths and messages may come from files of others. Whatever prints them or writes them into a table uses this.

    Example:
        >>> print(clean("tri\x1b[2J in postgresql://me:secret@host/runs"))
        tri\x1b[2J in postgresql://me:***@host/runs
    """
    return printable(without_passwords(text))


def printable(text: str) -> str:
    r"""Escape the characters that a terminal obeys or that break a line: controls, separators, directions.

    Example:
        >>> print(printable("a\nb\x1b]0;title\x07 \u202ecba"))
        a\nb\x1b]0;title\x07 \u202ecba
        >>> printable("naïve ∞ ünd")
        'naïve ∞ ünd'
    """
    if text.isprintable():
        return text
    return "".join(repr(char)[1:-1] if unicodedata.category(char) in _OBEYED else char for char in text)


_OBEYED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))  # controls, formats, surrogates, line and paragraph separators


def without_passwords(text: str) -> str:
    """Mask the passwords of URLs in a text.

    Example:
        >>> without_passwords("lr_policy.db=postgresql://me:secret@host/runs")
        'lr_policy.db=postgresql://me:***@host/runs'
        >>> without_passwords("postgresql://host/runs?user=me&password=secret")
        'postgresql://host/runs?user=me&password=***'
    """
    if "://" not in text:
        return text
    return _IN_QUERY.sub(r"\1***", _IN_URL.sub(r"\1***@", text))


# SQLAlchemy's idea of a password; Hydra stores overrides with a backslash before colons and equal signs
_IN_URL = re.compile(r"""([a-zA-Z][\w+.-]*\\*://[^\s:/@'"\\]*\\*:)[^\s@]*@""")
_IN_QUERY = re.compile(r"""([?&](?:password|passwd|pwd|sslpassword)\\*=)[^\s&'",}\]]*""", re.IGNORECASE)


def masked(nested: Any) -> Any:
    """Return plain data with the passwords of URLs masked, see :func:`without_passwords`.

    Example:
        >>> masked({"db": ["sqlite:///runs.db", "postgresql://me:secret@host"], "seed": 0})
        {'db': ['sqlite:///runs.db', 'postgresql://me:***@host'], 'seed': 0}
    """
    if isinstance(nested, str):
        return without_passwords(nested)
    if isinstance(nested, Mapping):
        return {key: masked(value) for key, value in nested.items()}
    if isinstance(nested, (list, tuple)):
        return type(nested)(map(masked, nested))
    return nested


def spreadsheet_cell(text: str) -> str:
    """Return a name or message as a cell of CSV that no spreadsheet executes.

    A cell that begins like a formula gets an apostrophe before it, which spreadsheets do not show; a number stays one.

    Example:
        >>> spreadsheet_cell("=1+1"), spreadsheet_cell("tri"), spreadsheet_cell("-0.5"), spreadsheet_cell("-x")
        ("'=1+1", 'tri', '-0.5', "'-x")
        >>> from_spreadsheet_cell(spreadsheet_cell("=1+1"))
        '=1+1'
    """
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def from_spreadsheet_cell(cell: str) -> str:
    """Return the text of a :func:`spreadsheet_cell`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell[1:]) and not _is_number(cell[1:]) else cell


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
