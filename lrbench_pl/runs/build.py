"""Build the objects of a run from its configuration. Everything that trains is instantiated here."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from pytorch_lightning.loggers import Logger

from lrbench_pl.callbacks.checkpoints import Checkpoints
from lrbench_pl.callbacks.composer import LRPolicyComposer
from lrbench_pl.callbacks.history_file import use_history_files
from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
from lrbench_pl.callbacks.progress import progress
from lrbench_pl.files import CHECKPOINTS, EXTENDABLE
from lrbench_pl.policies import AdaptiveOptimizerPolicy, OptimizerPolicy, check_values, cut, to_config
from lrbench_pl.runs.config import build_policy, in_sweep, is_shown_by_launcher
from lrbench_pl.runs.data import DESCRIBES_DATA, build_data
from lrbench_pl.runs.extend import branch_points
from lrbench_pl.runs.options import UserError, check_milestones
from lrbench_pl.runs.spec import RunSpec
from lrbench_pl.runs.tracking import RunLogger, TakeUpHistory
from lrbench_pl.workloads.classifier import Classifier


@dataclass
class Parts:
    """The objects of one run."""

    module: pl.LightningModule
    data: pl.LightningDataModule
    verifier: LRPolicyCallback
    checkpoints: Checkpoints
    trainer: pl.Trainer


def build(
    cfg: DictConfig, loggers: Iterable[Logger] = (), output: Path | None = None, spec: RunSpec | None = None
) -> Parts:
    """Build all objects of a run.

    Args:
        cfg: The configuration.
        loggers: Loggers of the Trainer.
        output: Folder of the run; None for the working directory.
        spec: Its specification; None to derive it from the configuration.

    Raises:
        UserError: If the objects do not fit together.
    """
    _check_trainer_keys(cfg)
    data = build_data(cfg.dataset)
    spec = spec or RunSpec.from_config(cfg)
    verifier = build_verifier(cfg, output, spec)
    module = _build_module(cfg, data, verifier.policy)
    loggers = list(loggers)
    checkpoints = _build_checkpoints(cfg, Path() if output is None else output, spec, verifier)
    use_history_files(loggers)
    last = [checkpoints, *([TakeUpHistory()] if any(isinstance(each, RunLogger) for each in loggers) else [])]
    trainer = _build_trainer(cfg, [verifier], last, loggers, output)
    if cfg.workload is not None:
        trainer.callbacks.append(OptimizerNameCheck(cfg))  # type: ignore[attr-defined]
    return Parts(module, data, verifier, checkpoints, trainer)


def _build_checkpoints(cfg: DictConfig, output: Path, spec: RunSpec, verifier: LRPolicyCallback) -> Checkpoints:
    """Build the callback that writes checkpoints, also those from which the run can be extended."""
    run = {"run_id": spec.run_id, "max_steps": cfg.max_steps}
    is_branch_point: Callable[[int], bool] | None
    if isinstance(verifier, LRPolicyComposer):
        composer = verifier
        if not isinstance(cfg.extendable, bool):
            raise UserError(
                "extendable must be true or false for a policy that is composed; steps are not known before"
            )
        is_branch_point = (lambda step: composer.begins_decay) if cfg.extendable else None

        def made_for() -> dict[str, Any]:
            policy, step, path = composer.path
            return {**run, "policy": _stored(cut(policy, max(1, step))), "policy_step": step, "path": path}
    else:
        is_branch_point = branch_points(cfg.extendable, verifier.policy, cfg.max_steps)

        def made_for() -> dict[str, Any]:
            return {**run, "policy": _stored(verifier.policy)}

    return Checkpoints(
        output / CHECKPOINTS,
        cfg.checkpoint_every,
        cfg.checkpoints_kept,
        cfg.max_time,
        is_branch_point,
        output / EXTENDABLE,
        made_for,
    )


def _stored(policy: Any) -> dict[str, Any] | None:
    """Return a policy as plain data; None if it is of a type of the user's own."""
    try:
        return to_config(policy)
    except (TypeError, ValueError):
        return None


def _build_module(cfg: DictConfig, data: pl.LightningDataModule, policy: object) -> pl.LightningModule:
    if cfg.workload is not None:
        module: pl.LightningModule = instantiate(cfg.workload)
        return module
    kind: Any = getattr(data, "module_class", Classifier)
    return kind(  # type: ignore[no-any-return]
        model=instantiate(_completed(cfg, data).model),
        optimizer=instantiate(cfg.optimizer),
        num_classes=_num_classes(cfg, data),
        param_groups=_param_groups(cfg, policy),
        channels_last=cfg.channels_last,
        compile=cfg.compile,
    )


def _param_groups(cfg: DictConfig, policy: object) -> list[Any]:
    """Return the parameter groups: those of ``param_groups``, and one for each further pattern that a policy names."""
    plain: Any = OmegaConf.to_container(cfg.param_groups, resolve=True)
    plain = [{key: value for key, value in group.items() if key != "lr_policy"} for group in plain]
    groups: list[Any] = instantiate(plain, _convert_="all")
    known = {group.get("params") for group in groups}
    of_groups = policy.groups if isinstance(policy, (OptimizerPolicy, AdaptiveOptimizerPolicy)) else ()
    named = [each.group for each in of_groups if isinstance(each.group, str)]
    return [*groups, *({"params": name} for name in named if name not in known)]


def _build_trainer(
    cfg: DictConfig,
    first: Sequence[pl.Callback],
    last: Sequence[pl.Callback],
    loggers: Sequence[Logger],
    output: Path | None,
) -> pl.Trainer:
    """Build the Trainer with callbacks in order: ``first``, progress, ``last``, own."""
    quiet = sys.stdout.isatty() and in_sweep() and is_shown_by_launcher()  # the sweep shows a view instead
    quiet = quiet or cfg.trainer.get("enable_progress_bar") is False
    kept = OmegaConf.masked_copy(cfg.trainer, [str(key) for key in cfg.trainer if key != "callbacks"])
    kept._set_parent(cfg)  # so that references to the parts left out still resolve
    _look_for_plugins_once()
    trainer: pl.Trainer = instantiate(
        kept,
        val_check_interval=cfg.check_every * cfg.trainer.accumulate_grad_batches,  # Lightning counts batches
        callbacks=[*first, *([] if quiet else [progress(cfg.monitor)]), *last, *_own_callbacks(cfg)],
        logger=loggers,
        enable_progress_bar=sys.stdout.isatty() and not quiet,
        default_root_dir=output,
    )
    if trainer.max_steps != cfg.max_steps:
        raise UserError(
            f"the Trainer would take {trainer.max_steps} steps of max_steps={cfg.max_steps}; leave out "
            "trainer.fast_dev_run, and set the budget with max_steps"
        )
    return trainer


def _look_for_plugins_once() -> None:
    """Let Lightning read the entry points of all installed packages once in this process, not for every Trainer."""
    with contextlib.suppress(ImportError, AttributeError):  # a version that looks elsewhere
        module: Any = importlib.import_module("lightning_fabric.utilities.registry")
        if not hasattr(module.entry_points, "cache_info"):
            module.entry_points = functools.cache(module.entry_points)


# Arguments of the Trainer that a run sets itself, and the keys to use instead.
_SET_BY_RUN = {
    "val_check_interval": "check_every=STEPS",
    "logger": "the group logger, such as logger=csv",
    "default_root_dir": "hydra.run.dir=FOLDER",
}


def _check_trainer_keys(cfg: DictConfig) -> None:
    """Refuse keys of ``trainer`` that the run sets itself or that contradict it."""
    for name, instead in _SET_BY_RUN.items():
        if cfg.trainer.get(name) is not None:
            raise UserError(f"trainer.{name} is set by the run, got {cfg.trainer[name]!r}; use {instead} instead")
    given = cfg.trainer.get("max_steps")
    if given != cfg.max_steps:
        raise UserError(
            f"trainer.max_steps must be max_steps ({cfg.max_steps}), got {given!r}; leave it out and set max_steps"
        )


def _own_callbacks(cfg: DictConfig) -> list[Any]:
    """Instantiate ``trainer.callbacks``: one, a list, or a mapping from names."""
    callbacks = instantiate(cfg.trainer.get("callbacks"), _convert_="all") or []
    if isinstance(callbacks, dict):
        callbacks = list(callbacks.values())
    elif not isinstance(callbacks, list):
        callbacks = [callbacks]
    for callback in callbacks:
        if not hasattr(callback, "on_train_batch_start"):
            raise UserError(f"trainer.callbacks must be callbacks, each with its _target_, got {callback!r}")
    return callbacks


class OptimizerNameCheck(pl.Callback):
    """Refuse a workload whose optimizer differs from the one named in the result.

    Args:
        cfg: The configuration; a name given as ``names.optimizer`` is not checked.
    """

    def __init__(self, cfg: DictConfig) -> None:
        chosen = HydraConfig.get().runtime.choices.get("optimizer") if HydraConfig.initialized() else None
        self._name = str(cfg.names.optimizer)
        self._skip = self._name != str(chosen) or not isinstance(cfg.optimizer, DictConfig)
        self._optimizer = cfg.optimizer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the optimizer with its name.

        Raises:
            UserError: If class or settings differ.
        """
        if self._skip or len(trainer.optimizers) != 1:  # several are handled by the policy callback
            return
        built, named = trainer.optimizers[0], get_object(str(self._optimizer.get("_target_")))
        other = "choose optimizer=NAME as the workload builds it, or give any name as names.optimizer=NAME"
        if isinstance(named, type) and type(built) is not named:
            raise UserError(
                f"the workload builds {type(built).__name__}, but optimizer={self._name} is {named.__name__}, "
                f"which the result would name; {other}"
            )
        for key, value in self._optimizer.items():
            if key not in ("_target_", "_partial_", "lr") and built.defaults.get(str(key), value) != value:
                raise UserError(
                    f"the workload builds {type(built).__name__} with {key}={built.defaults[str(key)]!r}, but "
                    f"optimizer={self._name} has {value!r}, which the result would name; {other}"
                )


def _completed(cfg: DictConfig, data: pl.LightningDataModule) -> DictConfig:
    """Return the configuration with what only the data knows: null keys of ``dataset`` that describe it."""
    unknown = [key for key in DESCRIBES_DATA if key in cfg.dataset and cfg.dataset[key] is None]
    if unknown:
        cfg = copy.deepcopy(cfg)
        with read_write(cfg), open_dict(cfg):
            for key in unknown:
                value = getattr(data, key, None)
                cfg.dataset[key] = list(value) if isinstance(value, tuple) else value
    return cfg


def _num_classes(cfg: DictConfig, data: pl.LightningDataModule) -> int:
    """Return the number of classes, from the data module or the configuration."""
    for found in (getattr(data, "num_classes", None), OmegaConf.select(cfg, "model.num_classes")):
        if found is not None:
            return int(found)
    raise UserError("the number of classes is unknown; give it as model.num_classes or as dataset.num_classes")


def build_verifier(cfg: DictConfig, output: Path | None = None, spec: RunSpec | None = None) -> LRPolicyCallback:
    """Build the callback that applies the configured policy.

    Some choices of ``lr_policy``, such as ``auto``, are callbacks themselves.
    """
    target = {
        "target": cfg.target,
        "monitor": cfg.monitor,
        "mode": cfg.mode,
        "confirmations": cfg.confirmations,
    }
    spec = spec or RunSpec.from_config(cfg)
    policy = build_policy(cfg, None if output is None else output / "lookup.json", spec.task.settings)
    if isinstance(policy, LRPolicyCallback):
        return policy
    check_milestones(policy, cfg.max_steps)
    try:
        check_values(policy, cfg.max_steps)
    except ValueError as error:
        raise UserError(str(error)) from error
    return LRPolicyCallback(policy, stop=cfg.stop_at_target, **target)
