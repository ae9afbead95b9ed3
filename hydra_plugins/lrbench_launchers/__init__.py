"""The launchers of ``hydra/launcher=…``: Hydra takes them only from here; the work is in ``lrbench_pl.sweeps``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from lrbench_pl.sweeps.launch import Job, Outcome, SweepLauncher, Task

Tasks = Sequence[tuple[Job, Task]]
Outcomes = Iterator[tuple[Job, Outcome]]


class BasicLauncher(SweepLauncher):
    """One job after the other in this process."""

    def place(self, tasks: Tasks) -> Outcomes:
        """Run them."""
        from lrbench_pl.sweeps.local import one_by_one

        return one_by_one(tasks)


class JoblibLauncher(SweepLauncher):
    """Jobs in worker processes of joblib's, see :func:`lrbench_pl.sweeps.local.in_workers`."""

    def __init__(self, n_jobs: int | None = None, jobs_per_gpu: int = 1) -> None:
        super().__init__()
        self.n_jobs, self.jobs_per_gpu = n_jobs, jobs_per_gpu

    def place(self, tasks: Tasks) -> Outcomes:
        """Run them."""
        from lrbench_pl.sweeps.local import in_workers

        return in_workers(tasks, self.n_jobs, self.jobs_per_gpu)


class RayLauncher(SweepLauncher):
    """Jobs on Ray, see :func:`lrbench_pl.sweeps.on_ray.on_ray`."""

    def __init__(
        self, num_cpus: float | None = None, num_gpus: float | None = None, init: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.num_cpus, self.num_gpus, self.init = num_cpus, num_gpus, _plain(init)

    def place(self, tasks: Tasks) -> Outcomes:
        """Run them."""
        from lrbench_pl.sweeps.on_ray import on_ray

        return on_ray(tasks, self.num_cpus, self.num_gpus, self.init)


class SubmititLocalLauncher(SweepLauncher):
    """Jobs in local processes of submitit's, see :func:`lrbench_pl.sweeps.on_submitit.on_submitit`."""

    def __init__(self, submitit_folder: str, n_jobs: int | None = None, **parameters: Any) -> None:
        super().__init__()
        self.folder, self.n_jobs, self.parameters = submitit_folder, n_jobs, _plain(parameters)

    def place(self, tasks: Tasks) -> Outcomes:
        """Run them."""
        from lrbench_pl.sweeps.on_submitit import on_submitit

        return on_submitit(tasks, "local", self.folder, self.parameters, self.n_jobs)


class SubmititSlurmLauncher(SweepLauncher):
    """Jobs as an array on SLURM, see :func:`lrbench_pl.sweeps.on_submitit.on_submitit`."""

    def __init__(self, submitit_folder: str, max_num_timeout: int = 100, **parameters: Any) -> None:
        super().__init__()
        self.folder, self.max_num_timeout, self.parameters = submitit_folder, max_num_timeout, _plain(parameters)

    def place(self, tasks: Tasks) -> Outcomes:
        """Run them."""
        from lrbench_pl.sweeps.on_submitit import on_submitit

        return on_submitit(tasks, "slurm", self.folder, self.parameters, None, self.max_num_timeout)


def _plain(value: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.create(dict(value or {})), resolve=True)
    return {str(key): entry for key, entry in plain.items() if entry is not None}  # type: ignore[union-attr]
