"""``lrbench run``, which is also ``python run.py``: one training, or a sweep with ``-m``, in any folder."""

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
    """Run one job; the value is what a sweeper optimizes."""
    value: float | None = import_run().main(cfg)  # imported only now: torch takes seconds, --help should not
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Run Hydra's command line with the installed configuration.

    Modules in the working directory can be imported, as with ``python -m``, so that a YAML may name them.

    Args:
        arguments: What follows ``lrbench run``; None for the arguments of this process.
    """
    if arguments is not None:
        sys.argv = ["lrbench run", *arguments]  # Hydra reads it
    see_working_directory()
    register_resolvers()  # also for --help and --cfg, which compose without running
    use_own_launchers()
    with one_line_errors():
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(run_job)()


def see_working_directory() -> None:
    """Let Python import modules from the working directory."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
