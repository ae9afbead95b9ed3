"""One run: from a configuration to a row. The only file that knows Hydra and Lightning both."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.model_helpers import is_overridden

from lrbench_pl.callback import LRPolicyCallback, Verdict, plain_number
from lrbench_pl.config import register_resolvers
from lrbench_pl.policies import AdaptivePolicy, MultiStep, Sequential, from_config, policy_id, table, to_config
from lrbench_pl.progress import progress
from lrbench_pl.results import RunResult, write_atomically
from lrbench_pl.tuning.best import LookedUp
from lrbench_pl.workloads.classifier import Classifier

EXIT_FAILED, EXIT_MISSED, EXIT_STOPPED = 1, 3, 130

log = logging.getLogger(__name__)
register_resolvers()


class UserError(ValueError):
    """Input that cannot be run as it is; the message is the one line to show."""


@dataclass
class Parts:
    """What one run is made of."""

    module: pl.LightningModule
    data: pl.LightningDataModule
    verifier: LRPolicyCallback
    trainer: pl.Trainer


def main(cfg: DictConfig) -> float | None:
    """Run one job of Hydra: print its last line, keep its row, and leave with the right exit code.

    In a sweep a failed job is a row like any other, so that the next ones run.

    Returns:
        The best accuracy, for sweepers that optimize it; None if there was no check.
    """
    output = Path(HydraConfig.get().runtime.output_dir)
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    result = run(cfg, output)
    print(headline(result), flush=True)
    if result.status == "stopped" and (result.message or "").startswith("interrupted"):
        sys.exit(EXIT_STOPPED)
    if not in_sweep:
        if result.status == "failed":
            sys.exit(EXIT_FAILED)
        if cfg.require_target and result.status != "reached":
            sys.exit(EXIT_MISSED)
    return result.best_accuracy


def run(cfg: DictConfig, output: Path) -> RunResult:
    """Train once and write ``result.json``, ``metrics.csv`` and ``policy.yaml`` into ``output``.

    Whatever happens, there is a row in the end: an error becomes ``failed`` with its message, an
    interruption ``stopped``.

    Args:
        cfg: The configuration composed by Hydra.
        output: Folder of this run.

    Returns:
        The row, as it was written.
    """
    try:
        _check_knobs(cfg)
        row = _describe(cfg)
    except (UserError, OmegaConfBaseException) as error:
        row = {"run_id": "unknown", "policy": str(cfg.names.policy)}
        return _finish(output, {**row, "status": "failed", "message": one_line(error)})
    parts = None
    loggers: list[Logger] = []
    try:
        torch.set_num_threads(cfg.threads)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        loggers = [instantiate(logger) for logger in cfg.logger.values()]
        _open(loggers, cfg, output)
        with _quiet_lightning():
            parts = build(cfg, loggers, output)
            row |= _describe_parts(cfg, parts)
            _write_policy(cfg, parts.verifier, output)
            started = time.perf_counter()
            try:
                parts.trainer.fit(parts.module, datamodule=parts.data)
            finally:
                row["wall_time_s"] = time.perf_counter() - started
            row |= _evaluate(parts)
        _write_policy(cfg, parts.verifier, output)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        row |= {"status": "stopped", "message": "interrupted before the first step"}
    except Exception as error:
        log.debug("the run failed", exc_info=True)
        row |= {"status": "failed", "message": one_line(error)}
    finally:
        if parts is not None:
            row = _judge(parts.verifier.verdict) | {"steps_run": parts.trainer.global_step} | row
            row["tuning_steps"] = getattr(parts.verifier, "tuning_steps", 0)
            if row["status"] == "stopped":
                row["message"] = parts.verifier.verdict.message
        result = _finish(output, row)
        for logger in loggers:
            _close(logger, result)
    return result


def build(cfg: DictConfig, loggers: Iterable[Logger] = (), output: Path | None = None) -> Parts:
    """Everything that one run needs. This function holds every ``instantiate`` of objects that train.

    Raises:
        UserError: If the parts do not fit each other.
    """
    data = instantiate(cfg.dataset)
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
    verifier = build_verifier(cfg)
    trainer = instantiate(
        cfg.trainer,
        val_check_interval=cfg.check_every * cfg.trainer.accumulate_grad_batches,  # Lightning counts batches
        callbacks=[verifier, progress(cfg.monitor)],
        logger=list(loggers),
        enable_progress_bar=sys.stdout.isatty(),
        default_root_dir=output,
    )
    return Parts(module, data, verifier, trainer)


def _num_classes(cfg: DictConfig, data: pl.LightningDataModule) -> int:
    """The number of classes, which a data module or a model of the user's own may say."""
    for found in (getattr(data, "num_classes", None), OmegaConf.select(cfg, "model.num_classes")):
        if found is not None:
            return int(found)
    raise UserError("the number of classes is not known; give it as model.num_classes or as dataset.num_classes")


def build_verifier(cfg: DictConfig) -> LRPolicyCallback:
    """The callback that applies the configured policy, or the one that the policy group itself names."""
    target = {
        "target_accuracy": cfg.target_accuracy,
        "monitor": cfg.monitor,
        "mode": cfg.mode,
        "confirmations": cfg.confirmations,
    }
    if cfg.lr_policy_file is not None:
        policy = read_policy(cfg.lr_policy_file)
    else:
        policy = instantiate(cfg.lr_policy, _convert_="all")  # parts of a composite stay policies
        if isinstance(policy, LRPolicyCallback):
            return policy
    _refuse_late_milestones(policy, cfg.max_steps)
    return LRPolicyCallback(policy, stop=cfg.stop_at_target, **target)


def read_policy(path: str | Path) -> Any:
    """A policy from a ``policy.yaml``; the file may name policy types of this package and nothing else.

    Raises:
        UserError: If the file is missing, is no YAML mapping or names something else.
    """
    try:
        stored = OmegaConf.to_container(OmegaConf.load(Path(path).expanduser()), resolve=False)
        if not isinstance(stored, Mapping):
            raise ValueError(f"expected a mapping with _target_, got {type(stored).__name__}")
        return from_config({str(key): value for key, value in stored.items()})
    except Exception as error:
        raise UserError(f"lr_policy_file={path}: {one_line(error)}") from error


def headline(row: RunResult) -> str:
    """The last line of a run, for a person.

    Example:
        >>> print(headline(RunResult(run_id="a", policy="tri", optimizer="momentum", lr=0.05, status="reached",
        ...     target_accuracy=0.97, steps_to_target=240, max_steps=1000, best_accuracy=0.983, test_accuracy=0.972)))
        tri (momentum, lr 0.05): reached 0.970 at step 240 of 1000, best 0.983, test 0.972
    """
    name = f"{row.policy} ({row.optimizer}, lr {row.lr:g})" if row.lr is not None else row.policy
    if row.status == "reached":
        words = f"reached {row.target_accuracy:.3f} at step {row.steps_to_target} of {row.max_steps}"
    elif row.status == "missed" and row.target_accuracy is None:
        words = f"ran {row.steps_run} steps without a target"
    elif row.status == "missed":
        words = f"missed {row.target_accuracy:.3f} within {row.max_steps} steps"
    else:
        words = f"{row.status}: {row.message}"
    accuracies = {"best": row.best_accuracy, "test": row.test_accuracy}
    shown = "".join(f", {label} {value:.3f}" for label, value in accuracies.items() if value is not None)
    return f"{name}: {words}{shown}"


def one_line(error: BaseException) -> str:
    r"""What an error says, in one line: Hydra's wrapping opened, its key kept.

    Example:
        >>> one_line(ValueError("first line\n  second"))
        'first line second'
    """
    where = ""
    if isinstance(error, InstantiationException):
        lines = [line for line in str(error).splitlines() if line.startswith("full_key: ")]
        where = lines[-1].removeprefix("full_key: ") + ": " if lines else ""
        while error.__cause__ is not None:
            error = error.__cause__
    text = " ".join(str(error).split())
    known = isinstance(error, (ValueError, RuntimeError, InstantiationException, OmegaConfBaseException))
    kind = "" if known and text else f"{type(error).__name__}: "
    return f"{where}{kind}{text}".rstrip(": ")


# -- the row --------------------------------------------------------------------------------------------------


def run_id(cfg: DictConfig, policy: Mapping[str, Any] | None = None) -> str:
    """Hash of everything in the configuration that can change the numbers of a run.

    Args:
        cfg: The configuration.
        policy: What was looked up in a database, and so is not in the configuration.
    """
    plain = _plain(cfg, without=("hydra", "logger", "study", "require_target", "threads"))
    if policy is not None:
        plain["lr_policy"] = policy
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _plain(cfg: DictConfig, without: tuple[str, ...] = ("hydra",)) -> dict[str, Any]:
    """The configuration as data; what a workload of the user's own replaces is no part of it."""
    without += ("model", "optimizer") if cfg.workload is not None else ()
    kept = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in without])
    kept._set_parent(cfg)  # so that references to what was left out still resolve
    return {str(key): value for key, value in OmegaConf.to_container(kept, resolve=True).items()}  # type: ignore[union-attr]


def _describe(cfg: DictConfig) -> dict[str, Any]:
    """What the configuration says of a run before it begins."""
    from_file = cfg.lr_policy_file
    return {
        "run_id": run_id(cfg),
        "study": cfg.study,
        "dataset": cfg.names.dataset,
        "model": cfg.names.model if cfg.workload is None else str(cfg.workload.get("_target_")),
        "optimizer": cfg.names.optimizer,
        "policy": cfg.names.policy
        if from_file is None
        else f"file:{Path(from_file).parent.name}/{Path(from_file).name}",
        "batch_size": cfg.batch_size * cfg.trainer.accumulate_grad_batches,
        "lr": float(cfg.lr),
        "seed": cfg.seed,
        "max_steps": cfg.max_steps,
        "target_accuracy": cfg.target_accuracy,
        "monitor": cfg.monitor,
        "versions": _versions(),
        "git_sha": _git_sha(),
    }


def _describe_parts(cfg: DictConfig, parts: Parts) -> dict[str, Any]:
    """What is known once the parts stand."""
    policy = parts.verifier.policy
    on_gpu = parts.trainer.strategy.root_device.type == "cuda"
    found: dict[str, Any] = {}
    if isinstance(parts.verifier, LookedUp):
        found = {"run_id": run_id(cfg, to_config(policy)), "lr": max(table(policy, cfg.max_steps))}
    return {
        **found,
        "policy_id": None if isinstance(policy, AdaptivePolicy) else policy_id(policy, cfg.max_steps),
        "policy_repr": repr(policy),
        "check_on": getattr(parts.data, "check_on", None),
        "precision": str(parts.trainer.precision),
        "device": torch.cuda.get_device_name(parts.trainer.strategy.root_device) if on_gpu else "cpu",
    }


def _judge(verdict: Verdict) -> dict[str, Any]:
    """The verdict's share of the row."""
    return {
        "status": verdict.status,
        "message": verdict.message,
        "steps_to_target": verdict.steps_to_target,
        "seconds_to_target": verdict.seconds_to_target,
        "best_accuracy": verdict.best_value,
        "best_step": verdict.best_step,
        "final_accuracy": verdict.final_value,
    }


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


def _finish(output: Path, row: Mapping[str, Any]) -> RunResult:
    """Keep the row; under several processes the first one writes it."""
    result = RunResult.from_dict(dict(row))
    if _is_first_process():
        result.write(output)
    return result


def _open(loggers: Iterable[Logger], cfg: DictConfig, output: Path) -> None:
    """Begin a logger that wants to know the configuration, the run's name and its sweep."""
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    group = cfg.study or ("/".join(output.resolve().parts[-3:-1]) if in_sweep else None)
    for logger in loggers:
        if (open_with := getattr(logger, "open_with", None)) is not None:
            name = f"{cfg.names.policy}-{cfg.names.optimizer}-{cfg.seed}"
            open_with(_plain(cfg), name, group)


def _close(logger: Logger, result: RunResult) -> None:
    """End a logger that has an end, with the row as its summary; a failing service changes no result."""
    close = getattr(logger, "close_with", None)
    if close is not None:
        close(result)


def _write_policy(cfg: DictConfig, verifier: LRPolicyCallback, output: Path) -> None:
    """``policy.yaml``: what ``lr_policy_file=`` takes. An adaptive policy is written as it turned out."""
    policy = verifier.policy
    if isinstance(policy, AdaptivePolicy):
        policy = policy.realised()
    try:
        stored: Any = to_config(policy)
    except (TypeError, ValueError):  # a policy type of the user's own
        stored = OmegaConf.to_container(cfg.lr_policy, resolve=True)
    if _is_first_process():
        write_atomically(output / "policy.yaml", OmegaConf.to_yaml(OmegaConf.create(stored)))
        if (records := getattr(verifier, "records", None)) is not None:
            write_atomically(output / "tuning.json", json.dumps(records, indent=2) + "\n")
        if isinstance(verifier, LookedUp):
            write_atomically(output / "lookup.json", json.dumps(verifier.found, indent=2) + "\n")


def _is_first_process() -> bool:
    return int(getattr(rank_zero_only, "rank", 0)) == 0


@functools.cache
def _versions() -> dict[str, str]:
    packages = ("lrbench_pl", "torch", "torchvision", "pytorch-lightning", "torchmetrics")
    return {name: importlib.metadata.version(name) for name in packages}


@functools.cache
def _git_sha() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


# -- refusing what cannot be run ------------------------------------------------------------------------------


def _check_knobs(cfg: DictConfig) -> None:
    """Refuse values that no run can have, by name, rule and value."""
    whole_numbers = {
        "max_steps": 1,
        "batch_size": 1,
        "check_every": 1,
        "confirmations": 1,
        "threads": 1,
        "seed": 0,
    }
    for name, least in whole_numbers.items():
        value = cfg[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name} must be an integer of at least {least}, got {value!r}")
    if isinstance(cfg.lr, bool) or not isinstance(cfg.lr, (int, float)) or not 0 < cfg.lr < math.inf:
        raise UserError(f"lr must be a finite number above 0, got {cfg.lr!r}")
    target = cfg.target_accuracy
    if target is not None and (not isinstance(target, (int, float)) or not 0 < target <= 1):
        raise UserError(f"target_accuracy must lie in (0, 1] or be null, got {target!r}")
    if cfg.check_every > cfg.max_steps:
        raise UserError(
            f"check_every must not exceed max_steps ({cfg.max_steps}), got {cfg.check_every}: "
            "the target would never be checked"
        )


def _refuse_late_milestones(policy: object, max_steps: int) -> None:
    """Refuse a part of a policy that the budget never comes to."""
    if isinstance(policy, (Sequential, MultiStep)):
        late = [milestone for milestone in policy.milestones if milestone >= max_steps]
        if late:
            raise UserError(
                f"lr_policy: milestones must lie below max_steps ({max_steps}), got {late[0]}; "
                "lower it or raise max_steps"
            )


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's notes on hardware and loaders, said once per run of a sweep, tell nobody anything."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # The run's folder already holds Hydra's files.
            warnings.filterwarnings("ignore", message="`isinstance.treespec, LeafSpec.` is deprecated")
            warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
