"""One run as a typed, frozen value: the task, the policy, its rate and the seed. Imports no torch.

:meth:`RunSpec.from_config` is where the composed configuration ends. Run id, resuming, shared results, comparability in
rankings, seeds of one claim and the match of the database are derived from what stands here.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from lrbench_pl.words import policy_file_name

if TYPE_CHECKING:
    from omegaconf import DictConfig


UNSET = "unset"  # how a setting is shown that one run has and the other does not
PARTS = {"model.": "model", "dataset.": "dataset", "optimizer.": "optimizer", "lr_policy.": "policy"}

# Keys of the configuration that say where, how and for how long a run takes place and change none of its numbers.
_NOT_PART = (
    *("hydra", "logger", "study", "require_target", "threads", "share_equal"),
    *("checkpoint_every", "checkpoints_kept", "max_time"),
)
# Keys that are fields of their own.
_FIELDS = (
    *("lr", "seed", "batch_size", "max_steps", "target", "monitor", "mode", "confirmations"),
    *("stop_at_target", "lr_policy", "lr_policy_file", "names"),
)
_OF_DATASET = (  # where the data lies and how it is read
    *("root", "data_dir", "download", "num_workers", "workers", "device"),
    *("pin_memory", "persistent_workers", "prefetch_factor"),
)
_OF_TRAINER = ("accelerator", "default_root_dir", "log_every_n_steps", "logger", "callbacks", "profiler")


@dataclass(frozen=True)
class Task:
    """The question a run answers. Two runs answer the same question exactly if their tasks are equal.

    Args:
        dataset: Name of the data set.
        model: Name of the model, or of the workload that replaces it.
        optimizer: Name of the optimizer.
        batch_size: Samples per optimizer step and process, accumulation included.
        max_steps: The budget, in optimizer steps.
        target: The value that the monitor must reach; None if there is none.
        monitor: The metric that is compared with the target.
        mode: ``max`` or ``min``: whether a larger or a smaller value is better.
        confirmations: Checks in a row that must meet the target.
        check_on: ``validation`` or ``test``.
        settings: Everything else in the configuration that can change the numbers, as ``dotted.key -> plain value``.
            What is derived from the seed or from the rate says so (``"seed"``, ``"0.1 * lr"``), so that all seeds and
            rates share one task. Not to be changed.

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
    """One run: its task, its policy as a value, the rate and the seed.

    Args:
        task: The question that it answers.
        policy_name: What the policy is called; not part of the identity.
        policy: The policy as plain data: the content of ``lr_policy_file``, or the resolved group ``lr_policy``. Not to
            be changed.
        lr: The scale of the policy (its peak rate).
        seed: Seed of weights, data order and augmentation.
        stop_at_target: Whether training ends once the target is confirmed.
        policy_settings: What runs under one policy name must share: the fields of the policy as ``lr_policy.*``, at a
            rate that is left open. Derived from ``policy`` and so not part of the identity.

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
            UserError: If ``lr_policy_file`` cannot be read as a policy.
            OmegaConfBaseException: If the configuration cannot be resolved.
        """
        from lrbench_pl.policies import to_config
        from lrbench_pl.runs.config import read_policy

        path = cfg.lr_policy_file
        stored = None if path is None else to_config(read_policy(path))
        plain = _resolved(cfg)
        ones, twos = (_resolved(cfg, lr=rate, seed=seed) for rate, seed in ((1.0, 0), (2.0, 1)))
        return cls._build(plain, _open(ones, twos), policy_name(cfg), stored)

    @classmethod
    def from_format_1(cls, configuration: Mapping[str, Any], stored: Mapping[str, Any] | None = None) -> RunSpec:
        """Build the specification from the resolved configuration that ``run.json`` held in format 1.

        Args:
            configuration: The configuration.
            stored: The content of its ``lr_policy_file``, which it does not hold.

        Raises:
            ValueError: If it is none, or names an ``lr_policy_file`` whose content is not given.
        """
        try:
            plain = _with_todays_names(configuration)
            path, names = plain["lr_policy_file"], plain["names"]
            if path is not None and stored is None:
                raise ValueError(f"the content of lr_policy_file={path} is not known")
            found = copy.deepcopy(plain)
            if isinstance(found["dataset"], dict) and found["dataset"].get("seed") == plain["seed"]:
                found["dataset"]["seed"] = "seed"
            name = _policy_name(names["policy"], path)
            spec = cls._build(plain, found, name, stored if path is not None else None)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no configuration of format 1 ({error!r})") from error
        # at which share of the rate the policy's fields stood is not known any more
        return cls(spec.task, spec.policy_name, spec.policy, spec.lr, spec.seed, spec.stop_at_target)

    @classmethod
    def _build(
        cls, plain: Mapping[str, Any], found: Mapping[str, Any], name: str, stored: Mapping[str, Any] | None
    ) -> RunSpec:
        """Build it from a resolved configuration and the same with what is derived from rate and seed left open."""
        workload, names = plain["workload"], plain["names"]
        without = ("model", "optimizer") if workload is not None else ()
        flat = flatten({key: value for key, value in found.items() if key not in (*_NOT_PART, *_FIELDS, *without)})
        said = _said(plain)
        dataset = plain["dataset"]
        task = Task(
            dataset=str(names["dataset"]),
            model=str(names["model"] if workload is None else workload.get("_target_")),
            optimizer=str(names["optimizer"]),
            batch_size=plain["batch_size"] * plain["trainer"].get("accumulate_grad_batches", 1),
            max_steps=plain["max_steps"],
            target=plain["target"],
            monitor=plain["monitor"],
            mode=plain["mode"],
            confirmations=plain["confirmations"],
            check_on=dataset.get("check_on") if isinstance(dataset, Mapping) else None,
            settings={key: value for key, value in flat.items() if _counts(key) and not _is_said(key, value, said)},
        )
        policy = flatten({"lr_policy": found["lr_policy"] if stored is None else _plain(stored)})
        return cls(
            task=task,
            policy_name=name,
            policy=dict(plain["lr_policy"] if stored is None else stored),
            lr=float(plain["lr"]),
            seed=plain["seed"],
            stop_at_target=plain["stop_at_target"],
            policy_settings={key: value for key, value in policy.items() if not _is_said(key, value, said)},
        )

    @property
    def run_id(self) -> str:
        """Hash of everything that can change the numbers of the run."""
        known = {key: value for key, value in self.to_dict().items() if key not in ("policy_name", "policy_settings")}
        return hashlib.sha256(canonical(known).encode()).hexdigest()[:12]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the task, and those of the policy as ``lr_policy.*``."""
        return {**self.task.settings, **self.policy_settings}

    @property
    def but_for_rates(self) -> dict[str, Any]:
        """Everything that can change the numbers, but for the rates that the policy gives."""
        follows = any(isinstance(value, str) and value.split()[-1:] == ["lr"] for value in _leaves(self.task.settings))
        rest = {"task": self.task.to_dict(), "seed": self.seed, "stop_at_target": self.stop_at_target}
        return {**rest, "lr": self.lr} if follows else rest

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
            raise ValueError(f"no specification of a run ({error})") from error


def readable(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored specification by the keys of the configuration, for a person to compare with another.

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


# What a configuration of format 1 calls otherwise.
_FORMER_KEYS = {"target_accuracy": "target", "trunks": "stable"}
_FORMER_MODULES = {
    "lrbench_pl.tuning.composer.": "lrbench_pl.callbacks.composer.",
    "lrbench_pl.tuning.ranging.": "lrbench_pl.callbacks.lr_range_test.",
    "lrbench_pl.tuning.best.": "lrbench_pl.selection.best.",
}


def _with_todays_names(nested: Any) -> Any:
    """Return a configuration of format 1 with the names of keys and modules that it has now."""
    if isinstance(nested, Mapping):
        return {_FORMER_KEYS.get(key, str(key)): _with_todays_names(value) for key, value in nested.items()}
    if isinstance(nested, (list, tuple)):
        return [_with_todays_names(value) for value in nested]
    if isinstance(nested, str) and nested.startswith("lrbench_pl.tuning."):
        for former, name in _FORMER_MODULES.items():
            nested = nested.replace(former, name)
    return nested


# -- settings: flat mappings of dotted keys to plain values ----------------------------------------------------


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping of dotted keys; lists stay whole.

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
    """Return the settings of the task alone, without those of the policy."""
    return {key: value for key, value in settings.items() if not key.startswith("lr_policy.")}


def canonical(value: Any) -> str:
    """Return plain data as text that is equal for equal data: keys sorted, 1.0 written as 1.

    Example:
        >>> canonical({"b": 0.0, "a": [1.5]})
        '{"a": [1.5], "b": 0}'
    """
    return json.dumps(_plain(value), sort_keys=True)


def shown(value: Any) -> str:
    """Return a setting as a person reads it.

    Example:
        >>> shown("tri"), shown([64, 32]), shown(0.0005), shown(None)
        ('tri', '[64, 32]', '0.0005', 'null')
    """
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def differing(settings: Iterable[Mapping[str, Any] | None]) -> dict[str, list[Any]]:
    """Return the settings in which runs differ, each with its values.

    Runs whose settings are unknown (None) agree with any; so do those that know nothing of the part that a key belongs
    to, such as ``lr_policy``.

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
    """Return differing settings in words.

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
    """Return a value as JSON holds it, whole numbers as integers."""
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
    """Return what the policy of a configuration is called."""
    return _policy_name(cfg.names.policy, cfg.lr_policy_file)


def _policy_name(name: Any, path: Any) -> str:
    return str(name) if path is None else policy_file_name(path)


# -- from a configuration --------------------------------------------------------------------------------------


def _resolved(cfg: DictConfig, **changed: Any) -> dict[str, Any]:
    """Return what can change the numbers of a run, resolved; with other values for some keys at the top."""
    from omegaconf import OmegaConf, open_dict, read_write

    if changed:
        cfg = copy.deepcopy(cfg)
        with read_write(cfg), open_dict(cfg):
            for name, value in changed.items():
                cfg[name] = value
    without = _NOT_PART + (("model", "optimizer") if cfg.workload is not None else ())
    kept = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in without])
    kept._set_parent(cfg)  # so that references to what was left out still resolve
    return {str(key): value for key, value in OmegaConf.to_container(kept, resolve=True).items()}  # type: ignore[union-attr]


def _open(one: Any, two: Any) -> Any:
    """Leave open what is derived from rate and seed: what differs at rate 1 and seed 0 from rate 2 and seed 1."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return {key: _open(one[key], two.get(key)) for key in one}
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return [_open(*each) for each in zip(one, two, strict=True)]
    if one == two:
        return one
    if (one, two) == (0, 1):
        return "seed"
    if isinstance(one, (int, float)) and two == 2 * one:
        return "lr" if one == 1 else f"{one:.12g} * lr"
    return f"{one} at seed 0 and 1 = lr"


def _counts(key: str) -> bool:
    """Whether a setting can change the numbers of a run."""
    part, _, rest = key.partition(".")
    if part == "dataset":
        return key.rpartition(".")[2] not in _OF_DATASET and rest != "check_on"
    if part == "trainer":
        return rest.partition(".")[0] not in _OF_TRAINER and not rest.startswith("enable_")
    return key != "optimizer.lr"


def _said(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the fields of the specification say already, by the names under which parts repeat it."""
    top = ("batch_size", "max_steps", "target", "monitor", "mode", "confirmations")
    check_on = plain["dataset"].get("check_on") if isinstance(plain["dataset"], Mapping) else None
    names = {key: plain["names"].get(key) for key in ("dataset", "model", "optimizer")}
    return {key: plain[key] for key in top} | names | {"check_on": check_on, "stop": plain["stop_at_target"]}


def _is_said(key: str, value: Any, said: Mapping[str, Any]) -> bool:
    part, _, rest = key.partition(".")
    name = rest.rpartition(".")[2]
    return name in said and said[name] == value and (name != "stop" or part == "lr_policy")
