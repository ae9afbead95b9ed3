"""The result of one run: specification, setup and outcome, flat in ``result.json``. Imports no torch."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from lrbench_pl.files import FORMAT, ResultError, check_format, write_atomically
from lrbench_pl.reading import UnreadableError, parse_json, read_json, read_text
from lrbench_pl.runs.spec import RunSpec, Task, canonical, of_task
from lrbench_pl.verdict import STATUSES, Status
from lrbench_pl.words import clean, masked

if TYPE_CHECKING:
    from lrbench_pl.verdict import Verdict

RESULT_FILE = "result.json"

# Fields of format 1 that have another name now.
_RENAMED = {"target_accuracy": "target", "best_accuracy": "best_value", "final_accuracy": "final_value"}


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run: everything that training it has shown.

    The fields are those of :class:`RunResult` with the same names.

    Example:
        >>> Outcome("failed", message="no such file").best_value is None
        True
    """

    status: Status
    message: str | None = None
    peak_found: float | None = None
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
    shared_with: str | None = None
    extends: str | None = None
    inherited_steps: int | None = None
    weights: str | None = None

    @classmethod
    def from_verdict(cls, verdict: Verdict, **more: Any) -> Outcome:
        """Build the outcome of a fit from its verdict.

        Args:
            verdict: The verdict of the callback.
            **more: Fields that a verdict does not have, such as ``wall_time_s``.
        """
        shared = {each.name for each in fields(cls)} & {each.name for each in fields(verdict)}
        return cls(**{name: getattr(verdict, name) for name in shared}, **more)


@dataclass(frozen=True)
class Setup:
    """The setup of a run: what is known before it trains, beside its specification.

    The fields are those of :class:`RunResult` with the same names; without parts that were built, some are None.
    """

    study: str | None = None
    check_on: str | None = None
    policy_id: str | None = None
    policy_repr: str | None = None
    precision: str | None = None
    device: str | None = None
    engine: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    git_sha: str | None = None
    max_epochs: float | None = None
    max_tokens: float | None = None


@dataclass(frozen=True)
class RunResult:
    """The result of one run.

    A missing value is ``None``, never 0 or -1; accuracies lie in [0, 1].

    Args:
        run_id: Hash of the specification; runs with one id are the same experiment.
        study: Name of the sweep or study that the run belongs to.
        dataset: Name of the data set.
        model: Name of the model.
        optimizer: Name of the optimizer.
        batch_size: Samples per optimizer step and process.
        policy: Name of the learning-rate policy.
        policy_id: Hash of the rates over the budget; two spellings of one policy have the same.
        policy_repr: The policy as a Python expression that builds it.
        lr: Scale of the policy (its peak rate).
        peak_found: Peak rate found during training; None if it was given.
        seed: Seed of weights, data order and augmentation.
        max_steps: The budget, in optimizer steps.
        target: Target of the monitor; None if there is none.
        monitor: The metric that is compared with the target.
        mode: ``max`` or ``min``: whether a larger or a smaller value of the monitor is better.
        confirmations: Consecutive checks that must meet the target.
        check_on: Data of the checks, ``validation`` or ``test``.
        status: ``reached``, ``missed``, ``diverged``, ``failed`` or ``stopped``.
        message: Reason for the status, in one line.
        steps_to_target: Optimizer steps at the check that reached the target.
        seconds_to_target: Training seconds at that check, validation excluded.
        best_value: Best checked value of the monitor.
        best_step: Step of the best check.
        final_value: Value at the last check.
        test_value: The monitored metric on the test set, evaluated once at the end.
        test_accuracy: Top-1 accuracy on the test set.
        test_top5: Top-5 accuracy on the test set; None below six classes.
        test_loss: Mean loss on the test set.
        train_loss: Mean loss of the final weights on (a fixed part of) the training set.
        loss_difference: ``test_loss - train_loss``.
        confidence: Mean of the largest softmax value over correctly classified test samples.
        confidence_std: Standard deviation of the same.
        cdac: Standard deviation over classes of the per-class mean confidence.
        steps_run: Optimizer steps taken.
        tuning_steps: Steps among them that were spent to find the policy and abandoned (0 for a fixed policy).
        wall_time_s: Seconds from the start of the fit to its end, validation included.
        precision: Lightning's precision, such as ``32-true``.
        device: ``cpu`` or the name of the GPU.
        engine: What trained the run: ``serial`` (a process of its own), or the engine of a fused sweep, ``stacked`` or
            ``captured``, whose numbers differ from the serial ones in the lower digits. None if it was not trained, or
            by a version that had no engines.
        versions: Versions of the packages that matter for the numbers.
        git_sha: Commit of the working tree, if there is one.
        shared_with: ``run_id`` of the run of the same sweep with the same rates whose outcome this result repeats; None
            if the run was trained.
        settings: Every other setting that can change the numbers, by dotted key, as in
            :class:`lrbench_pl.runs.spec.Task`; those of the policy as ``lr_policy.*``. None if unknown.
        max_epochs: The budget in epochs, if it was given so; ``max_steps`` is its number of steps.
        max_tokens: The budget in tokens, if it was given so.
        extends: ``run_id`` of the run that this one extends, see ``lrbench extend``; None if it began at its start.
        inherited_steps: Steps among ``steps_run`` that were taken over from that run; the others were trained anew.
        weights: ``averaged`` if averaged weights reached the target and are the trained model; None for the weights of
            the last step.
        format: Number of the file format.

    Example:
        >>> result = RunResult(run_id="a1", policy="tri", seed=0, status="missed", max_steps=100)
        >>> result.steps_to_target is None
        True
        >>> RunResult.from_dict(result.to_dict()) == result
        True
        >>> result.outcome == Outcome("missed")
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
    engine: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    git_sha: str | None = None
    shared_with: str | None = None
    settings: dict[str, Any] | None = None
    max_epochs: float | None = None
    max_tokens: float | None = None
    extends: str | None = None
    inherited_steps: int | None = None
    weights: str | None = None
    format: int = FORMAT

    @classmethod
    def build(cls, spec: RunSpec, setup: Setup, outcome: Outcome) -> RunResult:
        """Build the result of a run from its specification, its setup and its outcome.

        Raises:
            ResultError: If a value cannot be stored in a result.
        """
        given = {
            "run_id": spec.run_id,
            "policy": spec.policy_name,
            "lr": spec.lr,
            "seed": spec.seed,
            **spec.task.to_dict(),
            "settings": spec.settings,
        }
        known = {name: value for name, value in asdict(setup).items() if value is not None}
        return cls.from_dict({**given, **known, **asdict(outcome)})

    @property
    def task(self) -> Task:
        """The task of the run; its settings are empty where the result does not know them."""
        known = {each.name: getattr(self, each.name) for each in fields(Task)}
        return Task(**{**known, "settings": of_task(self.settings or {})})

    @property
    def outcome(self) -> Outcome:
        """The outcome of the run."""
        return Outcome(**{each.name: getattr(self, each.name) for each in fields(Outcome)})

    def __post_init__(self) -> None:
        _check_status(self.status, self.steps_to_target)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data, non-finite numbers as None (JSON has no NaN)."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> RunResult:
        """Build a result from plain data of any format.

        Raises:
            ResultError: If a field is missing, unknown or of the wrong type, or the format is a newer one.
        """
        stored = migrate(stored)
        check_fields(stored)
        return cls(**stored)

    def write(self, folder: str | Path) -> Path:
        """Write ``result.json`` into ``folder`` atomically."""
        return write_atomically(Path(folder) / RESULT_FILE, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> RunResult:
        """Read a ``result.json``.

        Raises:
            ResultError: If it is not a complete, valid result; the message begins with the path.
        """
        return cls(**read_fields(path))


def read_fields(path: str | Path) -> dict[str, Any]:
    """Read the fields of a ``result.json`` as plain data; fast for many files.

    Raises:
        ResultError: If it is not a complete, valid result; the message begins with the path.
    """
    try:
        stored = read_json(path)
    except OSError as error:
        raise ResultError(f"{path}: cannot be read ({error})") from error
    except UnreadableError as error:
        raise ResultError(f"{path}: {error}") from error
    if not isinstance(stored, dict):
        raise ResultError(f"{path}: expected one JSON object, got {type(stored).__name__}")
    try:
        stored = migrate(stored)
        check_fields(stored)
        _check_within_budget(stored)
    except ResultError as error:
        raise type(error)(f"{path}: {error}") from error
    return stored


def _check_within_budget(stored: Mapping[str, Any]) -> None:
    reached, budget = stored.get("steps_to_target"), stored.get("max_steps")
    if reached is not None and budget is not None and reached > budget:
        raise ResultError(f"field 'steps_to_target' must be at most max_steps ({budget}), got {reached}")


def migrate(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the fields of a result of any format to the current format.

    Raises:
        NewerFormatError: If a later version wrote it.
        ResultError: If its format is not a number.

    Example:
        >>> migrate({"run_id": "a", "policy": "tri", "status": "missed"})["format"]
        2
    """
    versions = stored.get("versions")
    version = versions.get("lrbench_pl") if isinstance(versions, Mapping) else None
    if check_format(stored.get("format", 1), version) == 1:
        stored = {_RENAMED.get(name, name): value for name, value in stored.items()}
    return {**{name: _cleaned(value) for name, value in stored.items()}, "format": FORMAT}


def _cleaned(value: Any) -> Any:
    """Return a field whose text is safe to show, whoever wrote it."""
    if isinstance(value, str):
        return clean(value)
    return masked(value) if isinstance(value, dict) else value


def check_fields(stored: Mapping[str, Any]) -> None:
    """Check that plain data are the fields of a result.

    Raises:
        ResultError: If a field is missing, unknown, of the wrong type or contradicts another.
    """
    if unknown := sorted(stored.keys() - FIELD_TYPES.keys()):
        raise ResultError(f"unknown field {unknown[0]!r}")
    for name in ("policy", "run_id", "status"):
        if stored.get(name) is None:
            raise ResultError(f"field {name!r} is missing")
    for name, value in stored.items():
        if value is not None and not _is_of_type(value, FIELD_TYPES[name]):
            raise ResultError(f"field {name!r} must be {FIELD_TYPES[name].__name__}, got {_brief(value)}")
        if value is not None and name in _LEAST and value < _LEAST[name]:
            raise ResultError(f"field {name!r} must be at least {_LEAST[name]}, got {value!r}")
    _check_status(stored["status"], stored.get("steps_to_target"))


# Smallest values of counts and times.
_LEAST = {
    **dict.fromkeys(("max_steps", "batch_size", "confirmations"), 1),
    **dict.fromkeys(("seed", "steps_to_target", "best_step", "steps_run", "tuning_steps", "inherited_steps"), 0),
    **dict.fromkeys(("seconds_to_target", "wall_time_s", "max_epochs", "max_tokens"), 0),
}


def _is_of_type(value: Any, kind: type) -> bool:
    if type(value) is int:  # a whole number is a float too; 64 bits are what other programs can hold
        return kind in (int, float) and abs(value) < 2**63
    return isinstance(value, kind) and not isinstance(value, bool)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_status(status: str, steps_to_target: int | None) -> None:
    if status not in STATUSES:
        raise ResultError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
    if status == "reached" and steps_to_target is None:
        raise ResultError("status 'reached' requires steps_to_target, got None")


def _type_of_field(annotation: Any) -> type:
    """Return the type of a field without None: str, int, float or dict.

    Example:
        >>> _type_of_field(float | None), _type_of_field(dict[str, str]), _type_of_field(Literal["max", "min"])
        (<class 'float'>, <class 'dict'>, <class 'str'>)
    """
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(each for each in get_args(annotation) if each is not type(None))
    origin = get_origin(annotation)
    kind: type = str if origin is Literal else origin or annotation
    return kind


# The schema of a result: checks, tables and the parser of CSV all take the types of its fields from here.
FIELD_TYPES: Mapping[str, type] = {name: _type_of_field(hint) for name, hint in get_type_hints(RunResult).items()}


# -- settings of runs of format 1 ------------------------------------------------------------------------------


def stored_settings(folder: str | Path) -> dict[str, Any] | None:
    """Return the settings of a run of format 1, from its ``run.json``, or None."""
    text = read_settings(str(folder))
    found: dict[str, Any] | None = None if text is None else json.loads(text)
    return found


def read_settings(folder: str) -> str | None:
    """Return :func:`stored_settings` as JSON text, cached for all seeds."""
    try:
        text = read_text(os.path.join(folder, "run.json"))
    except (OSError, UnreadableError):
        return None
    begin, end = text.find('"configuration": '), text.rfind('"started": ')
    text = text[begin + len('"configuration": ') : end].rstrip().rstrip(",")
    if begin < 0 or '"lr_policy_file"' not in text:  # later formats store a specification there
        return None
    if seed := re.search(r'"seed": (\d+)', text):
        text = text.replace(seed[0] + ",", '"seed": 0,')
    return _settings_in(text)


@functools.lru_cache(maxsize=4096)
def _settings_in(configuration: str) -> str | None:
    try:
        spec = RunSpec.from_format_1(parse_json(configuration), {})
    except ValueError:
        return None
    return canonical(spec.settings)
