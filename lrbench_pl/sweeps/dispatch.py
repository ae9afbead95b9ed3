"""Entry point of our launchers, for sweeps of ``lrbench run`` and of other Hydra programs."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from lrbench_pl.sweeps.composer import compose_once
from lrbench_pl.sweeps.foreign import launch_foreign
from lrbench_pl.sweeps.launch import Placing, SweepLauncher


def launch(launcher: Placing, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
    """Run the jobs of a sweep where the launcher places them."""
    if not is_own(launcher.config):
        return launch_foreign(launcher, job_overrides, initial_job_idx)
    return SweepLauncher(launcher).launch(job_overrides, initial_job_idx)


def prepare(launcher: Placing) -> None:
    """Let the jobs of ``lrbench run`` be composed fast, which the sweeper begins before the launcher starts."""
    if is_own(launcher.config):
        compose_once(launcher.hydra_context)


def is_own(config: DictConfig) -> bool:
    """Return whether a configuration is one of ``lrbench run``."""
    return all(name in config for name in ("lr_policy_file", "names", "max_steps", "seed"))
