"""Lightning callback that composes a learning-rate policy within one fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from lrbench_pl.callbacks.composer_request import composition_request, plan_for
from lrbench_pl.callbacks.composition_state import CompositionState
from lrbench_pl.callbacks.losses import LossMonitor, mean_losses
from lrbench_pl.callbacks.lr_policy import LRPolicyCallback, LRPolicyError, _in_fit
from lrbench_pl.composing import former_names
from lrbench_pl.composing.average import WeightAverage
from lrbench_pl.composing.composed_policy import ComposedPolicy
from lrbench_pl.composing.records import SegmentRecords
from lrbench_pl.composing.segments import Journal, RunningSegment, Segment, SegmentResult
from lrbench_pl.composing.settings import Settings
from lrbench_pl.composing.snapshot import ChangedModuleError, Snapshot, why_not_restorable
from lrbench_pl.composing.state import Composition
from lrbench_pl.policies import Policy, segments
from lrbench_pl.policies import _checks as check
from lrbench_pl.verdict import Check, Mode, Status, meets
from lrbench_pl.words import counted

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_AVOIDED = 3  # bad choices that the message of the verdict names
_OWN, _FORECAST, _ACCEPTED = 0.0, 1.0, 2.0  # values of check/averaged


class LRPolicyComposer(LRPolicyCallback):
    """Composes a policy during training until it reaches the target.

    With an optimizer other than SGD, or on a short budget, decays to zero of growing length follow each other, and two
    peaks are compared over the same steps (see :class:`~lrbench_pl.composing.comparison.ComparingPlanner`). With SGD on
    a long budget, a short decay from three times the own rate is followed by stable phases, which hold 4.5 times that
    rate, and by decay branches, which go from them to zero. With ``repeats`` a range test finds the rate they hold.

    After the first possible branch the checks of a stable phase evaluate the averaged weights
    (``check/averaged`` is 1 for them). They forecast what a branch would reach. Such a check never reaches the target.
    It is in :attr:`forecasts`, not among the checks of the verdict. With ``accept_average`` it is among both
    (``check/averaged`` is 2) and may reach the target: the module then keeps the averaged weights. Its buffers, such as
    the statistics of batch normalization, are averaged too.

    Two counts of steps differ. The steps of the training are those of the verdict; they include abandoned branches. The
    step of the composed policy goes back when a stable phase diverges or, without ``reuse``, when a branch misses the
    target. ``policy.realised()`` is a plain policy that reproduces the kept part of the training; on a CPU it does so
    bitwise if the training loader has a ``position`` (see :class:`~lrbench_pl.composing.snapshot.Snapshot`).

    A checkpoint contains the snapshots that the plan may restore, so that training resumes exactly. It is refused with
    other settings. A checkpoint written at the check that abandons a branch contains the restored state.

    Args:
        target: Value that the monitor must reach; None composes one policy for the whole budget.
        max_steps: Optimizer steps in total; by default the Trainer's ``max_steps``.
        lr: Rate whose multiples are tried; by default the one with which the optimizer was built.
        monitor: Name under which the module logs the metric in validation.
        mode: ``max`` if larger values are better, ``min`` if smaller ones are.
        confirmations: Consecutive checks that must meet the target.
        optimizer_index: Index of the optimizer that the policy drives, needed if the module has several.
        save_to: Folder for the result, as in ``LRPolicyCallback``; ``tuning.json`` is written there too.
        save_as: Fields of the result, as there.
        **settings: Fields of :class:`~lrbench_pl.composing.settings.Settings`.

    Raises:
        ValueError: If an argument is out of range.
        LRPolicyError: At the start of a fit, also if there is no budget, no validation or no check within the budget,
            if the budget is that of several optimizers, or if the checkpoint contains another composition or none.

    Example:
        >>> composer = LRPolicyComposer(target=0.99, max_steps=10_000, growth=2.0)
        >>> composer.settings.growth
        2.0
    """

    def __init__(
        self,
        target: float | None = None,
        max_steps: int | None = None,
        monitor: str = "val/accuracy",
        mode: Mode = "max",
        confirmations: int = 1,
        optimizer_index: int | None = None,
        save_to: str | Path | None = None,
        save_as: Mapping[str, Any] | None = None,
        lr: float | None = None,
        **settings: Any,
    ) -> None:
        for former, name in former_names.SETTINGS.items():
            if former in settings:
                raise ValueError(f"expected the setting {name!r}, got its former name {former!r}; rename it")
        if further := [name for name in ("groups", "momentum_policy", "weight_decay_policy") if name in settings]:
            raise ValueError(
                f"composing sets the rate alone, since it returns to earlier steps, got {further[0]}; leave it out, or "
                "use LRPolicyCallback with a policy of fixed steps"
            )
        self.settings = Settings(**settings)
        policy = ComposedPolicy(self._rate_at, self.realised)
        super().__init__(policy, target, monitor, mode, confirmations, True, optimizer_index, save_to, save_as)
        self.max_steps = max_steps
        self.lr = None if lr is None else check.rate("lr", check.positive("lr", lr))

    def _reset(self) -> None:
        super()._reset()
        self._state = CompositionState()
        self._losses = LossMonitor()
        self._average: WeightAverage | None = None
        self._loaded: Mapping[str, Any] | None = None  # state from a checkpoint, until the fit resumes
        self._own_lr = 0.0
        self._is_fresh = False  # a segment started after a range test, and no batch has run since
        self._seen_step = 0  # last step whose loss was handled
        self._has_gradients = False  # whether gradients wait for a step
        self._attempts = 0  # steps of all optimizers, including those that a GradScaler skipped

    @property
    def records(self) -> list[dict[str, Any]]:
        """Records of the segments, as ``SegmentRecords`` describes them."""
        return self._state.account.records

    @property
    def forecasts(self) -> list[Check]:
        """Checks of the averaged weights."""
        return self._state.forecasts

    @property
    def weights(self) -> str | None:
        """``averaged`` if averaged weights reached the target, otherwise None."""
        return self._state.weights

    @property
    def avoided(self) -> list[str]:
        """Choices that turned out to be bad, as messages."""
        return self._state.account.avoided

    @property
    def found(self) -> Composition | None:
        """Result of the plan; None before it has ended."""
        return None if self._state.journal is None else self._state.journal.found

    @property
    def policy_step(self) -> int:
        """Steps of the composed policy: those of the training without the abandoned ones."""
        return self._state.policy_step(self._steps_run)

    @property
    def tuning_steps(self) -> int:
        """Steps of the training that are not part of the composed policy."""
        return self._steps_run - self.policy_step

    @property
    def begins_decay(self) -> bool:
        """Whether the policy of the running segment begins to decay at this step."""
        running = self._state.running
        segment = running.segment
        if segment.kind != "branch" or running.steps_at(self._steps_run):
            return False
        begins = segment.start in {start for start, _ in segments(segment.policy)}
        return begins and segment.policy(segment.start + segment.steps) < segment.policy(segment.start)

    @property
    def path(self) -> tuple[Policy, int, list[dict[str, int]]]:
        """The policy of the running segment, its step, and the segments that led there.

        A segment is given by the steps of the policy and of the training at its start, and by its length.
        """
        running, account = self._state.running, SegmentRecords()
        segment, done = running.segment, running.steps_at(self._steps_run)
        account.load_state_dict(self._state.account.state_dict())
        account.keep_path(segment.policy, segment.start)
        kept = [record for record in account.records if record["kept"] and record["steps"]]
        if done:
            kept.append({"policy_step": segment.start, "spent": running.spent, "steps": done})
        names = ("policy_step", "spent", "steps")
        return segment.policy, segment.start + done, [{name: int(each[name]) for name in names} for each in kept]

    def realised(self) -> Policy:
        """Return the policy that reached the target, otherwise the best so far."""
        return self._state.realised()

    def _rate_at(self, t: int) -> float:
        running = self._state.running
        return running.segment.policy(running.policy_step(t))

    def _hit(self) -> Check | None:
        return self._state.reached

    def _status(self, hit: Check | None, best: Check | None) -> tuple[Status, str]:
        status, message = super()._status(hit, best)
        averaged = f", {self.weights} weights" if self.weights else ""
        message += f" (policy step {self.policy_step}, tuning {self.tuning_steps}{averaged})"
        avoided = self.avoided
        if avoided:
            more = f"; {len(avoided) - _AVOIDED} more" if len(avoided) > _AVOIDED else ""
            message += f"; avoided: {'; '.join(avoided[:_AVOIDED])}{more}"
        return status, message

    # -- before training ------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the optimizer's own rate, before a checkpoint overwrites it."""
        super().on_fit_start(trainer, pl_module)
        own_lr = float(self._find_optimizer(trainer).param_groups[0]["lr"])
        self._own_lr = own_lr if self.lr is None else self.lr

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the first segment, or resume the one of the checkpoint."""
        super().on_train_start(trainer, pl_module)
        if (why := why_not_restorable(trainer, pl_module)) is not None:
            raise LRPolicyError(f"composing restores earlier states, but {why}")
        request = self._build_request(trainer)
        self._seen_step, self._attempts = self._steps_run, trainer.global_step
        if self._loaded is not None:
            self._resume(trainer, pl_module, request, self._loaded)
            self._loaded = None
        elif self._steps_run:
            raise LRPolicyError("the checkpoint contains no composition; start without the checkpoint")
        else:
            self._state.request, self._state.journal = request, Journal(plan_for(request))
            self._start_next(trainer, pl_module, None)
        if not next(iter(self._state.snapshots.values())).is_exact:
            rank_zero_warn(
                "the training loader has no `position`, so its data cannot be rewound: composing works, but from the "
                "first abandoned step on the composed policy alone sees other batches, so that it gives a similar "
                "result, not the same one",
                category=UserWarning,
            )

    def _build_request(self, trainer: Trainer) -> dict[str, Any]:
        optimizer = self._find_optimizer(trainer)
        return {
            **composition_request(trainer, self.settings, optimizer, self._own_lr, self.max_steps),
            "target": self.target,
            "monitor": self.monitor,
            "mode": self.mode,
            "confirmations": self.confirmations,
        }

    # -- each step ------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss of the step and add the weights to their average."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._is_fresh = False
        self._losses.add_batch(outputs)
        has_attempted, self._attempts = trainer.global_step != self._attempts, trainer.global_step
        if self._steps_run == self._seen_step:  # the step needs more batches, or a GradScaler skipped it
            self._has_gradients = True
            running = self._state.running
            if running.segment.kind == "range" and running.diverged and has_attempted:
                self._end_range(trainer)  # the scaler would skip all following steps too
            return
        self._seen_step, self._has_gradients = self._steps_run, False
        loss = self._losses.take()
        if loss is None and not pl_module.automatic_optimization:
            raise LRPolicyError(
                "composing needs the training loss, but training_step took a step and returned none; return "
                "the loss from training_step, also with manual optimization"
            )
        self._update_average(pl_module)
        self._handle_loss(trainer, loss)

    def _update_average(self, module: LightningModule) -> None:
        running = self._state.running
        kind = running.segment.kind
        is_continued = kind == "stable" or (kind == "branch" and self.settings.reuse)
        if is_continued and self.settings.average:
            if self._average is None:
                self._average = WeightAverage(module, self.settings.average)
            self._average.update(module, running.policy_step(self._steps_run))

    def _handle_loss(self, trainer: Trainer, loss: torch.Tensor | None) -> None:
        running = self._state.running
        if running.segment.kind == "range":
            if loss is not None:  # steps without a loss get that of the next step
                missing = running.steps_at(self._steps_run) - len(running.losses)
                running.losses += mean_losses(trainer, [loss]) * missing
            if running.is_complete(self._steps_run):
                self._end_range(trainer)
        elif loss is not None:
            self._losses.defer(loss)
            if self._look_every == 1 or not self._unseen:
                running.diverged |= self._losses.has_diverged(trainer)

    def _end_range(self, trainer: Trainer) -> None:
        running = self._state.running
        if running.diverged and len(running.losses) < running.segment.steps:
            running.losses.append(math.nan)  # loss of the skipped step
        if not running.losses:
            steps = counted(running.steps_at(self._steps_run), "step")
            raise LRPolicyError(
                f"composing needs the training loss, but training_step returned none in {steps}; "
                "return it, or leave out repeats for no range test"
            )
        self._end_segment(trainer, math.nan, False)
        self._is_fresh = True

    def _diverge(self, trainer: Trainer) -> None:
        self._state.running.diverged = True  # training continues: the next check restores a snapshot

    # -- each check -----------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averaged weights into the module if the check uses them."""
        super().on_validation_start(trainer, pl_module)
        running = self._state.running
        uses_average = running.segment.averaged and running.is_complete(self._steps_run)
        if _in_fit(trainer) and uses_average and self._average is not None:
            self._average.swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log whether the check uses the averaged weights."""
        super().on_validation_epoch_end(trainer, pl_module)
        if _in_fit(trainer):
            kind = (_ACCEPTED if self.settings.accept_average else _FORECAST) if self._is_swapped else _OWN
            pl_module.log("check/averaged", kind, sync_dist=trainer.world_size > 1)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the module's own weights back."""
        super().on_exception(trainer, pl_module, exception)
        self._remove_average(pl_module)

    @property
    def _is_swapped(self) -> bool:
        return self._average is not None and self._average.is_swapped

    def _remove_average(self, module: LightningModule) -> bool:
        """Put the module's own weights back; return whether it held the averaged ones."""
        if self._average is None or not self._average.is_swapped:
            return False
        self._average.swap(module)
        return True

    def _check(self, trainer: Trainer) -> None:
        averaged = self._remove_average(trainer.lightning_module)
        if self._ended_as is not None:  # training continues only because of min_steps
            return
        running = self._state.running
        running.diverged |= self._losses.has_diverged(trainer)
        value = self._read_monitor(trainer)
        if self._is_fresh:  # the range test ended with this step, before the check
            self._restore(trainer, trainer.lightning_module, running.segment)
            return
        is_measured = value is not None or self.monitor not in trainer.callback_metrics
        if not is_measured or not running.steps_at(self._steps_run) or running.segment.kind == "range":
            return
        value = math.nan if value is None else value
        check = Check(self._steps_run, value, self._clock.seconds)
        counts = not averaged or self.settings.accept_average
        if averaged:
            self.forecasts.append(check)
        if counts:
            self.checks.append(check)
        diverged = trainer.strategy.reduce_boolean_decision(running.diverged, all=False)
        if self._is_confirmed(value, can_reach=counts and not diverged):
            self._reach(trainer, value, averaged)
        elif running.is_complete(self._steps_run) or diverged:
            self._end_segment(trainer, value, diverged)

    def _is_confirmed(self, value: float, can_reach: bool) -> bool:
        """Count a check and return whether enough consecutive ones met the target."""
        met = can_reach and self.target is not None and meets(value, self.target, self.mode)
        self._state.in_a_row = self._state.in_a_row + 1 if met else 0
        return self._state.in_a_row == self.confirmations

    def _reach(self, trainer: Trainer, value: float, averaged: bool) -> None:
        """End the training: the target is reached, by the module's own or by the averaged weights."""
        state = self._state
        if averaged:
            assert self._average is not None
            self._average.swap(trainer.lightning_module)
            self._average = None  # the module keeps it
            state.weights = "averaged"
        state.reached = self.checks[-self.confirmations]
        state.account.keep_path(state.running.segment.policy, state.running.segment.start)
        state.account.add(state.running.segment, state.running.result(self._steps_run, value, False), reached=True)
        trainer.should_stop = True
        rank_zero_info(f"target reached: {self.monitor} {value:.4g} at step {state.reached.step}")

    # -- segments -------------------------------------------------------------------------------------------

    def _end_segment(self, trainer: Trainer, value: float, diverged: bool) -> None:
        """Record the segment, take its snapshot and start the next one."""
        running, module = self._state.running, trainer.lightning_module
        result = running.result(self._steps_run, value, diverged, self._losses.has_learned, self._losses.has_memorised)
        self._state.account.add(running.segment, result)
        if running.segment.save is not None and not diverged:
            self._save(trainer, module, running.segment.save)
        self._start_next(trainer, module, result)

    def _start_next(self, trainer: Trainer, module: LightningModule, result: SegmentResult | None) -> None:
        """Start the next segment that has steps; end the training if there is none."""
        state = self._state
        assert state.journal is not None
        while (segment := state.journal.send(result)) is not None:
            self._report_avoided(segment.avoided)
            self._restore(trainer, module, segment)
            if segment.steps:
                state.running = RunningSegment(segment, self._steps_run)
                self._write_again()
                state.in_a_row = 0 if segment.restore is not None else state.in_a_row
                self._unseen, self._unseen_loss = 0, None
                self._losses.drop_deferred()
                return
            if segment.save is not None:
                self._save(trainer, module, segment.save)
            if segment.save == "best":
                state.best = segment.policy, segment.start
                state.account.mark_best(segment.policy, segment.start)
            result = SegmentResult(0, spent=self._steps_run)
        self._finish(trainer, state.journal)

    def _finish(self, trainer: Trainer, journal: Journal) -> None:
        """End the training: the plan has ended without reaching the target."""
        if self.found is not None:
            self._report_avoided(self.found.avoided[len(self.avoided) :])
        self._state.account.drop_after_best()
        if journal.failure is not None:
            self._end(trainer, "diverged", journal.failure)
        elif not trainer.global_step >= trainer.max_steps > 0:
            missed = f"missed {self.target:g}" if self.target is not None else "no target was set"
            self._end(trainer, "missed", f"{missed} within {counted(self._steps_run, 'step')}")

    def _report_avoided(self, messages: Iterable[str]) -> None:
        """Record and print what the plan concluded from the last segment."""
        for message in messages:
            self._state.account.add_avoided(message)
            rank_zero_info(f"avoided: {message}")

    def _save(self, trainer: Trainer, module: LightningModule, name: str) -> None:
        has_gradients = self._has_gradients or not module.automatic_optimization  # of any optimizer
        self._state.snapshots[name] = Snapshot(trainer, module, self._is_self, has_gradients)

    def _restore(self, trainer: Trainer, module: LightningModule, segment: Segment) -> None:
        """Restore the snapshot that a segment starts from, if it names one."""
        if segment.restore is None:
            return
        try:
            self._state.snapshots[segment.restore].restore(trainer, module)
        except ChangedModuleError as error:
            raise LRPolicyError(str(error)) from error
        self._write_again()
        is_behind = self._average is not None and self._average.last_step > segment.start
        if self._state.running.diverged or segment.restore == "start" or is_behind:
            self._average = None  # it contains abandoned weights
        if self._state.running.diverged or segment.restore == "start":
            self._losses.reset()
        if segment.skip and hasattr(trainer.train_dataloader, "position"):
            trainer.train_dataloader.position += segment.skip * trainer.accumulate_grad_batches  # type: ignore[union-attr]

    def _is_self(self, callback: object) -> bool:
        return callback is self

    # -- resuming -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state, from which a composition can be resumed."""
        state = super().state_dict()
        if self._state.journal is not None:
            state["composition"] = {
                **self._state.state_dict(),
                **self._losses.state_dict(),
                "average": None if self._average is None else self._average.state_dict(),
                "unseen": self._unseen,
                "unseen_loss": self._unseen_loss,
            }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned, in any version."""
        super().load_state_dict(state_dict)
        self._loaded = state_dict.get("composition")
        if self._loaded is None:
            return
        try:
            self._state.load_state_dict(self._loaded, self._is_self)
        except ValueError as error:
            raise LRPolicyError(f"{error}; start without the checkpoint") from error
        self._losses.load_state_dict(self._loaded)

    def _resume(
        self, trainer: Trainer, module: LightningModule, request: Mapping[str, Any], loaded: Mapping[str, Any]
    ) -> None:
        """Refuse other settings, and load the part of the state that needs the module."""
        if changes := self._state.changes(request):
            raise LRPolicyError(
                f"the checkpoint contains a composition with other settings ({'; '.join(changes)}); use the same ones"
            )
        self._losses.to(module.device)
        self._unseen, loss = loaded["unseen"], loaded["unseen_loss"]
        self._unseen_loss = None if loss is None else loss.to(module.device)
        if loaded["average"] is not None:
            self._average = WeightAverage(module, self.settings.average)
            self._average.load_state_dict(loaded["average"])
        if self._state.reached is not None:
            trainer.should_stop = True
        elif self._state.journal is not None and self._state.journal.has_ended:
            self._finish(trainer, self._state.journal)
