"""The launchers of ``hydra/launcher=lrbench_…``: names that Hydra finds, and nothing else.

Every Hydra program in an environment imports this file when it starts, also one that uses none of them: so it imports
nothing but Hydra's own base class, and the work is in :mod:`lrbench_pl.sweeps`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class BasicLauncher(Launcher):
    """One job after the other in this process."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives."""
        self.config, self.hydra_context, self.task_function = config, hydra_context, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, and return one result per job in order."""
        from lrbench_pl.sweeps.dispatch import launch

        return launch(self, job_overrides, initial_job_idx)

    def place(self, tasks: Any) -> Any:
        """Run them."""
        from lrbench_pl.sweeps.local import one_by_one

        return one_by_one(tasks)


class JoblibLauncher(BasicLauncher):
    """Jobs in worker processes, see :func:`lrbench_pl.sweeps.local.in_workers`."""

    def __init__(self, n_jobs: int | None = None, jobs_per_gpu: int = 1) -> None:
        self.n_jobs, self.jobs_per_gpu = n_jobs, jobs_per_gpu

    def place(self, tasks: Any) -> Any:
        """Run them."""
        from lrbench_pl.sweeps.local import in_workers

        return in_workers(tasks, self.n_jobs, self.jobs_per_gpu)


class RayLauncher(BasicLauncher):
    """Jobs on Ray, see :func:`lrbench_pl.sweeps.on_ray.on_ray`."""

    def __init__(
        self, num_cpus: float | None = None, num_gpus: float | None = None, init: Mapping[str, Any] | None = None
    ) -> None:
        self.num_cpus, self.num_gpus, self.init = num_cpus, num_gpus, _plain(init)

    def place(self, tasks: Any) -> Any:
        """Run them."""
        from lrbench_pl.sweeps.on_ray import on_ray

        return on_ray(tasks, self.num_cpus, self.num_gpus, self.init)


class SubmititLocalLauncher(BasicLauncher):
    """Jobs in local processes of submitit's, see :func:`lrbench_pl.sweeps.on_submitit.on_submitit`."""

    def __init__(self, submitit_folder: str, n_jobs: int | None = None, **parameters: Any) -> None:
        self.folder, self.n_jobs, self.parameters = submitit_folder, n_jobs, _plain(parameters)

    def place(self, tasks: Any) -> Any:
        """Run them."""
        from lrbench_pl.sweeps.on_submitit import on_submitit

        return on_submitit(tasks, "local", self.folder, self.parameters, self.n_jobs)


class SubmititSlurmLauncher(BasicLauncher):
    """Jobs as an array on SLURM, see :func:`lrbench_pl.sweeps.on_submitit.on_submitit`."""

    def __init__(self, submitit_folder: str, max_num_timeout: int = 100, **parameters: Any) -> None:
        self.folder, self.max_num_timeout, self.parameters = submitit_folder, max_num_timeout, _plain(parameters)

    def place(self, tasks: Any) -> Any:
        """Run them."""
        from lrbench_pl.sweeps.on_submitit import on_submitit

        return on_submitit(tasks, "slurm", self.folder, self.parameters, None, self.max_num_timeout)


def _plain(value: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(OmegaConf.create(dict(value or {})), resolve=True)
    return {str(key): entry for key, entry in plain.items() if entry is not None}  # type: ignore[union-attr]
