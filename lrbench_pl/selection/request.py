"""Turn the options and overrides of a command line into the request for a selection."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, Transformer
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from lrbench_pl.files import write_atomically
from lrbench_pl.policies import Policy, to_config
from lrbench_pl.policies import _checks as check
from lrbench_pl.runs.budget import UNITS, convert_budget, without_units
from lrbench_pl.runs.config import read_policy
from lrbench_pl.runs.describe import identity
from lrbench_pl.runs.options import is_callback
from lrbench_pl.runs.spec import RunSpec
from lrbench_pl.selection.distance import Query
from lrbench_pl.selection.lookup import MAX_DISTANCE, look_up
from lrbench_pl.selection.selection_file import SELECTION_FILE, plain
from lrbench_pl.selection.trials import SelectionOptions, SelectionTask
from lrbench_pl.words import clean

_POOL = ("lr_policy", "lr", "optimizer", "lr_policy_file", "seed")  # keys that may have several values
_SET_BY_PLAN = (
    "max_steps",
    *UNITS,
    "check_every",
    "checkpoint_every",
    "stop_at_target",
)  # further keys that the plan sets
_OTHER_OPTIONS = ("db", "known", "params")  # options that are not in SelectionOptions

_Compose = Callable[[Sequence[str]], DictConfig]


class SelectionError(CompactHydraException):
    """Raised if a selection cannot be run; Hydra prints the message as one line."""


@dataclass(frozen=True)
class Request:
    """A selection as it was asked for.

    Args:
        options: Options of the selection.
        task: The training to select a policy for.
        overrides: Overrides of every trial, by key.
        has_optimizers: Whether the optimizers were given as a list to select from.
        checkpoint_every: Value of ``checkpoint_every``, which horizons would change.
        policies: Policies of the files of the task, by path.
        target: The target.
        asked: The request as plain data, for comparison with that of an interrupted selection.
        steps_only: Overrides with which ``max_steps`` gives the budget of a trial.
    """

    options: SelectionOptions
    task: SelectionTask
    overrides: Mapping[str, str]
    has_optimizers: bool
    checkpoint_every: str
    policies: Mapping[str, Policy]
    target: float
    asked: Mapping[str, Any]
    steps_only: Sequence[str] = ()


def read_request(
    loader: ConfigLoader, config: DictConfig, folder: Path, arguments: Sequence[str], options: Mapping[str, Any]
) -> Request:
    """Read the request for a selection.

    Args:
        loader: Hydra's, which composes configurations.
        config: Configuration of the sweep.
        folder: Folder of the selection.
        arguments: Overrides of the command line.
        options: Options of ``conf/hydra/sweeper/lrbench.yaml``.

    Raises:
        SelectionError: If the options or overrides do not make a selection.
    """
    _check_options(options)
    pool, overrides = _split(loader, arguments, options)
    lines = list(overrides.values())

    def compose(more: Sequence[str]) -> DictConfig:
        return compose_trial(loader, config, [*lines, *more])

    plain_config = compose([])
    configs = [compose([f"optimizer={name}"]) for name in pool.get("optimizer", ())] or [plain_config]
    base = configs[0]
    if base.target is None:
        raise SelectionError("hydra/sweeper=lrbench needs a target, got none; give target=VALUE")
    names = [str(cfg.names.optimizer) for cfg in configs]
    files = _from_database(folder, configs, options.get("db"), options.get("known", 0))
    files += [(path, name) for path in pool.get("lr_policy_file", ()) for name in names]
    policies = {path: read_policy(path) for path in dict.fromkeys(path for path, _ in files)}
    selection_options = _options(options, pool)
    optimizers = {name: float(cfg.lr) for name, cfg in zip(names, configs, strict=True)}
    task = _task(base, pool, optimizers, files)
    _check_shapes(selection_options, compose)
    return Request(
        options=selection_options,
        task=task,
        overrides={key: line for key, line in overrides.items() if key not in _SET_BY_PLAN},
        has_optimizers="optimizer" in pool,
        checkpoint_every="null" if base.checkpoint_every is None else str(base.checkpoint_every),
        steps_only=without_units(base),
        policies=policies,
        target=float(base.target),
        asked={
            "settings": plain(asdict(selection_options)),
            "task": plain(asdict(task)),
            "configuration": plain(identity(plain_config)),
        },
    )


def compose_trial(loader: ConfigLoader, config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Compose the configuration of a trial."""
    cfg = copy.deepcopy(loader.load_sweep_config(config, list(overrides)))  # the launcher gets the same one
    HydraConfig.instance().set_config(cfg)
    convert_budget(cfg)
    OmegaConf.resolve(cfg.names)  # reads the choices from the singleton, which the next composition replaces
    return cfg


def _check_options(options: Mapping[str, Any]) -> None:
    """Require known options."""
    known = [*(field.name for field in fields(SelectionOptions)), *_OTHER_OPTIONS]
    if unknown := [key for key in options if key not in known]:
        raise SelectionError(f"hydra.sweeper has no option {unknown[0]!r}; it takes {', '.join(known)}")


def _split(
    loader: ConfigLoader, arguments: Sequence[str], options: Mapping[str, Any]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Split the overrides into values to select from and overrides of every trial, each by key."""
    params = [f"{key}={value}" for key, value in (options.get("params") or {}).items()]
    pool: dict[str, list[str]] = {}
    overrides: dict[str, str] = {}
    parser = OverridesParser.create(config_loader=loader)
    for override in parser.parse_overrides([*params, *arguments]):  # the command line comes last and wins
        key, values = override.get_key_element(), _values(override)
        if key in _POOL:
            pool[key] = values
        elif len(values) > 1:
            raise SelectionError(
                f"expected one value for {key}, got {', '.join(values)}; hydra/sweeper=lrbench takes several only for "
                f"{', '.join(_POOL)}"
            )
        else:
            overrides[key] = f"{key}={values[0]}" if override.is_sweep_override() else str(override.input_line)
    return pool, overrides


def _values(override: Override) -> list[str]:
    """Return the values that an override gives to its key."""
    if not override.is_sweep_override():
        return [str(override.value())]
    if not override.is_discrete_sweep():
        raise SelectionError(f"expected a list of values, got {override.input_line}")
    values = override.sweep_iterator(transformer=Transformer.identity)
    return [value.text if isinstance(value, QuotedString) else str(value) for value in values]


def _options(options: Mapping[str, Any], pool: Mapping[str, Sequence[str]]) -> SelectionOptions:
    own = {key: value for key, value in options.items() if key not in _OTHER_OPTIONS}
    return SelectionOptions(**{**own, **({"shapes": tuple(pool["lr_policy"])} if "lr_policy" in pool else {})})


def _task(
    base: DictConfig,
    pool: Mapping[str, Sequence[str]],
    optimizers: Mapping[str, float],
    files: Sequence[tuple[str, str]],
) -> SelectionTask:
    return SelectionTask(
        max_steps=int(base.max_steps),
        interval=int(base.check_every),
        optimizers=optimizers,
        seeds=tuple(_numbers("seed", pool["seed"], int)) if "seed" in pool else (int(base.seed),),
        mode=base.mode,
        files=tuple(files),
        rates=tuple(_numbers("lr", pool.get("lr", ()), float)),
    )


def _check_shapes(options: SelectionOptions, compose: _Compose) -> None:
    """Require policies; `auto` and the like cannot be trained over a horizon."""
    for shape in options.shapes:
        if is_callback(compose([f"lr_policy={shape}"]).lr_policy):
            raise SelectionError(f"expected policies to select from, got lr_policy={shape}, a callback; leave it out")


def _numbers(key: str, values: Sequence[str], kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(value) for value in values]
    except ValueError:
        raise SelectionError(f"{key} must be numbers, got {', '.join(values)}") from None


def _from_database(folder: Path, configs: Sequence[DictConfig], db: str | None, most: Any) -> list[tuple[str, str]]:
    """Return the recommendations of the policy database for each optimizer, as files.

    An interrupted selection keeps its files.
    """
    folder_of_files = folder / "from_database"
    check.count("known", most, least=0)
    if most and not (folder / SELECTION_FILE).exists():
        for cfg in configs:
            query = Query.from_task(RunSpec.from_config(cfg).task)
            found, _ = look_up(query, db, MAX_DISTANCE, report=lambda line: print(f"selection: {clean(line)}"))
            for number, each in enumerate(found[:most], 1):
                print(f"selection: the policy database recommends {clean(str(each))}", flush=True)
                text = OmegaConf.to_yaml(OmegaConf.create(to_config(each.policy)))
                write_atomically(folder_of_files / f"{number}-{query.optimizer}.yaml", text)
    names = {str(cfg.names.optimizer) for cfg in configs}
    files = [(str(path), path.stem.partition("-")[2]) for path in sorted(folder_of_files.glob("*.yaml"))]
    return [(path, name) for path, name in files if name in names]
