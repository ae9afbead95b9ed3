"""What a configuration, its parts and a verdict say in the row of a run. Imports no torch."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lrbench_pl.knobs import UserError, as_text
from lrbench_pl.policies import AdaptivePolicy, policy_id, table, to_config
from lrbench_pl.results import ResultError, RunResult, check_row

if TYPE_CHECKING:
    from lrbench_pl.callback import Verdict
    from lrbench_pl.experiment import Parts

# what says where, how and for how long a run takes place, and changes none of its numbers
_WITHOUT = (
    *("hydra", "logger", "study", "require_target", "threads"),
    *("checkpoint_every", "checkpoints_kept", "max_time", "share_equal"),
)


def run_id(cfg: DictConfig, policy: Mapping[str, Any] | None = None) -> str:
    """Hash of everything in the configuration that can change the numbers of a run.

    Args:
        cfg: The configuration.
        policy: What was looked up in a database, and so is not in the configuration.
    """
    plain = identity(cfg)
    if policy is not None:
        plain["lr_policy"] = policy
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:12]


def identity(cfg: DictConfig) -> dict[str, Any]:
    """What :func:`run_id` is the hash of."""
    return plain_config(cfg, without=_WITHOUT)


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
    from_file = cfg.lr_policy_file
    names = {name: as_text(f"names.{name}", cfg.names[name]) for name in ("dataset", "model", "optimizer", "policy")}
    row = {
        "run_id": run_id(cfg),
        "study": as_text("study", cfg.study),
        "dataset": names["dataset"],
        "model": names["model"] if cfg.workload is None else str(cfg.workload.get("_target_")),
        "optimizer": names["optimizer"],
        "policy": names["policy"]
        if from_file is None
        else f"file:{Path(from_file).parent.name}/{Path(from_file).name}",
        "batch_size": cfg.batch_size * cfg.trainer.accumulate_grad_batches,
        "lr": float(cfg.lr),
        "seed": cfg.seed,
        "max_steps": cfg.max_steps,
        "target_accuracy": cfg.target_accuracy,
        "monitor": as_text("monitor", cfg.monitor),
        "mode": as_text("mode", cfg.mode),
        "confirmations": cfg.confirmations,
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

    from lrbench_pl.tuning.best import LookedUp

    policy = parts.verifier.policy
    on_gpu = parts.trainer.strategy.root_device.type == "cuda"
    found: dict[str, Any] = {}
    if isinstance(parts.verifier, LookedUp):
        found = {"run_id": run_id(cfg, to_config(policy)), "lr": max(table(policy, cfg.max_steps))}
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
        "best_accuracy": verdict.best_value,
        "best_step": verdict.best_step,
        "final_accuracy": verdict.final_value,
    }


def headline(row: RunResult, with_seed: bool = False) -> str:
    """The last line of a run, for a person.

    Example:
        >>> print(headline(RunResult(run_id="a", policy="tri", optimizer="momentum", lr=0.05, status="reached",
        ...     target_accuracy=0.97, steps_to_target=240, max_steps=1000, best_accuracy=0.983, test_accuracy=0.972)))
        tri (momentum, lr 0.05): reached 0.970 at step 240 of 1000, best 0.983, test 0.972
    """
    name = label(row, with_seed)
    if row.status == "reached":
        words = f"reached {row.target_accuracy:.3f} at step {row.steps_to_target} of {row.max_steps}"
    elif row.status == "missed" and row.target_accuracy is None:
        words = f"ran {row.steps_run} steps without a target"
    elif row.status == "missed":
        words = f"missed {row.target_accuracy:.3f} within {row.max_steps} steps"
    else:
        words = f"{row.status}: {row.message}"
    accuracies = {"best": row.best_accuracy, "test": row.test_accuracy}
    shown = "".join(f", {label} {value:.3f}" for label, value in accuracies.items() if value is not None)
    return f"{name}: {words}{shown}"


def label(row: RunResult, with_seed: bool = True) -> str:
    """Which run it is, for a person.

    Example:
        >>> label(RunResult(run_id="a", policy="tri", status="missed", optimizer="sgd", lr=0.1, seed=3))
        'tri (sgd, lr 0.1, seed 3)'
    """
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
