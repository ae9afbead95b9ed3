"""Train one run: from a configuration to a result. The only module that knows both Hydra and Lightning."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.model_helpers import is_overridden

from lrbench_pl.callbacks.checkpoints import NewerCheckpointError, TrainingPaused, plain_data
from lrbench_pl.callbacks.lr_policy import LRPolicyCallback, plain_number
from lrbench_pl.callbacks.lr_range_test import LRRangeTest
from lrbench_pl.files import write_atomically
from lrbench_pl.policies import AdaptivePolicy, cut, to_config
from lrbench_pl.reading import read_text
from lrbench_pl.runs import lint
from lrbench_pl.runs.budget import convert_budget
from lrbench_pl.runs.build import Parts, build
from lrbench_pl.runs.config import in_sweep, is_shown_by_launcher, register_resolvers
from lrbench_pl.runs.describe import headline, peak_found, refused, specify, specify_parts
from lrbench_pl.runs.exits import EXIT_FAILED, EXIT_STOPPED, exit_code
from lrbench_pl.runs.extend import prune_composed, resumed_findings
from lrbench_pl.runs.folder import FINISHED, ChangedConfigurationError, add_note, hold_folder
from lrbench_pl.runs.hydra_files import to_yaml
from lrbench_pl.runs.loggers import close_logger, open_loggers, quiet_lightning
from lrbench_pl.runs.options import check_config, one_line, remarks
from lrbench_pl.runs.processes import further_processes, is_first_process
from lrbench_pl.runs.result import Outcome, RunResult, Setup
from lrbench_pl.runs.sharing import Pool
from lrbench_pl.runs.spec import RunSpec
from lrbench_pl.words import in_test

_BEFORE = "interrupted before the first step"

log = logging.getLogger(__name__)
register_resolvers()


def main(cfg: DictConfig) -> float | None:
    """Run one job of Hydra: train, print the headline, exit with the right code.

    In a sweep a failed job does not exit, so that the next ones run.

    Returns:
        The best value of the monitor, for sweepers that optimize it; None if there was no check.
    """
    output = Path(HydraConfig.get().runtime.output_dir)
    try:
        result = run(cfg, output)
    except OSError as error:
        if in_sweep():  # the launcher reports it
            raise
        print(f"cannot write a result into {output}: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:  # before the folder was locked, or after it was released
        sys.exit(EXIT_STOPPED)
    if is_first_process() and not (in_sweep() and is_shown_by_launcher()):
        print(headline(result), flush=True)
    if result.status == "stopped" and (result.message or "").startswith("interrupted"):
        sys.exit(EXIT_STOPPED)
    if not in_sweep() and (code := exit_code([(result.status, bool(cfg.require_target))])):
        sys.exit(code)
    return result.best_value


def run(cfg: DictConfig, output: Path) -> RunResult:
    """Train one run and write its result, history and policy.

    The files in ``output`` are ``result.json``, ``metrics.csv`` and ``policy.yaml``. There is always a result: an error
    gives the status ``failed``, an interruption ``stopped``. A folder with a final result of the same configuration is
    not trained again; a run that was killed, failed or was stopped resumes from its last checkpoint.

    Args:
        cfg: The configuration composed by Hydra.
        output: Folder of this run.

    Returns:
        The result as it was written; the refusal of a folder with another configuration is not written.
    """
    with _ctrl_c_recorded() as interrupts, opened(cfg, output, interrupts) as training:
        return training if isinstance(training, RunResult) else training.run()


@contextlib.contextmanager
def opened(cfg: DictConfig, output: Path, interrupts: Sequence[int] = ()) -> Iterator[Training | RunResult]:
    """Hold the folder of a run, so that no other process trains in it.

    Args:
        cfg: The configuration composed by Hydra.
        output: Folder of the run.
        interrupts: Not empty once Ctrl-C was pressed.

    Yields:
        The training; the result if there is nothing to train: it is finished already, or its configuration was refused.
    """
    try:
        convert_budget(cfg)
        check_config(cfg)
        spec, setup = specify(cfg)
    except Exception as error:  # every mistake in a configuration gives a result too
        status, message = _status_after(error, interrupts)
        yield _write(refused(cfg, status, message), output)
        return
    if not (in_sweep() and is_shown_by_launcher()):  # which prints them once for all its jobs
        given = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
        for line in remarks(cfg, given):
            _warn_once(line)
    training = Training(cfg, output, spec, setup, interrupts)
    if not is_first_process():  # the first one holds the lock for all
        yield training
        return
    with contextlib.ExitStack() as held:
        try:
            finished = held.enter_context(hold_folder(output, spec.run_id, spec.to_dict()))
        except ChangedConfigurationError as error:
            yield RunResult.build(spec, setup, Outcome("failed", message=one_line(error)))
            return
        held.enter_context(_children(cfg, output))
        yield training if finished is None else finished


@contextlib.contextmanager
def _ctrl_c_recorded() -> Iterator[Sequence[int]]:
    """Record Ctrl-C, which a library may turn into an error of its own."""
    recorded: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def record(signum: int, frame: FrameType | None) -> None:
        recorded.append(signum)
        before(signum, frame)  # type: ignore[operator,misc]

    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, record)
    try:
        yield recorded
    finally:
        if signal.getsignal(signal.SIGINT) is record:  # Lightning ignores all but the first
            signal.signal(signal.SIGINT, before)


def _status_after(error: Exception, interrupts: Sequence[int]) -> tuple[Any, str]:
    """Return the status that an error leaves, and its message."""
    return ("stopped", _BEFORE) if interrupts else ("failed", one_line(error))


def _children(cfg: DictConfig, output: Path) -> contextlib.AbstractContextManager[None]:
    """Prepare for further processes of the run, if it may have any."""
    several = cfg.trainer.get("devices") not in (1, "1")
    return further_processes(cfg, output) if several else contextlib.nullcontext()


class Training:
    """The training of one run in its folder, which writes its result whatever happens.

    :meth:`run` is the whole of it. A fused sweep takes the same steps one by one, with the fit of many runs at once
    between them: :meth:`prepare`, :meth:`shared_outcome`, :meth:`evaluate` and :meth:`finish`.

    Args:
        cfg: The configuration.
        output: The folder, locked.
        spec: The specification.
        setup: The setup.
        interrupts: Not empty once Ctrl-C was pressed.
    """

    def __init__(self, cfg: DictConfig, output: Path, spec: RunSpec, setup: Setup, interrupts: Sequence[int]) -> None:
        self.cfg, self.output, self.spec, self.setup, self._interrupts = cfg, output, spec, setup, interrupts
        self._given = spec  # as the configuration tells, before anything is built
        self._loggers: list[Logger] = []
        self._parts: Parts | None = None
        self._pool: Pool | None = None

    @property
    def is_built(self) -> bool:
        """Whether :meth:`prepare` has built the objects of the run."""
        return self._parts is not None

    @property
    def parts(self) -> Parts:
        """The objects of the run, once they are built."""
        assert self._parts is not None
        return self._parts

    def run(self) -> RunResult:
        """Train, from the last checkpoint if there is one, and write the result."""
        try:
            with quiet_lightning():
                outcome = self._train()
        except (KeyboardInterrupt, SystemExit, Exception) as error:  # Lightning turns the first into the second
            outcome = self.outcome_after(error)
        return self.finish(outcome)

    def _train(self) -> Outcome:
        self.prepare()
        outcome = self.shared_outcome("serial")
        if outcome is None:
            self._fit(self.parts)
            outcome = self.evaluate(self.parts.checkpoints.seconds)
        _write_policy(self.cfg, self.spec, self.parts.verifier, self.output)
        return outcome

    def prepare(self) -> None:
        """Build the objects of the run, write its policy, and log what lint finds in it."""
        cfg = self.cfg
        torch.set_num_threads(cfg.threads)
        self._loggers = open_loggers(cfg, self.output)
        parts = self._build()
        self.spec, self.setup = specify_parts(cfg, parts, self.spec, self.setup)
        _write_policy(cfg, self.spec, parts.verifier, self.output)
        _warn_of_lint(cfg, parts.verifier)

    def shared_outcome(self, engine: str) -> Outcome | None:
        """Return the outcome of a finished run of the sweep with the same rates, or None.

        Args:
            engine: What would train this run: ``serial``, or an engine of fused sweeps.
        """
        self.setup = replace(self.setup, engine=engine)
        self._pool = _pool(self.cfg, self._given, self.setup)
        outcome = None if self._pool is None else self._pool.take(self.output)
        if outcome is not None:
            log.info(f"{self.spec.policy_name}: the same rates as run {outcome.shared_with}, whose outcome it shares")
        return outcome

    def evaluate(self, seconds: float) -> Outcome:
        """Evaluate the fitted weights and return the outcome.

        Args:
            seconds: Duration of the fit.
        """
        metrics = _evaluate(self.parts)
        return replace(self._fitted(self.parts, seconds), **metrics)

    def outcome_after(self, error: BaseException) -> Outcome:
        """Return the outcome of a run that an exception ended."""
        if isinstance(error, TrainingPaused):
            return self._ended_early("stopped", str(error))
        if not isinstance(error, Exception):
            return self._ended_early("stopped", _BEFORE)
        log.debug("the run failed", exc_info=True)
        return self._ended_early(*_status_after(error, self._interrupts))

    def finish(self, outcome: Outcome) -> RunResult:
        """Write the result, share it with equal runs, and close the loggers."""
        result = _write(RunResult.build(self.spec, self.setup, outcome), self.output)
        if is_first_process():
            if self._pool is not None:
                self._pool.offer(result, self.output)
            if self._parts is not None and result.status in FINISHED:
                self._parts.checkpoints.discard()
                if self.cfg.extendable and hasattr(self._parts.verifier, "records"):
                    prune_composed(self.output)
        for logger in self._loggers:
            close_logger(logger, result)
        return result

    def _build(self) -> Parts:
        pl.seed_everything(self.cfg.seed, workers=True, verbose=False)
        self._parts = build(self.cfg, self._loggers, self.output, self._given)
        return self._parts

    def _fit(self, parts: Parts) -> None:
        """Fit from the newest usable checkpoint or the start."""
        checkpoints = list(parts.checkpoints.found())
        for checkpoint in checkpoints:
            try:
                for finding in resumed_findings(
                    lint.training_plan(self.cfg, parts.verifier.policy), checkpoint, self._given.run_id
                ):
                    self._note(f"lint: {finding}")
                self._note(f"resuming from {checkpoint.name}")
                with plain_data():
                    parts.trainer.fit(parts.module, datamodule=parts.data, ckpt_path=checkpoint, weights_only=True)
                return
            except NewerCheckpointError:
                raise
            except Exception as error:
                if parts.checkpoints.has_started or self._interrupts:
                    raise
                self._note(f"cannot resume from {checkpoint.name}: {one_line(error)}")
                if is_first_process():
                    parts.checkpoints.set_aside(checkpoint)
                parts = self._build()  # the checkpoint may have changed them already
        if checkpoints:
            self._note("starting from the beginning")
        parts.trainer.fit(parts.module, datamodule=parts.data)

    def _note(self, text: str) -> None:
        if is_first_process():
            add_note(self.output, text)

    def _fitted(self, parts: Parts, seconds: float) -> Outcome:
        """Return the outcome of the fit, so far as it got."""
        inherited = parts.checkpoints.inherited or {}
        return Outcome.from_verdict(
            parts.verifier.verdict,
            extends=inherited.get("run_id"),
            inherited_steps=inherited.get("step"),
            tuning_steps=getattr(parts.verifier, "tuning_steps", 0),
            weights=getattr(parts.verifier, "weights", None),
            peak_found=peak_found(parts.verifier, float(self.cfg.lr), parts.trainer.global_step),
            wall_time_s=seconds,
        )

    def _ended_early(self, status: Any, message: str) -> Outcome:
        """Return the outcome of a run that an exception ended."""
        if self._parts is None:
            return Outcome(status, message)
        fitted = self._fitted(self._parts, self._parts.checkpoints.seconds)
        steps = self._parts.trainer.global_step
        if status == "stopped" and message == _BEFORE:
            message = f"interrupted at step {steps}" if steps else message
        elif status == fitted.status == "stopped":
            message = fitted.message or message
        return replace(fitted, status=status, message=message)


def _pool(cfg: DictConfig, spec: RunSpec, setup: Setup) -> Pool | None:
    """Return the pool of equal runs of a job in a sweep; None if it shares nothing."""
    if not (cfg.share_equal and in_sweep() and setup.policy_id):
        return None
    return Pool.of(Path(HydraConfig.get().sweep.dir), spec.but_for_rates, setup)


def _warn_of_lint(cfg: DictConfig, verifier: LRPolicyCallback) -> None:
    """Log what lint finds in the policy, in one line, once for all seeds of a sweep."""
    if isinstance(verifier, LRRangeTest):  # its rate rises on purpose
        return
    line = lint.summary(lint.lint(lint.training_plan(cfg, verifier.policy)))
    if line is not None:
        _warn_once(line)


def _warn_once(line: str) -> None:
    if line not in _warned and is_first_process():
        _warned.add(line)
        log.warning(line)


_warned: set[str] = set()


def _evaluate(parts: Parts) -> dict[str, Any]:
    """Evaluate the final weights on the test set and a part of the training set."""
    module, data, trainer = parts.module, parts.data, parts.trainer
    if parts.verifier.verdict.status in ("diverged", "stopped"):
        return {}
    metrics: dict[str, Any] = {}
    if is_overridden("test_step", module) and is_overridden("test_dataloader", data, pl.LightningDataModule):
        tested = {name: plain_number(value) for name, value in trainer.test(module, data, verbose=False)[0].items()}
        metrics |= {field: tested.get(f"test/{name}") for field, name in _TESTED.items()}
        metrics["test_value"] = tested.get(in_test(str(parts.verifier.monitor)))
    if hasattr(data, "train_eval_dataloader") and is_overridden("validation_step", module):
        loggers, trainer.loggers = trainer.loggers, []  # this is not a check: keep it out of the history
        trained = trainer.validate(module, data.train_eval_dataloader(), verbose=False)[0]
        trainer.loggers = loggers
        metrics["train_loss"] = plain_number(trained["val/loss"]) if "val/loss" in trained else None
    if metrics.get("test_loss") is not None and metrics.get("train_loss") is not None:
        metrics["loss_difference"] = metrics["test_loss"] - metrics["train_loss"]
    return metrics


# Fields of a result and the metrics of the test stage.
_TESTED = {
    "test_accuracy": "accuracy",
    "test_top5": "top5",
    "test_loss": "loss",
    "confidence": "confidence",
    "confidence_std": "confidence_std",
    "cdac": "cdac",
}


def _write(result: RunResult, output: Path) -> RunResult:
    """Write the result; of several processes only the first does."""
    if is_first_process():
        result.write(output)
    return result


def _write_if_changed(path: Path, text: str) -> None:
    """Write a file that may have the same content already."""
    with contextlib.suppress(OSError, ValueError):
        if not path.is_symlink() and read_text(path) == text:
            return
    write_atomically(path, text)


def _write_policy(cfg: DictConfig, spec: RunSpec, verifier: LRPolicyCallback, output: Path) -> None:
    """Write ``policy.yaml``; of an adaptive policy the schedule that was applied."""
    policy = verifier.policy
    if isinstance(policy, AdaptivePolicy):
        policy = cut(policy.realised(), cfg.max_steps)  # a change at the last check would never run
    try:
        stored: Any = to_config(policy)
    except (TypeError, ValueError):  # a policy type of the user's own
        stored = dict(spec.policy)
    if is_first_process():
        _write_if_changed(output / "policy.yaml", to_yaml(stored))
        if (records := getattr(verifier, "records", None)) is not None:
            write_atomically(output / "tuning.json", json.dumps(records, indent=2) + "\n")
