"""The specification of a run as a frozen value: task, policy, rate and seed. Imports no torch.

:meth:`RunSpec.from_config` turns the composed configuration into this value once. Run ids, resuming, shared results,
comparability in rankings, the pooling of seeds and the match of the database are all derived from it.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from lrbench_pl.composing.settings import ADDED
from lrbench_pl.policies import OTHER_POLICIES
from lrbench_pl.words import masked, policy_file_name

if TYPE_CHECKING:
    from omegaconf import DictConfig


UNSET = "unset"  # shown for a setting that only the other run has
PARTS = {"model.": "model", "dataset.": "dataset", "optimizer.": "optimizer", "lr_policy.": "policy"}

# Keys of the configuration that change none of the numbers of a run: where, how and for how long it is executed.
_NOT_PART = (
    *("hydra", "logger", "study", "require_target", "threads", "share_equal"),
    *("checkpoint_every", "checkpoints_kept", "max_time", "extendable"),
    *("max_epochs", "max_tokens"),  # converted to max_steps
)
# Keys with a field of their own.
_FIELDS = (
    *("lr", "seed", "batch_size", "max_steps", "target", "monitor", "mode", "confirmations"),
    *("stop_at_target", "lr_policy", "lr_policy_file", "names", *OTHER_POLICIES),
)
_OF_DATASET = (  # where the data is and how it is loaded
    *("root", "data_dir", "download", "num_workers", "workers", "device"),
    *("pin_memory", "persistent_workers", "prefetch_factor"),
)
_OF_TRAINER = ("accelerator", "default_root_dir", "log_every_n_steps", "logger", "callbacks", "profiler")


@dataclass(frozen=True)
class Task:
    """The question that a run answers; runs with equal tasks are comparable.

    Args:
        dataset: Name of the data set.
        model: Name of the model, or of the workload that replaces it.
        optimizer: Name of the optimizer.
        batch_size: Samples per optimizer step and process, accumulation included.
        max_steps: The budget, in optimizer steps.
        target: The value that the monitor must reach; None without a target.
        monitor: The metric that is compared with the target.
        mode: ``max`` or ``min``: whether a larger or a smaller value is better.
        confirmations: Consecutive checks that must meet the target.
        check_on: ``validation`` or ``test``.
        settings: Every other setting that can change the numbers, as ``dotted.key -> plain value``. Values
            derived from the seed or the rate are symbolic (``"seed"``, ``"0.1 * lr"``), so that all seeds and rates
            share one task. Must not be modified.

    Example:
        >>> from lrbench_pl.runs.config import compose
        >>> first, second = (RunSpec.from_config(compose(["lr_policy=tri", f"seed={seed}"])).task for seed in (0, 1))
        >>> first == second, first.settings["model.hidden"], first.settings["optimizer.momentum"]
        (True, [64], 0.9)
    """

    dataset: str | None
    model: str | None
    optimizer: str | None
    batch_size: int | None
    max_steps: int | None
    target: float | None
    monitor: str | None
    mode: str | None
    confirmations: int | None
    check_on: str | None
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the task as plain data."""
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"settings": dict(self.settings)}


@dataclass(frozen=True)
class RunSpec:
    """The specification of one run: task, policy, rate and seed.

    Args:
        task: The task.
        policy_name: Name of the policy; not part of the identity.
        policy: The policy as plain data: the content of ``lr_policy_file``, or the resolved group ``lr_policy``; with
            other policies beside it, an ``OptimizerPolicy`` of all. Must not be modified.
        lr: The scale of the policy (its peak rate).
        seed: Seed of weights, data order and augmentation.
        stop_at_target: Whether training ends once the target is confirmed.
        policy_settings: The fields of the policy as ``lr_policy.*``, symbolic in the rate; runs under one policy name
            must share them. Derived from ``policy``, so not part of the identity.

    Example:
        >>> from lrbench_pl.runs.config import compose
        >>> spec = RunSpec.from_config(compose(["lr_policy=tri", "lr=0.1"]))
        >>> spec.policy["max_lr"], spec.settings["lr_policy.max_lr"], spec.settings["lr_policy.base_lr"]
        (0.1, 'lr', '0.01 * lr')
        >>> RunSpec.from_dict(spec.to_dict()) == spec
        True
    """

    task: Task
    policy_name: str
    policy: Mapping[str, Any] = field(hash=False)
    lr: float
    seed: int
    stop_at_target: bool
    policy_settings: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @classmethod
    def from_config(cls, cfg: DictConfig) -> RunSpec:
        """Build the specification from a composed configuration.

        Raises:
            UserError: If ``lr_policy_file`` cannot be read as a policy, or a name is not text.
            OmegaConfBaseException: If the configuration cannot be resolved.
        """
        from lrbench_pl.policies import to_config
        from lrbench_pl.runs.config import read_policy
        from lrbench_pl.runs.options import UserError, as_text

        path = cfg.lr_policy_file
        stored = None if path is None else to_config(read_policy(path))
        plain, symbolic = _resolved(cfg)
        names = {key: as_text(f"names.{key}", name) for key, name in plain["names"].items()}
        if path is None and names["policy"] is None:
            raise UserError("names.policy must be text, got None; give the policy a name")
        plain |= {"names": names, "monitor": as_text("monitor", cfg.monitor), "mode": as_text("mode", cfg.mode)}
        return cls._build(masked(plain), masked(symbolic), _policy_name(plain, path), stored)

    @classmethod
    def from_format_1(cls, configuration: Mapping[str, Any], stored: Mapping[str, Any] | None = None) -> RunSpec:
        """Build the specification from the configuration in a ``run.json`` of format 1.

        Args:
            configuration: The configuration.
            stored: The content of its ``lr_policy_file``, which it does not hold.

        Raises:
            ValueError: If it is not such a configuration, or names an ``lr_policy_file`` whose content is not given.
        """
        from lrbench_pl.runs.options import as_text

        try:
            plain = _with_current_names(configuration)
            path, names = plain["lr_policy_file"], plain["names"]
            if path is not None and stored is None:
                raise ValueError(f"the content of lr_policy_file={path} is not known")
            symbolic = copy.deepcopy(plain)
            if isinstance(symbolic["dataset"], dict) and symbolic["dataset"].get("seed") == plain["seed"]:
                symbolic["dataset"]["seed"] = "seed"
            plain["names"] = {key: as_text(f"names.{key}", name) for key, name in names.items()}
            name = _policy_name(plain, path)
            spec = cls._build(plain, symbolic, name, stored if path is not None else None)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected a configuration of format 1 ({error!r})") from error
        # the shares of the rate that the policy's fields were are unknown
        return cls(spec.task, spec.policy_name, spec.policy, spec.lr, spec.seed, spec.stop_at_target)

    @classmethod
    def _build(
        cls, plain: Mapping[str, Any], symbolic: Mapping[str, Any], name: str, stored: Mapping[str, Any] | None
    ) -> RunSpec:
        """Build the specification from a resolved configuration.

        Args:
            plain: The configuration.
            symbolic: The same with symbolic values where they are derived from the rate or the seed.
            name: Name of the policy.
            stored: The content of ``lr_policy_file``, if the policy is a file.
        """
        workload, names = plain["workload"], plain["names"]
        own = (None, None) if workload is not None else (plain["lr"], "lr")
        policy = _combined(_as_before(plain["lr_policy"], own[0]) if stored is None else stored, plain)
        policy_settings = _combined(
            _as_before(symbolic["lr_policy"], own[1]) if stored is None else _plain(stored), symbolic
        )
        symbolic = {**symbolic, "param_groups": _without_policies(symbolic.get("param_groups"))}
        without = ("model", "optimizer") if workload is not None else ()
        flat = flatten({key: value for key, value in symbolic.items() if key not in (*_NOT_PART, *_FIELDS, *without)})
        repeated = _repeated(plain)
        dataset = plain["dataset"]
        task = Task(
            dataset=names["dataset"],
            model=names["model"] if workload is None else str(workload.get("_target_")),
            optimizer=names["optimizer"],
            batch_size=plain["batch_size"] * plain["trainer"].get("accumulate_grad_batches", 1),
            max_steps=plain["max_steps"],
            target=plain["target"],
            monitor=plain["monitor"],
            mode=plain["mode"],
            confirmations=plain["confirmations"],
            check_on=dataset.get("check_on") if isinstance(dataset, Mapping) else None,
            settings={
                key: value for key, value in flat.items() if _counts(key) and not _is_repeated(key, value, repeated)
            },
        )
        flat_policy = flatten({"lr_policy": policy_settings})
        return cls(
            task=task,
            policy_name=name,
            policy=dict(policy),
            lr=float(plain["lr"]),
            seed=plain["seed"],
            stop_at_target=plain["stop_at_target"],
            policy_settings={
                key: value for key, value in flat_policy.items() if not _is_repeated(key, value, repeated)
            },
        )

    @property
    def run_id(self) -> str:
        """Hash of everything that can change the numbers of the run."""
        known = {key: value for key, value in self.to_dict().items() if key not in ("policy_name", "policy_settings")}
        return hashlib.sha256(canonical(known).encode()).hexdigest()[:12]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the task and, as ``lr_policy.*``, of the policy."""
        return {**self.task.settings, **self.policy_settings}

    @property
    def but_for_rates(self) -> dict[str, Any]:
        """Everything that can change the numbers except the rates of the policy."""
        uses_lr = any(isinstance(value, str) and value.split()[-1:] == ["lr"] for value in _leaves(self.task.settings))
        rest = {"task": self.task.to_dict(), "seed": self.seed, "stop_at_target": self.stop_at_target}
        return {**rest, "lr": self.lr} if uses_lr else rest

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as plain data."""
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "task"}
        return {"task": self.task.to_dict(), **own}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> RunSpec:
        """Build the specification from plain data.

        Raises:
            ValueError: If a field is missing or unknown.
        """
        try:
            return cls(**{**stored, "task": Task(**stored["task"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"expected the specification of a run ({error})") from error


def _as_before(policy: Mapping[str, Any], lr: float | str | None) -> dict[str, Any]:
    """Leave out options that change nothing, so that a run is the same as one of a version without them.

    Args:
        policy: Settings of the policy.
        lr: The rate of the optimizer, or its symbol; None if it is unknown.
    """
    nothing = ADDED | ({"lr": lr} if lr is not None and policy.get("_target_") == _COMPOSER else {})
    return {
        key: _as_before(value, lr) if isinstance(value, Mapping) else value
        for key, value in policy.items()
        if key not in nothing or value != nothing[key]
    }


def readable(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a stored specification to keys of the configuration, for messages.

    Example:
        >>> readable({"task": {"target": 0.9, "settings": {"model.depth": 20}}, "policy_name": "tri", "seed": 0})
        {'target': 0.9, 'model.depth': 20, 'seed': 0}
    """
    flat = {key: value for key, value in stored.items() if key not in ("task", "policy_name", "policy_settings")}
    if "policy" in flat:
        flat["lr_policy"] = flat.pop("policy")
    task = dict(stored.get("task", {}))
    settings = task.pop("settings", {})
    return {**task, **settings, **flat}


# Former names in configurations of format 1.
_FORMER_KEYS = {"target_accuracy": "target", "trunks": "stable"}
_FORMER_MODULES = {
    "lrbench_pl.tuning.composer.": "lrbench_pl.callbacks.composer.",
    "lrbench_pl.tuning.ranging.": "lrbench_pl.callbacks.lr_range_test.",
    "lrbench_pl.tuning.best.": "lrbench_pl.selection.best.",
}


def _with_current_names(nested: Any) -> Any:
    """Replace the former names of keys and modules in a configuration of format 1."""
    if isinstance(nested, Mapping):
        return {_FORMER_KEYS.get(key, str(key)): _with_current_names(value) for key, value in nested.items()}
    if isinstance(nested, (list, tuple)):
        return [_with_current_names(value) for value in nested]
    if isinstance(nested, str) and nested.startswith("lrbench_pl.tuning."):
        for former, name in _FORMER_MODULES.items():
            nested = nested.replace(former, name)
    return nested


# -- settings: flat mappings of dotted keys to plain values ----------------------------------------------------


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to one mapping of dotted keys; lists are values.

    Example:
        >>> flatten({"model": {"hidden": [64]}, "compile": False})
        {'model.hidden': [64], 'compile': False}
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def of_task(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the task, without those of the policy."""
    return {key: value for key, value in settings.items() if not key.startswith("lr_policy.")}


def canonical(value: Any) -> str:
    """Serialize plain data to canonical text: keys sorted, 1.0 written as 1.

    Example:
        >>> canonical({"b": 0.0, "a": [1.5]})
        '{"a": [1.5], "b": 0}'
    """
    return json.dumps(_plain(value), sort_keys=True)


def shown(value: Any) -> str:
    """Format a setting for a message.

    Example:
        >>> shown("tri"), shown([64, 32]), shown(0.0005), shown(None)
        ('tri', '[64, 32]', '0.0005', 'null')
    """
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def differing(settings: Iterable[Mapping[str, Any] | None]) -> dict[str, list[Any]]:
    """Find the settings in which runs differ, with their values.

    Unknown settings (None) agree with any, and so do settings without any key of a part such as ``lr_policy``.

    Example:
        >>> differing([{"optimizer.weight_decay": 0, "compile": False}, {"optimizer.weight_decay": 0.1}, None])
        {'compile': ['unset', False], 'optimizer.weight_decay': [0, 0.1]}
    """
    distinct = list({canonical(each): each for each in settings if each}.values())
    if len(distinct) < 2:
        return {}
    found: dict[str, list[Any]] = {}
    known = {prefix: [each for each in distinct if any(key.startswith(prefix) for key in each)] for prefix in PARTS}
    for key in sorted({key for each in distinct for key in each}):
        among = known.get(f"{key.partition('.')[0]}.", distinct)
        values = {canonical(value): value for value in (each.get(key, UNSET) for each in among)}
        if len(values) > 1:
            found[key] = sorted(values.values(), key=_order)
    return found


def named(settings: Sequence[tuple[str, Sequence[Any]]], most: int = 3) -> str:
    """Format differing settings for a message.

    Example:
        >>> named([("optimizer.weight_decay", [0, 0.1]), ("model.hidden", [[32], [64]])])
        'optimizer.weight_decay (0, 0.1) and model.hidden ([32], [64])'
    """
    words = [
        f"{key} ({', '.join(map(shown, values[:4]))}{', …' if len(values) > 4 else ''})"
        for key, values in settings[:most]
    ]
    if len(settings) > most:
        words.append(f"{len(settings) - most} more")
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _order(value: Any) -> tuple[int, float, str]:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, value, "") if is_number else (1, 0.0, canonical(value))


def _plain(value: Any) -> Any:
    """Convert a value to plain JSON data, whole numbers to integers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return str(value)
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def policy_name(cfg: Any) -> str:
    """Return the name of the policy of a configuration."""
    return _policy_name(
        {name: cfg.get(name) for name in ("names", *OTHER_POLICIES, "param_groups")}, cfg.lr_policy_file
    )


def _policy_name(plain: Mapping[str, Any], path: Any) -> str:
    """Return the name of the policy, with those of the policies beside it.

    Example:
        >>> _policy_name({"names": {"policy": "cosine", "momentum_policy": "rising"}, "momentum_policy": {}}, None)
        'cosine + momentum rising'
    """
    names = plain["names"]
    found = [str(names["policy"]) if path is None else policy_file_name(path)]
    for key, setting in OTHER_POLICIES.items():
        if plain.get(key) is not None:
            found.append(f"{setting} {names.get(key) or 'policy'}".replace("_", " "))
    found += [f"lr of {group.get('params')}" for group in _with_policies(plain.get("param_groups"))]
    return " + ".join(found)


def _combined(policy: Mapping[str, Any], plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the policy of the rate with those beside it, as the plain data of an ``OptimizerPolicy``."""
    others = {setting: plain[key] for key, setting in OTHER_POLICIES.items() if plain.get(key) is not None}
    groups = [
        {"_target_": f"{_POLICIES}GroupPolicy", "group": str(group.get("params")), "lr": group["lr_policy"]}
        for group in _with_policies(plain.get("param_groups"))
    ]
    if groups:
        others["groups"] = groups
    if not others:
        return policy
    if (
        policy.get("_target_") == f"{_POLICIES}OptimizerPolicy"
    ):  # that nothing is given twice, is checked as it is built
        return {**policy, **others}
    return {"_target_": f"{_POLICIES}OptimizerPolicy", "lr": policy, **others}


_POLICIES = "lrbench_pl.policies."
_COMPOSER = "lrbench_pl.callbacks.composer.LRPolicyComposer"


def _with_policies(groups: Any) -> list[Any]:
    """Return the entries of ``param_groups`` that have a policy of their own."""
    return [group for group in groups or () if isinstance(group, Mapping) and group.get("lr_policy") is not None]


def _without_policies(groups: Any) -> Any:
    """Return ``param_groups`` without the policies in it, and without entries at its end that have nothing else.

    A policy makes the group that it names. So the task does not depend on whether the policy has groups.

    Example:
        >>> _without_policies([{"params": "*.bias", "weight_decay": 0.0}, {"params": "head.*", "lr_policy": {}}])
        [{'params': '*.bias', 'weight_decay': 0.0}]
    """
    if not _with_policies(groups):
        return groups
    found = [{key: value for key, value in group.items() if key != "lr_policy"} for group in groups]
    while found and found[-1].keys() == {"params"} and groups[len(found) - 1].get("lr_policy") is not None:
        found.pop()
    return found


# -- from a configuration --------------------------------------------------------------------------------------


def _resolved(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Resolve the keys that can change numbers; return them also with symbols for what rate and seed determine."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict, read_write

    without = _NOT_PART + (("model", "optimizer") if cfg.workload is not None else ())

    def resolve(cfg: DictConfig) -> dict[str, Any]:
        return {str(key): _value_of(cfg, key) for key in cfg if key not in without}

    def resolve_at(lr: float, seed: int) -> dict[str, Any]:
        other = copy.deepcopy(cfg)
        with read_write(other), open_dict(other):
            other.lr, other.seed = lr, seed
        return resolve(other)

    plain = resolve(cfg)
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else None  # references may name them
    others = {str(key): value for key, value in OmegaConf.to_container(cfg).items() if key not in ("lr", "seed")}  # type: ignore[union-attr]
    key = repr((others, choices, without))
    if key not in _symbols:
        if len(_symbols) > 1000:
            _symbols.clear()
        _symbols[key] = _symbolic(resolve_at(1.0, 0), resolve_at(2.0, 1))
    return plain, copy.deepcopy(_symbols[key])


def _value_of(cfg: DictConfig, key: Any) -> Any:
    """Return the value of a key without references."""
    from omegaconf import OmegaConf

    if OmegaConf.is_missing(cfg, key):
        return "???"
    value = cfg[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


_symbols: dict[str, Any] = {}  # of configurations that differ in rate and seed only


def _symbolic(one: Any, two: Any) -> Any:
    """Replace what differs between rate 1, seed 0 and rate 2, seed 1 by symbols."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return {key: _symbolic(one[key], two.get(key)) for key in one}
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return [_symbolic(*each) for each in zip(one, two, strict=True)]
    if one == two:
        return one
    if (one, two) == (0, 1):
        return "seed"
    if isinstance(one, (int, float)) and two == 2 * one:
        return "lr" if one == 1 else f"{one:.12g} * lr"
    return f"{one} at seed 0 and 1 = lr"


def _counts(key: str) -> bool:
    """Return whether a setting can change the numbers of a run."""
    part, _, rest = key.partition(".")
    if part == "dataset":
        return key.rpartition(".")[2] not in _OF_DATASET and rest != "check_on"
    if part == "trainer":
        return rest.partition(".")[0] not in _OF_TRAINER and not rest.startswith("enable_")
    return key != "optimizer.lr"


def _repeated(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the specification by the names used in other parts."""
    top = ("batch_size", "max_steps", "target", "monitor", "mode", "confirmations")
    check_on = plain["dataset"].get("check_on") if isinstance(plain["dataset"], Mapping) else None
    names = {key: plain["names"].get(key) for key in ("dataset", "model", "optimizer")}
    return {key: plain[key] for key in top} | names | {"check_on": check_on, "stop": plain["stop_at_target"]}


def _is_repeated(key: str, value: Any, repeated: Mapping[str, Any]) -> bool:
    """Return whether a setting only repeats a field of the specification."""
    part, _, rest = key.partition(".")
    name = rest.rpartition(".")[2]
    return name in repeated and repeated[name] == value and (name != "stop" or part == "lr_policy")
