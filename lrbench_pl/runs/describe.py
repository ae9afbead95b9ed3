"""Describe a run: specification and setup from its configuration, one line from its result. Imports no torch."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import math
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrbench_pl.files import ResultError
from lrbench_pl.policies import AdaptivePolicy, peak, policy_id, to_config
from lrbench_pl.runs.options import LARGEST_SEED, UserError, as_text
from lrbench_pl.runs.result import Outcome, RunResult, Setup
from lrbench_pl.runs.spec import RunSpec, policy_name
from lrbench_pl.verdict import Status
from lrbench_pl.words import counted, is_accuracy, masked, metric_name, metric_value

if TYPE_CHECKING:
    from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
    from lrbench_pl.runs.build import Parts

_MONITOR = "val/accuracy"  # of a result that does not know its monitor


def run_id(cfg: DictConfig) -> str:
    """Return the hash of all settings that can change the numbers of a run."""
    return RunSpec.from_config(cfg).run_id


def identity(cfg: DictConfig) -> dict[str, Any]:
    """Return the specification behind :func:`run_id` as plain data."""
    return RunSpec.from_config(cfg).to_dict()


def plain_config(cfg: DictConfig, without: tuple[str, ...] = ("hydra",)) -> dict[str, Any]:
    """Return a configuration as plain data, without passwords and parts that a workload replaces."""
    without += ("model", "optimizer") if cfg.workload is not None else ()
    kept = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in without])
    kept._set_parent(cfg)  # so that references to the parts left out still resolve
    return {str(key): masked(value) for key, value in OmegaConf.to_container(kept, resolve=True).items()}  # type: ignore[union-attr]


def specify(cfg: DictConfig) -> tuple[RunSpec, Setup]:
    """Return specification and setup of a run, as far as its configuration tells.

    Raises:
        UserError: If a value cannot be stored in a result.
    """
    spec = RunSpec.from_config(cfg)
    setup = Setup(
        study=as_text("study", cfg.study),
        versions=_versions(),
        git_sha=_git_sha(),
        max_epochs=cfg.get("max_epochs"),
        max_tokens=cfg.get("max_tokens"),
    )
    return _checked(spec, setup)


def specify_parts(cfg: DictConfig, parts: Parts, spec: RunSpec, setup: Setup) -> tuple[RunSpec, Setup]:
    """Complete specification and setup of a run with what its parts tell.

    Raises:
        UserError: If a value cannot be stored in a result.
    """
    import torch  # here, so that a sweep can be launched without it

    policy = parts.verifier.policy
    if getattr(parts.verifier, "recommendation", None) is not None:  # a policy from the database
        spec = replace(spec, policy=to_config(policy), lr=peak(policy, cfg.max_steps))
    device = parts.trainer.strategy.root_device
    setup = replace(
        setup,
        policy_id=None if isinstance(policy, AdaptivePolicy) else policy_id(policy, cfg.max_steps),
        policy_repr=repr(policy),
        check_on=as_text("check_on of the data", getattr(parts.data, "check_on", None)),
        precision=str(parts.trainer.precision),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    )
    return _checked(spec, setup)


def refused(cfg: DictConfig, status: Status, message: str) -> RunResult:
    """Return the result of a run whose configuration was refused, with what tells it from others of a sweep."""
    known: dict[str, Any] = {}
    for name in ("dataset", "optimizer"):
        with contextlib.suppress(OmegaConfBaseException, ValueError):
            known[name] = as_text(f"names.{name}", cfg.names[name])
    with contextlib.suppress(OmegaConfBaseException):
        known["seed"] = cfg.seed if type(cfg.seed) is int and 0 <= cfg.seed <= LARGEST_SEED else None
    return RunResult("unknown", policy_name(cfg), status, message=message, **known)


def _checked(spec: RunSpec, setup: Setup) -> tuple[RunSpec, Setup]:
    """Check that a result can hold the values, before the training is spent."""
    try:
        RunResult.build(spec, setup, Outcome("missed"))
    except ResultError as error:
        raise UserError(f"the result cannot be stored: {error}") from error
    return spec, setup


def headline(result: RunResult, with_seed: bool = False) -> str:
    """Summarize a result in one line.

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
        >>> print(headline(RunResult(run_id="a", policy="wsd-2000-linear-0.2", status="reached", target=0.97,
        ...     steps_to_target=1900, max_steps=2000, extends="b", inherited_steps=700)))
        wsd-2000-linear-0.2: reached 0.970 at step 1900 of 2000, 700 steps inherited
        >>> print(headline(RunResult(run_id="a", policy="auto", status="reached", target=0.97, steps_to_target=1900,
        ...     max_steps=2000, weights="averaged", best_value=0.971)))
        auto: reached 0.970 at step 1900 of 2000 with averaged weights, best 0.971
    """
    name = label(result, with_seed)
    monitor = result.monitor or _MONITOR
    metric = "" if is_accuracy(monitor) else f"{metric_name(monitor)} "
    target = "" if result.target is None else f"{metric}{metric_value(monitor, result.target)}"
    search = f", {result.tuning_steps} of them search" if result.tuning_steps else ""
    if result.status == "reached":
        budget = "" if search or result.max_steps is None else f" of {result.max_steps}"
        words = f"reached {target} at step {result.steps_to_target}{budget}{search}"
    elif result.status == "missed" and result.target is None:
        words = f"ran {counted(result.steps_run or 0, 'step')} without a target{search}"
    elif result.status == "missed":
        words = f"missed {target} within {counted(result.max_steps or 0, 'step')}{search}"
    else:
        words = f"{result.status}: {result.message}"
    if result.weights:
        words += f" with {result.weights} weights"
    if result.inherited_steps:
        words += f", {counted(result.inherited_steps, 'step')} inherited"
    if result.best_value is not None:
        words += f", best {metric}{metric_value(monitor, result.best_value)}"
    if metric and result.test_value is not None:
        words += f", test {metric}{metric_value(monitor, result.test_value)}"
    if result.test_accuracy is not None:
        words += f", test {'accuracy ' if metric else ''}{result.test_accuracy:.3f}"
    return f"{name}: {words}"


def peak_found(verifier: LRPolicyCallback, lr: float, steps: int) -> float | None:
    """Return the peak rate that a composition found; None if it was given.

    Args:
        verifier: The callback that applied the policy.
        lr: The configured rate.
        steps: Optimizer steps taken.
    """
    policy = verifier.policy
    if not (hasattr(verifier, "tuning_steps") and isinstance(policy, AdaptivePolicy)) or steps < 1:
        return None
    found = peak(policy.realised(), steps)
    return None if found == 0 or math.isclose(found, lr, rel_tol=1e-6) else found


def label(result: RunResult, with_seed: bool = True) -> str:
    """Name a run by policy, optimizer, rate and seed.

    Example:
        >>> label(RunResult(run_id="a", policy="tri", status="missed", optimizer="sgd", lr=0.1, seed=3))
        'tri (sgd, lr 0.1, seed 3)'
    """
    if result.peak_found is not None:
        details = [result.optimizer, f"peak {result.peak_found:.3g} found"]
    else:
        details = [result.optimizer, f"lr {result.lr:g}"] if result.lr is not None else []
    if with_seed and result.seed is not None:
        details.append(f"seed {result.seed}")
    return f"{result.policy} ({', '.join(map(str, details))})" if details else result.policy


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
