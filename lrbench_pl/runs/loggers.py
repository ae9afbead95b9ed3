"""Open and close the loggers of a run, and silence Lightning's messages."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger

from lrbench_pl.runs.describe import plain_config
from lrbench_pl.runs.options import as_text
from lrbench_pl.runs.result import RunResult


def open_loggers(loggers: Iterable[Logger], cfg: DictConfig, output: Path) -> None:
    """Pass configuration, name and group to loggers that have ``open_with``."""
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    group = as_text("study", cfg.study) or ("/".join(output.resolve().parts[-3:-1]) if in_sweep else None)
    for logger in loggers:
        if (open_with := getattr(logger, "open_with", None)) is not None:
            name = f"{cfg.names.policy}-{cfg.names.optimizer}-{cfg.seed}"
            open_with(plain_config(cfg), name, group)


def close_logger(logger: Logger, result: RunResult) -> None:
    """Pass the result to a logger with a method ``close_with``."""
    close = getattr(logger, "close_with", None)
    if close is not None:
        close(result)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's messages about hardware and loaders.

    It would repeat them for every run of a sweep.
    """
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.fabric")]
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
