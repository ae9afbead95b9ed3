"""``lr_policy=best``: apply and verify the policy that the policy database recommends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytorch_lightning.utilities import rank_zero_only

from lrbench_pl.callbacks.composer import LRPolicyComposer
from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
from lrbench_pl.files import FORMAT, check_format, version, write_atomically
from lrbench_pl.policies import Policy, from_config, to_config
from lrbench_pl.reading import read_json
from lrbench_pl.runs.options import UserError, one_line
from lrbench_pl.selection.distance import Query
from lrbench_pl.selection.lookup import MAX_DISTANCE, Recommendation, look_up
from lrbench_pl.words import clean

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class LookedUp(LRPolicyCallback):
    """Applies a policy that was looked up. All processes apply that of the first one.

    Args:
        recommendation: The recommendation of the database.
        **arguments: Those of :class:`~lrbench_pl.callbacks.lr_policy.LRPolicyCallback`.
    """

    def __init__(self, recommendation: Recommendation, **arguments: Any) -> None:
        super().__init__(recommendation.policy, **arguments)
        self.recommendation = recommendation

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Broadcast the policy of the first process."""
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
    max_distance: float = MAX_DISTANCE,
    confirmations: int = 1,
    stop: bool = True,
    kept_in: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Policy | LRPolicyCallback:
    """Return the recommended policy as the callback that verifies it, or the fallback; print which in one line.

    A run that is started again keeps its first policy, whatever the database contains by then.

    Args:
        dataset: Name of the data set, as in ``result.json``.
        model: Name of the model.
        optimizer: Name of the optimizer.
        batch_size: Samples per batch and process.
        max_steps: The budget, in optimizer steps.
        target: The target; without one the fallback is used.
        monitor: Name of the monitored metric.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        check_on: ``validation`` or ``test``; None for either.
        otherwise: The fallback, used without a suitable policy.
        accumulate: Batches per optimizer step.
        workload: Name of a workload that replaces the model.
        db: The database, see :class:`~lrbench_pl.selection.database.PolicyDatabase`. One that does not exist contains
            no suitable policy.
        max_distance: Runs at a larger distance are unsuitable, see :func:`~lrbench_pl.selection.distance.distance`.
        confirmations: Consecutive checks that must meet the target.
        stop: Whether to stop training once the target is confirmed.
        kept_in: File that keeps the recommendation; if it exists, it is used instead of the database.
        settings: Settings of the task, see :class:`lrbench_pl.runs.spec.Task`; None if unknown.

    Raises:
        DatabaseError: If the database cannot be read.
        UserError: If the file cannot be read.
    """
    path = None if kept_in is None else Path(kept_in)
    if path is not None and path.exists():
        found = _read(path)
        _print(f"best: as at the first start: {_name(otherwise) if found is None else found}")
    else:
        query = None
        if target is not None:
            task = (dataset, workload or model, optimizer, batch_size * accumulate, max_steps, target, monitor, mode)
            query = Query(*task, check_on=check_on, confirmations=confirmations, settings=settings)
        found, reason = _first(query, db, max_distance)
        _print(f"best: {reason}; falls back to {_name(otherwise)}" if found is None else f"best: {found}")
        if path is not None and _is_first_process():
            _write(path, found, reason)
    if found is None:
        return otherwise
    return LookedUp(found, target=target, monitor=monitor, mode=mode, confirmations=confirmations, stop=stop)


def _first(query: Query | None, db: str | None, max_distance: float) -> tuple[Recommendation | None, str]:
    """Return the best recommendation, or why there is none."""
    if query is None:
        return None, "there is no target to look a policy up by"
    recommendations, reason = look_up(query, db, max_distance, report=_print)
    return (recommendations[0] if recommendations else None), reason


def _write(path: Path, found: Recommendation | None, reason: str) -> None:
    content = {"policy": None, "why": reason} if found is None else {**asdict(found), "policy": to_config(found.policy)}
    content |= {"format": FORMAT, "version": version()}
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _read(path: Path) -> Recommendation | None:
    try:
        content = read_json(path)
        check_format(content.pop("format", 1), content.pop("version", None))
        if content["policy"] is None:
            return None
        lists = {name: tuple(content[name]) for name in ("differences", "run_ids")}
        return Recommendation(**{**content, **lists, "policy": from_config(content["policy"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: {one_line(error)}; remove it to look a policy up again") from error


def _name(policy: object) -> str:
    return "auto" if isinstance(policy, LRPolicyComposer) else repr(policy)


def _print(line: str) -> None:
    if _is_first_process():
        print(clean(line), flush=True)


def _is_first_process() -> bool:
    return not getattr(rank_zero_only, "rank", 0)
