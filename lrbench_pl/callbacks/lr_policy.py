"""The Lightning callback that applies a learning-rate policy and says whether it reached its target."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning import Callback
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from lrbench_pl.policies import AdaptivePolicy
from lrbench_pl.verdict import Check, Mode, Status, Verdict, best_check, check_target, first_confirmed

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer
    from torch.utils.hooks import RemovableHandle

# On an accelerator or with several processes, looking at the loss waits for the device or for the others:
# there it is looked at this often. On one CPU process it is looked at on every step.
_STEPS_BETWEEN_LOOKS = 32

# Callbacks of Lightning that set the learning rate themselves, and what to use instead.
_OTHER_WRITERS = {
    "StochasticWeightAveraging": "use EMAWeightAveraging, which leaves the rate alone",
    "BackboneFinetuning": "add the backbone's group yourself, with lr_scale for its share of the rate",
}


class LRPolicyError(RuntimeError):
    """A training in which the policy's verdict would not be true; the message says what to change."""


class LRPolicyCallback(Callback):
    """Sets the learning rate of every optimizer step to a policy's value, and checks a target.

    At step ``t`` of the optimizer each parameter group has ``policy(t) * group.get("lr_scale", 1.0)``. If something
    else changes it before the step, the fit fails. After each validation the monitored metric is compared with the
    target; when it is confirmed, training stops on all ranks together. A non-finite training loss stops it too. The
    outcome is in :attr:`verdict`; each fit has its own.

    Works in any Lightning ``Trainer`` with any ``LightningModule`` that logs the metric in validation (under
    several processes with ``sync_dist=True``). The module must not bring a learning-rate scheduler: two writers
    of one rate would make the verdict untrue.

    Steps are those of the optimizer that the policy drives. Steps that a ``GradScaler`` skips are none.

    Args:
        policy: Maps the number of optimizer steps taken, from 0, to a learning rate. An ``AdaptivePolicy``
            is also told every checked value; every fit begins with its initial state.
        target: Value that the monitor has to reach (equality suffices), or None for no target.
        monitor: Name under which the module logs the metric in validation. A validation that does not log it is no
            check; the first one has to.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        confirmations: Checks in a row that must meet the target.
        stop: Whether to stop training once the target is confirmed.
        optimizer_index: Which optimizer the policy drives, needed when the module has several.

    Raises:
        ValueError: If ``target`` is not finite or out of the metric's range, ``mode`` unknown or
            ``confirmations`` below 1.
        LRPolicyError: At the start of a fit, if a scheduler, a callback or another policy sets the same rates, if
            parameter groups have different rates and no ``lr_scale``, if there are several optimizers and no index,
            or if a target is given and nothing will validate; at a step, if the policy gives no rate or something
            else changed it; at the first check, if the monitor was not logged (the message lists what was).

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
        policy: Callable[[int], float],
        target: float | None = None,
        monitor: str = "val/accuracy",
        mode: Mode = "max",
        confirmations: int = 1,
        stop: bool = True,
        optimizer_index: int | None = None,
    ) -> None:
        if not callable(policy):
            raise ValueError(f"policy must be callable: t -> learning rate, got {policy!r}")
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
        check_target(target, monitor, mode)
        if isinstance(confirmations, bool) or not isinstance(confirmations, int) or confirmations < 1:
            raise ValueError(f"confirmations must be an integer of at least 1, got {confirmations!r}")
        self.policy = policy
        self.target = target
        self.monitor = monitor
        self.mode: Mode = mode
        self.confirmations = confirmations
        self.stop = stop
        self.optimizer_index = optimizer_index
        self._adaptive = policy if isinstance(policy, AdaptivePolicy) else None
        self._initial_state = None if self._adaptive is None else copy.deepcopy(self._adaptive.state_dict())
        self._trainer: Any = None
        self._found: Any = None  # the driven optimizer as the Trainer lists it
        self._optimizer: Any = None
        self._handles: list[RemovableHandle] = []
        self._detach()
        self._reset()

    def _reset(self) -> None:
        """Forget the last fit; a checkpoint is loaded after this."""
        self.checks: list[Check] = []
        self._steps_run = 0  # steps of the driven optimizer
        self._is_counted = False  # whether they are known
        self._ended_as: tuple[Status, str] | None = None
        self._used_budget = False
        self._clock = _Stopwatch()
        self._look_every = 1
        self._unseen = 0  # batches since the last look, and the sum of their losses
        self._unseen_loss: torch.Tensor | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict so far; final once the fit has ended."""
        hit = self._hit()
        best = best_check(self.checks, self.mode)
        status, message = self._status(hit, best)
        return Verdict(
            status=status,
            message=message,
            steps_to_target=hit.step if hit else None,
            seconds_to_target=hit.seconds if hit else None,
            best_value=best.value if best else None,
            best_step=best.step if best else None,
            final_value=self.checks[-1].value if self.checks else None,
            steps_run=self._steps_run,
            checks=tuple(self.checks),
        )

    def _hit(self) -> Check | None:
        if self.target is None:
            return None
        return first_confirmed(self.checks, self.target, self.mode, self.confirmations)

    def _status(self, hit: Check | None, best: Check | None) -> tuple[Status, str]:
        if hit is not None:
            return "reached", f"reached {self.target:g} at step {hit.step}"
        if self._ended_as is not None:
            return self._ended_as
        if not self._used_budget:
            return "stopped", f"at step {self._steps_run}: the training has not ended"
        best_words = f"best {best.value:.4g} at step {best.step}" if best else f"{self.monitor} was never checked"
        if self.target is None:
            return "missed", f"no target was set; {best_words}"
        message = f"missed {self.target:g} within {_count(self._steps_run)}; {best_words}"
        if self.checks and self.checks[-1].step < self._steps_run:
            message += f"; the last check was at step {self.checks[-1].step}, so the steps after it were not judged"
        return "missed", message

    # -- before training ------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin each fit anew; resuming loads the state after this."""
        if stage == "fit":
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
        self._refuse_other_writers(trainer)
        self._count_from(trainer)
        self._attach(trainer)
        if self.target is not None and not trainer.enable_validation:
            raise LRPolicyError(
                f"a target for {self.monitor!r} needs validation, but this fit runs none; give the Trainer "
                "validation data, or set target=None"
            )
        on_cpu = pl_module.device.type == "cpu"
        self._look_every = 1 if on_cpu and trainer.world_size == 1 else _STEPS_BETWEEN_LOOKS
        self._unseen, self._unseen_loss = 0, None
        self._ended_as = None
        self._clock.start()

    def _refuse_other_writers(self, trainer: Trainer) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if sum(isinstance(callback, LRPolicyCallback) for callback in callbacks) > 1:
            raise LRPolicyError("expected one LRPolicyCallback in the Trainer, got several; keep one of them")
        for callback in callbacks:
            for kind in type(callback).__mro__:  # by name: each of Lightning's two packages has its own
                if kind.__name__ in _OTHER_WRITERS and kind.__module__.startswith(("pytorch_lightning.", "lightning.")):
                    advice = _OTHER_WRITERS[kind.__name__]
                    raise LRPolicyError(f"{type(callback).__name__} sets the learning rate too; remove it, or {advice}")

    def _count_from(self, trainer: Trainer) -> None:
        if not self._is_counted:  # a checkpoint without this callback's state has Lightning's count alone
            self._steps_run, self._is_counted = trainer.global_step, True

    def _find_optimizer(self, trainer: Trainer) -> torch.optim.Optimizer:
        optimizers = trainer.optimizers
        if not any(optimizer.param_groups for optimizer in optimizers):  # Lightning stands in for a missing one
            raise LRPolicyError("the module has no optimizer: return one from configure_optimizers()")
        if self.optimizer_index is None and len(optimizers) > 1:
            raise LRPolicyError(
                f"the module has {len(optimizers)} optimizers; say which one the policy drives with optimizer_index="
            )
        index = self.optimizer_index or 0
        if not 0 <= index < len(optimizers):
            raise LRPolicyError(f"optimizer_index must lie in [0, {len(optimizers) - 1}], got {index}")
        optimizer = optimizers[index]
        for config in trainer.lr_scheduler_configs:
            if config.scheduler.optimizer in (optimizer, getattr(optimizer, "optimizer", None)):
                raise LRPolicyError(
                    f"{type(config.scheduler).__name__} from configure_optimizers() sets the learning rate too; "
                    "return the optimizer alone and let the policy set it"
                )
        return optimizer

    # -- each step ------------------------------------------------------------------------------------------

    def _attach(self, trainer: Trainer) -> None:
        """Watch the steps of the optimizer as it is now."""
        found = self._find_optimizer(trainer)
        self._detach()
        # what Lightning wraps it in has no hooks of its own
        optimizer = getattr(found, "_optimizer", found) if type(found).__name__ == "LightningOptimizer" else found
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise LRPolicyError(
                f"the steps of {type(optimizer).__name__} cannot be counted: it is not a torch.optim.Optimizer, or "
                "does not call super().__init__()"
            )
        self._trainer, self._found, self._optimizer = trainer, found, optimizer
        groups = optimizer.param_groups
        rates = [_number(group["lr"]) for group in groups if "lr_scale" not in group]
        if any(not _is_same(rate, rates[0]) for rate in rates):
            shown = ", ".join(f"{rate:g}" for rate in rates)
            share = min(rates) / max(rates)
            raise LRPolicyError(
                f"the parameter groups have different learning rates ({shown}), but the policy sets them all; give "
                f"each group its share of the policy's rate, such as {{'params': ..., 'lr_scale': {share:g}}}"
            )
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._trainer = self._found = self._optimizer = None
        self._step = -1  # the step whose rate is set; -1: none
        self._written: list[Any] = []  # the rate of each group, as it was set
        self._is_stepping = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rate of the coming optimizer step, once also when several batches make one step."""
        if trainer.optimizers[self.optimizer_index or 0] is not self._found:  # set up again
            self._attach(trainer)
        if self._step != self._steps_run or len(self._written) != len(self._optimizer.param_groups):
            self._write()

    def _write(self) -> None:
        step, groups, lr = self._steps_run, self._optimizer.param_groups, self._rate(self._steps_run)
        if len(groups) > len(self._written) > 0:
            self._refuse_unequal(groups[len(self._written) :])
        self._step, self._written = step, (written := [])
        for group in groups:
            scaled = lr * group["lr_scale"] if "lr_scale" in group else lr
            if type(group["lr"]) is float:
                group["lr"] = scaled
                written.append(scaled)
            else:
                written.append(self._fill(group, scaled))
        trainer = self._trainer
        every = trainer.log_every_n_steps
        if every and (step == 0 or (step + 1) % every == 0):
            for logger in trainer.loggers:
                logger.log_metrics({"lr": lr}, step=step)

    def _fill(self, group: dict[str, Any], scaled: float) -> Any:
        """Set a rate in place if it is a tensor: capturable and compiled optimizers read it there."""
        tensor = group["lr"]
        if not isinstance(tensor, torch.Tensor):
            group["lr"] = scaled
            return scaled
        if any(each[0] is tensor for each in self._written if type(each) is tuple):  # torch puts one into every group
            group["lr"] = tensor = tensor.clone()
        tensor.fill_(scaled)
        return tensor, tensor._version, scaled

    def _rate(self, step: int) -> float:
        given = self.policy(step)
        try:
            lr = float(given)
        except (TypeError, ValueError):
            lr = math.nan
        if 0 <= lr < math.inf:
            return lr
        raise LRPolicyError(
            f"the policy gave {given!r} as the learning rate of step {step}; expected a finite number of at least 0"
        )

    def _refuse_unequal(self, added: Sequence[Mapping[str, Any]]) -> None:
        """Refuse groups that were added with a rate of their own, which the policy would overwrite."""
        usual = [_number(self._optimizer.defaults.get("lr"))]
        usual += [
            _number(group["lr"]) for group in self._optimizer.param_groups[: -len(added)] if "lr_scale" not in group
        ]
        for group in added:
            rate = _number(group["lr"])
            if "lr_scale" not in group and not any(_is_same(rate, each) for each in usual):
                raise LRPolicyError(
                    f"a parameter group added before step {self._steps_run} has a learning rate of its own ({rate:g}), "
                    "but the policy sets them all; add it with its share of the policy's rate as lr_scale instead"
                )

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._verify()
        if self._step != self._steps_run or len(self._written) != len(optimizer.param_groups):  # several per batch
            self._write()
        self._is_stepping = True

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not self._is_stepping:  # a step within a step, of a subclass, was this one
            return
        self._is_stepping = False
        self._verify()
        skipped = optimizer.__dict__.get("found_inf")  # a GradScaler leaves it to a fused optimizer to skip
        if skipped is None or not float(skipped):
            self._steps_run += 1

    def _verify(self) -> None:
        """Fail if anything else changed a rate since it was written."""
        for group, written in zip(self._optimizer.param_groups, self._written):  # noqa: B905  (called twice a step)
            if group["lr"] is not written:
                self._compare(group["lr"], written)

    def _compare(self, lr: Any, written: Any) -> None:
        expected = written
        if type(written) is tuple:
            tensor, version, expected = written
            if lr is tensor and lr._version == version:
                return
        if not _is_same(_number(lr), expected):
            raise LRPolicyError(
                f"the policy set the learning rate of step {self._step} to {expected:g}, but the optimizer found "
                f"{_number(lr):g}: something else sets it too, such as optimizer_step(), a scheduler or a callback; "
                "remove one of the two"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Watch for a loss that is no longer a number."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, torch.Tensor):
            return
        if self._look_every == 1:
            if not math.isfinite(loss.item()):
                self._diverge(trainer)
            return
        # A sum keeps NaN and infinity: one look tells of all losses since the last.
        self._unseen_loss = loss.detach() if self._unseen_loss is None else self._unseen_loss + loss.detach()
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
        self._end(trainer, "diverged", f"the training loss became non-finite {when}; try a lower learning rate")

    def _end(self, trainer: Trainer, status: Status, message: str) -> None:
        self._ended_as = (status, message)
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
        self.checks.append(Check(self._steps_run, value, self._clock.seconds))
        if self._adaptive is not None:
            self._adaptive.observe(self._steps_run, value)
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
            found = None if _is_of_before(trainer, self.monitor) else plain_number(metrics[self.monitor])
        found = trainer.strategy.broadcast(found)  # rank 0 decides for all, so that they stop together
        if isinstance(found, str):
            raise LRPolicyError(
                f"monitor {self.monitor!r} was not logged in validation; logged were: {found}. "
                "Set monitor= to one of them or log it with self.log() in validation_step"
            )
        return found

    # -- the end --------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note whether the budget was used, or what ended the training before."""
        self._look(trainer)
        self._conclude(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same for a fit that had no step left to take, such as one resumed at its end."""
        self._conclude(trainer)

    def _conclude(self, trainer: Trainer) -> None:
        if self._used_budget:
            return
        self._clock.stop()
        self._detach()
        self._count_from(trainer)
        if self._ended_as is not None:
            return
        early = _why_early(trainer)
        self._used_budget = early is None
        if self._hit() is not None:
            return
        if early is not None:
            of = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
            self._ended_as = ("stopped", f"stopped at step {self._steps_run}{of}: {early}")
        elif self.target is not None and not self.checks:
            rank_zero_warn(
                f"{self.monitor!r} was never checked in {_count(self._steps_run)}; set the Trainer's "
                "val_check_interval to a smaller number of batches"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep an interrupted or failed training's verdict."""
        if trainer.state.fn is None or trainer.state.fn.value != "fit":  # testing after a fit changes no verdict
            return
        self._clock.stop()
        self._detach()
        self._count_from(trainer)
        if isinstance(exception, KeyboardInterrupt):
            self._ended_as = ("stopped", f"interrupted at step {self._steps_run}")
        else:
            self._ended_as = ("failed", f"{type(exception).__name__}: {exception}")

    # -- resuming -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What cannot be computed again: steps, checks, seconds and what an adaptive policy observed."""
        return {
            "steps": self._steps_run,
            "checks": [asdict(check) for check in self.checks],
            "seconds": self._clock.seconds,
            "policy": self._adaptive.state_dict() if self._adaptive is not None else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.checks = [Check(**check) for check in state_dict["checks"]]
        self._clock = _Stopwatch(state_dict["seconds"])
        if "steps" in state_dict:  # absent from checkpoints of version 0.1
            self._steps_run, self._is_counted = state_dict["steps"], True
        if self._adaptive is not None and state_dict["policy"] is not None:
            self._adaptive.load_state_dict(state_dict["policy"])


def plain_number(metric: torch.Tensor | float) -> float:
    """A logged metric as the decimal number that was meant.

    Lightning keeps metrics as float32, in which 19 of 20 right is 0.949999988: a target of 0.95 would be missed at
    equality. Seven significant digits are what float32 can tell apart.

    Example:
        >>> plain_number(torch.tensor(19) / 20), plain_number(0.1)
        (0.95, 0.1)
    """
    return float(f"{float(metric):.7g}")


def _in_fit(trainer: Trainer) -> bool:
    """Whether a validation belongs to training: neither the sanity check nor ``trainer.validate()``."""
    # compared by value: `lightning` and `pytorch_lightning` each have their own enum of these states
    return trainer.state.fn is not None and trainer.state.fn.value == "fit" and not trainer.sanity_checking


def _is_of_before(trainer: Trainer, name: str) -> bool:
    """Whether a metric is known from an earlier validation and was not logged in this one."""
    results: Any = trainer._results
    logged = [each for each in results.values() if name in results._forked_name(each, on_step=False)]
    return bool(logged) and all(each.has_reset for each in logged)


def _why_early(trainer: Trainer) -> str | None:
    """What ended a fit before its budget was used; None if the budget was used."""
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


def _number(lr: Any) -> float:
    return math.nan if lr is None else float(lr)


def _is_same(rate: float, other: float) -> bool:
    """Whether two rates are one, up to the precision of float32 tensors."""
    return math.isclose(rate, other, rel_tol=1e-6) or (math.isnan(rate) and math.isnan(other))


def _count(steps: int) -> str:
    return f"{steps} step" if steps == 1 else f"{steps} steps"


class _Stopwatch:
    """Seconds in all between starts and stops."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._before + running

    def start(self) -> None:
        self.stop()
        self._started = time.perf_counter()

    def stop(self) -> None:
        self._before = self.seconds
        self._started = None
