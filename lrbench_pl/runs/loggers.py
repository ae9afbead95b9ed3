"""Histories beside the row: loggers that want a beginning and an end, and Lightning's own notes, which nobody wants."""

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
    """Begin a logger that wants to know the configuration, the run's name and its sweep."""
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    group = as_text("study", cfg.study) or ("/".join(output.resolve().parts[-3:-1]) if in_sweep else None)
    for logger in loggers:
        if (open_with := getattr(logger, "open_with", None)) is not None:
            name = f"{cfg.names.policy}-{cfg.names.optimizer}-{cfg.seed}"
            open_with(plain_config(cfg), name, group)


def close_logger(logger: Logger, result: RunResult) -> None:
    """End a logger that has an end, with the row as its summary; a failing service changes no result."""
    close = getattr(logger, "close_with", None)
    if close is not None:
        close(result)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
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
            # under several processes: torchmetrics has brought these together
            warnings.filterwarnings("ignore", message=r"It is recommended to use `self.log\('test/")
            if "SLURM_JOB_ID" not in os.environ:  # a login node, or any machine with SLURM's programs: no job to join
                warnings.filterwarnings("ignore", message="The `srun` command is available on your system")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
