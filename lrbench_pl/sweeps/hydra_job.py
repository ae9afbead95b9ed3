"""Run the job of a sweep as Hydra runs it, without Hydra's copies of its configuration. Knows Hydra's internals."""

from __future__ import annotations

import os
from pathlib import Path

from hydra import version
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, _flush_loggers, configure_log, env_override
from hydra.core.utils import run_job as run_job_of_hydra
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from lrbench_pl.sweeps.composer import set_hydra_config, without_hydra


def job_folder(config: DictConfig) -> Path:
    """Return the folder of a job, from its whole configuration."""
    return (Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)).absolute()


def set_output_folder(config: DictConfig) -> Path:
    """Set the output folder in the whole configuration of a job to the folder of the job, and return it."""
    folder = Path(os.path.abspath(job_folder(config)))  # without `..`, unlike Path.absolute
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(folder)
    return folder


def run_as_hydra(context: HydraContext, function: TaskFunction, config: DictConfig) -> JobReturn:
    """Run a job by Hydra's own function."""
    return run_job_of_hydra(
        hydra_context=context,
        task_function=function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def run_job(context: HydraContext, function: TaskFunction, config: DictConfig) -> JobReturn:
    """Run a job in this process.

    Hydra copies the configuration of a job five times, which takes longer than a short training, and stores two of the
    copies in the value that it returns. Here the task function gets a copy, ``HydraConfig`` refers to ``config``, and
    the value has no configuration after the callbacks have seen it.

    Args:
        context: Hydra's context.
        function: The task function of the program.
        config: The whole configuration of the job, which gets its output folder.
    """
    chdir = config.hydra.job.chdir
    if config.hydra.output_subdir is not None or (chdir is None and not version.base_at_least("1.2")):
        return run_as_hydra(context, function, config)
    before, directory = HydraConfig.instance().cfg, os.getcwd()
    set_hydra_config(config)
    try:
        output = set_output_folder(config)
        returned = JobReturn(overrides=list(config.hydra.overrides.task), cfg=without_hydra(config))
        returned.hydra_cfg = HydraConfig.instance().cfg  # type: ignore[assignment]
        output.mkdir(parents=True, exist_ok=True)
        if chdir:
            os.chdir(output)
        returned.working_dir = str(output) if chdir else directory
        configure_log(config.hydra.job_logging, config.hydra.verbose)
        with env_override(config.hydra.job.env_set):
            context.callbacks.on_job_start(config=config, task_function=function)
            try:
                returned.return_value = function(returned.cfg)
                returned.status = JobStatus.COMPLETED
            except Exception as error:
                returned.return_value = error
                returned.status = JobStatus.FAILED
        returned.task_name = JobRuntime.instance().get("name")
        _flush_loggers()
        context.callbacks.on_job_end(config=config, job_return=returned)
        returned.cfg = returned.hydra_cfg = None
        return returned
    finally:
        HydraConfig.instance().cfg = before
        if chdir:
            os.chdir(directory)
