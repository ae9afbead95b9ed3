"""One run: from a configuration to a row. The only file that knows Hydra and Lightning both."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.model_helpers import is_overridden

from lrbench_pl.analysis import lint  # pure: it needs policies alone
from lrbench_pl.callback import LRPolicyCallback, plain_number
from lrbench_pl.checkpoints import Checkpoints, NewerCheckpointError, TrainingPaused, check_intact
from lrbench_pl.config import build_data, build_policy, register_resolvers
from lrbench_pl.knobs import UserError, check_knobs, one_line, refuse_late_milestones, remarks
from lrbench_pl.loggers import close_logger, open_loggers, quiet_lightning
from lrbench_pl.policies import AdaptivePolicy, cut, to_config
from lrbench_pl.progress import progress
from lrbench_pl.results import RunResult, write_atomically
from lrbench_pl.row import describe, describe_parts, headline, identity, judge, peak_found
from lrbench_pl.sharing import Pool
from lrbench_pl.spec import RunSpec, policy_name
from lrbench_pl.sweeps.exits import EXIT_FAILED, EXIT_STOPPED, exit_code
from lrbench_pl.sweeps.processes import one_job
from lrbench_pl.sweeps.records import FINISHED, ChangedConfigurationError, claim, note
from lrbench_pl.tuning.ranging import LRRangeTest
from lrbench_pl.workloads.classifier import Classifier

_BEFORE = "interrupted before the first step"

log = logging.getLogger(__name__)
register_resolvers()


@dataclass
class Parts:
    """What one run is made of."""

    module: pl.LightningModule
    data: pl.LightningDataModule
    verifier: LRPolicyCallback
    checkpoints: Checkpoints
    trainer: pl.Trainer


def main(cfg: DictConfig) -> float | None:
    """Run one job of Hydra: print its last line, keep its row, and leave with the right exit code.

    In a sweep a failed job is a row like any other, so that the next ones run.

    Returns:
        The best accuracy, for sweepers that optimize it; None if there was no check.
    """
    output = Path(HydraConfig.get().runtime.output_dir)
    in_sweep = _in_sweep()
    try:
        result = run(cfg, output)
    except OSError as error:
        if in_sweep:  # whoever launched it says so
            raise
        print(f"no row could be written into {output}: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:  # before it held its folder, or while it left it
        sys.exit(EXIT_STOPPED)
    if _is_first_process() and not (in_sweep and _is_shown_by_launcher()):
        print(headline(result), flush=True)
    if result.status == "stopped" and (result.message or "").startswith("interrupted"):
        sys.exit(EXIT_STOPPED)
    if not in_sweep and (code := exit_code([(result.status, bool(cfg.require_target))])):
        sys.exit(code)
    return result.best_accuracy


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _is_shown_by_launcher() -> bool:
    return str(HydraConfig.get().launcher.get("_target_")).startswith("hydra_plugins.lrbench_launchers.")


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
        if not (_in_sweep() and _is_shown_by_launcher()):  # which says it for all its jobs
            given = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
            for line in remarks(cfg, given):
                _say_once(line)
        if not _is_first_process():  # the first one holds the folder for all
            return _train(cfg, output, row, heard)
        try:
            with claim(output, str(row["run_id"]), identity(cfg)) as finished, _processes(cfg, output):
                return _train(cfg, output, row, heard) if finished is None else finished
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


def _train(cfg: DictConfig, output: Path, row: dict[str, Any], heard: Sequence[int]) -> RunResult:
    """Train, from the last checkpoint if there is one, and keep the row."""
    parts = pool = None
    loggers: list[Logger] = []
    try:
        torch.set_num_threads(cfg.threads)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        loggers = [instantiate(logger) for logger in cfg.logger.values()]
        open_loggers(loggers, cfg, output)
        with quiet_lightning():
            parts = build(cfg, loggers, output)
            row |= describe_parts(cfg, parts)
            _write_policy(cfg, parts.verifier, output)
            _say_lint(cfg, parts.verifier)
            pool = _pool(cfg, row)
            if pool is not None and (shared := pool.take(output)) is not None:
                log.info(f"{row['policy']}: the same rates as run {shared['shared_with']}, whose outcome it shares")
                row |= shared
            else:
                passed_over = False
                for checkpoint in list(parts.checkpoints.found()):
                    try:
                        check_intact(checkpoint)
                        _note(output, f"going on from {checkpoint.name}")
                        parts.trainer.fit(parts.module, datamodule=parts.data, ckpt_path=checkpoint, weights_only=False)
                        break
                    except NewerCheckpointError:
                        raise
                    except Exception as error:
                        if parts.checkpoints.went_on or heard:
                            raise
                        _note(output, f"cannot go on from {checkpoint.name}: {one_line(error)}")
                        passed_over = True
                        pl.seed_everything(cfg.seed, workers=True, verbose=False)
                        parts = build(cfg, loggers, output)
                else:
                    if passed_over:
                        _note(output, "starting from the beginning")
                    parts.trainer.fit(parts.module, datamodule=parts.data)
                row |= _evaluate(parts)
        _write_policy(cfg, parts.verifier, output)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        row |= {"status": "stopped", "message": _BEFORE}
    except TrainingPaused as pause:
        row |= {"status": "stopped", "message": str(pause)}
    except Exception as error:
        log.debug("the run failed", exc_info=True)
        row |= _why(error, heard)
    finally:
        if parts is not None:
            verdict = parts.verifier.verdict
            row = judge(verdict) | {"steps_run": verdict.steps_run} | row
            row["tuning_steps"] = getattr(parts.verifier, "tuning_steps", 0)
            row["peak_found"] = peak_found(parts.verifier, float(cfg.lr), parts.trainer.global_step)
            if row.get("shared_with") is None:
                row["wall_time_s"] = parts.checkpoints.seconds
            if row["status"] == "stopped" and parts.trainer.global_step and row["message"] == _BEFORE:
                row["message"] = f"interrupted at step {parts.trainer.global_step}"
            elif row["status"] == verdict.status == "stopped" and row["message"] != _BEFORE:
                row["message"] = verdict.message
        result = _finish(output, row)
        if pool is not None and _is_first_process():
            pool.offer(result, output)
        if parts is not None and result.status in FINISHED and _is_first_process():
            parts.checkpoints.discard()
        for logger in loggers:
            close_logger(logger, result)
    return result


def build(cfg: DictConfig, loggers: Iterable[Logger] = (), output: Path | None = None) -> Parts:
    """Everything that one run needs. This function holds every ``instantiate`` of objects that train.

    Raises:
        UserError: If the parts do not fit each other.
    """
    _refuse_contradictions(cfg)
    data = build_data(cfg.dataset)
    if cfg.workload is None:
        module = Classifier(
            model=instantiate(cfg.model),
            optimizer=instantiate(cfg.optimizer),
            num_classes=_num_classes(cfg, data),
            param_groups=instantiate(cfg.param_groups, _convert_="all"),
            channels_last=cfg.channels_last,
            compile=cfg.compile,
        )
    else:
        module = instantiate(cfg.workload)
    loggers = list(loggers)
    verifier = build_verifier(cfg, output)
    folder = (Path() if output is None else output) / "checkpoints"
    checkpoints = Checkpoints(folder, cfg.checkpoint_every, cfg.checkpoints_kept, cfg.max_time)
    checkpoints.remember(loggers)
    quiet = sys.stdout.isatty() and _in_sweep() and _is_shown_by_launcher()  # a sweep has one view of its own
    quiet = quiet or cfg.trainer.get("enable_progress_bar") is False
    kept = OmegaConf.masked_copy(cfg.trainer, [str(key) for key in cfg.trainer if key != "callbacks"])
    kept._set_parent(cfg)  # so that references to the rest still resolve
    trainer = instantiate(
        kept,
        val_check_interval=cfg.check_every * cfg.trainer.accumulate_grad_batches,  # Lightning counts batches
        callbacks=[verifier, *([] if quiet else [progress(cfg.monitor)]), checkpoints, *_own_callbacks(cfg)],
        logger=loggers,
        enable_progress_bar=sys.stdout.isatty() and not quiet,
        default_root_dir=output,
    )
    if trainer.max_steps != cfg.max_steps:
        raise UserError(
            f"the Trainer would take {trainer.max_steps} steps of max_steps={cfg.max_steps}; leave out "
            "trainer.fast_dev_run, and set the budget with max_steps"
        )
    if cfg.workload is not None:
        trainer.callbacks.append(TrueLabel(cfg))
    return Parts(module, data, verifier, checkpoints, trainer)


# Arguments of the Trainer that a run sets itself, and from what.
_SET_BY_RUN = {
    "val_check_interval": "check_every=STEPS",
    "logger": "the group logger, such as logger=csv",
    "default_root_dir": "hydra.run.dir=FOLDER",
}


def _refuse_contradictions(cfg: DictConfig) -> None:
    """Refuse keys of ``trainer`` that would be overwritten, or that would end the training before its budget."""
    for name, instead in _SET_BY_RUN.items():
        if cfg.trainer.get(name) is not None:
            raise UserError(f"trainer.{name} is set by the run, got {cfg.trainer[name]!r}; use {instead} instead")
    given = cfg.trainer.get("max_steps")
    if given != cfg.max_steps:
        raise UserError(
            f"trainer.max_steps must be max_steps ({cfg.max_steps}), got {given!r}; leave it out and set max_steps"
        )


def _own_callbacks(cfg: DictConfig) -> list[Any]:
    """What ``+trainer.callbacks=`` names: one callback, a list of them, or a mapping from names."""
    callbacks = instantiate(cfg.trainer.get("callbacks"), _convert_="all") or []
    if isinstance(callbacks, dict):
        callbacks = list(callbacks.values())
    elif not isinstance(callbacks, list):
        callbacks = [callbacks]
    for callback in callbacks:
        if not hasattr(callback, "on_train_batch_start"):
            raise UserError(f"trainer.callbacks must be callbacks, each with its _target_, got {callback!r}")
    return callbacks


class TrueLabel(pl.Callback):
    """Refuses a workload that builds another optimizer than the row would name.

    Args:
        cfg: The configuration; a name given by ``names.optimizer`` is believed.
    """

    def __init__(self, cfg: DictConfig) -> None:
        chosen = HydraConfig.get().runtime.choices.get("optimizer") if HydraConfig.initialized() else None
        self._name = str(cfg.names.optimizer)
        self._believed = self._name != str(chosen) or not isinstance(cfg.optimizer, DictConfig)
        self._optimizer = cfg.optimizer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the first step."""
        if self._believed or len(trainer.optimizers) != 1:  # of several, the callback says what to do
            return
        built, named = trainer.optimizers[0], get_object(str(self._optimizer.get("_target_")))
        other = "give optimizer=NAME of the one that it builds, or any name as names.optimizer=NAME"
        if isinstance(named, type) and type(built) is not named:
            raise UserError(
                f"the workload builds {type(built).__name__}, but optimizer={self._name} is {named.__name__}, "
                f"and so would the row say; {other}"
            )
        for key, value in self._optimizer.items():
            if key not in ("_target_", "_partial_", "lr") and built.defaults.get(str(key), value) != value:
                raise UserError(
                    f"the workload builds {type(built).__name__} with {key}={built.defaults[str(key)]!r}, but "
                    f"optimizer={self._name} says {value!r}, and so would the row; {other}"
                )


def _num_classes(cfg: DictConfig, data: pl.LightningDataModule) -> int:
    """The number of classes, which a data module or a model of the user's own may say."""
    for found in (getattr(data, "num_classes", None), OmegaConf.select(cfg, "model.num_classes")):
        if found is not None:
            return int(found)
    raise UserError("the number of classes is not known; give it as model.num_classes or as dataset.num_classes")


def build_verifier(cfg: DictConfig, output: Path | None = None) -> LRPolicyCallback:
    """The callback that applies the configured policy, or the one that the policy group itself names."""
    target = {
        "target_accuracy": cfg.target_accuracy,
        "monitor": cfg.monitor,
        "mode": cfg.mode,
        "confirmations": cfg.confirmations,
    }
    policy = build_policy(cfg, None if output is None else output / "lookup.json")
    if isinstance(policy, LRPolicyCallback):
        return policy
    refuse_late_milestones(policy, cfg.max_steps)
    return LRPolicyCallback(policy, stop=cfg.stop_at_target, **target)


def _pool(cfg: DictConfig, row: Mapping[str, Any]) -> Pool | None:
    """Where a job of a sweep finds one with the same rates; None if there is nothing to share."""
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if not (cfg.share_equal and in_sweep and row.get("policy_id")):
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
    if line not in _said and _is_first_process():
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
    if _is_first_process():
        note(output, text)


def _finish(output: Path, row: Mapping[str, Any]) -> RunResult:
    """Keep the row; under several processes the first one writes it."""
    result = RunResult.from_dict(dict(row))
    if _is_first_process():
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
    if _is_first_process():
        write_atomically(output / "policy.yaml", OmegaConf.to_yaml(OmegaConf.create(stored)))
        if (records := getattr(verifier, "records", None)) is not None:
            write_atomically(output / "tuning.json", json.dumps(records, indent=2) + "\n")


def _is_first_process() -> bool:
    return int(getattr(rank_zero_only, "rank", 0)) == 0
