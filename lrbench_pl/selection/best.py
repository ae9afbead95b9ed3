"""``lr_policy=best``: the policy that worked here before, applied and verified like any other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytorch_lightning.utilities import rank_zero_only

from lrbench_pl.callbacks.composer import LRPolicyComposer
from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
from lrbench_pl.files import write_atomically
from lrbench_pl.policies import Policy, from_config, to_config
from lrbench_pl.runs.options import UserError, one_line
from lrbench_pl.selection.lookup import Question, Recommendation, ask

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class LookedUp(LRPolicyCallback):
    """Applies a policy that was looked up. Under several processes it is that of the first, whatever the others found.

    Args:
        recommendation: What was found.
        **arguments: Those of :class:`~lrbench_pl.callbacks.lr_policy.LRPolicyCallback`.
    """

    def __init__(self, recommendation: Recommendation, **arguments: Any) -> None:
        super().__init__(recommendation.policy, **arguments)
        self.recommendation = recommendation

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree on one policy."""
        self.policy = trainer.strategy.broadcast(self.policy)
        super().on_train_start(trainer, pl_module)


def best(
    dataset: str,
    model: str,
    optimizer: str,
    batch_size: int,
    max_steps: int,
    target: float | None,
    monitor: str,
    mode: Literal["max", "min"],
    check_on: str | None,
    otherwise: Policy | LRPolicyCallback,
    accumulate: int = 1,
    workload: str | None = None,
    db: str | None = None,
    max_distance: float = 4.0,
    confirmations: int = 1,
    stop: bool = True,
    kept_in: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Policy | LRPolicyCallback:
    """What the policy database recommends, as the callback that verifies it; says in one line what it found.

    A run that is started again goes on with what it began with, whatever the database says by then.

    Args:
        dataset: Name of the data set, as in ``result.json``.
        model: Name of the model.
        optimizer: Name of the optimizer.
        batch_size: Samples per batch and process.
        max_steps: The budget, in optimizer steps.
        target: The target; None: there is nothing to look a policy up by.
        monitor: The metric that is compared with the target.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        check_on: ``validation`` or ``test``; None: either.
        otherwise: What is run instead if nothing is suitable.
        accumulate: Batches per optimizer step.
        workload: Name of a whole workload, which stands for the model.
        db: The database, see :class:`~lrbench_pl.selection.database.PolicyDatabase`. One that is not there holds
            nothing suitable.
        max_distance: Runs further away are not suitable, see :func:`~lrbench_pl.selection.lookup.distance`.
        confirmations: Checks in a row that must meet the target.
        stop: Whether to stop training once the target is confirmed.
        kept_in: File in which the answer is kept; if it is there, it is the answer.
        settings: Everything else that can change the numbers, see :class:`lrbench_pl.runs.spec.Task`; None: unknown.

    Raises:
        DatabaseError: If the database cannot be read.
        UserError: If the file cannot be read.
    """
    kept = None if kept_in is None else Path(kept_in)
    if kept is not None and kept.exists():
        found = _read(kept)
        _say(f"best: as it began: {_named(otherwise) if found is None else found}")
    else:
        why, answer = "there is no target to look a policy up by", None
        if target is not None:
            question = Question(
                dataset=dataset,
                model=workload or model,
                optimizer=optimizer,
                batch_size=batch_size * accumulate,
                max_steps=max_steps,
                target=target,
                monitor=monitor,
                mode=mode,
                check_on=check_on,
                confirmations=confirmations,
                settings=settings,
            )
            answer, why = ask(question, db, max_distance, say=_say)
        found = answer.recommendations[0] if answer is not None and answer.recommendations else None
        _say(f"best: {why}; falls back to {_named(otherwise)}" if found is None else f"best: {found}")
        if kept is not None and _is_first_process():
            _write(kept, found, why)
    if found is None:
        return otherwise
    return LookedUp(found, target=target, monitor=monitor, mode=mode, confirmations=confirmations, stop=stop)


def _write(path: Path, found: Recommendation | None, why: str) -> None:
    content = {"policy": None, "why": why} if found is None else {**asdict(found), "policy": to_config(found.policy)}
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _read(path: Path) -> Recommendation | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["policy"] is None:
            return None
        lists = {name: tuple(content[name]) for name in ("differences", "run_ids")}
        return Recommendation(**{**content, **lists, "policy": from_config(content["policy"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: {one_line(error)}; remove it to look a policy up anew") from error


def _named(policy: object) -> str:
    return "auto" if isinstance(policy, LRPolicyComposer) else repr(policy)


def _say(line: str) -> None:
    if _is_first_process():
        print(line, flush=True)


def _is_first_process() -> bool:
    return not getattr(rank_zero_only, "rank", 0)
