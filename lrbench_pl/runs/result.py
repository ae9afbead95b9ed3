"""One run, one row: what a training writes as ``result.json`` and everything else reads."""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lrbench_pl.files import FORMAT, ResultError, check_format, write_atomically
from lrbench_pl.runs.spec import RunSpec, Task, canonical, of_task
from lrbench_pl.verdict import STATUSES, Status

RESULT_FILE = "result.json"

# Fields of format 1 that are called otherwise since.
_RENAMED = {"target_accuracy": "target", "best_accuracy": "best_value", "final_accuracy": "final_value"}


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
        peak_found: The peak rate that the policy found itself while it trained; None if it was given.
        seed: Seed of weights, data order and augmentation.
        max_steps: The budget, in optimizer steps.
        target: The target, or None if the run had none.
        monitor: The metric that is compared with the target.
        mode: ``max`` or ``min``: whether a larger or a smaller value of the monitor is better.
        confirmations: Checks in a row that must meet the target.
        check_on: ``validation`` or ``test``: the data on which checks were made.
        status: ``reached``, ``missed``, ``diverged``, ``failed`` or ``stopped``.
        message: Why the status is what it is, in one line.
        steps_to_target: Optimizer steps at the check that reached the target.
        seconds_to_target: Training seconds at that check, validation excluded.
        best_value: Best checked value of the monitor.
        best_step: Step of the best check.
        final_value: Value at the last check.
        test_value: The monitored metric on the test set, evaluated once at the end.
        test_accuracy: Top-1 accuracy there.
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
        settings: Everything else of the configuration that can change the numbers, by dotted key, as in
            :class:`lrbench_pl.runs.spec.Task`; those of the policy as ``lr_policy.*``. None if unknown.
        format: Number of the format, for later versions.

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
    peak_found: float | None = None
    target: float | None = None
    monitor: str | None = None
    mode: str | None = None
    confirmations: int | None = None
    check_on: str | None = None
    message: str | None = None
    steps_to_target: int | None = None
    seconds_to_target: float | None = None
    best_value: float | None = None
    best_step: int | None = None
    final_value: float | None = None
    test_value: float | None = None
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
    settings: dict[str, Any] | None = None
    format: int = FORMAT

    @property
    def task(self) -> Task:
        """The question that this run answers; its settings are empty where the result does not know them."""
        return Task(
            dataset=self.dataset,
            model=self.model,
            optimizer=self.optimizer,
            batch_size=self.batch_size,
            max_steps=self.max_steps,
            target=self.target,
            monitor=self.monitor,
            mode=self.mode,
            confirmations=self.confirmations,
            check_on=self.check_on,
            settings=of_task(self.settings or {}),
        )

    def __post_init__(self) -> None:
        _check_status(self.status, self.steps_to_target)

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data, with non-finite numbers as None (JSON knows no NaN)."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> RunResult:
        """Build a row from plain data.

        Raises:
            ResultError: If a field is missing, unknown or of the wrong kind, or the format is a newer one.
        """
        row = migrate(row)
        check_row(row)
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
        return cls(**read_row(path))


def read_row(path: str | Path) -> dict[str, Any]:
    """The fields of a ``result.json`` as plain data, checked as :meth:`RunResult.read` checks them; for many at once.

    Raises:
        ResultError: If it is not a complete, valid row; the message begins with the path.
    """
    try:
        with open(path, encoding="utf-8") as file:
            row = json.load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: cannot be read ({error})") from error
    except json.JSONDecodeError as error:
        raise ResultError(f"{path}: not complete JSON ({error.msg} at line {error.lineno})") from error
    if not isinstance(row, dict):
        raise ResultError(f"{path}: expected one JSON object, got {type(row).__name__}")
    try:
        row = migrate(row)
        check_row(row)
    except ResultError as error:
        raise type(error)(f"{path}: {error}") from error
    return row


def migrate(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of any format as one of this format.

    Raises:
        NewerFormatError: If it was written by a later version.
        ResultError: If its format is no number.

    Example:
        >>> migrate({"run_id": "a", "policy": "tri", "status": "missed"})["format"]
        2
    """
    versions = row.get("versions")
    version = versions.get("lrbench_pl") if isinstance(versions, Mapping) else None
    if check_format(row.get("format", 1), version) == 1:
        row = {_RENAMED.get(name, name): value for name, value in row.items()}
    return {**row, "format": FORMAT}


def check_row(row: Mapping[str, Any]) -> None:
    """Refuse what is no row of a run.

    Raises:
        ResultError: If a field is missing, unknown, of the wrong kind or at odds with another.
    """
    if unknown := sorted(row.keys() - _KINDS.keys()):
        raise ResultError(f"unknown field {unknown[0]!r}")
    for name in ("policy", "run_id", "status"):
        if row.get(name) is None:
            raise ResultError(f"field {name!r} is missing")
    for name, value in row.items():
        fits = isinstance(value, _KINDS[name]) and not isinstance(value, bool)
        if value is not None and not (fits and (type(value) is not int or abs(value) < 2**63)):
            raise ResultError(f"field {name!r} must be {_ANNOTATIONS[name]}, got {value!r}")
    _check_status(row["status"], row.get("steps_to_target"))


def stored_settings(folder: str | Path) -> dict[str, Any] | None:
    """Return the settings of a run whose row does not say them, from the configuration that format 1 kept beside it."""
    text = read_settings(str(folder))
    found: dict[str, Any] | None = None if text is None else json.loads(text)
    return found


def read_settings(folder: str) -> str | None:
    """Return what :func:`stored_settings` returns, as text; quick for many runs that differ in their seeds alone."""
    try:
        with open(os.path.join(folder, "run.json"), encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError):
        return None
    begin, end = text.find('"configuration": '), text.rfind('"started": ')
    text = text[begin + len('"configuration": ') : end].rstrip().rstrip(",")
    if begin < 0 or '"lr_policy_file"' not in text:  # a later format keeps a specification there, its row the settings
        return None
    if seed := re.search(r'"seed": (\d+)', text):
        text = text.replace(seed[0] + ",", '"seed": 0,')
    return _settings_in(text)


@functools.lru_cache(maxsize=4096)
def _settings_in(configuration: str) -> str | None:
    try:
        spec = RunSpec.from_format_1(json.loads(configuration), {})
    except ValueError:
        return None
    return canonical(spec.settings)


def _check_status(status: str, steps_to_target: int | None) -> None:
    if status not in STATUSES:
        raise ResultError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
    if status == "reached" and steps_to_target is None:
        raise ResultError("a run that reached its target must say steps_to_target, got None")


def _kinds(annotation: str) -> tuple[type, ...]:
    """What may stand in a field, from one of the few annotations used above."""
    if annotation.startswith("float"):
        return (int, float)
    if annotation.startswith("int"):
        return (int,)
    return (dict,) if annotation.startswith("dict") else (str,)


_ANNOTATIONS = {f.name: str(f.type) for f in fields(RunResult)}
_KINDS = {name: _kinds(annotation) for name, annotation in _ANNOTATIONS.items()}
