"""Open and close the loggers of a run, and silence Lightning's messages."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger, Logger

from lrbench_pl.runs.config import in_sweep
from lrbench_pl.runs.describe import plain_config
from lrbench_pl.runs.locks import NO_LOCKS, lock_of
from lrbench_pl.runs.options import as_text
from lrbench_pl.runs.processes import is_first_process
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.tracking import IDS_FILE, RunLogger, run_logger

_LONGEST_WAIT_S = 60.0  # for another job that opens its loggers


def open_loggers(cfg: DictConfig, output: Path) -> list[Logger]:
    """Build the loggers of a run, and start the run of each service.

    A :class:`CSVLogger` is used as it is; every other logger becomes a :class:`RunLogger`.

    Args:
        cfg: The configuration.
        output: Folder of the run.
    """
    sweep = Path(HydraConfig.get().sweep.dir) if in_sweep() else None
    group = as_text("study", cfg.study) or (None if sweep is None else "/".join(output.resolve().parts[-3:-1]))
    name = f"{cfg.names.policy}-{cfg.names.optimizer}-{cfg.seed}"
    loggers: list[Logger] = []
    for key, given in cfg.logger.items():
        if given is None:
            continue
        make = instantiate(given, _partial_=True)
        kind = make.func
        if isinstance(kind, type) and issubclass(kind, (CSVLogger, RunLogger)):
            logger = make()
        else:
            logger = run_logger(make, kind, output, str(key))
        if isinstance(logger, RunLogger):
            with _store_created(sweep, logger):
                logger.open_with(plain_config(cfg), name, group)
        loggers.append(logger)
    return loggers


@contextlib.contextmanager
def _store_created(sweep: Path | None, logger: RunLogger) -> Iterator[None]:
    """Let the first job of a sweep create the store and the experiment that the others find."""
    is_there = sweep is None or any(sweep.glob(f"*/{IDS_FILE}"))
    if sweep is None or is_there or not logger.shares_store or not is_first_process():
        yield
        return
    lock = lock_of(sweep.absolute() / ".loggers.lock")
    with contextlib.suppress(Timeout, *NO_LOCKS):
        lock.acquire(timeout=_LONGEST_WAIT_S)
    try:
        yield
    finally:
        lock.release(force=True)


def close_logger(logger: Logger, result: RunResult) -> None:
    """Pass the result to a logger that stores it."""
    if isinstance(logger, RunLogger):
        logger.close_with(result)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's messages about hardware and loaders.

    It would repeat them for every run of a sweep.
    """
    names = ("pytorch_lightning", "lightning_fabric", "lightning.fabric", "lightning.pytorch")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Hydra's files are in the folder already
            warnings.filterwarnings("ignore", message="`isinstance.treespec, LeafSpec.` is deprecated")
            warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
            # of the user's own callback: the run's own checkpoints are there
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            # torchmetrics synchronizes the metrics of several processes
            warnings.filterwarnings("ignore", message=r"It is recommended to use `self.log\('test/")
            if "SLURM_JOB_ID" not in os.environ:  # a machine with SLURM's programs, outside a job
                warnings.filterwarnings("ignore", message="The `srun` command is available on your system")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
