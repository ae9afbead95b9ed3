"""``lr_policy=best``: the policy that worked here before, applied and verified like any other."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pytorch_lightning.utilities import rank_zero_only

from lrbench_pl.callback import LRPolicyCallback
from lrbench_pl.policies import Policy, to_config
from lrbench_pl.tuning.composer import LRPolicyComposer
from lrbench_pl.tuning.lookup import Question, Recommendation, ask

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class LookedUp(LRPolicyCallback):
    """Applies a policy that was looked up. Under several processes it is that of the first, whatever the others found.

    Args:
        recommendation: What was found.
        **arguments: Those of :class:`~lrbench_pl.callback.LRPolicyCallback`.
    """

    def __init__(self, recommendation: Recommendation, **arguments: Any) -> None:
        super().__init__(recommendation.policy, **arguments)
        self.recommendation = recommendation

    @property
    def found(self) -> dict[str, Any]:
        """What was found and why, as plain data."""
        return {**asdict(self.recommendation), "policy": to_config(self.recommendation.policy)}

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
    target_accuracy: float | None,
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
) -> Policy | LRPolicyCallback:
    """What the policy database recommends, as the callback that verifies it; says in one line what it found.

    Args:
        dataset: Name of the data set, as in ``result.json``.
        model: Name of the model.
        optimizer: Name of the optimizer.
        batch_size: Samples per batch and process.
        max_steps: The budget, in optimizer steps.
        target_accuracy: The target; None: there is nothing to look a policy up by.
        monitor: The metric that is compared with the target.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        check_on: ``validation`` or ``test``; None: either.
        otherwise: What is run instead if nothing is suitable.
        accumulate: Batches per optimizer step.
        workload: Name of a whole workload, which stands for the model.
        db: The database, see :class:`~lrbench_pl.database.PolicyDatabase`. One that is not there holds nothing
            suitable.
        max_distance: Runs further away are not suitable, see :func:`~lrbench_pl.tuning.lookup.distance`.
        confirmations: Checks in a row that must meet the target.
        stop: Whether to stop training once the target is confirmed.

    Raises:
        DatabaseError: If the database cannot be read.
    """
    why, answer = "there is no target to look a policy up by", None
    if target_accuracy is not None:
        question = Question(
            dataset=dataset,
            model=workload or model,
            optimizer=optimizer,
            batch_size=batch_size * accumulate,
            max_steps=max_steps,
            target_accuracy=target_accuracy,
            monitor=monitor,
            mode=mode,
            check_on=check_on,
        )
        answer, why = ask(question, db, max_distance, say=_say)
    if answer is None or not answer.recommendations:
        _say(f"best: {why}; falls back to {_named(otherwise)}")
        return otherwise
    first = answer.recommendations[0]
    _say(f"best: {first}")
    return LookedUp(
        first, target_accuracy=target_accuracy, monitor=monitor, mode=mode, confirmations=confirmations, stop=stop
    )


def _named(policy: object) -> str:
    return "auto" if isinstance(policy, LRPolicyComposer) else repr(policy)


def _say(line: str) -> None:
    if not getattr(rank_zero_only, "rank", 0):
        print(line, flush=True)
