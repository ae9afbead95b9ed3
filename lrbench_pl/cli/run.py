"""``lrbench run`` and ``python run.py``: one training, or a sweep with ``-m``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from lrbench_pl.runs.config import conf_dir, register_resolvers, use_own_launchers
from lrbench_pl.runs.config_errors import one_line_errors
from lrbench_pl.runs.imports import import_run


def run_job(cfg: DictConfig) -> float | None:
    """Run one job and return the value that a sweeper optimizes."""
    value: float | None = import_run().main(cfg)  # imports torch, which takes seconds; --help does without
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Run Hydra with the installed configuration.

    Modules in the working directory can be imported, as with ``python -m``, so that YAML files may name them.

    Args:
        arguments: Arguments after ``lrbench run``; None for those of this process.
    """
    if arguments is not None:
        sys.argv = ["lrbench run", *arguments]  # Hydra reads it
    import_from_working_directory()
    register_resolvers()  # also for --help and --cfg, which compose without running
    use_own_launchers()
    with one_line_errors():
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(run_job)()


def import_from_working_directory() -> None:
    """Let Python import modules from the working directory."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
