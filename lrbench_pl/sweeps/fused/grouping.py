"""Group the jobs of a sweep that can be trained as one program. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lrbench_pl.policies import AdaptivePolicy, settings_of
from lrbench_pl.runs.config import build_policy
from lrbench_pl.runs.options import is_callback
from lrbench_pl.runs.spec import canonical
from lrbench_pl.sweeps.composer import set_hydra_config
from lrbench_pl.sweeps.fused.checkpoint import GroupFolder
from lrbench_pl.sweeps.launch import Job, JobCall

T = TypeVar("T")
Call = tuple[Job, JobCall]

_DATA = tuple(
    f"lrbench_pl.workloads.data.{name}"
    for name in ("TensorDataModule", "TableDataModule", "TextDataModule")  # their batches are tensors on the device
)
_LOGGER = "pytorch_lightning.loggers.CSVLogger"
_WANDB = "lrbench_pl.runs.wandb_logging.WandbRun"
_HYDRA_CALLBACKS = ("folder", "files", "exit_code")  # ours, which do nothing in a job
# Keys of the Trainer that a group follows, with their values; None: any.
_TRAINER: dict[str, tuple[Any, ...] | None] = {
    "_target_": ("pytorch_lightning.Trainer", "pytorch_lightning.trainer.Trainer"),
    "accelerator": ("auto", "cpu", "gpu", "cuda"),
    "devices": (1, "1"),
    "strategy": ("auto",),
    "precision": (32, "32", "32-true", "bf16", "bf16-mixed"),
    "max_steps": None,
    "max_epochs": (-1,),
    "accumulate_grad_batches": (1,),
    "num_sanity_val_steps": (0,),
    "log_every_n_steps": None,
    "enable_checkpointing": (False,),
    "enable_model_summary": (False,),
    "enable_progress_bar": None,
    "benchmark": None,
    "deterministic": None,
    "callbacks": (),
}


@dataclass
class Plan:
    """The groups of a sweep, and the jobs that train by themselves.

    Args:
        resumed: Jobs that continue from the checkpoint of a group, each a list, with the folder of that group.
        groups: Jobs that train as one program from the start, each a list.
        alone: The other jobs, with the reason; None where the run itself reports it.
    """

    resumed: list[tuple[list[Call], Path]] = field(default_factory=list)
    groups: list[list[Call]] = field(default_factory=list)
    alone: list[tuple[Call, str | None]] = field(default_factory=list)


def plan(calls: Sequence[Call], workers: int, most: int | None = None, folders: Sequence[GroupFolder] = ()) -> Plan:
    """Group the jobs of a sweep.

    Args:
        calls: The jobs.
        workers: Processes that train at the same time; groups are cut so that all of them have work.
        most: Largest number of jobs in a group; None for no bound.
        folders: Groups that have a checkpoint, the most advanced first.
    """
    found = Plan()
    alike: dict[str, list[Call]] = {}
    begun: dict[tuple[str, Path], list[Call]] = {}
    jobs_of = [(folder.path, folder.jobs) for folder in folders]
    before = HydraConfig.instance().cfg
    try:
        for call in calls:
            job = call[0]
            set_hydra_config(job.config)  # names and loggers may refer to it
            try:
                reason = None if job.spec is None else why_alone(job)
                key = None if job.spec is None or reason is not None else group_key(job)
            except Exception:  # a policy of your own may raise anything; the run reports it
                reason = key = None
            folder = next((path for path, jobs in jobs_of if job.run_id in jobs), None)
            if key is None:
                found.alone.append((call, reason))
            elif folder is not None:
                begun.setdefault((key, folder), []).append(call)
            else:
                alike.setdefault(key, []).append(call)
    finally:
        HydraConfig.instance().cfg = before
    found.resumed = [(group, folder) for (_, folder), group in begun.items()]
    total = sum(map(len, alike.values()))
    for group in alike.values():
        if len(group) == 1:
            found.alone.append((group[0], "no other job differs from it in policy, rate, seed or optimizer alone"))
            continue
        # jobs of one seed side by side, since they share their batches
        ordered = sorted(group, key=lambda call: (call[0].spec.seed if call[0].spec else 0, call[0].number))
        share = max(1, min(round(workers * len(group) / total), len(group) // 2))
        if most is not None:
            share = max(share, -(-len(group) // most))
        found.groups += cut(ordered, share)
    found.groups.sort(key=len, reverse=True)
    return found


def cut(items: Sequence[T], parts: int) -> list[list[T]]:
    """Cut a sequence into consecutive parts whose lengths differ by at most one.

    Example:
        >>> cut("abcde", 2)
        [['a', 'b', 'c'], ['d', 'e']]
    """
    size, longer = divmod(len(items), parts)
    starts = [part * size + min(part, longer) for part in range(parts + 1)]
    return [list(items[start:end]) for start, end in itertools.pairwise(starts)]


def why_alone(job: Job) -> str | None:
    """Return why a job cannot be part of a group, in one line; None if it can.

    Hydra's configuration must be that of the job.
    """
    cfg = job.task_config
    reasons = (_of_policy(cfg), _of_parts(cfg), _of_trainer(cfg.trainer), _of_loggers(cfg), _of_hydra(job))
    found = next((reason for reason in reasons if reason is not None), None)
    if found is None and any((job.folder / "checkpoints").glob("step=*.ckpt")):
        return "it resumes from a checkpoint of its own"
    return found


def _of_policy(cfg: DictConfig) -> str | None:
    if cfg.lr_policy_file is None and is_callback(cfg.lr_policy):
        return f"lr_policy={cfg.names.policy} decides on its rates while it trains"
    policy = build_policy(cfg)
    if isinstance(policy, AdaptivePolicy):
        return f"lr_policy={cfg.names.policy} is adaptive: its rates depend on the checks"
    if others := list(settings_of(policy))[1:]:
        return f"the policy sets {', '.join(others)} too, and a fused program changes one rate for all groups alone"
    return None


def _of_parts(cfg: DictConfig) -> str | None:
    if cfg.workload is not None:
        return "workload is a LightningModule of your own, whose steps are unknown"
    target = str(cfg.dataset.get("_target_"))
    if target not in _DATA:
        return f"dataset._target_={target} does not hold its samples as tensors on the device"
    if cfg.compile:
        return "compile=true compiles one network"
    if cfg.max_time is not None:
        return f"max_time={cfg.max_time} limits a run of its own"
    return None


def _of_trainer(trainer: DictConfig) -> str | None:
    for key, value in trainer.items():
        name = str(key)
        if value is None or (name == "callbacks" and not value):
            continue
        if name == "callbacks":
            return "trainer.callbacks are called in the loop of a Trainer"
        allowed = _TRAINER.get(name, ())
        if allowed is not None and not any(type(value) is type(each) and value == each for each in allowed):
            return f"trainer.{name}={value} needs the loop of a Trainer"
    return None


def _of_loggers(cfg: DictConfig) -> str | None:
    for name, logger in cfg.logger.items():
        target = _LOGGER if logger is None else str(logger.get("_target_"))
        if target == _WANDB:
            return "logger=wandb: a process has one W&B run at a time"
        if target != _LOGGER:
            return f"logger.{name} ({target.rpartition('.')[2]}): fused jobs write metrics.csv alone"
    return None


def _of_hydra(job: Job) -> str | None:
    hydra = job.config.hydra
    if hydra.job.chdir:
        return "hydra.job.chdir=true: a process has one working directory"
    if hydra.job.env_set:
        return "hydra.job.env_set: a process has one environment"
    own = [str(name) for name in hydra.callbacks or () if name not in _HYDRA_CALLBACKS]
    return f"hydra.callbacks.{own[0]} is called around one job" if own else None


def group_key(job: Job) -> str:
    """Return what the jobs of a group have in common, as text.

    That is the task without the numbers of the optimizer, and how the run is executed: its device, threads, checkpoints
    and log.
    """
    spec, cfg = job.spec, job.task_config
    assert spec is not None
    task = spec.task.to_dict()
    task["settings"] = {key: value for key, value in spec.task.settings.items() if not _is_optimizer_number(key, value)}
    dataset: Any = OmegaConf.to_container(cfg.dataset, resolve=True)
    trainer: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    executed = {
        "dataset": {key: value for key, value in dataset.items() if key != "seed"},
        "trainer": trainer,
        "threads": cfg.threads,
        "checkpoint_every": cfg.checkpoint_every,
    }
    return canonical({"task": task, "stop_at_target": spec.stop_at_target, **executed})


def _is_optimizer_number(key: str, value: Any) -> bool:
    """Return whether a setting is a number of the optimizer, or several such as ``betas``."""
    values = value if isinstance(value, list) else [value]
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in values)
    return key.startswith("optimizer.") and numbers
