"""Configurations and what they say: the units of ``conf/``, composing, and the policy that a configuration names.

Every policy in ``conf/lr_policy`` is written in fractions of the budget and of the peak learning rate, so that ``lr``
and ``max_steps`` rescale all of it at once.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from lrbench_pl.policies import Policy, from_config
from lrbench_pl.runs.options import UserError, one_line

if TYPE_CHECKING:
    from omegaconf import DictConfig


DESCRIBES_DATA = ("num_classes", "input_shape")
_LOOK_UP = "lrbench_pl.selection.best.best"


def steps(fraction: float, *, _root_: Any) -> int:
    """``${steps:0.5}``: a fraction of the budget ``max_steps``, rounded, at least 1 step."""
    return max(1, round(float(fraction) * int(_root_.max_steps)))


def rate(fraction: float, *, _root_: Any) -> float:
    """``${rate:0.1}``: a fraction of the peak learning rate ``lr``."""
    return float(fraction) * float(_root_.lr)


def decay(rest: float, *, _root_: Any) -> float:
    """``${decay:0.01}``: the factor per step that leaves the fraction ``rest`` after the budget."""
    if not 0 < float(rest) <= 1:
        raise ValueError(f"decay must leave a fraction in (0, 1] of the rate, got {rest}")
    return math.exp(math.log(float(rest)) / int(_root_.max_steps))


def behind(fraction: float, *, _root_: Any) -> int:
    """``${behind:0.1}``: a phase by which a cycle is behind, as a fraction of the budget."""
    return -steps(fraction, _root_=_root_)


def per_budget(number: float, *, _root_: Any) -> float:
    """``${per_budget:2.0}``: a quantity per step that adds up to ``number`` over the budget."""
    return float(number) / int(_root_.max_steps)


def register_resolvers() -> None:
    """Make the units ``${steps:}``, ``${rate:}``, ``${decay:}``, … known to OmegaConf; may be called again.

    Example:
        >>> register_resolvers()
        >>> cfg = OmegaConf.create({"lr": 0.5, "max_steps": 100, "half": "${steps:0.5}", "tenth": "${rate:0.1}"})
        >>> cfg.half, cfg.tenth
        (50, 0.05)
    """
    for resolver in (steps, rate, decay, behind, per_budget):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def use_own_launchers() -> None:
    """Make ``hydra/launcher=NAME`` mean ``conf/hydra/launcher/lrbench_NAME.yaml`` in this program.

    Hydra and its plugins bring launchers with the same short names. The files carry longer ones, so that a project
    that takes groups from here keeps its own launchers and can choose ours beside them.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # they register when they are found
    for path in (conf_dir() / "hydra" / "launcher").glob("lrbench_*.yaml"):
        name = path.stem.removeprefix("lrbench_")
        ConfigStore.instance().store(name, OmegaConf.load(path), "hydra/launcher", provider="lrbench_pl")


def conf_dir() -> Path:
    """The folder of the configuration groups: in a checkout ``conf/``, installed ``lrbench_pl/conf``.

    Raises:
        FileNotFoundError: If the package was installed without it.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configuration in {package / 'conf'}; install lrbench_pl again")


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that ``lrbench run OVERRIDES`` would run.

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
    HydraConfig.instance().set_config(cfg)  # `names` reads the choices from it
    OmegaConf.resolve(cfg.names)
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])  # as a job gets it


def expand(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """The overrides of every job that ``lrbench run -m OVERRIDES`` would run.

    Raises:
        UserError: If an override is not in Hydra's language.

    Example:
        >>> expand(["lr_policy=tri,cos", "max_steps=500"])
        [('lr_policy=tri', 'max_steps=500'), ('lr_policy=cos', 'max_steps=500')]
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())  # glob() asks it
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


def quoted(text: str) -> str:
    r"""Quote a text so that Hydra's grammar reads it back as it is, whatever it contains.

    Example:
        >>> print(quoted("it's here/a b"))
        'it\'s here/a b'
    """
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    text = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", text)  # backslashes count before a quote alone
    text = re.sub(r"\\+$", lambda found: found[0] * 2, text)
    return f"'{text}'"


def program_options(hydra: Mapping[str, Any]) -> list[str]:
    """The words of a command line, beside the overrides of the task, that decide where its configuration comes from.

    Args:
        hydra: The configuration's own node ``hydra``, composed or as stored in ``.hydra/hydra.yaml``.

    Example:
        >>> sources = [{"provider": "main", "path": "conf"}, {"provider": "command-line", "path": "/home/me/mine"}]
        >>> program_options({"runtime": {"config_sources": sources}, "job": {"config_name": "config"}})
        ['--config-dir', '/home/me/mine']
    """
    sources = hydra["runtime"]["config_sources"]
    words = [word for each in sources if each["provider"] == "command-line" for word in ("--config-dir", each["path"])]
    name = (hydra.get("job") or {}).get("config_name")
    words += ["--config-name", name] if name not in (None, "config") else []
    given = (hydra.get("overrides") or {}).get("hydra") or []
    return words + [each for each in map(str, given) if each.lstrip("+").startswith("hydra.searchpath=")]


def build_policy(cfg: DictConfig, kept_in: Path | None = None, settings: Mapping[str, Any] | None = None) -> Any:
    """The very object that a training with this configuration asks for its rates.

    Args:
        cfg: The configuration.
        kept_in: File in which a run keeps what ``lr_policy=best`` found, to go on with it.
        settings: Those of the task, by which ``lr_policy=best`` looks a policy up.

    Returns:
        A policy, or the callback that the policy group itself names (``lr_policy=auto``).

    Raises:
        UserError: If ``lr_policy_file`` cannot be read as a policy.

    Example:
        >>> build_policy(compose(["lr_policy=linear", "lr=0.1", "max_steps=500"]))
        Polynomial(init_lr=0.1, decay_steps=500, power=1.0, end_lr=0.0)
    """
    from hydra.utils import instantiate

    if cfg.lr_policy_file is not None:
        return read_policy(cfg.lr_policy_file)
    more: dict[str, Any] = {}
    if kept_in is not None and cfg.lr_policy.get("_target_") == _LOOK_UP:
        more = {"kept_in": kept_in, "settings": settings}
    return instantiate(cfg.lr_policy, _convert_="all", **more)  # parts of a composite stay policies


def build_data(cfg: DictConfig) -> Any:
    """The data module that a configuration names.

    ``dataset.num_classes`` and ``dataset.input_shape`` describe the data to everyone, above all to the model. A data
    module whose constructor does not take them is built without.

    Args:
        cfg: The part ``dataset`` of a configuration.

    Example:
        >>> build_data(OmegaConf.create({"_target_": "fractions.Fraction", "numerator": 2, "num_classes": 10}))
        Fraction(2, 1)
    """
    from hydra.utils import get_object, instantiate

    try:
        takes = inspect.signature(get_object(str(cfg.get("_target_")))).parameters
    except Exception:  # of an import, or a type without a signature: instantiate has the message
        return instantiate(cfg)
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values()):
        return instantiate(cfg)
    left_out = [name for name in DESCRIBES_DATA if name in cfg and name not in takes]
    if not left_out:
        return instantiate(cfg)
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)  # as long as all that it may refer to is there
    return instantiate({name: value for name, value in resolved.items() if name not in left_out})


def read_policy(path: str | Path) -> Policy:
    """A policy from a ``policy.yaml``; the file may name policy types of this package and nothing else.

    Raises:
        UserError: If the file is missing, is no YAML mapping or names something else.
    """
    try:
        stored = OmegaConf.to_container(OmegaConf.load(Path(path).expanduser()), resolve=False)
        if not isinstance(stored, Mapping):
            raise ValueError(f"expected a mapping with _target_, got {type(stored).__name__}")
        return from_config({str(key): value for key, value in stored.items()})
    except Exception as error:
        raise UserError(f"lr_policy_file={path}: {one_line(error)}") from error


def in_sweep() -> bool:
    """Whether this process runs a job of a multirun."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def is_shown_by_launcher() -> bool:
    """Whether the launcher of this job is one of ours, which shows what came of it."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().launcher.get("_target_")).startswith("hydra_plugins.lrbench_launchers.")
