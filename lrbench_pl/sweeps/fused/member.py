"""One job of a group: its folder, its objects, its checks and its history, as a run of its own leaves them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig

from lrbench_pl.callbacks.lr_policy import divergence, unlogged
from lrbench_pl.policies import table
from lrbench_pl.runs.folder import add_note
from lrbench_pl.runs.loggers import quiet_lightning
from lrbench_pl.runs.result import Outcome, RunResult
from lrbench_pl.runs.run import Training, opened
from lrbench_pl.sweeps.fused.engine import Replica
from lrbench_pl.sweeps.launch import JobCall
from lrbench_pl.workloads.module import SupervisedModule

_NOT_METRICS = {"lr", "epoch", "check/step", "check/seconds"}
_LINES = 5  # lines of progress in output.log


class Member:
    """A job that trains in a group.

    Args:
        call: The job.

    Attributes:
        result: Its result, once it has one: from the beginning if it was finished already or could not be built.
        reason: Why it must train by itself; None if it can be part of a group.
        step: Steps taken.
    """

    def __init__(self, call: JobCall) -> None:
        self.result: RunResult | None = None
        self.reason: str | None = None
        self.step = 0
        self._call = call
        self._output = Path()
        self._training: Training | None = None
        self._held = contextlib.ExitStack()
        self._history: list[tuple[int, dict[str, float]]] = []
        self._rates: list[float] = []
        self._random = torch.get_rng_state()
        self._next_line = 0

    def open(self) -> None:
        """Hold the folder and build the objects; a failure is the result of this job alone."""
        with self._call.entered(), quiet_lightning():
            returned = replace(self._call, function=self._open).run()
        if isinstance(returned._return_value, Exception):  # the folder cannot be written: the launcher reports it
            self.close()
            raise returned._return_value

    def _open(self, cfg: DictConfig) -> None:
        self._output = Path(HydraConfig.get().runtime.output_dir)
        training = self._held.enter_context(opened(cfg, self._output))
        if isinstance(training, RunResult):
            self.result = training
            self.close()
            return
        self._training = training
        self._build()

    def restart(self) -> None:
        """Build the objects again, for a training from the start or from a checkpoint."""
        with self._active():
            self._build()

    def _build(self) -> None:
        training = self.training
        self.step, self._history, self._next_line = 0, [], training.cfg.max_steps // _LINES
        try:
            training.prepare()
            self._random = torch.get_rng_state()
            parts = training.parts
            parts.trainer.callbacks = []  # type: ignore[attr-defined]  # the Trainer only evaluates
            module = self.module
            module.trainer = parts.data.trainer = parts.trainer
            module.check_output(tuple(parts.data.input_shape))  # type: ignore[attr-defined]
            self._rates = table(parts.verifier.policy, training.cfg.max_steps)
            if not all(math.isfinite(rate) and rate >= 0 for rate in self._rates):
                self.reason = "its policy gives a rate that is not a finite number of at least 0"
        except Exception as error:
            self._end(training.outcome_after(error))

    @property
    def is_open(self) -> bool:
        """Whether it holds its folder and has no result."""
        return self._training is not None

    @property
    def training(self) -> Training:
        """The training of the job, while it is open."""
        assert self._training is not None
        return self._training

    @property
    def module(self) -> SupervisedModule:
        """The network and its optimizer."""
        module = self.training.parts.module
        assert isinstance(module, SupervisedModule)
        return module

    @property
    def data(self) -> pl.LightningDataModule:
        """The data module. Jobs of one seed may share one."""
        return self.training.parts.data

    @data.setter
    def data(self, data: pl.LightningDataModule) -> None:
        self.training.parts.data = data

    @property
    def cfg(self) -> DictConfig:
        """The configuration."""
        return self.training.cfg

    @property
    def run_id(self) -> str:
        """Hash of the specification."""
        return self.training.spec.run_id

    def replica(self, stream: int) -> Replica:
        """Return the job as an engine sees it.

        Args:
            stream: Index of the loader that it reads.
        """
        target_std = float(getattr(self.data, "target_std", 1.0))
        return Replica(self.module, self._rates, stream, self.training.cfg.seed, self._random, target_std)

    def share(self, engine: str) -> bool:
        """End with the outcome of a finished run with the same rates, if there is one, and return whether it was so.

        Args:
            engine: The engine that would train the job.
        """
        with self._active():
            outcome = self.training.shared_outcome(engine)
            if outcome is not None:
                self._end(outcome)
        return outcome is not None

    @property
    def equal_to(self) -> tuple[str | None, ...]:
        """Key that is equal for jobs with the same outcome, of which one is trained for all."""
        setup, spec = self.training.setup, self.training.spec
        own = self.run_id if not self.cfg.share_equal or setup.policy_id is None else None
        return setup.policy_id, repr(sorted(spec.but_for_rates.items())), own

    def note(self, text: str) -> None:
        """Log a note and add it to the record of the run."""
        with self._active():
            add_note(self._output, text)

    # -- history and checks -----------------------------------------------------------------------------------

    def log_steps(self, first: int, losses: Sequence[float]) -> None:
        """Log rates and losses of the steps that the Trainer would log.

        Args:
            first: Number of the first step, from 0.
            losses: Loss of each step.
        """
        every = self.training.parts.trainer.log_every_n_steps  # type: ignore[attr-defined]
        for step, loss in enumerate(losses, first):
            due = every and (step + 1) % every == 0
            if due or (every and step == 0):
                self._log(step, {"lr": self._rates[step]})
            if due:
                self._log(step, {"train/loss": float(loss), "epoch": 0})
        self.step = first + len(losses)

    def _log(self, step: int, row: Mapping[str, float]) -> None:
        self._history.append((step, dict(row)))
        for logger in self.training.parts.trainer.loggers:
            logger.log_metrics(dict(row), step)

    def log_check(self, metrics: Mapping[str, float], seconds: float) -> None:
        """Log the metrics of a check after the last step."""
        more = {"check/step": float(self.step), "check/seconds": seconds, "epoch": 0}
        self._log(self.step - 1, {**metrics, **more})

    def check(self, metrics: Mapping[str, float], seconds: float) -> bool:
        """Compare a check with the target.

        Args:
            metrics: The metrics, under the names that the module logs.
            seconds: Training seconds before it.

        Returns:
            Whether the job has reached its target, so that its training ends.

        Raises:
            LRPolicyError: If a target is given and its metric is not among them.
        """
        self.log_check(metrics, seconds)
        verifier = self.training.parts.verifier
        if verifier.monitor not in metrics:
            if verifier.target is None:
                return False
            logged = {name for _, row in self._history for name in row} - _NOT_METRICS
            raise unlogged(verifier.monitor, ", ".join(sorted(logged)))
        value = metrics[verifier.monitor]
        hit = verifier.target_check.update(self.step, value, seconds)
        self._print_progress(value)
        return hit and verifier.stop

    def _print_progress(self, value: float) -> None:
        cfg = self.training.cfg
        if self._next_line <= self.step < cfg.max_steps and cfg.trainer.get("enable_progress_bar") is not False:
            self._next_line = self.step + cfg.max_steps // _LINES
            line = (
                f"  step {self.step} of {cfg.max_steps}: lr {self._rates[self.step - 1]:.3g}, {cfg.monitor} {value:.4f}"
            )
            with self._call.entered():
                print(line, flush=True)

    # -- the end ----------------------------------------------------------------------------------------------

    def diverge(self, step: int, when: str) -> None:
        """Record that the loss is no longer finite.

        Args:
            step: Steps that the run counts.
            when: The moment, in words.
        """
        check = self.training.parts.verifier.target_check
        check.steps_run = self.step = step
        check.end("diverged", divergence(when))

    def finish(self, seconds: float) -> None:
        """Evaluate the weights of the module and write the result.

        Args:
            seconds: Duration of the fit.
        """
        training = self.training
        with self._active():
            check = training.parts.verifier.target_check
            check.steps_run = self.step
            if self.step >= training.cfg.max_steps:
                check.finish(self.step)
            self._count_steps()
            try:
                outcome = training.evaluate(seconds)
            except Exception as error:
                outcome = replace(training.outcome_after(error), wall_time_s=seconds)
            self._end(outcome)

    def stop(self, error: BaseException, seconds: float) -> None:
        """Write the result of a job that an interruption or an error has ended.

        Args:
            error: What ended it.
            seconds: Duration of the fit so far.
        """
        training = self.training
        with self._active():
            if training.is_built:
                training.parts.verifier.target_check.steps_run = self.step
                self._count_steps()
            self._end(replace(training.outcome_after(error), wall_time_s=seconds))

    def _count_steps(self) -> None:
        """Set the counters of the Trainer to those of a fit that has ended, for the row of the test."""
        loop: Any = self.training.parts.trainer.fit_loop
        loop.epoch_loop._batches_that_stepped = self.step
        loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = self.step
        loop.epoch_progress.current.completed = 1

    def _end(self, outcome: Outcome) -> None:
        training = self.training
        if training.is_built:
            for logger in training.parts.trainer.loggers:
                logger.finalize("success")
        self.result = training.finish(outcome)
        self.close()

    def close(self) -> None:
        """Release the folder and the objects."""
        self._held.close()
        self._training = None

    @contextlib.contextmanager
    def _active(self) -> Iterator[None]:
        with self._call.entered() as config, quiet_lightning():
            configure_log(config.hydra.job_logging, config.hydra.verbose)
            yield

    # -- resuming ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return checks and history as plain data."""
        check = self.training.parts.verifier.target_check
        check.steps_run = self.step
        return {"check": check.state_dict(), "history": [[step, dict(row)] for step, row in self._history]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; the history is logged again."""
        check = self.training.parts.verifier.target_check
        check.load_state_dict(state["check"])
        self.step = check.steps_run
        for step, row in state["history"]:
            self._log(step, row)
        for logger in self.training.parts.trainer.loggers:
            logger.save()
