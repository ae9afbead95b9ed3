"""The Lightning callback that composes a policy inside one fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from lrbench_pl.callbacks.lr_policy import LRPolicyCallback, LRPolicyError, _in_fit
from lrbench_pl.composing.average import WeightAverage
from lrbench_pl.composing.divergence import LossWatch
from lrbench_pl.composing.plan import Composition, Settings, compose
from lrbench_pl.composing.segments import Journal, Leg, Outcome, Tuner
from lrbench_pl.composing.snapshot import ChangedModuleError, Snapshot, why_not_restorable
from lrbench_pl.policies import Constant, Policy
from lrbench_pl.verdict import Check, Mode, Status, meets
from lrbench_pl.words import counted

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


# Their steps do not become shorter with the gradients, so a rate that holds for a range test may be too high for long.
_SCALED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam)
_MARGIN_SCALED = 9.0
_POINTS = 20  # parts of a leg between which its account says the rate
_AVOIDED = 3  # choices that the message names


class LRPolicyComposer(LRPolicyCallback):
    """Finds a policy while it trains: range test, trunk, a branch that decays to zero, trunk again, until the target.

    From the first branch point on the checks of the trunk look at its averaged weights (``check/averaged`` is then 1):
    they forecast what a branch would reach. Such a check never counts as reaching the target; they are in
    :attr:`forecasts`, not among the verdict's checks.

    Two clocks run: the *steps spent*, which are the Trainer's and which the verdict counts, dead ends included; and the
    *policy's own step*, which goes back when a trunk diverged or, without ``reuse``, a branch missed. :attr:`policy`
    knows what was composed: ``policy.realised()`` is a plain policy that repeats the kept training alone. With a loader
    that has a ``position`` (see :class:`~lrbench_pl.composing.snapshot.Snapshot`) it does so bit for bit on a CPU.

    A checkpoint written at a check where a branch is given up holds the state gone back to. It also holds the states
    that the plan may go back to, so that a training goes on from it as if nothing had happened; with other settings it
    is refused.

    Args:
        target: Value that the monitor has to reach; None composes one long policy for the budget.
        max_steps: Optimizer steps in all; by default the Trainer's ``max_steps``.
        monitor: Name under which the module logs the metric in validation.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        confirmations: Checks in a row that must meet the target.
        optimizer_index: Which optimizer the policy drives, needed when the module has several.
        save_to: Folder for the result, as in ``LRPolicyCallback``; ``tuning.json`` goes there too.
        save_as: Fields of the result, as there.
        **settings: Fields of :class:`~lrbench_pl.composing.plan.Settings`.

    Attributes:
        forecasts: The checks of averaged weights.
        records: One entry per leg: what was tried, from which steps, what came of it.
        found: What was composed, once the fit has ended.

    Raises:
        ValueError: If an argument is out of its range.
        LRPolicyError: At the start of a fit, also if there is no budget or no check within it, or if its checkpoint
            holds another composition or none.

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
        **settings: Any,
    ) -> None:
        self.settings = Settings(**settings)
        self._applied = Applied(self)
        super().__init__(self._applied, target, monitor, mode, confirmations, True, optimizer_index, save_to, save_as)
        self.max_steps = max_steps

    def _reset(self) -> None:
        super()._reset()
        self.forecasts: list[Check] = []
        self.records: list[dict[str, Any]] = []
        self.found: Composition | None = None
        self._best_policy: tuple[Policy, int] | None = None  # and its steps
        self._best_records = 0  # how many records there were then
        self._asked: dict[str, Any] = {}  # what the plan was made for
        self._journal: Journal | None = None
        self._loaded: dict[str, Any] | None = None  # from a checkpoint, until the fit goes on
        self._own_lr = 0.0  # the optimizer's
        self._leg = Leg("keep", Constant(0.0), 0, 0)
        self._leg_from = 0  # steps spent when it began
        self._leg_losses: list[float] = []
        self._leg_diverged = False
        self._is_fresh = False  # it began at the end of a range test, and no batch has come since
        self._watch = LossWatch()
        self._unwatched: list[torch.Tensor] = []  # losses since the last look
        self._loss: torch.Tensor | None = None  # the last one since the last step
        self._seen_step = 0  # the last step that was looked at
        self._has_pending = False  # gradients that wait for a step
        self._tried = 0  # steps of all optimizers, skipped ones included
        self._in_a_row = 0
        self._reached: Check | None = None
        self._snapshots: dict[str, Snapshot] = {}
        self._average: WeightAverage | None = None
        self._is_swapped = False  # the module holds the average

    @property
    def policy_step(self) -> int:
        """Steps of the composed policy: those of the training, less what was given up."""
        if self._reached is None and self._best_policy is not None:
            return self._best_policy[1]
        return self._leg.start + self._steps_run - self._leg_from

    @property
    def tuning_steps(self) -> int:
        """Steps spent that are not part of the composed policy."""
        return self._steps_run - self.policy_step

    @property
    def avoided(self) -> list[str]:
        """Choices that the plan found bad, in words."""
        return [words for record in self.records for words in record["avoided"]]

    def realised(self) -> Policy:
        """The composed policy: that which reached the target, else the best so far."""
        if self._reached is None and self._best_policy is not None:
            return self._best_policy[0]
        return self._leg.policy

    def _hit(self) -> Check | None:
        return self._reached

    def _status(self, hit: Check | None, best: Check | None) -> tuple[Status, str]:
        status, message = super()._status(hit, best)
        message += f" (policy step {self.policy_step}, tuning {self.tuning_steps})"
        avoided = self.avoided
        if avoided:
            more = f"; {len(avoided) - _AVOIDED} more" if len(avoided) > _AVOIDED else ""
            message += f"; avoided: {'; '.join(avoided[:_AVOIDED])}{more}"
        return status, message

    # -- before training ------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the optimizer's own rate, before a checkpoint brings the last one applied."""
        super().on_fit_start(trainer, pl_module)
        self._own_lr = float(self._find_optimizer(trainer).param_groups[0]["lr"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the first leg, or go on with that of the checkpoint."""
        super().on_train_start(trainer, pl_module)
        if (why := why_not_restorable(trainer, pl_module)) is not None:
            raise LRPolicyError(f"composing goes back to earlier states, but {why}")
        asked = self._ask(trainer)
        self._seen_step, self._tried = self._steps_run, trainer.global_step
        if self._loaded is not None:
            self._resume(trainer, pl_module, asked, self._loaded)
            self._loaded = None
        elif self._steps_run:
            raise LRPolicyError("the checkpoint holds no composition to go on with; compose anew, without it")
        else:
            self._asked, self._journal = asked, Journal(_plan(asked))
            self._follow(trainer, pl_module, None)
        if not next(iter(self._snapshots.values())).is_exact:
            rank_zero_warn(
                "the training loader has no `position`: after a branch its data goes on where it is, so the composed "
                "policy run alone sees other batches",
                category=UserWarning,
            )

    def _ask(self, trainer: Trainer) -> dict[str, Any]:
        """What a plan is made for, as plain data."""
        budget = self.max_steps if self.max_steps is not None else trainer.max_steps
        if budget is None or budget < 1:
            raise LRPolicyError("composing a policy needs a budget: give max_steps to the composer or the Trainer")
        interval = _steps_between_checks(trainer)
        if interval > budget:
            within = counted(budget, "step")
            raise LRPolicyError(f"composing needs a check within {within}, but they are {interval} apart")
        return {
            **asdict(self.settings),
            "margin": self._margin(trainer),
            "lr": self._own_lr,
            "max_steps": budget,
            "steps between checks": interval,
            "target": self.target,
            "monitor": self.monitor,
            "mode": self.mode,
            "confirmations": self.confirmations,
        }

    def _margin(self, trainer: Trainer) -> float | None:
        is_scaled = isinstance(self._find_optimizer(trainer), _SCALED)
        return _MARGIN_SCALED if self.settings.margin is None and is_scaled else self.settings.margin

    # -- each step ------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Watch the loss, each step of a range test, else for divergence; take the weights into their average."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._is_fresh = False
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, torch.Tensor):
            self._loss = loss.detach().float().reshape(())
        is_tried, self._tried = trainer.global_step != self._tried, trainer.global_step
        if self._steps_run == self._seen_step:  # more batches to this step, or a scaler skipped it
            self._has_pending = True
            if self._leg.kind == "range" and self._leg_diverged and is_tried:  # then it skips all that follow, too
                self._end_range(trainer)
            return
        loss, self._loss, self._seen_step, self._has_pending = self._loss, None, self._steps_run, False
        if loss is None and not pl_module.automatic_optimization:
            raise LRPolicyError(
                "composing judges rates by the training loss, but training_step took a step and returned none; return "
                "the loss from training_step, also with manual optimization"
            )
        done = self._steps_run - self._leg_from
        is_kept = self._leg.kind == "trunk" or (self._leg.kind == "branch" and self.settings.reuse)
        if is_kept and self.settings.average:
            if self._average is None:
                self._average = WeightAverage(pl_module, self.settings.average)
            self._average.update(pl_module, self._leg.start + done)
        if self._leg.kind == "range":
            if loss is not None:  # a step without one takes that of the next
                self._leg_losses += [self._mean_over_ranks(trainer, loss)] * (done - len(self._leg_losses))
            if done >= self._leg.steps:
                self._end_range(trainer)
        elif loss is not None:
            self._unwatched.append(loss)
            if self._look_every == 1 or not self._unseen:
                self._watch_losses(trainer)

    def _watch_losses(self, trainer: Trainer) -> None:
        """Look at the losses since the last look, all at once: on an accelerator each look waits for the device."""
        if self._unwatched:
            losses = trainer.strategy.reduce(torch.stack(self._unwatched), reduce_op="mean").tolist()
            self._unwatched = []
            for loss in losses:
                self._leg_diverged |= self._watch.see(loss * trainer.accumulate_grad_batches)

    def _mean_over_ranks(self, trainer: Trainer, loss: torch.Tensor) -> float:
        number = float(trainer.strategy.reduce(loss, reduce_op="mean"))
        return number * trainer.accumulate_grad_batches  # Lightning hands out the share of one batch

    def _end_range(self, trainer: Trainer) -> None:
        done = self._steps_run - self._leg_from
        if self._leg_diverged and len(self._leg_losses) < self._leg.steps:
            self._leg_losses.append(math.nan)  # that of the step that was skipped
        if not self._leg_losses:
            raise LRPolicyError(
                f"composing judges rates by the training loss, but training_step returned none "
                f"in {counted(done, 'step')}; return it, or set repeats=0 for no range test"
            )
        self._end_leg(trainer, math.nan, done, False)
        self._is_fresh = True

    def _diverge(self, trainer: Trainer) -> None:
        self._leg_diverged = True  # no end: the next check goes back

    # -- each check -----------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the averaged weights, where they are what the leg's end is to be judged by."""
        super().on_validation_start(trainer, pl_module)
        ends = self._steps_run - self._leg_from >= self._leg.steps
        if _in_fit(trainer) and self._leg.averaged and ends and self._average is not None:
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say in the history which weights were looked at."""
        super().on_validation_epoch_end(trainer, pl_module)
        if _in_fit(trainer):
            pl_module.log("check/averaged", float(self._is_swapped), sync_dist=trainer.world_size > 1)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module with its own weights."""
        super().on_exception(trainer, pl_module, exception)
        if self._is_swapped:
            self._swap(pl_module)

    def _swap(self, module: LightningModule) -> None:
        assert self._average is not None
        self._average.swap(module)
        self._is_swapped = not self._is_swapped

    def _check(self, trainer: Trainer) -> None:
        averaged = self._is_swapped
        if averaged:
            self._swap(trainer.lightning_module)
        if self._ended_as is not None:  # only min_steps lets it go on
            return
        self._watch_losses(trainer)
        value = self._read_monitor(trainer)
        leg, done = self._leg, self._steps_run - self._leg_from
        if self._is_fresh:  # a range test ended with this step, and the check came after it
            self._go_back(trainer, trainer.lightning_module, leg)
            return
        if not done or (value is None and self.monitor in trainer.callback_metrics):  # not measured this time
            return
        value = math.nan if value is None else value
        if leg.kind == "range":
            return
        check = Check(self._steps_run, value, self._clock.seconds)
        (self.forecasts if averaged else self.checks).append(check)
        diverged = trainer.strategy.reduce_boolean_decision(self._leg_diverged, all=False)
        met = not averaged and not diverged and self.target is not None
        met = met and meets(value, self.target, self.mode)  # type: ignore[arg-type]
        self._in_a_row = self._in_a_row + 1 if met else 0
        if self._in_a_row == self.confirmations:
            self._reached = self.checks[-self.confirmations]
            self._keep_path(self._leg.start)
            self._record(value, done, diverged, "reached the target")
            trainer.should_stop = True
            rank_zero_info(f"target reached: {self.monitor} {value:.4g} at step {self._reached.step}")
        elif done >= leg.steps or diverged:
            self._end_leg(trainer, value, done, diverged)

    def _end_leg(self, trainer: Trainer, value: float, done: int, diverged: bool) -> None:
        self._record(value, done, diverged, "")
        outcome = Outcome(done, value, diverged, tuple(self._leg_losses), self._steps_run)
        module = trainer.lightning_module
        if self._leg.save is not None and not diverged:
            self._save(trainer, module, self._leg.save)
        self._follow(trainer, module, outcome)

    def _follow(self, trainer: Trainer, module: LightningModule, outcome: Outcome | None) -> None:
        """Begin the next leg of the plan, if there is one; those without steps are over at once."""
        assert self._journal is not None
        while (leg := self._journal.send(outcome)) is not None:
            self._note(leg.avoided)
            self._go_back(trainer, module, leg)
            if leg.steps:
                self._leg, self._leg_from = leg, self._steps_run
                self._leg_losses, self._leg_diverged = [], False
                self._unseen, self._unseen_loss, self._unwatched = 0, None, []
                self._in_a_row = 0 if leg.restore is not None else self._in_a_row
                return
            if leg.save is not None:
                self._save(trainer, module, leg.save)
            if leg.save == "best":
                self._best_policy = leg.policy, leg.start
                self._best_records = len(self.records)
                self._keep_path(leg.start)
            outcome = Outcome(0, spent=self._steps_run)
        self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        """The plan has ended."""
        assert self._journal is not None
        self.found = self._journal.found
        if self.found is not None:
            self._note(self.found.avoided[len(self.avoided) :])
        for record in self.records[self._best_records :]:
            record["kept"] = False
        if self._journal.failure is not None:
            self._end(trainer, "diverged", self._journal.failure)
        elif not trainer.global_step >= trainer.max_steps > 0:
            self._end(trainer, "missed", f"missed {self.target} within {counted(self._steps_run, 'step')}")

    def _note(self, avoided: Sequence[str]) -> None:
        """Put what the plan concluded from the last leg into its record, and show it."""
        for words in avoided:
            self.records[-1]["avoided"].append(words)
            rank_zero_info(f"avoided: {words}")

    def _go_back(self, trainer: Trainer, module: LightningModule, leg: Leg) -> None:
        if leg.restore is None:
            return
        try:
            self._snapshots[leg.restore].restore(trainer, module)
        except ChangedModuleError as error:
            raise LRPolicyError(str(error)) from error
        if self._driver is not None:  # the rate is to be set again
            self._driver.forget()
        if self._leg_diverged or leg.restore == "start":
            self._average = None  # it took in what is given up
            self._watch.go_back()
        if leg.skip and hasattr(trainer.train_dataloader, "position"):
            trainer.train_dataloader.position += leg.skip * trainer.accumulate_grad_batches  # type: ignore[union-attr]

    def _save(self, trainer: Trainer, module: LightningModule, name: str) -> None:
        has_gradients = self._has_pending or not module.automatic_optimization  # of any optimizer
        self._snapshots[name] = Snapshot(trainer, module, self._is_own, has_gradients)

    def _is_own(self, callback: object) -> bool:
        return callback is self

    def _keep_path(self, begin: int) -> None:
        """Keep the legs that led to this step of the policy, and no other."""
        for record in reversed(self.records):
            if record["kind"] != "range":
                record["kept"] = record["policy_step"] + record["steps"] == begin and record["why"] != "diverged"
                begin = record["policy_step"] if record["kept"] else begin

    def _record(self, value: float, done: int, diverged: bool, why: str) -> None:
        leg = self._leg
        self.records.append(
            {
                "kind": leg.kind,
                "policy_step": leg.start,
                "spent": self._leg_from,
                "steps": done,
                "averaged": leg.averaged,
                "rates": [leg.policy(leg.start + i * (done - 1) // _POINTS) for i in range(_POINTS + 1)],  # evenly
                "value": value if math.isfinite(value) else None,
                "kept": (leg.kind == "trunk" and not diverged) or bool(why),
                "avoided": [],
                "why": why or ("diverged" if diverged else leg.note),
            }
        )

    # -- resuming -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the composition was told and has kept: with it the plan comes to the same point."""
        state = super().state_dict()
        if self._journal is not None:
            state["composition"] = {
                "asked": dict(self._asked),
                "journal": self._journal.state_dict(),
                "snapshots": {name: snapshot.state_dict() for name, snapshot in self._snapshots.items()},
                "average": None if self._average is None else self._average.state_dict(),
                "records": [dict(record) for record in self.records],
                "best_records": self._best_records,
                "forecasts": [asdict(check) for check in self.forecasts],
                "reached": None if self._reached is None else asdict(self._reached),
                "steps_run": self._steps_run,
                "leg_from": self._leg_from,
                "leg_losses": list(self._leg_losses),
                "leg_diverged": self._leg_diverged,
                "watch": self._watch.state_dict(),
                "unwatched": [float(loss) for loss in self._unwatched],
                "in_a_row": self._in_a_row,
                "unseen": self._unseen,
                "unseen_loss": self._unseen_loss,
            }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        super().load_state_dict(state_dict)
        kept = state_dict.get("composition")
        if kept is None:
            return
        self._loaded, self._asked = kept, kept["asked"]
        try:
            self._journal = Journal(_plan(self._asked))
            legs = self._journal.replay(kept["journal"])
        except ValueError as error:
            raise LRPolicyError(f"{error}; compose anew, without it") from error
        for leg in legs:
            if leg.steps:
                self._leg = leg
            elif leg.save == "best":
                self._best_policy = leg.policy, leg.start
        self.found = self._journal.found
        self.records = [{**record, "avoided": list(record.get("avoided", ()))} for record in kept["records"]]
        self._best_records = kept["best_records"]
        self.forecasts = [Check(**check) for check in kept["forecasts"]]
        self._reached = None if kept["reached"] is None else Check(**kept["reached"])
        self._snapshots = {name: Snapshot.of(state, self._is_own) for name, state in kept["snapshots"].items()}
        self._leg_from = kept["leg_from"]
        self._leg_losses, self._leg_diverged = list(kept["leg_losses"]), kept["leg_diverged"]
        if "watch" in kept:  # absent from checkpoints of version 0.1
            self._watch.load_state_dict(kept["watch"])
        self._in_a_row = kept["in_a_row"]

    def _resume(
        self, trainer: Trainer, module: LightningModule, asked: Mapping[str, Any], kept: Mapping[str, Any]
    ) -> None:
        before = kept["asked"]
        names = [name for name in {**before, **asked} if before.get(name) != asked.get(name)]
        if names:
            changes = "; ".join(f"{name}: {before.get(name)} -> {asked.get(name)}" for name in names)
            raise LRPolicyError(f"the checkpoint holds a composition of other settings ({changes}); give the same ones")
        self._unwatched = [torch.tensor(loss, device=module.device) for loss in kept.get("unwatched", ())]
        self._unseen, loss = kept["unseen"], kept["unseen_loss"]
        self._unseen_loss = None if loss is None else loss.to(module.device)
        if kept["average"] is not None:
            self._average = WeightAverage(module, self.settings.average)
            self._average.load_state_dict(kept["average"])
        if self._reached is not None:
            trainer.should_stop = True
        elif self._journal is not None and self._journal.has_ended:
            self._finish(trainer)


def _plan(asked: Mapping[str, Any]) -> Tuner:
    """The plan that answers what :meth:`LRPolicyComposer._ask` asks."""
    settings = Settings(**{field.name: asked[field.name] for field in fields(Settings) if field.name in asked})
    target = asked["target"]
    if target is None:
        settings = replace(settings, tuning_budget=0.0)
    return compose(settings, asked["lr"], asked["max_steps"], asked["steps between checks"], target, asked["mode"])


class Applied:
    """The rates that a composer applies, over the steps spent; an ``AdaptivePolicy``."""

    def __init__(self, composer: LRPolicyComposer) -> None:
        self._composer = composer

    def __repr__(self) -> str:
        return f"composed: {self.realised()!r}"

    def __call__(self, t: int) -> float:
        """The learning rate of step ``t`` of the training."""
        composer = self._composer
        return composer._leg.policy(composer._leg.start + t - composer._leg_from)

    def observe(self, t: int, value: float) -> None:
        """Nothing: the composer sees every check itself."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""

    def realised(self) -> Policy:
        """What was composed, as a plain policy on its own clock."""
        return self._composer.realised()


def _steps_between_checks(trainer: Trainer) -> int:
    batches = float(trainer.val_check_batch)  # type: ignore[arg-type]
    if trainer.check_val_every_n_epoch is not None:
        batches *= trainer.check_val_every_n_epoch
    if not math.isfinite(batches):
        raise LRPolicyError("composing needs checks: set the Trainer's val_check_interval to a number of batches")
    steps = batches / trainer.accumulate_grad_batches
    if trainer.check_val_every_n_epoch is None and steps != int(steps):
        raise LRPolicyError(
            f"val_check_interval ({batches:g} batches) must be a multiple of accumulate_grad_batches "
            f"({trainer.accumulate_grad_batches}), so that checks fall between optimizer steps"
        )
    return math.ceil(steps)
