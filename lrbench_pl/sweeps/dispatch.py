"""Entry point of our launchers, for sweeps of ``lrbench run`` and of other Hydra programs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from lrbench_pl.sweeps.composer import compose_once
from lrbench_pl.sweeps.foreign import launch_foreign
from lrbench_pl.sweeps.launch import Placing, SweepLauncher
from lrbench_pl.sweeps.reservations import clean_sweep


def launch(launcher: Placing, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
    """Run the jobs of a sweep where the launcher places them."""
    if not is_own(launcher.config):
        return launch_foreign(launcher, job_overrides, initial_job_idx)
    return SweepLauncher(launcher).launch(job_overrides, initial_job_idx)


def prepare(launcher: Placing) -> None:
    """Prepare a sweep of ``lrbench run`` before its sweeper starts.

    Its jobs are composed fast, and its folder is cleaned of what killed processes have left.
    """
    if is_own(launcher.config):
        compose_once(launcher.hydra_context)
        with contextlib.suppress(OSError):  # the sweep reports it
            clean_sweep(Path(str(launcher.config.hydra.sweep.dir)))


def is_own(config: DictConfig) -> bool:
    """Return whether a configuration is one of ``lrbench run``."""
    return all(name in config for name in ("lr_policy_file", "names", "max_steps", "seed"))
