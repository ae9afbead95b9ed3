"""Rebuild the command of a run from its specification, which names nothing that would execute code of others."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrbench_pl.analysis.load import AnalysisError
from lrbench_pl.policies import registered
from lrbench_pl.runs.config import compose, conf_dir, quoted
from lrbench_pl.runs.config_errors import explain
from lrbench_pl.runs.folder import Record, differences
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import RunSpec, canonical, readable

_GROUPS = ("lr_policy", "model", "dataset", "optimizer", "trainer")
_OPTIMIZER = re.compile(r"torch\.optim\.[A-Z]\w*")
_SYMBOL = re.compile(r"(?:(?P<share>[\d.e+-]+) \* )?lr|seed")
_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_LOOK_UP = "lrbench_pl.selection.best.best"  # asks a database again, which the folder names


def rebuilt_command(result: RunResult, folder: Path) -> list[str]:
    """Return the overrides that train a run again, with another seed.

    They are derived from the specification in ``run.json``; the files in ``.hydra`` are not read.

    Args:
        result: The result of the run.
        folder: Its folder.

    Raises:
        AnalysisError: If there is no specification, if it names code that is not of this package, or if a configuration
            of this package does not have it.

    Example:
        >>> from lrbench_pl.runs.config import compose
        >>> overrides_of(RunSpec.from_config(compose(["model.hidden=[32]", "lr=0.1"])))[-2:]
        ['seed=0', 'model.hidden=[32]']
    """
    record = Record.read(folder)
    if record is None:
        raise AnalysisError(f"{folder}: further seeds need the specification in run.json, which cannot be read{_TRUST}")
    return command_of(record.configuration, folder, on_cpu=result.device == "cpu")


def command_of(
    stored: Mapping[str, Any],
    folder: Path,
    on_cpu: bool,
    policy_file: Path | None = None,
    who: str = "further seeds",
) -> list[str]:
    """Return the overrides that train a stored specification.

    Args:
        stored: The specification as plain data.
        folder: Folder of the run that it comes from, for messages.
        on_cpu: Whether to train on the CPU.
        policy_file: As in :func:`overrides_of`.
        who: What is trained, for messages.

    Raises:
        AnalysisError: As :func:`rebuilt_command` does.
    """
    try:
        spec = RunSpec.from_dict(stored)
        if foreign := sorted({name for name in _targets(spec.to_dict()) if not _is_vouched(name)}):
            raise AnalysisError(
                f"{folder}: {who} would execute {', '.join(foreign)}, which is not of this package{_TRUST}"
            )
        overrides = overrides_of(spec, policy_file)
    except (ValueError, TypeError, AttributeError, KeyError, ArithmeticError) as error:
        if isinstance(error, AnalysisError):
            raise
        raise AnalysisError(f"{folder}: its specification cannot be read ({error}){_TRUST}") from error
    except Exception as error:  # of Hydra and OmegaConf
        if (message := explain(error)) is None:
            raise
        raise AnalysisError(f"{folder}: its configuration cannot be composed again ({message}){_TRUST}") from error
    return [*overrides, *(["trainer.accelerator=cpu"] if on_cpu else [])]


_TRUST = "; --trust starts the command that is stored in .hydra, which may execute anything"


def overrides_of(spec: RunSpec, policy_file: Path | None = None) -> list[str]:
    """Return overrides whose configuration has a specification.

    Args:
        spec: The specification.
        policy_file: File of its policy, named as the policy; None if the policy is one of the group ``lr_policy``.

    Raises:
        AnalysisError: If none have.
    """
    overrides = list(_of_fields(spec, policy_file))
    if policy_file is not None and compose(without := _but(overrides, "lr=")).lr == spec.lr:
        overrides = without  # a run says of the rate that it has no effect beside a file
    before = RunSpec.from_config(compose(overrides))
    both = (before, spec) if policy_file is None else (before.task, spec.task)
    overrides += _of_settings(both[0].settings, both[1].settings)
    found = replace(RunSpec.from_config(compose(overrides)), policy_settings=spec.policy_settings)
    if canonical(found.to_dict()) != canonical(spec.to_dict()):
        changed = "; ".join(differences(readable(spec.to_dict()), readable(found.to_dict()))[:3])
        raise AnalysisError(f"its configuration cannot be composed again ({changed})")
    return overrides


def _but(overrides: Sequence[str], start: str) -> list[str]:
    return [each for each in overrides if not each.startswith(start)]


def _of_fields(spec: RunSpec, policy_file: Path | None) -> Iterator[str]:
    """Yield the overrides of the fields of a specification, and of the groups of its names."""
    task = spec.task
    names = {"model": task.model, "dataset": task.dataset, "optimizer": task.optimizer}
    if policy_file is None:
        names = {"lr_policy": spec.policy_name, **names}
    else:
        yield f"lr_policy_file={_value(str(policy_file))}"
    for group, name in names.items():
        if re.fullmatch(r"\w+", name or "") and (conf_dir() / group / f"{name}.yaml").is_file():
            yield f"{group}={name}"
        else:
            yield f"names.{group.removeprefix('lr_')}={_value(name)}"
    batches = task.settings.get("trainer.accumulate_grad_batches", 1)
    yield f"batch_size={_value((task.batch_size or 0) // batches)}"
    if task.check_on is not None:
        yield f"dataset.check_on={_value(task.check_on)}"
    for name in ("max_steps", "target", "monitor", "mode", "confirmations"):
        yield f"{name}={_value(getattr(task, name))}"
    yield f"lr={_value(spec.lr)}"
    yield f"stop_at_target={_value(spec.stop_at_target)}"
    yield f"seed={_value(spec.seed)}"


def _of_settings(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """Yield the overrides that turn settings into others."""
    for key in dict.fromkeys(_to_delete(key, wanted) for key in before if key not in wanted):
        yield f"~{key}"
    for key, value in wanted.items():
        if key not in before or canonical(before[key]) != canonical(value):
            if not _KEY.fullmatch(key):
                raise AnalysisError(f"expected a key of a configuration, got {key!r}")
            yield f"{'' if key in before else '++'}{key}={_value(value)}"


def _to_delete(key: str, wanted: Mapping[str, Any]) -> str:
    """Return the largest part of a configuration around a key that has no other setting.

    Example:
        >>> _to_delete("dataset.source.test", {"dataset.file": "a.txt"})
        'dataset.source'
    """
    parts = key.split(".")
    above = (".".join(parts[:n]) for n in range(2, len(parts)))
    return next((part for part in above if not any(f"{each}.".startswith(f"{part}.") for each in wanted)), key)


def _value(value: Any) -> str:
    """Return a value in Hydra's grammar; symbols for the rate and the seed become references.

    Example:
        >>> _value([{"a": None, "b": "0.1 * lr"}, "x y", 1e-05])
        "[{a:null,b:${rate:0.1}},'x y',1e-05]"
    """
    if isinstance(value, str):
        if (found := _SYMBOL.fullmatch(value)) is None:
            return quoted(value)
        return f"${{rate:{found['share']}}}" if found["share"] else f"${{{value}}}"
    if isinstance(value, Mapping):
        for key in value:
            if not _KEY.fullmatch(str(key)):
                raise AnalysisError(f"expected a key of a configuration, got {key!r}")
        return f"{{{','.join(f'{key}:{_value(each)}' for key, each in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_value, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _targets(nested: Any) -> Iterator[str]:
    """Yield everything that a specification names as code, at any depth."""
    if isinstance(nested, Mapping):
        for key, value in nested.items():
            if str(key).rpartition(".")[2] == "_target_":
                yield str(value)
            yield from _targets(value)
    elif isinstance(nested, (list, tuple)):
        for each in nested:
            yield from _targets(each)


def _is_vouched(name: str) -> bool:
    return name in _vouched() or _OPTIMIZER.fullmatch(name) is not None


@functools.cache
def _vouched() -> frozenset[str]:
    """Return the names of code that the configurations of this package have, and its policies."""
    files = (path for group in _GROUPS for path in (conf_dir() / group).glob("*.yaml"))
    named = {name for path in files for name in re.findall(r"_target_: *([\w.]+)", path.read_text(encoding="utf-8"))}
    return frozenset({*named, *registered()} - {_LOOK_UP})
