"""For projects and training scripts of one's own: the callback from a configuration, and a result to rank."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench_pl.callbacks.fits import result_fields
from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
from lrbench_pl.runs.result import RunResult
from lrbench_pl.saving import outcome_fields, policy_fields, save
from lrbench_pl.verdict import TargetCheck

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def policy_callback(policy: Callable[[int], float] | LRPolicyCallback, **arguments: Any) -> LRPolicyCallback:
    """The callback that applies a policy of the group ``lr_policy``, whichever it is.

    Args:
        policy: A policy, or the callback that some choices of the group are themselves (``auto``, ``best``).
        **arguments: Those of :class:`~lrbench_pl.callbacks.lr_policy.LRPolicyCallback`; a callback has its own.

    Raises:
        ValueError: If a further policy, such as ``momentum_policy``, is given beside a callback.

    Example:
        >>> from lrbench_pl.policies import Constant
        >>> policy_callback(Constant(0.1), target=0.9).target
        0.9
    """
    if not isinstance(policy, LRPolicyCallback):
        return LRPolicyCallback(policy, **arguments)
    if further := [name for name in ("momentum_policy", "weight_decay_policy", "groups") if arguments.get(name)]:
        raise ValueError(
            f"{further[0]} needs a policy of fixed steps, but lr_policy is {type(policy).__name__}, which sets the "
            "rate alone; leave one out"
        )
    return policy


def write_result(
    source: Trainer | TargetCheck,
    folder: str | Path,
    *,
    policy: Callable[[int], float] | str | None = None,
    name: str | None = None,
    **fields: Any,
) -> RunResult:
    """Write ``result.json``, ``metrics.csv`` and ``policy.yaml`` of a training, for ``lrbench rank``.

    Args:
        source: A Trainer after a fit that had an ``LRPolicyCallback``, or the ``TargetCheck`` of a loop of your own.
        folder: Where to write; each run has its own.
        policy: With a ``TargetCheck``, the policy that was applied. A Trainer knows it; there it may be its name.
        name: Name of the policy; by default Hydra's choice for ``lr_policy`` in a Hydra job with a Trainer, else the
            policy's repr.
        **fields: Fields of :class:`~lrbench_pl.runs.result.RunResult` that the source does not know, such as
            ``test_accuracy``, or that are to be named otherwise. Without them ``model``, ``dataset`` and ``optimizer``
            of a Trainer are the names of the classes, and ``seed`` is that of Lightning's ``seed_everything``.

    Returns:
        The result as it was written.

    Raises:
        ValueError: If the trainer has no ``LRPolicyCallback``, a ``TargetCheck`` comes without its policy, or a field
            is unknown or of the wrong kind.

    Example:
        >>> import tempfile
        >>> from lrbench_pl.policies import Constant
        >>> check = TargetCheck(target=0.9, max_steps=100)
        >>> check.update(100, 0.8)
        False
        >>> write_result(check, tempfile.mkdtemp(), policy=Constant(0.1), dataset="digits", seed=0).status
        'missed'
    """
    if isinstance(source, TargetCheck):
        if not callable(policy):
            raise ValueError(f"expected the policy that was applied beside a TargetCheck, got policy={policy!r}")
        applied, checks, records, is_first = policy, source.checks, (), True
        run_id = os.path.basename(os.path.abspath(folder))
        known = {
            **policy_fields(policy, source.max_steps),
            **outcome_fields(source.verdict, source),
            "run_id": run_id,
        }
    else:
        callback = next((each for each in source.callbacks if isinstance(each, LRPolicyCallback)), None)  # type: ignore[attr-defined]
        if callback is None:
            raise ValueError("expected a Trainer with an LRPolicyCallback among its callbacks, got one without")
        if policy is not None and not isinstance(policy, str):
            raise ValueError(f"the Trainer knows its policy; policy= may be a name for it, got {policy!r}")
        applied, checks, is_first = callback.policy, callback.checks, source.is_global_zero
        records = getattr(callback, "records", ())
        known, name = result_fields(source, callback, folder), name or policy
    result = RunResult.from_dict({**known, **({} if name is None else {"policy": name}), **fields})
    if is_first:
        save(folder, result.to_dict(), applied, checks, records)
    return result
