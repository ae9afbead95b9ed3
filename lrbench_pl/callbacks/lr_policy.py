"""The Lightning callback that applies a learning-rate policy and gives a verdict on its target."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning import Callback
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from lrbench_pl.callbacks import fits
from lrbench_pl.callbacks.fits import in_fit as _in_fit
from lrbench_pl.callbacks.losses import loss_of
from lrbench_pl.policies import AdaptivePolicy, PerOptimizer, check_values, combined, settings_of
from lrbench_pl.rates import LRPolicyError, RateDriver
from lrbench_pl.saving import check_names, save
from lrbench_pl.stopwatch import Stopwatch
from lrbench_pl.verdict import Check, Mode, Status, TargetCheck, Verdict, best_check, plain_number
from lrbench_pl.words import counted

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

__all__ = ["LRPolicyCallback", "LRPolicyError", "_in_fit", "plain_number"]

# On an accelerator or with several processes, looking at the loss waits for the device or for the others:
# there it is looked at this often. On one CPU process it is looked at on every step.
STEPS_BETWEEN_LOOKS = 32


def divergence(when: str) -> str:
    """Return the message of a run whose loss is no longer finite.

    Args:
        when: The moment, in words.
    """
    return f"the training loss became non-finite {when}; try a lower learning rate"


def unlogged(monitor: str, logged: str) -> LRPolicyError:
    """Return the error of a monitor that no validation logs.

    Args:
        monitor: Its name.
        logged: Names of the metrics that are logged.
    """
    return LRPolicyError(
        f"monitor {monitor!r} was not logged in validation; logged were: {logged}. "
        "Set monitor= to one of them or log it with self.log() in validation_step"
    )


class LRPolicyCallback(Callback):
    """Sets the learning rate of every optimizer step to a policy's value, and checks a target.

    At step ``t`` of the optimizer each parameter group has ``policy(t) * group.get("lr_scale", 1.0)``. If something
    else changes it before the step, the fit fails. After each validation the monitored metric is compared with the
    target; when it is confirmed, training stops on all ranks together. A non-finite training loss stops it too. The
    outcome is in :attr:`verdict`; each fit has its own.

    Works in any Lightning ``Trainer`` with any ``LightningModule`` that logs the metric in validation (under
    several processes with ``sync_dist=True``). The module must not bring a learning-rate scheduler: two writers
    of one rate would make the verdict untrue.

    Steps are those of the optimizer that the policy drives. Steps that a ``GradScaler`` skips are none. With a policy
    for each of several optimizers, each policy counts the steps of its own optimizer, and the verdict those of the
    first one.

    Args:
        policy: Maps the number of optimizer steps taken, from 0, to a learning rate. An ``AdaptivePolicy``
            is also told every checked value; every fit begins with its initial state. A module with several optimizers
            takes a list: one policy for each, in the order in which ``configure_optimizers`` returns them. An
            ``OptimizerPolicy`` sets more than the rate.
        target: Value that the monitor has to reach (equality suffices), or None for no target.
        monitor: Name under which the module logs the metric in validation. A validation that does not log it is no
            check; the first one has to.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        confirmations: Checks in a row that must meet the target.
        stop: Whether to stop training once the target is confirmed.
        optimizer_index: Which optimizer the policy drives, needed when the module has several and the policy is one;
            the others are left alone. With a list of policies, whose steps the verdict counts instead of the first's.
        save_to: Folder for ``result.json``, ``metrics.csv`` and, where the policy can be stored, ``policy.yaml``, which
            ``lrbench rank``, ``report`` and ``db`` read. They are written at the end of a fit, also of one that failed
            or was interrupted. Each training needs its own folder; None writes nothing.
        save_as: Fields of the result that the Trainer does not know, such as ``{"dataset": "digits", "batch_size":
            64}``, or that are to be named otherwise: ``run_id``, ``study``, ``policy``, ``dataset``, ``model``,
            ``optimizer``, ``batch_size``, ``seed``.
        groups: Policies of single parameter groups, by the ``name`` of the group in the optimizer or its index. They
            replace ``policy`` there, and are multiplied by the group's ``lr_scale`` too.
        momentum_policy: Policy of the optimizer's ``momentum``, or of the first of its ``betas``, with values in
            [0, 1). Groups whose momentum is 0 beside others keep it.
        weight_decay_policy: Policy of the weight decay, with values of at least 0. Groups whose weight decay is 0
            beside others keep it.

    Attributes:
        policy: All policies as one: the policy itself if it is the only one, else an ``OptimizerPolicy`` or, for
            several optimizers, a ``PerOptimizer``.

    Raises:
        ValueError: If ``target`` is not finite or out of the metric's range, ``mode`` unknown, ``confirmations``
            below 1, a field of ``save_as`` unknown or of the wrong kind, or a policy not of the kind that is needed.
        LRPolicyError: At the start of a fit, if a scheduler, a callback or another policy sets the same rates, if
            parameter groups have different rates and no ``lr_scale``, if there are several optimizers and neither an
            index nor a policy for each, if the optimizer has no such group or setting, if a target is given and nothing
            will validate, or if ``save_to`` holds the result of another training; at a step, if a policy gives no valid
            value or something else changed it; at the first check, if the monitor was not logged (the message lists
            what was).

    Example:
        >>> from lrbench_pl.policies import Polynomial
        >>> callback = LRPolicyCallback(Polynomial(init_lr=0.1, decay_steps=1000), target=0.97)
        >>> callback.policy(500)
        0.05
    """

    # Lightning wraps each hook of each callback in its profiler, at 1 to 2 microseconds even when the hook is empty,
    # and skips what cannot be called: four fewer for every step.
    on_before_zero_grad: Any = None
    on_before_backward: Any = None
    on_after_backward: Any = None
    on_before_optimizer_step: Any = None

    def __init__(
        self,
        policy: Callable[[int], float] | Sequence[Callable[[int], float]],
        target: float | None = None,
        monitor: str = "val/accuracy",
        mode: Mode = "max",
        confirmations: int = 1,
        stop: bool = True,
        optimizer_index: int | None = None,
        save_to: str | Path | None = None,
        save_as: Mapping[str, Any] | None = None,
        groups: Mapping[str | int, Callable[[int], float]] | None = None,
        momentum_policy: Callable[[int], float] | None = None,
        weight_decay_policy: Callable[[int], float] | None = None,
    ) -> None:
        is_list = isinstance(policy, Sequence) and not isinstance(policy, str)
        given: Any = PerOptimizer(tuple(policy)) if is_list else policy  # type: ignore[arg-type]
        if not callable(given):
            raise ValueError(f"policy must be callable: t -> learning rate, got {policy!r}")
        combination: Any = combined(given, momentum_policy, weight_decay_policy, groups)
        self.target_check = TargetCheck(target, monitor, mode, confirmations)
        self.policy: Callable[[int], float] = combination
        self.target = target
        self.monitor = monitor
        self.mode: Mode = mode
        self.confirmations = confirmations
        self.stop = stop
        self.optimizer_index = optimizer_index
        self.save_to = save_to
        self.save_as = check_names(save_as or {})
        self._adaptive = combination if isinstance(combination, AdaptivePolicy) else None
        self._initial_state = None if self._adaptive is None else copy.deepcopy(self._adaptive.state_dict())
        self._found: Any = None  # the driven optimizer as the Trainer lists it
        self._driver: RateDriver | None = None
        self._further: dict[int, tuple[Any, RateDriver]] = {}  # of other optimizers with a policy, by index
        # at the end of a fit: its Trainer with Lightning's count, the steps of the driven optimizer and of others
        self._before: tuple[tuple[int, int], int, dict[int, int]] = ((0, 0), 0, {})
        self._reset()

    def _reset(self) -> None:
        """Forget the last fit; a checkpoint is loaded after this."""
        self.target_check = TargetCheck(self.target, self.monitor, self.mode, self.confirmations)
        self._is_counted = False  # whether the steps of the driven optimizer are known
        self._further_steps: dict[int, int] = {}  # steps of other optimizers with a policy, while none is driven
        self._clock = Stopwatch()
        self._look_every = 1
        self._unseen = 0  # batches since the last look, and the sum of their losses
        self._unseen_loss: torch.Tensor | None = None

    @property
    def checks(self) -> list[Check]:
        """Every check of this fit, in order."""
        return self.target_check.checks

    @property
    def verdict(self) -> Verdict:
        """The verdict so far; final once the fit has ended."""
        hit = self._hit()
        self.target_check.steps_run = self._steps_run
        status, message = self._status(hit, best_check(self.checks, self.mode))
        return replace(self.target_check.verdict_of(hit), status=status, message=message)

    def _hit(self) -> Check | None:
        return self.target_check.hit

    def _status(self, hit: Check | None, best: Check | None) -> tuple[Status, str]:
        return self.target_check.status_of(hit)

    @property
    def _steps_run(self) -> int:
        """Steps of the driven optimizer."""
        return self.target_check.steps_run if self._driver is None else self._driver.step

    @property
    def _ended_as(self) -> tuple[Status, str] | None:
        return self.target_check.ended_as

    # -- before training ------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin each fit anew; resuming loads the state after this."""
        if stage == "fit":
            if self.save_to is None:
                fits.refuse_lost_verdict(trainer)
            self._detach()
            self._reset()
            self._forget_observations()

    def _forget_observations(self) -> None:
        if callable(reset := getattr(self._adaptive, "reset", None)):
            reset()
        elif self._adaptive is not None:
            self._adaptive.load_state_dict(copy.deepcopy(self._initial_state or {}))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a training in which the policy would not be the only writer of its rates."""
        fits.refuse_other_writers(trainer, LRPolicyCallback)
        self._count_from(trainer)
        self._attach(trainer)
        try:
            if len(settings_of(self.policy)) > 1:
                check_values(self.policy, fits.budget_of(trainer))
        except ValueError as error:
            raise LRPolicyError(str(error)) from error
        if self.target is not None and not trainer.enable_validation:
            raise LRPolicyError(
                f"a target for {self.monitor!r} needs validation, but this fit runs none; give the Trainer "
                "validation data, or set target=None"
            )
        if self.save_to is not None and self._steps_run == 0:
            fits.refuse_other_result(self.save_to, self._result_fields(trainer), self)
        on_cpu = pl_module.device.type == "cpu"
        self._look_every = 1 if on_cpu and trainer.world_size == 1 else STEPS_BETWEEN_LOOKS
        self._unseen, self._unseen_loss = 0, None
        self.target_check.ended_as = None
        self._clock.start()

    def _count_from(self, trainer: Trainer) -> None:
        """Take over the steps before this fit, of an earlier fit of this Trainer or of a checkpoint without a count."""
        if self._is_counted:
            return
        counted_for, steps, further = self._before
        if counted_for == (id(trainer), trainer.global_step):
            self.target_check.steps_run, self._further_steps = steps, further
        elif trainer.global_step and not self._steps_run and len(trainer.optimizers) > 1:
            raise LRPolicyError(
                f"it is not known how many of the {trainer.global_step} steps so far each optimizer took, since no "
                "LRPolicyCallback has counted them; resume from a checkpoint that was written with one"
            )
        else:
            self.target_check.steps_run = trainer.global_step
        self._is_counted = True

    def _find_optimizer(self, trainer: Trainer) -> torch.optim.Optimizer:
        return fits.driven_optimizer(trainer, self.optimizer_index)

    # -- each step ------------------------------------------------------------------------------------------

    def _attach(self, trainer: Trainer) -> None:
        """Drive the optimizers as they are now."""
        self._detach()
        policies = self.policy.policies if isinstance(self.policy, PerOptimizer) else None
        if policies is None:
            self._found, self._driver = self._drive(trainer, self._find_optimizer(trainer), self.policy)
            return
        counted_one = self.optimizer_index or 0
        optimizers = fits.driven_optimizers(trainer, len(policies), counted_one)
        for index, (found, policy) in enumerate(zip(optimizers, policies, strict=True)):
            if index == counted_one:
                self._found, self._driver = self._drive(trainer, found, policy, index)
            else:
                self._further[index] = self._drive(trainer, found, policy, index, self._further_steps.get(index, 0))

    def _drive(
        self, trainer: Trainer, found: Any, policy: Any, index: int = 0, step: int | None = None
    ) -> tuple[Any, RateDriver]:
        # what Lightning wraps it in has no hooks of its own
        optimizer = getattr(found, "_optimizer", found) if type(found).__name__ == "LightningOptimizer" else found
        every, loggers = trainer.log_every_n_steps, trainer.loggers  # type: ignore[attr-defined]
        prefix = f"optimizer_{index}/" if index else ""

        def log(driver: RateDriver) -> None:
            step = driver.step
            if step == 0 or (step + 1) % every == 0:
                values = {f"{prefix}{name}": value for name, value in driver.values().items()}
                for logger in loggers:
                    logger.log_metrics(values, step=step)

        step = self._steps_run if step is None else step
        return found, RateDriver(optimizer, policy, step, on_write=log if every and loggers else None)

    def _write_again(self) -> None:
        """Let the rate of the step that is due be written again, also if batches of that step have run already."""
        if self._driver is not None:
            self._driver.forget()

    def _detach(self) -> None:
        if self._driver is not None:
            self.target_check.steps_run = self._driver.step
            self._driver.detach()
        for index, (_, driver) in self._further.items():
            self._further_steps[index] = driver.step
            driver.detach()
        self._found = self._driver = None
        self._further = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rate of the coming optimizer step, once also when several batches make one step."""
        if trainer.optimizers[self.optimizer_index or 0] is not self._found or (
            self._further and any(trainer.optimizers[index] is not found for index, (found, _) in self._further.items())
        ):  # set up again
            self._attach(trainer)
        self._driver.write_if_due()  # type: ignore[union-attr]
        for _, driver in self._further.values():
            driver.write_if_due()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Watch for a loss that is no longer a number."""
        loss = loss_of(outputs)
        if loss is None:
            return
        if self._look_every == 1:
            if not math.isfinite(loss.item()):
                self._diverge(trainer)
            return
        # A sum keeps NaN and infinity: one look tells of all losses since the last.
        self._unseen_loss = loss if self._unseen_loss is None else self._unseen_loss + loss
        self._unseen += 1
        if self._unseen == self._look_every:
            self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        if self._look_every == 1:
            return
        lost = self._unseen_loss is not None and not bool(torch.isfinite(self._unseen_loss))
        self._unseen, self._unseen_loss = 0, None
        if trainer.strategy.reduce_boolean_decision(lost, all=False):
            self._diverge(trainer)

    def _diverge(self, trainer: Trainer) -> None:
        if self._ended_as is not None:  # the first counts, also when min_steps lets the training go on
            return
        step = self._steps_run
        when = f"at step {step}" if self._look_every == 1 else f"within {self._look_every} batches before step {step}"
        self._end(trainer, "diverged", divergence(when))

    def _end(self, trainer: Trainer, status: Status, message: str) -> None:
        self.target_check.ended_as = (status, message)
        trainer.should_stop = True

    # -- each check -----------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: validation is not training."""
        if _in_fit(trainer):
            self._look(trainer)
            self._clock.stop()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log steps and seconds beside the metrics, whose own log row is numbered one step too low."""
        if _in_fit(trainer):
            values = {"check/step": float(self._steps_run), "check/seconds": self._clock.seconds}
            pl_module.log_dict(values, sync_dist=trainer.world_size > 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the metric with the target."""
        if not _in_fit(trainer):
            return
        self._check(trainer)
        self._clock.start()

    def _check(self, trainer: Trainer) -> None:
        if self._ended_as is not None:  # diverged; only min_steps lets it go on
            return
        value = self._read_monitor(trainer)
        if value is None:
            return
        self.target_check.update(self._steps_run, value, self._clock.seconds)
        if self._adaptive is not None:
            self._adaptive.observe(self._steps_run, value)
            self._write_again()
        hit = self._hit()
        if hit is not None and self.stop and not trainer.should_stop:
            trainer.should_stop = True
            sign = ">=" if self.mode == "max" else "<="
            rank_zero_info(f"target reached: {self.monitor} {value:.4g} {sign} {self.target:g} at step {hit.step}")

    def _read_monitor(self, trainer: Trainer) -> float | None:
        """The metric, or None if this validation did not measure it."""
        metrics = trainer.callback_metrics
        found: float | str | None
        if self.monitor not in metrics:
            logged = ", ".join(sorted(name for name in metrics if not name.startswith("check/")))
            found = None if self.target is None and self._adaptive is None else logged or "none"
        else:
            found = (
                None if fits.is_of_before(trainer, self.monitor) else plain_number(metrics[self.monitor], self.target)
            )
        found = trainer.strategy.broadcast(found)  # rank 0 decides for all, so that they stop together
        if isinstance(found, str):
            raise unlogged(self.monitor, found)
        return found

    # -- the end --------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note whether the budget was used, or what ended the training before."""
        self._look(trainer)
        self._conclude(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the result; a fit that had no step left to take, such as one resumed at its end, concludes here."""
        self._conclude(trainer)
        self._save_result(trainer)

    def _conclude(self, trainer: Trainer) -> None:
        if self.target_check.is_finished:
            return
        self._clock.stop()
        self._detach()
        self._count_from(trainer)
        self._before = (id(trainer), trainer.global_step), self._steps_run, dict(self._further_steps)
        if self._ended_as is not None:
            return
        early = fits.why_early(trainer)
        self.target_check.is_finished = early is None
        if self._hit() is not None:
            return
        if early is not None:
            most = fits.most_steps(trainer, self._steps_run)
            of = f" of {most}" if most is not None else ""
            self.target_check.end("stopped", f"stopped at step {self._steps_run}{of}: {early}")
        elif self.target is not None and not self.checks:
            rank_zero_warn(
                f"{self.monitor!r} was never checked in {counted(self._steps_run, 'step')}; set the Trainer's "
                "val_check_interval to a smaller number of batches"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep and save an interrupted or failed training's verdict."""
        if trainer.state.fn is None or trainer.state.fn.value != "fit":  # testing after a fit changes no verdict
            return
        self._clock.stop()
        self._detach()
        self._count_from(trainer)
        if isinstance(exception, KeyboardInterrupt):
            self.target_check.ended_as = ("stopped", f"interrupted at step {self._steps_run}")
        else:
            self.target_check.ended_as = ("failed", f"{type(exception).__name__}: {exception}")
        if not isinstance(exception, LRPolicyError) or self._steps_run:  # a refused training leaves no result
            self._save_result(trainer)

    def _result_fields(self, trainer: Trainer) -> dict[str, Any]:
        return {**fits.result_fields(trainer, self, str(self.save_to)), **self.save_as}

    def _save_result(self, trainer: Trainer) -> None:
        if self.save_to is not None and trainer.is_global_zero:
            records = getattr(self, "records", ())  # of a composition
            save(self.save_to, self._result_fields(trainer), self.policy, self.checks, records)

    # -- resuming -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what cannot be computed again: steps, checks, seconds and the state of an adaptive policy."""
        self.target_check.steps_run = self._steps_run
        further = self._further_steps | {index: driver.step for index, (_, driver) in self._further.items()}
        return {
            **self.target_check.state_dict(),
            **({"further_steps": further} if further else {}),
            "seconds": self._clock.seconds,
            "policy": self._adaptive.state_dict() if self._adaptive is not None else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._clock = Stopwatch(state_dict["seconds"])
        self._is_counted = "steps" in state_dict  # absent from checkpoints of version 0.1
        self._further_steps = dict(state_dict.get("further_steps", {}))
        self.target_check.load_state_dict({"steps": self._steps_run, **state_dict})
        if self._adaptive is not None and state_dict["policy"] is not None:
            self._adaptive.load_state_dict(state_dict["policy"])
