"""For Hydra projects and training scripts of one's own: the callback from a configuration, and a result to rank."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
from lrbench_pl.files import write_atomically
from lrbench_pl.policies import AdaptivePolicy, policy_id, table
from lrbench_pl.runs.result import Outcome, RunResult

METRICS_FILE = "metrics.csv"  # read by lrbench_pl.analysis, which training does not import

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def policy_callback(policy: Callable[[int], float] | LRPolicyCallback, **arguments: Any) -> LRPolicyCallback:
    """The callback that applies a policy of the group ``lr_policy``, whichever it is.

    Args:
        policy: A policy, or the callback that some choices of the group are themselves (``auto``, ``best``).
        **arguments: Those of :class:`~lrbench_pl.callbacks.lr_policy.LRPolicyCallback`; a callback has its own.

    Example:
        >>> from lrbench_pl.policies import Constant
        >>> policy_callback(Constant(0.1), target=0.9).target
        0.9
    """
    return policy if isinstance(policy, LRPolicyCallback) else LRPolicyCallback(policy, **arguments)


def write_result(trainer: Trainer, folder: str | Path, **fields: Any) -> RunResult:
    """Write ``result.json`` and ``metrics.csv`` of a fit that had an ``LRPolicyCallback``, for ``lrbench rank``.

    Args:
        trainer: After its fit.
        folder: Where to write; each run has its own.
        **fields: Fields of :class:`~lrbench_pl.runs.result.RunResult` that the trainer does not know, such as
            ``test_accuracy``, or that are to be named otherwise. Without them ``model``, ``dataset`` and ``optimizer``
            are the names of the classes, ``policy`` is Hydra's choice for ``lr_policy`` or else the policy's repr, and
            ``seed`` that of Lightning's ``seed_everything``.

    Returns:
        The result as it was written.

    Raises:
        ValueError: If the trainer has no ``LRPolicyCallback``, or a field is unknown or of the wrong kind.
    """
    found = [each for each in trainer.callbacks if isinstance(each, LRPolicyCallback)]  # type: ignore[attr-defined]
    if not found:
        raise ValueError("expected a Trainer with an LRPolicyCallback among its callbacks, got one without")
    callback, verdict = found[0], found[0].verdict
    policy, max_steps = callback.policy, _budget(trainer)
    horizon = None if isinstance(policy, AdaptivePolicy) else max_steps
    known: dict[str, Any] = {
        **asdict(Outcome.from_verdict(verdict, tuning_steps=getattr(callback, "tuning_steps", 0))),
        "run_id": os.path.basename(os.path.abspath(folder)),
        "model": type(trainer.lightning_module).__name__,
        "dataset": _name_of(getattr(trainer, "datamodule", None)),
        "optimizer": _name_of(next(iter(trainer.optimizers[callback.optimizer_index or 0 :]), None)),
        "policy": _choice("lr_policy") or repr(policy),
        "policy_id": None if horizon is None else policy_id(policy, horizon),
        "policy_repr": repr(policy),
        "lr": None if horizon is None else max(table(policy, horizon)),
        "seed": int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
        "max_steps": max_steps,
        "target": callback.target,
        "monitor": callback.monitor,
        "mode": callback.mode,
        "confirmations": callback.confirmations,
        "precision": str(trainer.precision),
    }
    result = RunResult.from_dict({**known, **fields})
    if trainer.is_global_zero:
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["step", "check/step", "check/seconds", callback.monitor])
        writer.writerows([each.step - 1, each.step, each.seconds, each.value] for each in verdict.checks)
        write_atomically(Path(folder) / METRICS_FILE, lines.getvalue())
        result.write(folder)
    return result


def _name_of(part: object | None) -> str | None:
    return None if part is None else type(part).__name__


def _budget(trainer: Trainer) -> int | None:
    """The optimizer steps that the fit may take; None if that has no bound."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if steps not in (-1, float("inf")) else None


def _choice(group: str) -> str | None:
    """What Hydra chose for a group, if this is a job of Hydra's."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    choice = HydraConfig.get().runtime.choices.get(group)
    return None if choice is None else str(choice)
