"""A target for the Hugging Face ``Trainer``, with a result to rank. Needs ``pip install transformers accelerate``."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrbench_pl.saving import check_names, outcome_fields, policy_fields, save
from lrbench_pl.scheduler import LRPolicyScheduler
from lrbench_pl.stopwatch import Stopwatch
from lrbench_pl.verdict import Check, Mode, TargetCheck, Verdict, plain_number

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "lrbench_pl.huggingface needs transformers, which is not installed: pip install transformers accelerate"
    ) from error


class TargetCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]  # transformers may be absent
    """Compares an evaluation metric with a target, stops training there and saves a result for ``lrbench rank``.

    Give the Trainer its policy as ``optimizers=(optimizer, LRPolicyScheduler(optimizer, policy))``. With a scheduler of
    transformers the verdict is given as well, and the result has the name of that scheduler as its policy.

    Evaluations outside of training and before its first step are no checks. A non-finite training or evaluation loss
    stops training as ``diverged``. A resumed training knows its earlier checks from the Trainer's own log. The result
    is written at each evaluation, so that a training that fails later leaves one that is ``stopped``.

    Args:
        target: Value that the metric has to reach (equality suffices), or None for no target.
        monitor: Name of the metric as the Trainer logs it, such as ``eval_accuracy``.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        confirmations: Evaluations in a row that must meet the target.
        stop: Whether to stop training once the target is confirmed.
        save_to: Folder for ``result.json``, ``metrics.csv`` and ``policy.yaml``; None writes nothing.
        save_as: Fields of the result that the Trainer does not know, such as ``{"dataset": "imdb"}``, or that are to be
            named otherwise: ``run_id``, ``study``, ``policy``, ``dataset``, ``model``, ``optimizer``, ``batch_size``,
            ``seed``.

    Raises:
        ValueError: If an argument is out of its range; at the first evaluation, if it did not measure the metric.

    Example:
        >>> callback = TargetCallback(target=0.9, monitor="eval_accuracy", mode="max")
        >>> callback.verdict.status
        'stopped'
    """

    def __init__(
        self,
        target: float | None = None,
        monitor: str = "eval_loss",
        mode: Mode = "min",
        confirmations: int = 1,
        stop: bool = True,
        save_to: str | Path | None = None,
        save_as: Mapping[str, Any] | None = None,
    ) -> None:
        self._question = (target, monitor, mode, confirmations)
        self.target_check = TargetCheck(*self._question)
        self.stop = stop
        self.save_to = save_to
        self.save_as = check_names(save_as or {})
        self._is_training = False
        self._evaluated: set[str] | None = None  # metrics of evaluations, as long as none measured the monitor
        self._clock: Stopwatch | None = None
        self._fields: dict[str, Any] = {}
        self._scheduler: Any = None

    @property
    def verdict(self) -> Verdict:
        """The verdict so far; final once the training has ended."""
        return self.target_check.verdict

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Begin anew; a resumed training gets its earlier checks from the log."""
        self.target_check = check = TargetCheck(*self._question)
        self._scheduler = parts.get("lr_scheduler")
        self._is_training, self._evaluated = True, None
        self._clock = None
        if state.global_step == 0:
            self._clock = Stopwatch()
            self._clock.start()
        else:  # the seconds before are not known
            logged = [row for row in state.log_history if check.monitor in row and 0 < row["step"] <= state.global_step]
            check.checks = [Check(row["step"], plain_number(row[check.monitor], check.target)) for row in logged]
            check.steps_run = state.global_step
        if self.save_to is not None:
            self._fields = {**self._describe(args, state, parts), **self.save_as}

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Go on measuring: evaluation is over.

        Raises:
            ValueError: If no evaluation measured the metric; there may be one for each of several data sets.
        """
        self._refuse_unmeasured()
        if self._clock is not None and not self._clock.is_running:
            self._clock.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Stop the clock before an evaluation."""
        if self._clock is not None and control.should_evaluate:
            self._clock.stop()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Stop the clock before an evaluation at the end of an epoch."""
        self.on_step_end(args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **parts: Any) -> None:
        """Stop at a training loss that is not finite."""
        if self._is_training and logs is not None and not math.isfinite(logs.get("loss", 0.0)):
            self._diverge(state, control, "training")

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **parts: Any
    ) -> None:
        """Compare the metric with the target."""
        if not self._is_training or state.global_step == 0:
            return
        check, metrics = self.target_check, metrics or {}
        value = metrics.get(check.monitor)
        if value is None:
            if not check.checks:
                self._evaluated = (self._evaluated or set()) | metrics.keys()
            return
        self._evaluated = None
        step = self._steps(state)
        is_reached = check.update(step, value, None if self._clock is None else self._clock.seconds)
        if isinstance(self._scheduler, LRPolicyScheduler) and self._scheduler.is_adaptive:
            self._scheduler.observe(value)
        if not math.isfinite(metrics.get("eval_loss", 0.0)):
            self._diverge(state, control, "evaluation")
        elif is_reached and self.stop:
            control.should_training_stop = True
        self._save(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Note how the training ended and save the result."""
        self._is_training = False
        self._refuse_unmeasured()
        steps = self._steps(state)
        if state.global_step >= state.max_steps:
            self.target_check.finish(steps)
        else:
            self.target_check.steps_run = max(self.target_check.steps_run, steps)
            ended = "a callback ended the training"
            self.target_check.end("stopped", f"stopped at step {steps} of {state.max_steps}: {ended}")
        self._save(state)

    def _refuse_unmeasured(self) -> None:
        if self._evaluated is not None:
            known, self._evaluated = ", ".join(sorted(self._evaluated)) or "none", None
            raise ValueError(
                f"monitor {self.target_check.monitor!r} was not evaluated; evaluated were: {known}. "
                "Set monitor= to one of them or return it from compute_metrics"
            )

    def _steps(self, state: Any) -> int:
        """Steps of the optimizer; the Trainer also counts those that a ``GradScaler`` skips."""
        return int(self._scheduler.last_epoch if isinstance(self._scheduler, LRPolicyScheduler) else state.global_step)

    def _diverge(self, state: Any, control: Any, which: str) -> None:
        step = self._steps(state)
        self.target_check.end(
            "diverged", f"the {which} loss became non-finite by step {step}; try a lower learning rate"
        )
        control.should_training_stop = True

    def _describe(self, args: Any, state: Any, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the result that do not change any more."""
        optimizer = parts.get("optimizer")
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper
        if isinstance(self._scheduler, LRPolicyScheduler):
            policy = policy_fields(self._scheduler.policy, state.max_steps)
        else:
            name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
            policy = {"policy": str(name), "lr": args.learning_rate, "max_steps": state.max_steps}
        return {
            **policy,
            "run_id": os.path.basename(os.path.abspath(str(self.save_to))),
            "model": type(parts.get("model")).__name__,
            "optimizer": type(optimizer).__name__,
            "batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps,
            "seed": args.seed,
        }

    def _save(self, state: Any) -> None:
        if self.save_to is not None and state.is_world_process_zero:
            policy = self._scheduler.policy if isinstance(self._scheduler, LRPolicyScheduler) else None
            fields = {**self._fields, **outcome_fields(self.verdict, self.target_check)}
            save(self.save_to, fields, policy, self.target_check.checks)
