"""What a configuration may say: refused by name, rule and value before anything is built."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from lrbench_pl.policies import meant
from lrbench_pl.verdict import check_target

# Keys that every training reads. Others are read under a condition, or where something else refers to them.
_READ = frozenset(
    (
        *("names", "dataset", "trainer", "logger", "max_steps", "seed", "threads", "share_equal", "study", "workload"),
        *("target", "monitor", "mode", "check_every", "confirmations", "require_target", "lr_policy_file"),
        *("checkpoint_every", "max_time", "hydra", "experiment"),
    )
)
_OF_CLASSIFIER = frozenset(("model", "optimizer", "param_groups", "channels_last", "compile"))
_KNOWN = _READ | _OF_CLASSIFIER | {"lr_policy", "lr", "batch_size", "stop_at_target", "checkpoints_kept"}
FORMER_KEYS = {"target_accuracy": "target", "lr_policy.trunks": "lr_policy.stable"}
_BEHIND = {"rate": "lr"}  # what a resolver reads without naming it, beside max_steps
_OWN_CALLBACKS = ("lrbench_pl.callbacks.composer.", "lrbench_pl.callbacks.lr_range_test.")
_CALLBACKS = ("lrbench_pl.callbacks.", "lrbench_pl.selection.best.")  # choices of lr_policy that are no policies


class UserError(ValueError):
    """Input that cannot be run as it is; the message is the one line to show."""


def check_knobs(cfg: DictConfig) -> None:
    """Refuse values that no run can have, by name, rule and value."""
    for former, name in FORMER_KEYS.items():
        if former in cfg:
            raise UserError(f"{former} is called {name} now; rename it in your configuration")
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
    if cfg.seed >= 2**32:
        raise UserError(f"seed must be an integer below 2**32, got {cfg.seed!r}")
    if isinstance(cfg.lr, bool) or not isinstance(cfg.lr, (int, float)) or not 0 < cfg.lr < math.inf:
        raise UserError(f"lr must be a finite number above 0, got {cfg.lr!r}")
    every = cfg.checkpoint_every
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise UserError(f"checkpoint_every must be an integer of at least 1 or null, got {every!r}")
    limit = cfg.max_time
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0):
        raise UserError(f"max_time must be a number of seconds above 0 or null, got {limit!r}")
    try:
        check_target(cfg.target, str(cfg.monitor), str(cfg.mode))
    except ValueError as error:
        raise UserError(str(error)) from error
    if cfg.require_target and cfg.target is None:
        raise UserError("require_target=true needs a target; give target=")
    batches = OmegaConf.select(cfg, "trainer.accumulate_grad_batches", default=1)
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
        raise UserError(f"trainer.accumulate_grad_batches must be an integer of at least 1, got {batches!r}")
    if cfg.check_every > cfg.max_steps:
        raise UserError(
            f"check_every must not exceed max_steps ({cfg.max_steps}), got {cfg.check_every}: "
            "the target would never be checked"
        )
    own = cfg.optimizer.get("lr") if cfg.workload is None and isinstance(cfg.optimizer, DictConfig) else None
    if own is not None and own != cfg.lr:
        raise UserError(
            f"optimizer.lr={own!r} has no effect: the policy sets the rate, and its scale is lr={cfg.lr!r}; "
            f"give lr={own!r} instead"
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


def as_text(name: str, value: object) -> str | None:
    """A field of text from a configuration, in which YAML takes some names for numbers.

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
    """What is accepted but does not do what it seems to, one line each.

    Args:
        cfg: The configuration, its references not yet resolved.
        given: The overrides of the command line.
    """
    return [*_unread(cfg, given), *_unchecked(cfg)]


def is_callback(lr_policy: Mapping[str, Any]) -> bool:
    """Whether a choice of the group ``lr_policy`` is itself the callback, such as ``auto``, and not a policy.

    Example:
        >>> is_callback({"_target_": "lrbench_pl.callbacks.composer.LRPolicyComposer"})
        True
        >>> is_callback({"_target_": "lrbench_pl.policies.Constant"})
        False
    """
    return str(lr_policy.get("_target_")).startswith(_CALLBACKS)


def _unchecked(cfg: DictConfig) -> Iterator[str]:
    """Steps at the end that no check sees."""
    rest = cfg.max_steps % cfg.check_every
    composed = is_callback(cfg.lr_policy) and cfg.lr_policy_file is None
    if rest and cfg.target is not None and not composed:
        last = cfg.max_steps - rest
        yield (
            f"the last check is at step {last} of {cfg.max_steps}, so the last {rest} are never checked: "
            f"check_every={cfg.check_every} does not divide max_steps; give max_steps={last}, or another check_every"
        )


def _unread(cfg: DictConfig, given: Sequence[str]) -> Iterator[str]:
    """Settings that nothing reads: keys that no part knows, and overrides of what this configuration leaves out."""
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    live = _live(plain)
    for key in plain:
        if key not in live and key not in _KNOWN:
            yield f"{key} has no effect: nothing reads it"
    for each in given:
        key = each.lstrip("+").partition("=")[0].partition("@")[0]
        root = re.split(r"[./]", key)[0]
        chooses_label = key == "optimizer"  # it brings the rate too
        if root in plain and root in _KNOWN and root not in live and not chooses_label:
            yield f"{each} has no effect: {_why_unread(root, plain)}"


def _live(plain: Mapping[str, Any]) -> set[str]:
    """The keys that this training reads: by itself, or because what it reads refers to them."""
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
            value = {name: each for name, each in value.items() if name != "lr"}  # the policy writes over it
        waiting += [word for word in _referred_to(value) if word in plain]
    return live


def _referred_to(value: Any) -> Iterator[str]:
    """Every word in a reference ``${…}``, which is more than the keys that it names."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _referred_to(each)
    elif isinstance(value, str) and "${" in value:
        for word in re.findall(r"\w+", re.sub(r"\$\{hydra:[^{}]*\}", "", value)):  # a choice by its name reads nothing
            yield word
            yield _BEHIND.get(word, word)


def _why_unread(root: str, plain: Mapping[str, Any]) -> str:
    if plain.get("lr_policy_file") is not None and root in ("lr", "lr_policy"):
        return "the rates are those of lr_policy_file"
    if root in _OF_CLASSIFIER:
        return "the workload brings its own"
    return {
        "lr": "the policy does not refer to lr",
        "batch_size": "the data set does not take it",
        "stop_at_target": "this policy ends at its target by itself",
        "checkpoints_kept": "checkpoint_every is null",
    }.get(root, "nothing reads it")


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
