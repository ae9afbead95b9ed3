"""Launchers ``hydra/launcher=lrbench_…`` for Hydra's plugin discovery; implemented in :mod:`lrbench_pl.sweeps`.

Every Hydra program in the environment imports this file at its start, so it imports nothing but Hydra itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class BasicLauncher(Launcher):
    """Run one job after the other in this process."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the objects that Hydra passes."""
        from lrbench_pl.sweeps.dispatch import prepare

        self.config, self.hydra_context, self.task_function = config, hydra_context, task_function
        prepare(self)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; return one value per job in order."""
        from lrbench_pl.sweeps.dispatch import launch

        return launch(self, job_overrides, initial_job_idx)

    def place(self, calls: Any) -> Any:
        """Run the calls; yield each job with its end."""
        from lrbench_pl.sweeps.local import one_by_one

        return one_by_one(calls)


class JoblibLauncher(BasicLauncher):
    """Run jobs in worker processes, see :func:`lrbench_pl.sweeps.local.in_workers`."""

    def __init__(self, n_jobs: int | None = None, jobs_per_gpu: int = 1) -> None:
        self.n_jobs, self.jobs_per_gpu = n_jobs, jobs_per_gpu

    def place(self, calls: Any) -> Any:
        """Run the calls; yield each job with its end."""
        from lrbench_pl.sweeps.local import in_workers

        return in_workers(calls, self.n_jobs, self.jobs_per_gpu)


class FusedLauncher(BasicLauncher):
    """Train many jobs as one program, see :func:`lrbench_pl.sweeps.fused.placing.in_groups`."""

    def __init__(self, engine: str = "auto", n_jobs: int | None = None, max_group: int | None = None) -> None:
        self.engine, self.n_jobs, self.max_group = engine, n_jobs, max_group

    def place(self, calls: Any) -> Any:
        """Run the calls; yield each job with its end."""
        from lrbench_pl.sweeps.fused.placing import in_groups

        return in_groups(calls, self.engine, self.n_jobs, self.max_group)


class RayLauncher(BasicLauncher):
    """Run jobs on Ray, see :func:`lrbench_pl.sweeps.on_ray.on_ray`."""

    def __init__(
        self, num_cpus: float | None = None, num_gpus: float | None = None, init: Mapping[str, Any] | None = None
    ) -> None:
        self.num_cpus, self.num_gpus, self.init = num_cpus, num_gpus, _plain(init)

    def place(self, calls: Any) -> Any:
        """Run the calls; yield each job with its end."""
        from lrbench_pl.sweeps.on_ray import on_ray

        return on_ray(calls, self.num_cpus, self.num_gpus, self.init)


class SubmititLocalLauncher(BasicLauncher):
    """Run jobs in local processes of submitit, see :func:`lrbench_pl.sweeps.on_submitit.on_submitit`."""

    def __init__(self, submitit_folder: str, n_jobs: int | None = None, **parameters: Any) -> None:
        self.folder, self.n_jobs, self.parameters = submitit_folder, n_jobs, _plain(parameters)

    def place(self, calls: Any) -> Any:
        """Run the calls; yield each job with its end."""
        from lrbench_pl.sweeps.on_submitit import on_submitit

        return on_submitit(calls, "local", self.folder, self.parameters, self.n_jobs)


class SubmititSlurmLauncher(BasicLauncher):
    """Run jobs as an array on SLURM, see :func:`lrbench_pl.sweeps.on_submitit.on_submitit`."""

    def __init__(self, submitit_folder: str, max_num_timeout: int = 100, **parameters: Any) -> None:
        self.folder, self.max_num_timeout, self.parameters = submitit_folder, max_num_timeout, _plain(parameters)

    def place(self, calls: Any) -> Any:
        """Run the calls; yield each job with its end."""
        from lrbench_pl.sweeps.on_submitit import on_submitit

        return on_submitit(calls, "slurm", self.folder, self.parameters, None, self.max_num_timeout)


def _plain(value: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(OmegaConf.create(dict(value or {})), resolve=True)
    return {str(key): entry for key, entry in plain.items() if entry is not None}  # type: ignore[union-attr]
