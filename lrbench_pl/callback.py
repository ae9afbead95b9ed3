"""The Lightning callback that applies a learning-rate policy and says whether it reached its target."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from pytorch_lightning import Callback
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from lrbench_pl.policies import AdaptivePolicy
from lrbench_pl.results import Status

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

Mode = Literal["max", "min"]

# On an accelerator or with several processes, looking at the loss waits for the device or for the others:
# there it is looked at this often. On one CPU process it is looked at on every step.
_STEPS_BETWEEN_LOOKS = 32


class LRPolicyError(RuntimeError):
    """A training in which the policy's verdict would not be true; the message says what to change."""


@dataclass(frozen=True)
class Check:
    """One validation during training.

    Args:
        step: Optimizer steps taken before it.
        value: The monitored metric.
        seconds: Seconds spent training before it, validation excluded.
    """

    step: int
    value: float
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """What a training said about its policy. Fields that have no value are None.

    Args:
        status: ``reached``, ``missed``, ``diverged``, ``failed`` or ``stopped``.
        message: The same in words.
        steps_to_target: Optimizer steps at the check that reached the target.
        seconds_to_target: Training seconds there, validation excluded.
        best_value: Best monitored value of all checks.
        best_step: Step of the first check with it.
        final_value: Monitored value at the last check.
        steps_run: Optimizer steps taken.
        checks: Every check, in order.
    """

    status: Status
    message: str
    steps_to_target: int | None
    seconds_to_target: float | None
    best_value: float | None
    best_step: int | None
    final_value: float | None
    steps_run: int
    checks: tuple[Check, ...]


def meets(value: float, target: float, mode: Mode = "max") -> bool:
    """Whether ``value`` reaches ``target``; equality does, NaN never does.

    Example:
        >>> meets(0.97, 0.97), meets(0.2, 0.1, mode="min")
        (True, False)
    """
    return value >= target if mode == "max" else value <= target


def first_confirmed(checks: Sequence[Check], target: float, mode: Mode = "max", confirmations: int = 1) -> Check | None:
    """The first check of the first ``confirmations`` in a row that meet the target, or None.

    Example:
        >>> checks = [Check(100, 0.96, 1.0), Check(200, 0.98, 2.0), Check(300, 0.97, 3.0)]
        >>> first_confirmed(checks, 0.97).step
        200
        >>> first_confirmed(checks, 0.97, confirmations=3) is None
        True
    """
    in_a_row = 0
    for index, check in enumerate(checks):
        in_a_row = in_a_row + 1 if meets(check.value, target, mode) else 0
        if in_a_row == confirmations:
            return checks[index - confirmations + 1]
    return None


def best_check(checks: Sequence[Check], mode: Mode = "max") -> Check | None:
    """The first check with the best finite value, or None.

    Example:
        >>> best_check([Check(1, 0.5, 0.1), Check(2, 0.9, 0.2), Check(3, 0.9, 0.3)]).step
        2
    """
    sign = 1.0 if mode == "max" else -1.0
    finite = [check for check in checks if math.isfinite(check.value)]
    return max(finite, key=lambda check: sign * check.value, default=None)


class LRPolicyCallback(Callback):
    """Sets the learning rate of every optimizer step to a policy's value, and checks a target.

    Before step ``t`` each parameter group gets ``policy(t) * group.get("lr_scale", 1.0)``. After each
    validation the monitored metric is compared with the target; when it is confirmed, training stops on
    all ranks together. A non-finite training loss stops it too. What came of it is in :attr:`verdict`.

    Works in any Lightning ``Trainer`` with any ``LightningModule`` that logs the metric in validation (under
    several processes with ``sync_dist=True``). The module must not bring a learning-rate scheduler: two writers
    of one rate would make the verdict untrue.

    Args:
        policy: Maps the number of optimizer steps taken, from 0, to a learning rate. An ``AdaptivePolicy``
            is also told every checked value.
        target_accuracy: Value that the monitor has to reach (equality suffices), or None for no target.
        monitor: Name under which the module logs the metric in validation.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        confirmations: Checks in a row that must meet the target.
        stop: Whether to stop training once the target is confirmed.
        optimizer_index: Which optimizer the policy drives, needed when the module has several.

    Raises:
        ValueError: If ``target_accuracy`` is not finite, ``mode`` unknown or ``confirmations`` below 1.
        LRPolicyError: At the start of a fit, if a scheduler or another policy sets the same rates, if there are
            several optimizers and no index, or if a target is given and nothing will validate; at the first
            check, if the monitor was not logged (the message lists what was).

    Example:
        >>> from lrbench_pl.policies import Polynomial
        >>> callback = LRPolicyCallback(Polynomial(init_lr=0.1, decay_steps=1000), target_accuracy=0.97)
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
        target_accuracy: float | None = None,
        monitor: str = "val/accuracy",
        mode: Mode = "max",
        confirmations: int = 1,
        stop: bool = True,
        optimizer_index: int | None = None,
    ) -> None:
        if not callable(policy):
            raise ValueError(f"policy must be callable: t -> learning rate, got {policy!r}")
        if target_accuracy is not None and not math.isfinite(target_accuracy):
            raise ValueError(f"target_accuracy must be a finite number or None, got {target_accuracy}")
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
        if isinstance(confirmations, bool) or not isinstance(confirmations, int) or confirmations < 1:
            raise ValueError(f"confirmations must be an integer of at least 1, got {confirmations!r}")
        self.policy = policy
        self.target_accuracy = target_accuracy
        self.monitor = monitor
        self.mode: Mode = mode
        self.confirmations = confirmations
        self.stop = stop
        self.optimizer_index = optimizer_index
        self.checks: list[Check] = []
        self._adaptive = policy if isinstance(policy, AdaptivePolicy) else None
        self._param_groups: list[dict[str, Any]] = []
        self._step = -1  # the step whose rate is set
        self._steps_run = 0
        self._ended_as: tuple[Status, str] | None = None
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
        if self.target_accuracy is None:
            return None
        return first_confirmed(self.checks, self.target_accuracy, self.mode, self.confirmations)

    def _status(self, hit: Check | None, best: Check | None) -> tuple[Status, str]:
        if hit is not None:
            return "reached", f"reached {self.target_accuracy:g} at step {hit.step}"
        if self._ended_as is not None:
            return self._ended_as
        best_words = f"best {best.value:.4g} at step {best.step}" if best else f"{self.monitor} was never checked"
        if self.target_accuracy is None:
            return "missed", f"no target was set; {best_words}"
        return "missed", f"missed {self.target_accuracy:g} within {self._steps_run} steps; {best_words}"

    # -- before training ------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a training in which the policy would not be the only writer of its rates."""
        self._param_groups = self._find_optimizer(trainer).param_groups
        if sum(isinstance(callback, LRPolicyCallback) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise LRPolicyError("expected one LRPolicyCallback in the Trainer, got several; keep one of them")
        if self.target_accuracy is not None and not trainer.enable_validation:
            raise LRPolicyError(
                f"a target for {self.monitor!r} needs validation, but this fit runs none; give the Trainer "
                "validation data, or set target_accuracy=None"
            )
        on_cpu = pl_module.device.type == "cpu"
        self._look_every = 1 if on_cpu and trainer.world_size == 1 else _STEPS_BETWEEN_LOOKS
        self._unseen, self._unseen_loss = 0, None
        self._ended_as = None
        self._step = -1
        self._clock.start()

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

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rate of the coming optimizer step, once also when several batches make one step."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        lr = float(self.policy(step))
        for group in self._param_groups:
            scaled = lr * group.get("lr_scale", 1.0)
            if isinstance(group["lr"], torch.Tensor):  # capturable and compiled optimizers read it in place
                group["lr"].fill_(scaled)
            else:
                group["lr"] = scaled
        if step == 0 or (step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for logger in trainer.loggers:
                logger.log_metrics({"lr": lr}, step=step)

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
        step = trainer.global_step
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
            values = {"check/step": float(trainer.global_step), "check/seconds": self._clock.seconds}
            pl_module.log_dict(values, sync_dist=trainer.world_size > 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the metric with the target."""
        if not _in_fit(trainer):
            return
        self._check(trainer)
        self._clock.start()

    def _check(self, trainer: Trainer) -> None:
        value = self._read_monitor(trainer)
        if value is None:
            return
        self.checks.append(Check(trainer.global_step, value, self._clock.seconds))
        if self._adaptive is not None:
            self._adaptive.observe(trainer.global_step, value)
        hit = self._hit()
        if hit is not None and self.stop and not trainer.should_stop:
            trainer.should_stop = True
            rank_zero_info(f"target reached: {self.monitor} {value:.4g} >= {self.target_accuracy:g} at step {hit.step}")

    def _read_monitor(self, trainer: Trainer) -> float | None:
        metric = trainer.callback_metrics.get(self.monitor)
        if metric is None:
            if self.target_accuracy is None and self._adaptive is None:
                return None
            logged = ", ".join(sorted(name for name in trainer.callback_metrics if not name.startswith("check/")))
            raise LRPolicyError(
                f"monitor {self.monitor!r} was not logged in validation; logged were: {logged or 'none'}. "
                "Set monitor= to one of them or log it with self.log() in validation_step"
            )
        # rank 0 decides for all, so that they stop together
        return float(trainer.strategy.broadcast(plain_number(metric)))

    # -- the end --------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how many steps were taken, and whether something else ended them early."""
        self._look(trainer)
        self._clock.stop()
        self._steps_run = trainer.global_step
        if self._ended_as is not None or self._hit() is not None:
            return
        if trainer.should_stop or trainer.interrupted:
            self._ended_as = ("stopped", f"stopped at step {trainer.global_step} before the budget was used")
        elif self.target_accuracy is not None and not self.checks:
            rank_zero_warn(
                f"{self.monitor!r} was never checked in {trainer.global_step} steps; set the Trainer's "
                "val_check_interval to a smaller number of batches"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep an interrupted or failed training's verdict."""
        self._clock.stop()
        self._steps_run = trainer.global_step
        if isinstance(exception, KeyboardInterrupt):
            self._ended_as = ("stopped", f"interrupted at step {trainer.global_step}")
        else:
            self._ended_as = ("failed", f"{type(exception).__name__}: {exception}")

    # -- resuming -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What cannot be computed again: the checks, the seconds and what an adaptive policy observed."""
        return {
            "checks": [asdict(check) for check in self.checks],
            "seconds": self._clock.seconds,
            "policy": self._adaptive.state_dict() if self._adaptive is not None else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.checks = [Check(**check) for check in state_dict["checks"]]
        self._clock = _Stopwatch(state_dict["seconds"])
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
