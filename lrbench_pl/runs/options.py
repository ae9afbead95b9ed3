"""Check a configuration before anything is built, and find settings without effect."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from lrbench_pl.policies import OTHER_POLICIES, fields_of, settings_of
from lrbench_pl.policies._checks import LARGEST_RATE
from lrbench_pl.verdict import check_target
from lrbench_pl.words import clean

# Keys that every run reads. Others are read under a condition, or where another key refers to them.
_READ = frozenset(
    (
        *("names", "dataset", "trainer", "logger", "max_steps", "seed", "threads", "share_equal", "study", "workload"),
        *("target", "monitor", "mode", "check_every", "confirmations", "require_target", "lr_policy_file"),
        *("checkpoint_every", "max_time", "hydra", "experiment", *OTHER_POLICIES),
        *("max_epochs", "max_tokens", "extendable"),
    )
)
_OF_CLASSIFIER = frozenset(("model", "optimizer", "param_groups", "channels_last", "compile"))
_KNOWN = _READ | _OF_CLASSIFIER | {"lr_policy", "lr", "batch_size", "stop_at_target", "checkpoints_kept"}
FORMER_KEYS = {"target_accuracy": "target", "lr_policy.trunks": "lr_policy.stable"}
_READ_BY_RESOLVER = {
    "rate": "lr",
    "weight_decay": "optimizer",
}  # keys that a resolver reads without naming them, besides max_steps
_OWN_CALLBACKS = ("lrbench_pl.callbacks.composer.", "lrbench_pl.callbacks.lr_range_test.")
_CALLBACKS = ("lrbench_pl.callbacks.", "lrbench_pl.selection.best.")  # choices of lr_policy that are callbacks


class UserError(ValueError):
    """Raised for invalid input of the user; the message is one line."""


LARGEST_SEED = 2**32 - 1  # of NumPy's generator
LARGEST = 2**53  # whole numbers up to here are exact in every program that reads a result
# Smallest and largest values of keys that are whole numbers.
_BOUNDS = {
    "max_steps": (1, LARGEST),
    "batch_size": (1, LARGEST),
    "check_every": (1, LARGEST),
    "confirmations": (1, LARGEST),
    "threads": (1, 4096),
    "checkpoints_kept": (1, LARGEST),
    "seed": (0, LARGEST_SEED),
}
_LONGEST_S = 1e9  # 30 years


def check_config(cfg: DictConfig) -> None:
    """Check the values of a configuration before anything is built.

    Raises:
        UserError: If a value is out of its range or contradicts another; the message names key, rule and value.
    """
    for former, name in FORMER_KEYS.items():
        if former in cfg:
            raise UserError(f"{former} is called {name} now; rename it in your configuration")
    _check_numbers(cfg)
    _check_target(cfg)
    check_other_policies(cfg)
    _check_extendable(cfg.get("extendable"))
    if cfg.check_every > cfg.max_steps:
        raise UserError(
            f"check_every must not exceed max_steps ({cfg.max_steps}), got {cfg.check_every}: "
            "the target would never be checked"
        )
    if cfg.workload is None:
        _check_optimizer(cfg)
        _check_model(cfg)
    _check_loggers(cfg)


# Packages that loggers need, by the name of their class; each is the extra of that name too.
_LOGGER_PACKAGES = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow", "AimLogger": "aim"}


def _check_loggers(cfg: DictConfig) -> None:
    """Refuse a logger whose package is not installed."""
    for key, logger in cfg.logger.items():
        target = str(logger.get("_target_")) if isinstance(logger, DictConfig) else ""
        package = _LOGGER_PACKAGES.get(target.rpartition(".")[2])
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"logger.{key} needs {package}: pip install 'lrbench_pl[{package}]', or leave it out")


def _check_numbers(cfg: DictConfig) -> None:
    for name, (least, most) in _BOUNDS.items():
        check_whole(name, cfg[name], least, most)
    if not (_is_number(cfg.lr) and 0 < cfg.lr < math.inf):
        raise UserError(f"lr must be a finite number above 0, got {_brief(cfg.lr)}")
    if cfg.lr > LARGEST_RATE:
        raise UserError(f"lr must be at most {LARGEST_RATE:g}, since weights would overflow, got {_brief(cfg.lr)}")
    if cfg.checkpoint_every is not None:
        check_whole("checkpoint_every", cfg.checkpoint_every, 1, LARGEST, " or null")
    if cfg.max_time is not None and not (_is_number(cfg.max_time) and cfg.max_time > 0):
        raise UserError(f"max_time must be a number of seconds above 0 or null, got {_brief(cfg.max_time)}")
    if cfg.max_time is not None and cfg.max_time > _LONGEST_S:
        raise UserError(f"max_time must be at most {_LONGEST_S:g} seconds or null, got {_brief(cfg.max_time)}")
    batches = OmegaConf.select(cfg, "trainer.accumulate_grad_batches", default=1)
    check_whole("trainer.accumulate_grad_batches", batches)


def check_whole(name: str, value: object, least: int = 1, most: int = LARGEST, otherwise: str = "") -> None:
    """Require an integer within bounds.

    Args:
        name: Name of the key, for the message.
        value: Its value.
        least: Smallest allowed value.
        most: Largest allowed value.
        otherwise: Another allowed value, for the message.

    Raises:
        UserError: If it is none.
    """
    if not _is_whole(value, least):
        raise UserError(f"{name} must be an integer of at least {least}{otherwise}, got {_brief(value)}")
    if value > most:  # type: ignore[operator]
        limit = "below 2**32" if most == 2**32 - 1 else f"of at most {most}"
        raise UserError(f"{name} must be an integer {limit}{otherwise}, got {_brief(value)}")


def _brief(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**60 else f"{hex(value)[:20]}…"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_extendable(value: Any) -> None:
    """Require true, false or a list of steps."""
    if isinstance(value, bool) or value is None:
        return
    if not isinstance(value, ListConfig) or not value:
        raise UserError(f"extendable must be true, false or a list of steps, got {_brief(value)}")
    for step in value:
        check_whole("extendable", step)


def _check_target(cfg: DictConfig) -> None:
    try:
        check_target(cfg.target, str(cfg.monitor), str(cfg.mode))
    except ValueError as error:
        raise UserError(str(error)) from error
    if cfg.require_target and cfg.target is None:
        raise UserError("require_target=true needs a target; give target=")


def check_other_policies(cfg: DictConfig) -> None:
    """Refuse policies of momentum, weight decay and groups where nothing would follow them.

    Raises:
        UserError: If ``lr_policy`` is a callback such as ``auto``, or a workload has its own groups.
    """
    groups = [group for group in cfg.get("param_groups") or () if group.get("lr_policy") is not None]
    given = [name for name in OTHER_POLICIES if cfg.get(name) is not None] + ["lr_policy in param_groups"] * bool(
        groups
    )
    if not given:
        return
    if cfg.lr_policy_file is None and is_callback(cfg.lr_policy):
        why = {
            "auto": "composes the rate while it trains, and returns to earlier steps",
            "best": "applies a policy as it was stored, with its own momentum and weight decay",
        }.get(str(cfg.names.policy), "sets the rate alone")
        raise UserError(
            f"{given[0]} needs a policy of fixed steps, but lr_policy={cfg.names.policy} {why}; leave one out"
        )
    if groups and cfg.workload is not None:
        raise UserError(
            "lr_policy in param_groups needs the groups that param_groups makes, which a workload does not have; name "
            "the groups in its optimizer and use lrbench_pl.policies.OptimizerPolicy as lr_policy"
        )
    for group in groups:
        if group.get("params") is None:
            raise UserError(f"param_groups: a group with an lr_policy needs a pattern as params, got {group!r}")


def _check_optimizer(cfg: DictConfig) -> None:
    """Refuse a rate of the optimizer's own, which the policy would overwrite."""
    own = cfg.optimizer.get("lr") if isinstance(cfg.optimizer, DictConfig) else None
    if own is not None and own != cfg.lr:
        raise UserError(
            f"optimizer.lr={own!r} has no effect: the policy sets the rate, and its scale is lr={cfg.lr!r}; "
            f"give lr={own!r} instead"
        )


def _check_model(cfg: DictConfig) -> None:
    """Refuse a model that refers to a key which the data set does not have."""
    try:
        OmegaConf.to_container(cfg.model, resolve=True)
    except InterpolationKeyError as error:
        for name, example in (("num_classes", "10"), ("input_shape", "[1, 28, 28]")):
            if f"'dataset.{name}'" in str(error):
                raise UserError(
                    f"the model needs dataset.{name}, which the configuration of the data set lacks; add a line "
                    f"such as '{name}: {example}' to it, or give dataset.{name} on the command line with +"
                ) from error
        raise


def as_text(name: str, value: object) -> str | None:
    """Return a name from a configuration as text; YAML reads some names as numbers.

    Raises:
        UserError: If it is a list or a mapping.

    Example:
        >>> as_text("study", 2024), as_text("study", True), as_text("study", None)
        ('2024', 'true', None)
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    raise UserError(f"{name} must be text, got {value!r}")


def remarks(cfg: DictConfig, given: Sequence[str] = ()) -> list[str]:
    """Find settings without effect and steps that are never checked, a line each.

    Args:
        cfg: The configuration, with references unresolved.
        given: The overrides of the command line.
    """
    return [clean(line) for line in (*_unread(cfg, given), *_unchecked(cfg))]


def is_callback(lr_policy: Mapping[str, Any]) -> bool:
    """Return whether a choice of ``lr_policy`` is a callback, such as ``auto``.

    Example:
        >>> is_callback({"_target_": "lrbench_pl.callbacks.composer.LRPolicyComposer"})
        True
        >>> is_callback({"_target_": "lrbench_pl.policies.Constant"})
        False
    """
    return str(lr_policy.get("_target_")).startswith(_CALLBACKS)


def _unchecked(cfg: DictConfig) -> Iterator[str]:
    """Find steps after the last check."""
    rest = cfg.max_steps % cfg.check_every
    composed = is_callback(cfg.lr_policy) and cfg.lr_policy_file is None
    if rest and cfg.target is not None and not composed:
        last = cfg.max_steps - rest
        instead = "".join(f" instead of {unit}" for unit in ("max_epochs", "max_tokens") if cfg.get(unit) is not None)
        yield (
            f"the last check is at step {last} of {cfg.max_steps}, so the last {rest} are never checked: "
            f"check_every={cfg.check_every} does not divide max_steps; give max_steps={last}{instead}, or another "
            "check_every"
        )


def _unread(cfg: DictConfig, given: Sequence[str]) -> Iterator[str]:
    """Find unknown keys, and overrides of keys that this configuration does not read."""
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    live = _live(plain)
    for key in plain:
        if key not in live and key not in _KNOWN:
            yield f"{key} has no effect: nothing reads it"
    for each in given:
        key = each.lstrip("+").partition("=")[0].partition("@")[0]
        root = re.split(r"[./]", key)[0]
        sets_lr_too = key == "optimizer"
        if root in plain and root in _KNOWN and root not in live and not sets_lr_too:
            yield f"{each} has no effect: {_why_unread(root, plain)}"


def _live(plain: Mapping[str, Any]) -> set[str]:
    """Return the keys that the run reads, directly or by reference."""
    policy = str((plain.get("lr_policy") or {}).get("_target_"))
    from_file = plain.get("lr_policy_file") is not None
    waiting = list(_READ)
    waiting += [] if plain.get("workload") is not None else _OF_CLASSIFIER
    waiting += [] if from_file else ["lr_policy"]
    waiting += [] if plain.get("checkpoint_every") is None else ["checkpoints_kept"]
    waiting += ["stop_at_target"] if from_file or not policy.startswith(_OWN_CALLBACKS) else []
    live: set[str] = set()
    while waiting:
        key = waiting.pop()
        if key in live:
            continue
        live.add(key)
        value = plain.get(key)
        if (
            key == "optimizer"
            and isinstance(value, Mapping)
            and (from_file or policy.startswith("lrbench_pl.policies."))
        ):
            value = {name: each for name, each in value.items() if name != "lr"}  # the policy overwrites it
        waiting += [word for word in _referred_to(value) if word in plain]
    return live


def _referred_to(value: Any) -> Iterator[str]:
    """Find the words in references ``${…}``, a superset of the keys that they name."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _referred_to(each)
    elif isinstance(value, str) and "${" in value:
        for word in re.findall(r"\w+", re.sub(r"\$\{hydra:[^{}]*\}", "", value)):  # names of choices are not keys
            yield word
            yield _READ_BY_RESOLVER.get(word, word)


def _why_unread(root: str, plain: Mapping[str, Any]) -> str:
    if plain.get("lr_policy_file") is not None and root in ("lr", "lr_policy"):
        return "the rates are those of lr_policy_file"
    if root in _OF_CLASSIFIER:
        return "the workload replaces it"
    return {
        "lr": "the policy does not refer to lr",
        "batch_size": "the data set does not take it",
        "stop_at_target": "this policy always stops at its target",
        "checkpoints_kept": "checkpoint_every is null",
    }.get(root, "nothing reads it")


def check_milestones(policy: object, max_steps: int) -> None:
    """Check that the milestones of a policy lie within the budget.

    Raises:
        UserError: If one does not.
    """
    for setting, part in settings_of(policy).items():
        where = "lr_policy" if setting == "lr" else f"policy of {setting}"
        for name, milestones in fields_of(part, "milestones").items():
            if late := [milestone for milestone in milestones if milestone >= max_steps]:
                raise UserError(
                    f"{where}: {name} must lie below max_steps ({max_steps}), got {late[0]}; lower it or raise "
                    "max_steps"
                )


def one_line(error: BaseException) -> str:
    r"""Return the message of an error in one line that is safe to show, without Hydra's wrapper.

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
    text = clean(" ".join(str(error).split()))
    known = isinstance(error, (ValueError, RuntimeError, HydraException, OmegaConfBaseException))
    kind = "" if known and text else f"{type(error).__name__}: "
    return f"{where}{kind}{text}".rstrip(": ")
