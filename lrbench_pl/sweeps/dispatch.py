"""Where a launcher of ours begins: with a sweep of ``lrbench run``, or one of another Hydra program."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from lrbench_pl.sweeps.foreign import launch_foreign
from lrbench_pl.sweeps.launch import Placing, SweepLauncher


def launch(launcher: Placing, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
    """Run the jobs of a sweep where the launcher places them, those of another program too."""
    if not is_own(launcher.config):
        return launch_foreign(launcher, job_overrides, initial_job_idx)
    return SweepLauncher(launcher).launch(job_overrides, initial_job_idx)


def is_own(config: DictConfig) -> bool:
    """Whether a configuration is one of ``lrbench run``, whose jobs leave rows, and not of another Hydra program."""
    return all(name in config for name in ("lr_policy_file", "names", "max_steps", "seed"))
