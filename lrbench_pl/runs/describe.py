"""What a configuration, its parts and a verdict say in the row of a run. Imports no torch."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lrbench_pl.files import ResultError
from lrbench_pl.policies import AdaptivePolicy, policy_id, table, to_config
from lrbench_pl.runs.options import UserError, as_text
from lrbench_pl.runs.result import RunResult, check_row
from lrbench_pl.runs.spec import RunSpec
from lrbench_pl.words import counted, is_accuracy, metric_name, metric_value

if TYPE_CHECKING:
    from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
    from lrbench_pl.runs.build import Parts
    from lrbench_pl.verdict import Verdict

_MONITOR = "val/accuracy"  # of a row that does not say it


def run_id(cfg: DictConfig) -> str:
    """Hash of everything in the configuration that can change the numbers of a run."""
    return RunSpec.from_config(cfg).run_id


def identity(cfg: DictConfig) -> dict[str, Any]:
    """What :func:`run_id` is the hash of, as plain data."""
    return RunSpec.from_config(cfg).to_dict()


def plain_config(cfg: DictConfig, without: tuple[str, ...] = ("hydra",)) -> dict[str, Any]:
    """The configuration as data; what a workload of the user's own replaces is no part of it."""
    without += ("model", "optimizer") if cfg.workload is not None else ()
    kept = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in without])
    kept._set_parent(cfg)  # so that references to what was left out still resolve
    return {str(key): value for key, value in OmegaConf.to_container(kept, resolve=True).items()}  # type: ignore[union-attr]


def describe(cfg: DictConfig) -> dict[str, Any]:
    """What the configuration says of a run before it begins.

    Raises:
        UserError: If a row cannot hold it.
    """
    texts = {name: as_text(f"names.{name}", value) for name, value in cfg.names.items()}
    texts |= {name: as_text(name, cfg[name]) for name in ("monitor", "mode", "study")}
    spec = RunSpec.from_config(cfg)
    task = spec.task
    row = {
        "run_id": spec.run_id,
        "study": texts["study"],
        "dataset": texts["dataset"],
        "model": texts["model"] if cfg.workload is None else task.model,
        "optimizer": texts["optimizer"],
        "policy": texts["policy"] if cfg.lr_policy_file is None else spec.policy_name,
        "batch_size": task.batch_size,
        "lr": spec.lr,
        "seed": spec.seed,
        "max_steps": task.max_steps,
        "target": task.target,
        "monitor": texts["monitor"],
        "mode": texts["mode"],
        "confirmations": task.confirmations,
        "settings": spec.settings,
        "versions": _versions(),
        "git_sha": _git_sha(),
    }
    return _held(row)


def _held(row: dict[str, Any]) -> dict[str, Any]:
    """Part of a row, if a row can hold it: else the training would be lost at its end."""
    try:
        check_row({"run_id": "", "policy": "", **row, "status": "missed"})
    except ResultError as error:
        raise UserError(f"a row cannot hold this: {error}") from error
    return row


def describe_parts(cfg: DictConfig, parts: Parts) -> dict[str, Any]:
    """What is known once the parts stand.

    Raises:
        UserError: If a row cannot hold it.
    """
    import torch  # here, so that a sweep can be launched without it

    policy = parts.verifier.policy
    on_gpu = parts.trainer.strategy.root_device.type == "cuda"
    found: dict[str, Any] = {}
    if getattr(parts.verifier, "recommendation", None) is not None:  # looked up in the database
        lr = max(table(policy, cfg.max_steps))
        spec = replace(RunSpec.from_config(cfg), policy=to_config(policy), lr=lr)
        found = {"run_id": spec.run_id, "lr": lr}
    row = {
        **found,
        "policy_id": None if isinstance(policy, AdaptivePolicy) else policy_id(policy, cfg.max_steps),
        "policy_repr": repr(policy),
        "check_on": as_text("check_on of the data", getattr(parts.data, "check_on", None)),
        "precision": str(parts.trainer.precision),
        "device": torch.cuda.get_device_name(parts.trainer.strategy.root_device) if on_gpu else "cpu",
    }
    return _held(row)


def judge(verdict: Verdict) -> dict[str, Any]:
    """The verdict's share of the row."""
    return {
        "status": verdict.status,
        "message": verdict.message,
        "steps_to_target": verdict.steps_to_target,
        "seconds_to_target": verdict.seconds_to_target,
        "best_value": verdict.best_value,
        "best_step": verdict.best_step,
        "final_value": verdict.final_value,
    }


def headline(row: RunResult, with_seed: bool = False) -> str:
    """The last line of a run, for a person.

    Example:
        >>> print(headline(RunResult(run_id="a", policy="tri", optimizer="momentum", lr=0.05, status="reached",
        ...     target=0.97, steps_to_target=240, max_steps=1000, best_value=0.983, test_accuracy=0.972)))
        tri (momentum, lr 0.05): reached 0.970 at step 240 of 1000, best 0.983, test 0.972
        >>> print(headline(RunResult(run_id="a", policy="auto", optimizer="momentum", lr=0.05, peak_found=0.187,
        ...     status="reached", target=0.97, steps_to_target=200, max_steps=1000, tuning_steps=120)))
        auto (momentum, peak 0.187 found): reached 0.970 at step 200, 120 of them search
        >>> print(headline(RunResult(run_id="a", policy="tri", status="missed", monitor="val/loss", mode="min",
        ...     target=0.04, max_steps=1, best_value=0.0475, test_accuracy=0.972)))
        tri: missed loss 0.04 within 1 step, best loss 0.0475, test accuracy 0.972
        >>> print(headline(RunResult(run_id="a", policy="tri", status="reached", monitor="val/rmse", mode="min",
        ...     target=3.0, steps_to_target=80, max_steps=100, best_value=2.81, test_value=2.954)))
        tri: reached rmse 3 at step 80 of 100, best rmse 2.81, test rmse 2.954
    """
    name = label(row, with_seed)
    monitor = row.monitor or _MONITOR
    metric = "" if is_accuracy(monitor) else f"{metric_name(monitor)} "
    target = "" if row.target is None else f"{metric}{metric_value(monitor, row.target)}"
    search = f", {row.tuning_steps} of them search" if row.tuning_steps else ""
    if row.status == "reached":
        budget = "" if search or row.max_steps is None else f" of {row.max_steps}"
        words = f"reached {target} at step {row.steps_to_target}{budget}{search}"
    elif row.status == "missed" and row.target is None:
        words = f"ran {counted(row.steps_run or 0, 'step')} without a target{search}"
    elif row.status == "missed":
        words = f"missed {target} within {counted(row.max_steps or 0, 'step')}{search}"
    else:
        words = f"{row.status}: {row.message}"
    if row.best_value is not None:
        words += f", best {metric}{metric_value(monitor, row.best_value)}"
    if metric and row.test_value is not None:
        words += f", test {metric}{metric_value(monitor, row.test_value)}"
    if row.test_accuracy is not None:
        words += f", test {'accuracy ' if metric else ''}{row.test_accuracy:.3f}"
    return f"{name}: {words}"


def peak_found(verifier: LRPolicyCallback, lr: float, steps: int) -> float | None:
    """The peak rate that a composition found; None if the policy was given, or kept ``lr``.

    Args:
        verifier: What applied the policy.
        lr: The rate that the configuration gives.
        steps: Optimizer steps that were trained.
    """
    policy = verifier.policy
    if not (hasattr(verifier, "tuning_steps") and isinstance(policy, AdaptivePolicy)) or steps < 1:
        return None
    peak = max(table(policy.realised(), steps))
    return None if peak == 0 or math.isclose(peak, lr, rel_tol=1e-6) else peak


def label(row: RunResult, with_seed: bool = True) -> str:
    """Which run it is, for a person.

    Example:
        >>> label(RunResult(run_id="a", policy="tri", status="missed", optimizer="sgd", lr=0.1, seed=3))
        'tri (sgd, lr 0.1, seed 3)'
    """
    if row.peak_found is not None:
        said = [row.optimizer, f"peak {row.peak_found:.3g} found"]
    else:
        said = [row.optimizer, f"lr {row.lr:g}"] if row.lr is not None else []
    if with_seed and row.seed is not None:
        said.append(f"seed {row.seed}")
    return f"{row.policy} ({', '.join(map(str, said))})" if said else row.policy


@functools.cache
def _versions() -> dict[str, str]:
    packages = ("lrbench_pl", "torch", "torchvision", "pytorch-lightning", "torchmetrics")
    return {name: importlib.metadata.version(name) for name in packages}


@functools.cache
def _git_sha() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
