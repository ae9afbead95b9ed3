"""One run: from a configuration to a row. The only file that knows Hydra and Lightning both."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.model_helpers import is_overridden

from lrbench_pl.callbacks.checkpoints import NewerCheckpointError, TrainingPaused, check_intact
from lrbench_pl.callbacks.lr_policy import LRPolicyCallback, plain_number
from lrbench_pl.callbacks.lr_range_test import LRRangeTest
from lrbench_pl.files import write_atomically
from lrbench_pl.policies import AdaptivePolicy, cut, to_config
from lrbench_pl.runs import lint
from lrbench_pl.runs.build import Parts, build
from lrbench_pl.runs.config import in_sweep, is_shown_by_launcher, register_resolvers
from lrbench_pl.runs.describe import describe, describe_parts, headline, identity, judge, peak_found
from lrbench_pl.runs.exits import EXIT_FAILED, EXIT_STOPPED, exit_code
from lrbench_pl.runs.folder import FINISHED, ChangedConfigurationError, claim, note
from lrbench_pl.runs.loggers import close_logger, open_loggers, quiet_lightning
from lrbench_pl.runs.options import check_knobs, one_line, remarks
from lrbench_pl.runs.processes import is_first_process, one_job
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.sharing import Pool
from lrbench_pl.runs.spec import RunSpec, policy_name
from lrbench_pl.words import in_test

_BEFORE = "interrupted before the first step"

log = logging.getLogger(__name__)
register_resolvers()


def main(cfg: DictConfig) -> float | None:
    """Run one job of Hydra: print its last line, keep its row, and leave with the right exit code.

    In a sweep a failed job is a row like any other, so that the next ones run.

    Returns:
        The best accuracy, for sweepers that optimize it; None if there was no check.
    """
    output = Path(HydraConfig.get().runtime.output_dir)
    try:
        result = run(cfg, output)
    except OSError as error:
        if in_sweep():  # whoever launched it says so
            raise
        print(f"no row could be written into {output}: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:  # before it held its folder, or while it left it
        sys.exit(EXIT_STOPPED)
    if is_first_process() and not (in_sweep() and is_shown_by_launcher()):
        print(headline(result), flush=True)
    if result.status == "stopped" and (result.message or "").startswith("interrupted"):
        sys.exit(EXIT_STOPPED)
    if not in_sweep() and (code := exit_code([(result.status, bool(cfg.require_target))])):
        sys.exit(code)
    return result.best_value


def run(cfg: DictConfig, output: Path) -> RunResult:
    """Train once and write ``result.json``, ``metrics.csv`` and ``policy.yaml`` into ``output``.

    Whatever happens, there is a row in the end: an error becomes ``failed`` with its message, an
    interruption ``stopped``. A folder in which the same configuration has ended by itself is not run again; where it
    was begun, failed or was stopped it goes on from the last checkpoint.

    Args:
        cfg: The configuration composed by Hydra.
        output: Folder of this run.

    Returns:
        The row, as it was written; not written is only the refusal of a folder that holds another configuration.
    """
    with _hearing_ctrl_c() as heard:
        try:
            check_knobs(cfg)
            row = describe(cfg)
        except Exception as error:  # whatever is wrong with a configuration is a row too
            row = {"run_id": "unknown", "policy": policy_name(cfg)}
            return _finish(output, {**row, **_why(error, heard)})
        if not (in_sweep() and is_shown_by_launcher()):  # which says it for all its jobs
            given = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
            for line in remarks(cfg, given):
                _say_once(line)
        if not is_first_process():  # the first one holds the folder for all
            return _Training(cfg, output, row, heard).run()
        try:
            with claim(output, str(row["run_id"]), identity(cfg)) as finished, _processes(cfg, output):
                return _Training(cfg, output, row, heard).run() if finished is None else finished
        except ChangedConfigurationError as error:
            return RunResult.from_dict({**row, "status": "failed", "message": one_line(error)})


@contextlib.contextmanager
def _hearing_ctrl_c() -> Iterator[Sequence[int]]:
    """Remember that Ctrl-C was pressed, which a library in whose midst it came may turn into an error of its own."""
    heard: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def hear(signum: int, frame: FrameType | None) -> None:
        heard.append(signum)
        before(signum, frame)  # type: ignore[operator,misc]

    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, hear)
    try:
        yield heard
    finally:
        if signal.getsignal(signal.SIGINT) is hear:  # Lightning ignores what comes after the first
            signal.signal(signal.SIGINT, before)


def _why(error: Exception, heard: Sequence[int]) -> dict[str, str]:
    """The status that an error leaves, and its message."""
    if heard:
        return {"status": "stopped", "message": _BEFORE}
    return {"status": "failed", "message": one_line(error)}


def _processes(cfg: DictConfig, output: Path) -> contextlib.AbstractContextManager[None]:
    """What the further processes of this run are, where there may be any: not the whole command again."""
    several = cfg.trainer.get("devices") not in (1, "1")
    return one_job(cfg, output) if several else contextlib.nullcontext()


class _Training:
    """Train one run in the folder that it holds, and keep its result whatever happens.

    Args:
        cfg: The configuration.
        output: The folder.
        row: What is known of the result so far.
        interrupts: Filled when Ctrl-C is pressed.
    """

    def __init__(self, cfg: DictConfig, output: Path, row: dict[str, Any], interrupts: Sequence[int]) -> None:
        self._cfg, self._output, self._row, self._interrupts = cfg, output, row, interrupts
        self._loggers: list[Logger] = []
        self._parts: Parts | None = None
        self._pool: Pool | None = None

    def run(self) -> RunResult:
        """Train, from the last checkpoint if there is one, and write the result."""
        try:
            self._train()
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
            self._row |= {"status": "stopped", "message": _BEFORE}
        except TrainingPaused as pause:
            self._row |= {"status": "stopped", "message": str(pause)}
        except Exception as error:
            log.debug("the run failed", exc_info=True)
            self._row |= _why(error, self._interrupts)
        if self._parts is not None:
            self._row = self._judged(self._parts)
        result = _finish(self._output, self._row)
        if is_first_process():
            if self._pool is not None:
                self._pool.offer(result, self._output)
            if self._parts is not None and result.status in FINISHED:
                self._parts.checkpoints.discard()
        for logger in self._loggers:
            close_logger(logger, result)
        return result

    def _train(self) -> None:
        cfg, output = self._cfg, self._output
        torch.set_num_threads(cfg.threads)
        self._loggers = [instantiate(logger) for logger in cfg.logger.values()]
        open_loggers(self._loggers, cfg, output)
        with quiet_lightning():
            parts = self._build()
            self._row |= describe_parts(cfg, parts)
            _write_policy(cfg, parts.verifier, output)
            _say_lint(cfg, parts.verifier)
            self._pool = _pool(cfg, self._row)
            shared = None if self._pool is None else self._pool.take(output)
            if shared is None:
                self._row |= _evaluate(self._fit(parts))
            else:
                log.info(
                    f"{self._row['policy']}: the same rates as run {shared['shared_with']}, whose outcome it shares"
                )
                self._row |= shared
        assert self._parts is not None
        _write_policy(cfg, self._parts.verifier, output)

    def _build(self) -> Parts:
        pl.seed_everything(self._cfg.seed, workers=True, verbose=False)
        self._parts = build(self._cfg, self._loggers, self._output)
        return self._parts

    def _fit(self, parts: Parts) -> Parts:
        """Fit from the newest checkpoint that can be continued, or else from the beginning; return what was fitted."""
        checkpoints = list(parts.checkpoints.found())
        for checkpoint in checkpoints:
            try:
                check_intact(checkpoint)
                _note(self._output, f"going on from {checkpoint.name}")
                parts.trainer.fit(parts.module, datamodule=parts.data, ckpt_path=checkpoint, weights_only=False)
                return parts
            except NewerCheckpointError:
                raise
            except Exception as error:
                if parts.checkpoints.went_on or self._interrupts:
                    raise
                _note(self._output, f"cannot go on from {checkpoint.name}: {one_line(error)}")
                parts = self._build()  # whatever the checkpoint has changed already
        if checkpoints:
            _note(self._output, "starting from the beginning")
        parts.trainer.fit(parts.module, datamodule=parts.data)
        return parts

    def _judged(self, parts: Parts) -> dict[str, Any]:
        """The result so far, with what the fit says of it."""
        verdict, steps = parts.verifier.verdict, parts.trainer.global_step
        row = judge(verdict) | {"steps_run": verdict.steps_run} | self._row
        row["tuning_steps"] = getattr(parts.verifier, "tuning_steps", 0)
        row["peak_found"] = peak_found(parts.verifier, float(self._cfg.lr), steps)
        if row.get("shared_with") is None:
            row["wall_time_s"] = parts.checkpoints.seconds
        if row["status"] == "stopped" and steps and row["message"] == _BEFORE:
            row["message"] = f"interrupted at step {steps}"
        elif row["status"] == verdict.status == "stopped" and row["message"] != _BEFORE:
            row["message"] = verdict.message
        return row


def _pool(cfg: DictConfig, row: Mapping[str, Any]) -> Pool | None:
    """Where a job of a sweep finds one with the same rates; None if there is nothing to share."""
    if not (cfg.share_equal and in_sweep() and row.get("policy_id")):
        return None
    return Pool.of(Path(HydraConfig.get().sweep.dir), RunSpec.from_config(cfg).but_for_rates, row)


def _say_lint(cfg: DictConfig, verifier: LRPolicyCallback) -> None:
    """What is suspicious about the policy in its budget, in one line, once for all seeds of a sweep."""
    if isinstance(verifier, LRRangeTest):  # whose rate is meant to rise
        return
    line = lint.summary(lint.lint(lint.plan(cfg, verifier.policy)))
    if line is not None:
        _say_once(line)


def _say_once(line: str) -> None:
    if line not in _said and is_first_process():
        _said.add(line)
        log.warning(line)


_said: set[str] = set()


def _evaluate(parts: Parts) -> dict[str, Any]:
    """The test set, touched once, and the loss of the final weights on a fixed part of the training set."""
    module, data, trainer = parts.module, parts.data, parts.trainer
    if parts.verifier.verdict.status in ("diverged", "stopped"):
        return {}
    row: dict[str, Any] = {}
    if is_overridden("test_step", module) and is_overridden("test_dataloader", data, pl.LightningDataModule):
        tested = {name: plain_number(value) for name, value in trainer.test(module, data, verbose=False)[0].items()}
        row |= {field: tested.get(f"test/{name}") for field, name in _TESTED.items()}
        row["test_value"] = tested.get(in_test(str(parts.verifier.monitor)))
    if hasattr(data, "train_eval_dataloader") and is_overridden("validation_step", module):
        loggers, trainer.loggers = trainer.loggers, []  # these are no checks: keep them out of the history
        trained = trainer.validate(module, data.train_eval_dataloader(), verbose=False)[0]
        trainer.loggers = loggers
        row["train_loss"] = plain_number(trained["val/loss"]) if "val/loss" in trained else None
    if row.get("test_loss") is not None and row.get("train_loss") is not None:
        row["loss_difference"] = row["test_loss"] - row["train_loss"]
    return row


_TESTED = {
    "test_accuracy": "accuracy",
    "test_top5": "top5",
    "test_loss": "loss",
    "confidence": "confidence",
    "confidence_std": "confidence_std",
    "cdac": "cdac",
}


def _note(output: Path, text: str) -> None:
    if is_first_process():
        note(output, text)


def _finish(output: Path, row: Mapping[str, Any]) -> RunResult:
    """Keep the row; under several processes the first one writes it."""
    result = RunResult.from_dict(dict(row))
    if is_first_process():
        result.write(output)
    return result


def _write_policy(cfg: DictConfig, verifier: LRPolicyCallback, output: Path) -> None:
    """``policy.yaml``: what ``lr_policy_file=`` takes. An adaptive policy is written as it turned out."""
    policy = verifier.policy
    if isinstance(policy, AdaptivePolicy):
        policy = cut(policy.realised(), cfg.max_steps)  # a change at the last check would never run
    try:
        stored: Any = to_config(policy)
    except (TypeError, ValueError):  # a policy type of the user's own
        stored = OmegaConf.to_container(cfg.lr_policy, resolve=True)
    if is_first_process():
        write_atomically(output / "policy.yaml", OmegaConf.to_yaml(OmegaConf.create(stored)))
        if (records := getattr(verifier, "records", None)) is not None:
            write_atomically(output / "tuning.json", json.dumps(records, indent=2) + "\n")
