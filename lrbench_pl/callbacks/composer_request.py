"""Request of a composition, everything that it depends on, and the plan for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from lrbench_pl.callbacks.lr_policy import LRPolicyError
from lrbench_pl.composing.plan import plan_segments, rules_for
from lrbench_pl.composing.segments import SegmentPlan
from lrbench_pl.composing.settings import Settings
from lrbench_pl.words import counted

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

# The steps of these optimizers do not shrink with the gradients, so that a rate that is stable during a range test may
# be too high for a whole training.
_ADAM_FAMILY = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam)
_ADAM_MARGIN = 9.0
_NOT_ADAPTIVE = (torch.optim.SGD, torch.optim.ASGD)


def composition_request(
    trainer: Trainer, settings: Settings, optimizer: torch.optim.Optimizer, lr: float, max_steps: int | None
) -> dict[str, Any]:
    """Return the settings, the rate and the budget of a composition as plain data.

    Args:
        trainer: The Trainer.
        settings: Settings of the composition.
        optimizer: Optimizer that the composed policy drives.
        lr: Its own rate.
        max_steps: The budget; None for that of the Trainer.

    Raises:
        LRPolicyError: If there is no budget, or no check within it.
    """
    if not trainer.enable_validation:
        raise LRPolicyError("composing needs checks, but this fit runs no validation; give the Trainer validation data")
    if max_steps is None and len(trainer.optimizers) > 1:
        raise LRPolicyError(
            f"the Trainer's max_steps counts the steps of all {len(trainer.optimizers)} optimizers; give max_steps, "
            "those of the one that the composer drives, to the composer"
        )
    budget = max_steps if max_steps is not None else trainer.max_steps
    if budget is None or budget < 1:
        raise LRPolicyError("composing a policy needs a budget: give max_steps to the composer or the Trainer")
    interval = _steps_between_checks(trainer)
    if interval > budget:
        raise LRPolicyError(
            f"composing needs a check within {counted(budget, 'step')}, but the first one is after {interval}; "
            "lower val_check_interval"
        )
    return {
        **asdict(settings),
        "margin": _margin(settings, optimizer),
        "rules": rules_for(settings, not isinstance(optimizer, _NOT_ADAPTIVE), budget, interval),
        "lr": lr,
        "max_steps": budget,
        "steps between checks": interval,
    }


def plan_for(request: Mapping[str, Any]) -> SegmentPlan:
    """Return the plan for a request that also contains ``target`` and ``mode``; it ends at the last check."""
    settings = Settings(**{field.name: request[field.name] for field in fields(Settings) if field.name in request})
    target = request["target"]
    if target is None:
        settings = replace(settings, tuning_budget=0.0)
    interval = request["steps between checks"]
    return plan_segments(
        settings,
        request["lr"],
        request["max_steps"] // interval * interval,
        interval,
        target,
        request["mode"],
        request["rules"],
    )


def _margin(settings: Settings, optimizer: torch.optim.Optimizer) -> float | None:
    return _ADAM_MARGIN if settings.margin is None and isinstance(optimizer, _ADAM_FAMILY) else settings.margin


def _steps_between_checks(trainer: Trainer) -> int:
    batches = math.inf if trainer.val_check_batch is None else float(trainer.val_check_batch)  # None: a time
    if not math.isfinite(batches):
        raise LRPolicyError("composing needs checks: set the Trainer's val_check_interval to a number of batches")
    steps = batches / trainer.accumulate_grad_batches
    if trainer.check_val_every_n_epoch is not None:  # the last step of an epoch may have fewer batches
        return math.ceil(steps) * trainer.check_val_every_n_epoch
    if steps != int(steps):
        raise LRPolicyError(
            f"val_check_interval ({batches:g} batches) must be a multiple of accumulate_grad_batches "
            f"({trainer.accumulate_grad_batches}), so that checks fall between optimizer steps"
        )
    return int(steps)
