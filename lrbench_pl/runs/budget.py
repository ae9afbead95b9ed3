"""Convert a budget that is given in epochs or tokens to optimizer steps."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lrbench_pl.runs.data import build_data
from lrbench_pl.runs.lint import processes_of
from lrbench_pl.runs.options import LARGEST, UserError, check_whole, one_line

UNITS = ("max_epochs", "max_tokens")  # keys that may give the budget instead of max_steps
_ENDLESS = 2**60  # a loader of this length has no end
_NEEDED = {"max_epochs": "the number of training samples", "max_tokens": "the number of tokens of a sample"}

_samples: dict[str, tuple[int, int | None]] = {}  # of data sets that differ in their seed only


def convert_budget(cfg: DictConfig) -> None:
    """Set ``max_steps`` of a configuration to its budget in epochs or tokens, if it has one.

    Everything that is derived from ``max_steps``, such as policies and the run id, sees the number of steps. It is
    rounded up, so that the budget is used completely.

    Args:
        cfg: The configuration. It may contain the node ``hydra``. Hydra's configuration must be that of the same job.

    Raises:
        UserError: If the budget is given twice, is not a number above 0, or cannot be converted.

    Example:
        >>> from lrbench_pl.runs.config import compose
        >>> cfg = compose(["max_epochs=20", "batch_size=32"])  # 1,137 training samples
        >>> cfg.max_steps, cfg.lr_policy.period
        (711, 711)
    """
    given = {unit: cfg[unit] for unit in UNITS if cfg.get(unit) is not None}
    if not given:
        return
    (unit, value), *more = given.items()
    if more:
        raise UserError(f"the budget must be given once, got {unit}={value} and {more[0][0]}={more[0][1]}; give one")
    if _is_overridden("max_steps"):
        raise UserError(
            f"the budget must be given once, got max_steps and {unit}={value}; leave one out"
            f"{'' if _is_overridden(unit) else f', here with {unit}=null'}"
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UserError(f"{unit} must be a finite number above 0 or null, got {value!r}")
    steps = _steps(cfg, unit, value)
    if steps > LARGEST:
        raise UserError(f"{unit} must give at most {LARGEST} steps, got {unit}={value:g}; lower it")
    with read_write(cfg), open_dict(cfg):
        cfg.max_steps = steps


def without_units(cfg: DictConfig) -> list[str]:
    """Return the overrides that a command line with ``max_steps`` needs where a file gives the budget in a unit."""
    return [f"{unit}=null" for unit in UNITS if cfg.get(unit) is not None and not _is_overridden(unit)]


def _is_overridden(key: str) -> bool:
    """Return whether the command line sets a key."""
    from hydra.core.hydra_config import HydraConfig

    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    return any(str(each).lstrip("+").partition("=")[0] == key for each in given)


def _steps(cfg: DictConfig, unit: str, value: float) -> int:
    """Return the steps of a budget in epochs or tokens."""
    accumulate = OmegaConf.select(cfg, "trainer.accumulate_grad_batches", default=1)
    check_whole("batch_size", cfg.batch_size)
    check_whole("trainer.accumulate_grad_batches", accumulate)
    processes = processes_of(cfg.trainer)
    if processes is None:
        raise UserError(
            f"{unit} needs the number of processes, got trainer.devices={cfg.trainer.devices}; give a number, or "
            "max_steps"
        )
    if cfg.trainer.get("limit_train_batches") is not None:
        raise UserError(f"{unit} counts whole epochs; leave out trainer.limit_train_batches, or give max_steps")
    dataset: Any = OmegaConf.to_container(cfg.dataset, resolve=True)
    known = {key: each for key, each in dataset.items() if key != "seed"}
    key = json.dumps([unit, known, processes], sort_keys=True, default=str)
    try:
        if key not in _samples:
            _samples[key] = _tokens_per_sample(cfg) if unit == "max_tokens" else _epoch(cfg, processes)
    except UserError:
        raise
    except Exception as error:  # of a data module of the user's own
        raise UserError(f"{unit}: {one_line(error)}") from error
    size, batch = _samples[key]
    budget = Fraction(str(value))
    if batch is None:  # a loader, whose last batch of an epoch ends a step
        return math.ceil(budget * -(-size // int(accumulate)))
    per_step = batch * int(accumulate) * processes
    return math.ceil(budget / (size * per_step) if unit == "max_tokens" else budget * size / per_step)


def _tokens_per_sample(cfg: DictConfig) -> tuple[int, int]:
    """Return tokens of a training sample and samples of a batch."""
    data = build_data(cfg.dataset)
    tokens = getattr(data, "tokens_per_sample", None)
    if tokens is None:
        raise _unknown("max_tokens", data, "tokens_per_sample", "max_epochs or max_steps")
    check_whole(f"tokens_per_sample of {type(data).__name__}", tokens)
    return tokens, getattr(data, "batch_size", cfg.batch_size)


def _epoch(cfg: DictConfig, processes: int) -> tuple[int, int | None]:
    """Return the samples of an epoch and of a batch; or the batches of a process and None, of a plain loader."""
    data = build_data(cfg.dataset)
    data.prepare_data()
    data.setup("fit")
    samples = getattr(data, "train_samples", None)
    if samples is not None:
        check_whole(f"train_samples of {type(data).__name__}", samples)
        return samples, getattr(data, "batch_size", cfg.batch_size)
    loader = data.train_dataloader()
    try:
        batches = len(loader)
        if processes > 1:  # each process gets its share of the samples
            share = -(-len(loader.dataset) // processes)
            batches = share // loader.batch_size if loader.drop_last else -(-share // loader.batch_size)
    except (TypeError, AttributeError):
        batches = 0
    if not 0 < batches < _ENDLESS:
        raise _unknown("max_epochs", data, "train_samples", "max_steps")
    return batches, None


def _unknown(unit: str, data: Any, attribute: str, instead: str) -> UserError:
    name = type(data).__name__
    return UserError(
        f"{unit} needs {_NEEDED[unit]}, which {name} does not tell; give {instead}, or {name} an attribute {attribute}"
    )
