"""One run, one row: what a training writes as ``result.json`` and everything else reads."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

Status = Literal["reached", "missed", "diverged", "failed", "stopped"]
STATUSES: tuple[Status, ...] = get_args(Status)
RESULT_FILE = "result.json"


class ResultError(ValueError):
    """A ``result.json`` that cannot be read as a row; the message says which file and why."""


@dataclass(frozen=True)
class RunResult:
    """The row of one run. Missing is ``None``, never 0 or -1; accuracies lie in [0, 1].

    Args:
        run_id: Hash of the configuration: two runs with one id are the same experiment.
        study: Name of the sweep or study that the run belongs to.
        dataset: Name of the data set.
        model: Name of the model.
        optimizer: Name of the optimizer.
        batch_size: Samples per optimizer step and process.
        policy: Name of the learning-rate policy.
        policy_id: Hash of the rates over the budget, so that two spellings of one policy are one.
        policy_repr: The policy as Python, enough to build it again.
        lr: The scale of the policy (its peak rate).
        seed: Seed of weights, data order and augmentation.
        max_steps: The budget, in optimizer steps.
        target_accuracy: The target, or None if the run had none.
        monitor: The metric that is compared with the target.
        check_on: ``validation`` or ``test``: the data on which checks were made.
        status: ``reached``, ``missed``, ``diverged``, ``failed`` or ``stopped``.
        message: Why the status is what it is, in one line.
        steps_to_target: Optimizer steps at the check that reached the target.
        seconds_to_target: Training seconds at that check, validation excluded.
        best_accuracy: Best checked value of the monitor.
        best_step: Step of the best check.
        final_accuracy: Value at the last check.
        test_accuracy: Top-1 accuracy on the test set, evaluated once at the end.
        test_top5: Top-5 accuracy there; None below six classes.
        test_loss: Mean loss there.
        train_loss: Mean loss of the final weights on (a fixed part of) the training set.
        loss_difference: ``test_loss - train_loss``.
        confidence: Mean of the largest softmax value over correctly classified test samples.
        confidence_std: Its standard deviation.
        cdac: Standard deviation over classes of the per-class mean confidence.
        steps_run: Optimizer steps in all.
        tuning_steps: Those of them spent to find the policy and given up (0 for a fixed policy).
        wall_time_s: Seconds from the start of the fit to its end, validation included.
        precision: Lightning's precision, such as ``32-true``.
        device: Where the run took place, such as ``cpu`` or the name of a GPU.
        versions: Versions of the packages that matter for the numbers.
        git_sha: Commit of the working tree, if there is one.
        shared_with: ``run_id`` of the run of the same sweep with the same rates, whose outcome this row repeats; None
            if it was trained.

    Example:
        >>> row = RunResult(run_id="a1", policy="tri", seed=0, status="missed", max_steps=100)
        >>> row.steps_to_target is None
        True
        >>> RunResult.from_dict(row.to_dict()) == row
        True
    """

    run_id: str
    policy: str
    status: Status
    seed: int | None = None
    max_steps: int | None = None
    study: str | None = None
    dataset: str | None = None
    model: str | None = None
    optimizer: str | None = None
    batch_size: int | None = None
    policy_id: str | None = None
    policy_repr: str | None = None
    lr: float | None = None
    target_accuracy: float | None = None
    monitor: str | None = None
    check_on: str | None = None
    message: str | None = None
    steps_to_target: int | None = None
    seconds_to_target: float | None = None
    best_accuracy: float | None = None
    best_step: int | None = None
    final_accuracy: float | None = None
    test_accuracy: float | None = None
    test_top5: float | None = None
    test_loss: float | None = None
    train_loss: float | None = None
    loss_difference: float | None = None
    confidence: float | None = None
    confidence_std: float | None = None
    cdac: float | None = None
    steps_run: int | None = None
    tuning_steps: int | None = None
    wall_time_s: float | None = None
    precision: str | None = None
    device: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    git_sha: str | None = None
    shared_with: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ResultError(f"status must be one of {', '.join(STATUSES)}, got {self.status!r}")
        if self.status == "reached" and self.steps_to_target is None:
            raise ResultError("a run that reached its target must say steps_to_target, got None")

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data, with non-finite numbers as None (JSON knows no NaN)."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> RunResult:
        """Build a row from plain data.

        Raises:
            ResultError: If a field is missing, unknown or of the wrong kind.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(row.keys() - known):
            raise ResultError(f"unknown field {unknown[0]!r}")
        if missing := sorted({"run_id", "policy", "status"} - row.keys()):
            raise ResultError(f"field {missing[0]!r} is missing")
        for f in fields(cls):
            value = row.get(f.name)
            if value is not None and not _has_type(value, str(f.type)):
                raise ResultError(f"field {f.name!r} must be {f.type}, got {value!r}")
        return cls(**row)

    def write(self, folder: str | Path) -> Path:
        """Write ``result.json`` into ``folder`` at one stroke: a reader sees all of it or nothing."""
        return write_atomically(Path(folder) / RESULT_FILE, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> RunResult:
        """Read a ``result.json``.

        Raises:
            ResultError: If it is not a complete, valid row; the message begins with the path.
        """
        path = Path(path)
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ResultError(f"{path}: cannot be read ({error})") from error
        except json.JSONDecodeError as error:
            raise ResultError(f"{path}: not complete JSON ({error.msg} at line {error.lineno})") from error
        if not isinstance(row, dict):
            raise ResultError(f"{path}: expected one JSON object, got {type(row).__name__}")
        try:
            return cls.from_dict(row)
        except ResultError as error:
            raise ResultError(f"{path}: {error}") from error


def _has_type(value: object, annotation: str) -> bool:
    """Whether ``value`` fits one of the few annotations used above."""
    if annotation.startswith("Status"):
        return isinstance(value, str)
    if annotation.startswith("float"):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation.startswith("int"):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, dict if annotation.startswith("dict") else str)


def write_atomically(path: str | Path, text: str) -> Path:
    """Write ``text`` to ``path`` through a temporary file beside it, so that no half file is ever seen.

    Example:
        >>> import tempfile
        >>> path = write_atomically(Path(tempfile.mkdtemp()) / "new" / "a.txt", "all of it")
        >>> path.read_text()
        'all of it'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
