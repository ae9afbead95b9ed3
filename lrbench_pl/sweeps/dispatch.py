"""Entry point of our launchers, for sweeps of ``lrbench run`` and of other Hydra programs."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from lrbench_pl.sweeps.foreign import launch_foreign
from lrbench_pl.sweeps.launch import Placing, SweepLauncher


def launch(launcher: Placing, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
    """Run the jobs of a sweep where the launcher places them."""
    if not is_own(launcher.config):
        return launch_foreign(launcher, job_overrides, initial_job_idx)
    return SweepLauncher(launcher).launch(job_overrides, initial_job_idx)


def is_own(config: DictConfig) -> bool:
    """Return whether a configuration is one of ``lrbench run``."""
    return all(name in config for name in ("lr_policy_file", "names", "max_steps", "seed"))
