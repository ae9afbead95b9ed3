"""Facts about a Lightning fit: its other writers of rates, its end, and its result."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench_pl.policies import RANGES, PerOptimizer, settings_of
from lrbench_pl.rates import LRPolicyError
from lrbench_pl.reading import read_json
from lrbench_pl.saving import RESULT_FILE, outcome_fields, policy_fields

if TYPE_CHECKING:
    import torch
    from pytorch_lightning import Trainer

# Callbacks of Lightning that set the learning rate themselves, and what to use instead.
_OTHER_WRITERS = {
    "StochasticWeightAveraging": "use EMAWeightAveraging, which leaves the rate alone",
    "BackboneFinetuning": "add the backbone's group yourself, with lr_scale for its share of the rate",
}


def in_fit(trainer: Trainer) -> bool:
    """Return whether a validation belongs to training: neither the sanity check nor ``trainer.validate()``."""
    # compared by value: `lightning` and `pytorch_lightning` each have their own enum of these states
    return trainer.state.fn is not None and trainer.state.fn.value == "fit" and not trainer.sanity_checking


def refuse_other_writers(trainer: Trainer, kind: type) -> None:
    """Refuse callbacks that set the rate too, such as a second one of this kind."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if sum(isinstance(callback, kind) for callback in callbacks) > 1:
        raise LRPolicyError(
            f"expected one {kind.__name__} in the Trainer, got several; keep one of them (for several optimizers, give "
            "it a list with a policy for each)"
        )
    for callback in callbacks:
        for base in type(callback).__mro__:  # by name: each of Lightning's two packages has its own
            if base.__name__ in _OTHER_WRITERS and base.__module__.startswith(("pytorch_lightning.", "lightning.")):
                advice = _OTHER_WRITERS[base.__name__]
                raise LRPolicyError(f"{type(callback).__name__} sets the learning rate too; remove it, or {advice}")


def driven_optimizer(trainer: Trainer, index: int | None) -> torch.optim.Optimizer:
    """Return the optimizer that a policy drives; refuse one with a scheduler.

    Args:
        trainer: The Trainer.
        index: Which of its optimizers; None if there is one.
    """
    optimizers = _optimizers(trainer)
    if index is None and len(optimizers) > 1:
        raise LRPolicyError(
            f"the module has {len(optimizers)} optimizers; say which one the policy drives with optimizer_index=, or "
            "give a list with a policy for each"
        )
    _check_index(index or 0, len(optimizers))
    return _without_scheduler(trainer, optimizers[index or 0])


def driven_optimizers(trainer: Trainer, policies: int, index: int) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a training in which each has a policy.

    Args:
        trainer: The Trainer.
        policies: Number of policies.
        index: The optimizer whose steps the verdict counts.
    """
    optimizers = _optimizers(trainer)
    if len(optimizers) != policies:
        raise LRPolicyError(
            f"expected a policy for each of the module's optimizers, which are {len(optimizers)}, got {policies}"
        )
    _check_index(index, policies)
    return [_without_scheduler(trainer, each) for each in optimizers]


def _optimizers(trainer: Trainer) -> list[torch.optim.Optimizer]:
    if not any(optimizer.param_groups for optimizer in trainer.optimizers):  # Lightning stands in for a missing one
        raise LRPolicyError("the module has no optimizer: return one from configure_optimizers()")
    return trainer.optimizers


def _check_index(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise LRPolicyError(f"optimizer_index must lie in [0, {count - 1}], got {index}")


def _without_scheduler(trainer: Trainer, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for config in trainer.lr_scheduler_configs:
        if config.scheduler.optimizer in (optimizer, getattr(optimizer, "optimizer", None)):
            raise LRPolicyError(
                f"{type(config.scheduler).__name__} from configure_optimizers() sets the learning rate too; "
                "return the optimizer alone and let the policy set it"
            )
    return optimizer


def is_of_before(trainer: Trainer, name: str) -> bool:
    """Return whether a metric is known from an earlier validation and was not logged in this one."""
    results: Any = trainer._results
    logged = [each for each in results.values() if name in results._forked_name(each, on_step=False)]
    return bool(logged) and all(each.has_reset for each in logged)


def refuse_lost_verdict(trainer: Trainer) -> None:
    """Refuse a strategy whose processes end with the fit, and the state of a callback with them."""
    launcher = getattr(trainer.strategy, "launcher", None)
    if any(base.__name__ == "_MultiProcessingLauncher" for base in type(launcher).__mro__):
        how = getattr(launcher, "_start_method", "spawn")
        raise LRPolicyError(
            f"this strategy starts processes ({how}) that end with the fit, and the verdict with them; give save_to, "
            "where it is kept, or use strategy='ddp'"
        )


def why_early(trainer: Trainer) -> str | None:
    """Return the reason why a fit ended before its budget was used; None if the budget was used."""
    in_steps = trainer.max_steps > 0
    in_epochs = trainer.max_epochs is not None and trainer.max_epochs > 0
    had_epochs = in_epochs and trainer.current_epoch >= trainer.max_epochs  # type: ignore[operator]
    had_epochs = had_epochs and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    if (in_steps and trainer.global_step >= trainer.max_steps) or (had_epochs and not in_steps):
        return None
    if trainer.interrupted:
        return "it was interrupted"
    if trainer.should_stop:
        return "a callback or the module ended the training"
    return f"max_epochs={trainer.max_epochs} was reached" if had_epochs else "the training data ended"


def most_steps(trainer: Trainer, steps_run: int = 0) -> int | None:
    """Return how many steps the driven optimizer may take by the Trainer's ``max_steps``; None if it has none.

    Args:
        trainer: The Trainer, whose ``max_steps`` counts the steps of all optimizers.
        steps_run: Steps of the driven optimizer so far; its share of all steps is taken for that of the budget.
    """
    if trainer.max_steps <= 0:
        return None
    if len(trainer.optimizers) < 2 or not steps_run:
        return trainer.max_steps
    return max(steps_run, round(trainer.max_steps * steps_run / max(trainer.global_step, steps_run)))


def budget_of(trainer: Trainer, steps_run: int = 0) -> int | None:
    """Return the optimizer steps that a fit may take; None if that has no bound or is not known yet.

    Args:
        trainer: The Trainer.
        steps_run: Steps of the driven optimizer so far.
    """
    most = most_steps(trainer, steps_run)
    if most is not None and (trainer.max_epochs is None or trainer.max_epochs < 0):
        return most
    try:
        steps = trainer.estimated_stepping_batches
    except Exception:  # it builds the loaders, which a fit that failed may not have
        return most
    return int(steps) if steps not in (-1, float("inf")) else None


def result_fields(trainer: Trainer, callback: Any, folder: str | Path) -> dict[str, Any]:
    """Return the fields of the result of a fit, as far as the Trainer and its ``LRPolicyCallback`` know them."""
    index = callback.optimizer_index or 0
    driven = trainer.optimizers if isinstance(callback.policy, PerOptimizer) else trainer.optimizers[index : index + 1]
    verdict = callback.verdict
    policy = policy_fields(callback.policy, budget_of(trainer, verdict.steps_run))
    return {
        **policy,
        **outcome_fields(verdict, callback.target_check),
        "run_id": os.path.basename(os.path.abspath(folder)),
        "model": type(trainer.lightning_module).__name__,
        "dataset": _name_of(getattr(trainer, "datamodule", None)),
        "optimizer": "+".join(type(each).__name__ for each in driven) or None,
        "policy": _chosen_name(callback.policy) or ("auto" if is_composed(callback) else policy["policy"]),
        "seed": int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
        "tuning_steps": getattr(callback, "tuning_steps", 0),
        "precision": str(trainer.precision),
    }


def is_composed(callback: Any) -> bool:
    """Return whether a callback composes its policy while it trains."""
    return hasattr(callback, "tuning_steps")


def refuse_other_result(folder: str | Path, fields: Mapping[str, Any], callback: Any) -> None:
    """Refuse a folder that holds the result of another policy or seed: each training needs its own."""
    try:
        found = read_json(Path(folder) / RESULT_FILE)
    except (OSError, ValueError):
        return
    if not isinstance(found, dict):
        return
    names = ("policy", "seed") if is_composed(callback) else ("policy_repr", "seed")  # each composition has its repr
    other = [name for name in names if found.get(name) != fields[name]]
    if other:
        raise LRPolicyError(
            f"save_to={folder} holds the result of another training ({other[0]} {found.get(other[0])!r}, "
            f"here {fields[other[0]]!r}); give each training a folder of its own"
        )


def _name_of(part: object | None) -> str | None:
    return None if part is None else type(part).__name__


def _chosen_name(policy: object) -> str | None:
    """Return the name of a policy from Hydra's choices, as ``lrbench run`` would name it."""
    if (name := _choice("lr_policy")) is None:
        return None
    for setting in list(settings_of(policy))[1:]:
        if setting in RANGES:
            name += f" + {setting.replace('_', ' ')} {_choice(f'{setting}_policy') or 'policy'}"
    return name


def _choice(group: str) -> str | None:
    """Return Hydra's choice for a group, if this is a job of Hydra's."""
    if "hydra.core.hydra_config" not in sys.modules:
        return None
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    choice = HydraConfig.get().runtime.choices.get(group)
    return None if choice is None else str(choice)
