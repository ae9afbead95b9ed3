"""Compose configurations and read them: the resolvers of ``conf/``, policies, data modules, launchers.

Every policy in ``conf/lr_policy`` is written in fractions of the budget and of the peak learning rate, so ``lr`` and
``max_steps`` rescale the whole policy.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lrbench_pl.overrides import program_options as program_options
from lrbench_pl.overrides import quoted as quoted
from lrbench_pl.policies import OTHER_POLICIES, AdaptivePolicy, GroupPolicy, Policy, combined, from_config
from lrbench_pl.reading import read_yaml
from lrbench_pl.runs.budget import convert_budget
from lrbench_pl.runs.options import UserError, check_other_policies, one_line

_GRID = "hydra_plugins.lrbench_sweeper.GridSweeper"
_LOOK_UP = "lrbench_pl.selection.best.best"


def steps(fraction: float, *, _root_: Any) -> int:
    """Resolve ``${steps:0.5}``: a fraction of ``max_steps``, at least 1 step."""
    return max(1, round(float(fraction) * int(_root_.max_steps)))


def rate(fraction: float, *, _root_: Any) -> float:
    """Resolve ``${rate:0.1}``: a fraction of the peak learning rate ``lr``."""
    return float(fraction) * float(_root_.lr)


def decay(rest: float, *, _root_: Any) -> float:
    """Resolve ``${decay:0.01}``: the factor per step that leaves 0.01 at the end."""
    if not 0 < float(rest) <= 1:
        raise ValueError(f"decay must leave a fraction in (0, 1] of the rate, got {rest}")
    return math.exp(math.log(float(rest)) / int(_root_.max_steps))


def behind(fraction: float, *, _root_: Any) -> int:
    """Resolve ``${behind:0.1}``: the negative of ``${steps:0.1}``, the lag of a cycle."""
    return -steps(fraction, _root_=_root_)


def per_budget(number: float, *, _root_: Any) -> float:
    """Resolve ``${per_budget:2.0}``: the amount per step that sums to 2."""
    return float(number) / int(_root_.max_steps)


def weight_decay(factor: float, *, _root_: Any) -> float:
    """Resolve ``${weight_decay:10}``: a multiple of the optimizer's weight decay."""
    own = OmegaConf.select(_root_, "optimizer.weight_decay")
    if own is None:
        raise ValueError("the policy needs optimizer.weight_decay, got none; give +optimizer.weight_decay=0.01")
    return float(factor) * float(own)


def register_resolvers() -> None:
    """Register the resolvers ``${steps:}``, ``${rate:}``, … with OmegaConf.

    It may be called repeatedly.

    Example:
        >>> register_resolvers()
        >>> cfg = OmegaConf.create({"lr": 0.5, "max_steps": 100, "half": "${steps:0.5}", "tenth": "${rate:0.1}"})
        >>> cfg.half, cfg.tenth
        (50, 0.05)
    """
    for resolver in (steps, rate, decay, behind, per_budget, weight_decay):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def use_own_launchers() -> None:
    """Let ``hydra/launcher=NAME`` select our launcher of that name, and ``hydra/sweeper=basic`` our sweeper.

    Hydra and its plugins have launchers with the same short names. The files have longer ones, so that a project which
    uses our configuration groups keeps its own launchers and can select ours as well.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # plugins register theirs on discovery
    for name, launcher in _own_launchers(conf_dir()).items():
        ConfigStore.instance().store(name, launcher, "hydra/launcher", provider="lrbench_pl")
    grid = OmegaConf.create({"_target_": _GRID, "max_batch_size": None, "params": None})
    ConfigStore.instance().store("basic", grid, "hydra/sweeper", provider="lrbench_pl")


@functools.cache
def _own_launchers(folder: Path) -> dict[str, Any]:
    paths = (folder / "hydra" / "launcher").glob("lrbench_*.yaml")
    return {path.stem.removeprefix("lrbench_"): OmegaConf.load(path) for path in paths}


def conf_dir() -> Path:
    """Return the folder of the configuration groups.

    It is ``conf/`` in a checkout and ``lrbench_pl/conf`` in an installation.

    Raises:
        FileNotFoundError: If the package was installed without it.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configuration in {package / 'conf'}; install lrbench_pl again")


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose the configuration of ``lrbench run OVERRIDES``.

    Example:
        >>> cfg = compose(["lr_policy=fix", "max_steps=500", "optimizer=adam"])
        >>> cfg.max_steps, cfg.names.optimizer
        (500, 'adam')
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    register_resolvers()
    use_own_launchers()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)  # `names` refers to the choices in it
    OmegaConf.resolve(cfg.names)
    convert_budget(cfg)
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])  # as a job receives it


def expand(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the overrides of every job of ``lrbench run -m OVERRIDES``.

    Raises:
        UserError: If an override violates Hydra's grammar.

    Example:
        >>> expand(["lr_policy=tri,cos", "max_steps=500"])
        [('lr_policy=tri', 'max_steps=500'), ('lr_policy=cos', 'max_steps=500')]
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())  # for glob()
        try:
            choices = [
                [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
                if each.is_sweep_override()
                else [str(each.input_line)]
                for each in parser.parse_overrides(list(overrides))
            ]
        except (HydraException, ValueError) as error:
            raise UserError(one_line(error)) from error
    return list(itertools.product(*choices))


def build_policy(cfg: DictConfig, kept_in: Path | None = None, settings: Mapping[str, Any] | None = None) -> Any:
    """Build the policy of a configuration.

    Args:
        cfg: The configuration.
        kept_in: File in which a run stores the answer of ``lr_policy=best``, to resume with the same.
        settings: Settings of the task, by which ``lr_policy=best`` looks a policy up.

    Returns:
        A policy, or a callback if the choice of ``lr_policy`` is one (``lr_policy=auto``). It is an ``OptimizerPolicy``
        with ``momentum_policy``, ``weight_decay_policy`` or policies in ``param_groups``.

    Raises:
        UserError: If ``lr_policy_file`` cannot be read as a policy, or another policy is not a plain one.

    Example:
        >>> build_policy(compose(["lr_policy=linear", "lr=0.1", "max_steps=500"]))
        Polynomial(init_lr=0.1, decay_steps=500, power=1.0, end_lr=0.0)
    """
    from hydra.utils import instantiate

    check_other_policies(cfg)
    if cfg.lr_policy_file is not None:
        policy = read_policy(cfg.lr_policy_file)
    else:
        more: dict[str, Any] = {}
        if kept_in is not None and cfg.lr_policy.get("_target_") == _LOOK_UP:
            more = {"kept_in": kept_in, "settings": settings}
        policy = instantiate(cfg.lr_policy, _convert_="all", **more)  # parts of a composite are policies too
    others = {setting: _instantiated(cfg, key) for key, setting in OTHER_POLICIES.items()}
    groups = tuple(
        GroupPolicy(str(group.params), _built(f"param_groups {group.params!r}: lr_policy", group.lr_policy))
        for group in cfg.get("param_groups") or ()
        if group.get("lr_policy") is not None
    )
    try:
        return combined(policy, **others, groups=groups)
    except ValueError as error:
        raise UserError(one_line(error)) from error


def _instantiated(cfg: DictConfig, name: str) -> Any:
    return None if cfg.get(name) is None else _built(name, cfg[name])


def _built(name: str, node: Any) -> Any:
    """Build a policy beside that of the rate, which must be a plain one."""
    from hydra.utils import instantiate

    policy = instantiate(node, _convert_="all") if isinstance(node, DictConfig) else node
    if not callable(policy) or isinstance(policy, AdaptivePolicy):
        raise UserError(
            f"{name} must have the _target_ of a plain policy, such as lrbench_pl.policies.Constant, got {node!r}"
        )
    return policy


def read_policy(path: str | Path) -> Policy:
    """Read a policy from a ``policy.yaml``; it may name registered types only.

    Raises:
        UserError: If the file is missing, is not a YAML mapping or names another type.
    """
    try:
        stored = read_yaml(Path(path).expanduser())
        if not isinstance(stored, Mapping):
            raise ValueError(f"expected a mapping with _target_, got {type(stored).__name__}")
        return from_config({str(key): value for key, value in stored.items()})
    except Exception as error:
        raise UserError(f"lr_policy_file={path}: {one_line(error)}") from error


def in_sweep() -> bool:
    """Return whether this process runs a job of a multirun."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def is_shown_by_launcher() -> bool:
    """Return whether the launcher of this job is one of ours, which shows its result."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().launcher.get("_target_")).startswith("hydra_plugins.lrbench_launchers.")
