"""What a configuration may say: refused by name, rule and value before anything is built."""

from __future__ import annotations

import math

from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from lrbench_pl.policies import meant


class UserError(ValueError):
    """Input that cannot be run as it is; the message is the one line to show."""


def check_knobs(cfg: DictConfig) -> None:
    """Refuse values that no run can have, by name, rule and value."""
    whole_numbers = {
        "max_steps": 1,
        "batch_size": 1,
        "check_every": 1,
        "confirmations": 1,
        "threads": 1,
        "checkpoints_kept": 1,
        "seed": 0,
    }
    for name, least in whole_numbers.items():
        value = cfg[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name} must be an integer of at least {least}, got {value!r}")
    if isinstance(cfg.lr, bool) or not isinstance(cfg.lr, (int, float)) or not 0 < cfg.lr < math.inf:
        raise UserError(f"lr must be a finite number above 0, got {cfg.lr!r}")
    every = cfg.checkpoint_every
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise UserError(f"checkpoint_every must be an integer of at least 1 or null, got {every!r}")
    limit = cfg.max_time
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0):
        raise UserError(f"max_time must be a number of seconds above 0 or null, got {limit!r}")
    target = cfg.target_accuracy
    if target is not None and (not isinstance(target, (int, float)) or not 0 < target <= 1):
        raise UserError(f"target_accuracy must lie in (0, 1] or be null, got {target!r}")
    if cfg.check_every > cfg.max_steps:
        raise UserError(
            f"check_every must not exceed max_steps ({cfg.max_steps}), got {cfg.check_every}: "
            "the target would never be checked"
        )
    if cfg.workload is None:
        _check_model(cfg)


def _check_model(cfg: DictConfig) -> None:
    """Refuse a model that refers to what the data set does not say."""
    try:
        OmegaConf.to_container(cfg.model, resolve=True)
    except InterpolationKeyError as error:
        for name, example in (("num_classes", "10"), ("input_shape", "[1, 28, 28]")):
            if f"'dataset.{name}'" in str(error):
                raise UserError(
                    f"the model takes dataset.{name}, which the configuration of the data set does not say; add a line "
                    f"such as '{name}: {example}' to it, or give dataset.{name} on the command line with +"
                ) from error
        raise


def refuse_late_milestones(policy: object, max_steps: int) -> None:
    """Refuse a part of a policy that the budget never comes to."""
    for name, milestones in meant(policy, "milestones").items():
        if late := [milestone for milestone in milestones if milestone >= max_steps]:
            raise UserError(
                f"lr_policy: {name} must lie below max_steps ({max_steps}), got {late[0]}; lower it or raise max_steps"
            )


def one_line(error: BaseException) -> str:
    r"""What an error says, in one line: Hydra's wrapping opened, its key kept.

    Example:
        >>> one_line(ValueError("first line\n  second"))
        'first line second'
    """
    where = ""
    if isinstance(error, InstantiationException):
        lines = [line for line in str(error).splitlines() if line.startswith("full_key: ")]
        where = lines[-1].removeprefix("full_key: ") + ": " if lines else ""
        while error.__cause__ is not None and not isinstance(error, UserError):
            error = error.__cause__
    text = " ".join(str(error).split())
    known = isinstance(error, (ValueError, RuntimeError, HydraException, OmegaConfBaseException))
    kind = "" if known and text else f"{type(error).__name__}: "
    return f"{where}{kind}{text}".rstrip(": ")
