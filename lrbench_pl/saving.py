"""Save the outcome of a training as the files that ``lrbench rank``, ``report`` and ``db`` read. Imports no torch."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lrbench_pl.files import FORMAT, version, write_atomically
from lrbench_pl.policies import AdaptivePolicy, cut, peak, policy_id, settings_of, to_config
from lrbench_pl.verdict import Check, TargetCheck, Verdict, whole_number

RESULT_FILE = "result.json"
METRICS_FILE = "metrics.csv"
POLICY_FILE = "policy.yaml"
TUNING_FILE = "tuning.json"

# Fields of a result that a training may not know itself, and the kind of each.
NAMES: dict[str, type] = {
    "run_id": str,
    "study": str,
    "policy": str,
    "dataset": str,
    "model": str,
    "optimizer": str,
    "batch_size": int,
    "seed": int,
}
_POINTS = 200  # at most so many rates of a policy are part of a history


def check_names(names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a user gives a result, checked; those that are None are left out.

    Raises:
        ValueError: If a field is unknown or of the wrong kind.

    Example:
        >>> check_names({"dataset": "digits", "seed": None})
        {'dataset': 'digits'}
    """
    checked: dict[str, Any] = {}
    for name, value in names.items():
        if name not in NAMES:
            raise ValueError(f"a result takes {', '.join(NAMES)}, got {name!r}")
        if value is None:
            continue
        checked[name] = whole_number(name, value, least=0) if NAMES[name] is int else value
        if not isinstance(checked[name], NAMES[name]):
            raise ValueError(f"{name} must be text or None, got {value!r}")
    return checked


def outcome_fields(verdict: Verdict, check: TargetCheck) -> dict[str, Any]:
    """Return the fields of a result that a verdict and its target determine."""
    shared = (each.name for each in fields(verdict) if each.name != "checks")
    return {
        **{name: getattr(verdict, name) for name in shared},
        "target": check.target,
        "monitor": check.monitor,
        "mode": check.mode,
        "confirmations": check.confirmations,
    }


def policy_fields(policy: Callable[[int], float], max_steps: int | None) -> dict[str, Any]:
    """Return the fields of a result that a policy and the budget determine.

    Args:
        policy: The policy; an adaptive one has neither a hash of its rates nor a peak.
        max_steps: The budget in optimizer steps, or None if it is not known.
    """
    horizon = None if isinstance(policy, AdaptivePolicy) else max_steps
    return {
        "policy": repr(policy),
        "policy_repr": repr(policy),
        "policy_id": None if horizon is None else policy_id(policy, horizon),
        "lr": None if horizon is None else peak(policy, horizon),
        "max_steps": max_steps,
        "tuning_steps": 0,
        "versions": {"lrbench_pl": version()},
    }


def save(
    folder: str | Path,
    fields: Mapping[str, Any],
    policy: Callable[[int], float] | None,
    checks: Sequence[Check],
    records: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write ``policy.yaml`` (if the policy can be stored), ``metrics.csv`` and, last, ``result.json``.

    Args:
        folder: Where to write; each training has its own.
        fields: Fields of a result (``RunResult``), ``run_id``, ``policy``, ``status`` and ``monitor`` among them.
        policy: The policy that was applied, or None if it is known by its name alone.
        checks: Every check, in order.
        records: Of a composition, its parts, for ``tuning.json``.
    """
    folder = Path(folder)
    if records:
        write_atomically(folder / TUNING_FILE, json.dumps(list(records), indent=2) + "\n")
    if policy is not None:
        save_policy(folder, policy, fields.get("max_steps"))
    save_history(folder, str(fields["monitor"]), checks, policy, fields.get("steps_run") or 0)
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
    write_atomically(folder / RESULT_FILE, json.dumps({**plain, "format": FORMAT}, indent=2) + "\n")


def save_policy(folder: Path, policy: Callable[[int], float], max_steps: int | None) -> None:
    """Write ``policy.yaml``; an adaptive policy as it was applied. One that cannot be stored leaves no file."""
    from omegaconf import OmegaConf  # here: looking at a result needs no YAML

    try:
        if isinstance(policy, AdaptivePolicy):
            policy = policy.realised() if max_steps is None else cut(policy.realised(), max_steps)
        stored = to_config(policy)
    except (TypeError, ValueError):  # a type that is not registered
        return
    write_atomically(folder / POLICY_FILE, OmegaConf.to_yaml(OmegaConf.create(stored)))


def save_history(
    folder: Path, monitor: str, checks: Sequence[Check], policy: Callable[[int], float] | None = None, steps: int = 0
) -> None:
    """Write ``metrics.csv``: the checks, and the values of the policy over the steps."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    known = {} if policy is None or isinstance(policy, AdaptivePolicy) else settings_of(policy)
    parts = {name: part for name, part in known.items() if not name.startswith("optimizer_")}  # on other clocks
    others = list(parts)[1:]
    writer.writerow(["step", "lr", *others, "check/step", "check/seconds", monitor])
    if parts:
        points = range(0, steps, max(1, math.ceil(steps / _POINTS)))
        writer.writerows([step, *(part(step) for part in parts.values()), "", "", ""] for step in points)
    blank = ["" for _ in others]
    writer.writerows([each.step - 1, "", *blank, each.step, each.seconds, each.value] for each in checks)
    write_atomically(folder / METRICS_FILE, lines.getvalue())
