"""Launch sweeps of other Hydra programs, without any of our configuration keys."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence, Set
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf, open_dict

from lrbench_pl.runs.options import one_line
from lrbench_pl.sweeps.composer import StoredConfig, set_hydra_config
from lrbench_pl.sweeps.hydra_job import job_folder
from lrbench_pl.sweeps.launch import Job, JobCall, JobEnd, Placing, QueuedAgain, ignore_ctrl_c

log = logging.getLogger(__name__)


def launch_foreign(launcher: Placing, job_overrides: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
    """Run every job as Hydra's own launchers do; return one value per job in order.

    A job that fails does not affect the others; its error is raised when the sweeper reads the value.

    Args:
        launcher: The launcher that runs the jobs.
        job_overrides: Overrides of each job.
        first: Number of the first job.

    Raises:
        CompactHydraException: If the launcher refuses its arguments.
    """
    setup_globals()
    logging_config, verbose = launcher.config.hydra.hydra_logging, launcher.config.hydra.verbose
    configure_log(logging_config, verbose)
    Path(str(launcher.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    before = HydraConfig.instance().cfg
    jobs = [_compose(launcher, overrides, first + i) for i, overrides in enumerate(job_overrides)]
    HydraConfig.instance().cfg = before
    calls = JobCall.of_all(jobs, launcher.task_function, launcher.hydra_context, is_own=False)
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    returns: dict[int, JobReturn] = {}
    log.info("%d jobs in %s", len(jobs), launcher.config.hydra.sweep.dir)
    try:
        for job, end in launcher.place(calls):
            if isinstance(end, QueuedAgain):
                log.info("%s", end)
                continue
            returns[job.number] = returned = _returned(job, end)
            configure_log(logging_config, verbose)  # a job in this process may have changed it
            log.info("%d of %d: %s: %s", len(returns), len(jobs), _name(job, shared), _format_value(returned))
    except (ValueError, ModuleNotFoundError) as error:  # of the launcher's own arguments
        raise CompactHydraException(one_line(error)) from error
    except KeyboardInterrupt:
        ignore_ctrl_c()
        log.info("interrupted with %d of %d jobs ended", len(returns), len(jobs))
        sys.exit(130)
    return [returns[job.number] for job in jobs]


def _compose(launcher: Placing, overrides: Sequence[str], number: int) -> Job:
    config = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(overrides))
    with open_dict(config):
        config.hydra.job.num = number
        config.hydra.job.id = f"{config.hydra.job.name}_{number}"
    set_hydra_config(config)  # the name of the folder may refer to it
    return Job(number, tuple(filter_overrides(overrides)), StoredConfig(config), job_folder(config), None)


def _returned(job: Job, end: JobEnd) -> JobReturn:
    """Return Hydra's value, or a failed one if the process of the job was lost."""
    if isinstance(end, JobReturn):
        return end
    config = job.config
    lost = JobReturn(overrides=list(job.overrides), cfg=job.task_config, status=JobStatus.FAILED)
    lost.hydra_cfg = OmegaConf.masked_copy(config, ["hydra"])
    lost.task_name = config.hydra.job.name
    lost.return_value = RuntimeError(f"{job.folder}: {end or 'it was interrupted, or exited by itself'}")
    return lost


def _name(job: Job, shared: Set[str]) -> str:
    """Name a job by the overrides that it does not share with all others."""
    return " ".join(each for each in job.overrides if each not in shared) or f"job {job.number}"


def _format_value(returned: JobReturn) -> str:
    value = returned._return_value
    if returned.status == JobStatus.FAILED:
        return f"failed: {one_line(value)}"
    return "done" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
