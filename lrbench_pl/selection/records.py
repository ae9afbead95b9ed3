"""Records of the policy database: a finished run with its policy, validated.

A record is data. It may name policy types of this package only, which is checked when it is added and when it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lrbench_pl.policies import Policy, from_config, policy_id, to_config
from lrbench_pl.runs.result import RESULT_FILE, RunResult
from lrbench_pl.words import clean

POLICY_FILE = "policy.yaml"

_LARGEST = 2**63 - 1  # largest integer of SQL
_LONGEST = 10_000_000  # largest budget in steps: every rate is computed once
_SINCE_FORMAT_1 = ("format", "settings")


@dataclass(frozen=True)
class StoredRun:
    """A finished run and its policy.

    Args:
        result: Its result, with ``policy_id``.
        policy: Its policy, of a type of this package.
    """

    result: RunResult
    policy: Policy


@dataclass(frozen=True)
class Refused:
    """Something that is not a valid record.

    Args:
        source: A folder, a line of a file, or a row of the database.
        reason: Why it is refused, in one line.
    """

    source: str
    reason: str


@dataclass(frozen=True)
class Found:
    """Records that were read.

    Args:
        runs: Valid records.
        refused: Invalid ones, with the reason.
    """

    runs: tuple[StoredRun, ...]
    refused: tuple[Refused, ...]


def stored_run(result: Mapping[str, Any], policy_config: Any) -> StoredRun:
    """Build a record from plain data.

    Args:
        result: Fields of a :class:`~lrbench_pl.runs.result.RunResult`.
        policy_config: The policy as :func:`lrbench_pl.policies.to_config` writes it.

    Raises:
        ValueError: If the result is invalid or incomplete, its run failed or was stopped, the policy is not of this
            package, or ``policy_id`` is that of another policy.

    Example:
        >>> result = {"run_id": "a1", "policy": "fix", "status": "missed", "seed": 0, "max_steps": 100,
        ...     "batch_size": 64, "dataset": "digits", "model": "mlp", "optimizer": "momentum",
        ...     "monitor": "val/accuracy"}
        >>> stored_run(result, {"_target_": "lrbench_pl.policies.Constant", "lr": 0.1}).policy
        Constant(lr=0.1)
        >>> stored_run(result, {"_target_": "os.system", "command": "true"})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: policy: _target_ must be lrbench_pl.policies.X with X one of Constant, ... got 'os.system'
    """
    run = checked_run(result, policy_config)
    assert run.result.max_steps is not None
    try:
        identity = policy_id(run.policy, run.result.max_steps)
    except ArithmeticError as error:
        raise ValueError(f"policy: its rates cannot be computed ({error})") from error
    if run.result.policy_id not in (None, identity):
        raise ValueError(f"policy_id must be {identity} for this policy, got {run.result.policy_id}")
    return StoredRun(dataclasses.replace(run.result, policy_id=identity), run.policy)


def checked_run(fields: Mapping[str, Any], policy_config: Any) -> StoredRun:
    """Build a record with all checks but that of ``policy_id``, which computes every rate."""
    result = RunResult.from_dict(RunResult.from_dict(dict(fields)).to_dict())  # non-finite numbers become None
    if result.status in ("failed", "stopped"):
        raise ValueError(f"expected a run that ended, got one that {_has(result.status)} ({result.message})")
    for name in ("dataset", "model", "optimizer", "monitor", "batch_size", "max_steps", "seed"):
        if getattr(result, name) is None:
            raise ValueError(f"{name} is missing; a record must contain the task of its run")
    _check_values(result)
    if policy_config is None:
        raise ValueError(f"the policy is missing; expected {POLICY_FILE} beside {RESULT_FILE}, or policy_config")
    try:
        return StoredRun(result, from_config(policy_config))
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"policy: {error}") from error


def _has(status: str) -> str:
    return "failed" if status == "failed" else "was stopped"


def _check_values(result: RunResult) -> None:
    """Require values that every database can store, and steps within the budget."""
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, int) and not 0 <= value <= _LARGEST:
            raise ValueError(f"{field.name} must be an integer from 0 to 2**63 - 1, got {value}")
    budget = result.max_steps or 0
    if not 1 <= budget <= _LONGEST:
        raise ValueError(f"max_steps must lie in 1 to {_LONGEST}, got {budget}")
    if not result.batch_size:
        raise ValueError(f"batch_size must be at least 1, got {result.batch_size}")
    if result.steps_to_target is not None and not 0 < result.steps_to_target <= budget:
        raise ValueError(f"steps_to_target must lie in 1 to max_steps ({budget}), got {result.steps_to_target}")


def digest(run: StoredRun) -> str:
    """Return the identity of a record: a hash of its result and policy.

    A field without a value counts as absent. Fields that format 1 did not have are left out, since ``run_id`` covers
    them: a run has one identity, whatever the format it was added in.
    """
    fields = {
        name: value
        for name, value in run.result.to_dict().items()
        if value not in (None, "", {}) and name not in _SINCE_FORMAT_1
    }
    return hashlib.sha256(to_json({**fields, "policy_config": to_config(run.policy)}).encode()).hexdigest()


def to_json(value: Any) -> str:
    """Return plain data as JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line that is safe to show."""
    return clean(" ".join(str(error).split()))
