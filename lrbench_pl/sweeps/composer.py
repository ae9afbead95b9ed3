"""Compose the jobs of a sweep: each once, and what they have in common only once. Knows Hydra's internals."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import sys
import time
from collections import defaultdict
from typing import Any

import cloudpickle
import omegaconf.base
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, ValueNode, open_dict
from omegaconf.base import Node

_SILENT_S = 2.0  # no progress is shown before
_EVERY_S = 5.0  # between two lines of progress
_PAUSE_S = 1.0  # between two batches of jobs, at least


class StoredConfig:
    """A configuration as bytes, of which thousands fit in memory.

    Args:
        config: The configuration.
    """

    def __init__(self, config: DictConfig) -> None:
        try:
            self._bytes = pickle.dumps(config)
        except Exception:  # of a class that cannot be imported by its name
            self._bytes = cloudpickle.dumps(config)

    def load(self) -> DictConfig:
        """Return the configuration, a new object for each call."""
        config: DictConfig = pickle.loads(self._bytes)
        return config

    def __reduce__(self) -> Any:
        """Pickle for another process, whose ``__main__`` may be another program."""
        return _stored_elsewhere, (cloudpickle.dumps(self.load()),)


def _stored_elsewhere(data: bytes) -> StoredConfig:
    stored = object.__new__(StoredConfig)
    stored._bytes = data
    return stored


class SweepComposer(ConfigLoaderImpl):
    """Hydra's config loader, made for composing hundreds of jobs.

    Hydra composes each job twice, to validate it and to run it, and reads and merges all files each time. This loader
    merges them once for each choice of groups, and only applies the overrides of values for each job. The launcher gets
    the configuration that was validated. The configurations are Hydra's.

    Args:
        loader: Hydra's loader.
    """

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        self.__dict__.update(loader.__dict__)
        self.began = time.monotonic()
        self._validated: dict[tuple[Any, ...], StoredConfig] = {}
        self._bases: dict[tuple[Any, ...], DictConfig] = {}
        self._files: dict[tuple[Any, ...], Any] = {}
        self._parsed: dict[str, Any] = {}
        self._count = 0  # jobs composed without a pause
        self._latest, self._next_line = self.began, self.began + _SILENT_S

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what was composed, for a job in another process."""
        return {**self.__dict__, "_validated": {}, "_bases": {}, "_files": {}, "_parsed": {}}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Compose a job; a second call returns what the first one composed."""
        key = (id(master_config), *sweep_overrides)
        if (validated := self._validated.pop(key, None)) is not None:
            return validated.load()
        if time.monotonic() - self._latest > _PAUSE_S:
            self._count, self._next_line = 0, time.monotonic() + _SILENT_S
        config = super().load_sweep_config(master_config, sweep_overrides)
        self._validated[key] = StoredConfig(config)
        self._count += 1
        self._latest = now = time.monotonic()
        if self._count > 1 and now >= self._next_line:
            self._next_line = now + _EVERY_S
            print(f"preparing the sweep: {self._count} jobs composed", file=sys.stderr, flush=True)
        return config

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose a configuration."""
        arguments = (run_mode, from_shell, validate_sweep_overrides)
        try:
            return self._from_base(config_name, overrides, *arguments)
        except Exception:  # let Hydra say what is wrong with the overrides in their order
            return super().load_configuration(config_name, overrides, *arguments)

    def _from_base(self, config_name: str | None, overrides: list[str], *arguments: Any) -> DictConfig:
        unknown = [line for line in overrides if line not in self._parsed]
        self._parsed.update(zip(unknown, OverridesParser.create().parse_overrides(unknown), strict=True))
        parsed = [self._parsed[line] for line in overrides]
        self.validate_sweep_overrides_legal(parsed, *arguments[:2])
        paths = [each for each in parsed if each.key_or_group == "hydra.searchpath"]
        files = self._files_in(config_name, [each.input_line for each in paths])
        values = [each for each in parsed if each not in paths and not _is_choice(each, files)]
        choices = [each.input_line for each in parsed if each not in values]
        key = (config_name, *arguments, *choices)
        if key not in self._bases:
            self._bases[key] = super().load_configuration(config_name, choices, *arguments)
        config = copied(self._bases[key])
        self._apply_overrides_to_config(values, config)
        of_hydra = [each for each in parsed if each.is_hydra_override()]
        of_task = [each for each in parsed if not each.is_hydra_override()]
        config.hydra.overrides.hydra = [each.input_line for each in of_hydra]
        config.hydra.overrides.task = [each.input_line for each in of_task]
        with open_dict(config.hydra):
            for name in config.hydra.job.env_copy:
                config.hydra.job.env_set[name] = os.environ[name]
        form = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=of_task, kv_sep=form.kv_sep, item_sep=form.item_sep, exclude_keys=form.exclude_keys
        )
        return config

    def _files_in(self, config_name: str | None, paths: list[str]) -> Any:
        key = (config_name, *paths)
        if key not in self._files:
            self._files[key] = self._parse_overrides_and_create_caching_repo(config_name, paths)[1]
        return self._files[key]


def _is_choice(override: Any, files: Any) -> bool:
    """Return whether an override chooses an option of a group, as Hydra decides it."""
    return override.package is not None or (
        not isinstance(override.value(), dict) and files.group_exists(override.key_or_group)
    )


def copied(config: DictConfig) -> DictConfig:
    """Return a deep copy of a configuration, several times faster than :func:`copy.deepcopy`."""
    copy_of_it: DictConfig = _copied(config, config._get_parent())
    return copy_of_it


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a copy of the configuration of a job without the node ``hydra``, as its run receives it."""
    task = _without_content(config, None)
    content = config.__dict__["_content"]
    task.__dict__["_content"] = {key: _copied(node, task) for key, node in content.items() if key != "hydra"}
    return task  # type: ignore[no-any-return]


def _copied(node: Any, parent: Any) -> Any:
    kind = type(node)
    if kind is DictConfig or kind is ListConfig:
        new, content = _without_content(node, parent), node.__dict__["_content"]
        if isinstance(content, dict):
            content = {key: _copied(inner, new) for key, inner in content.items()}
        elif isinstance(content, list):
            content = [_copied(inner, new) for inner in content]
        new.__dict__["_content"] = content
        return new
    if isinstance(node, ValueNode):  # whose values OmegaConf does not copy either
        return _without_content(node, parent)
    new = copy.deepcopy(node)
    new._set_parent(parent)
    return new


def _without_content(node: Node, parent: Any) -> Any:
    """Return a copy of a node that shares the content with the node."""
    new = object.__new__(type(node))
    known, metadata = node.__dict__, node._metadata
    own = object.__new__(type(metadata))
    own.__dict__.update(metadata.__dict__)
    own.flags = None if metadata.flags is None else dict(metadata.flags)
    own.resolver_cache = copy.deepcopy(metadata.resolver_cache) if metadata.resolver_cache else defaultdict(dict)
    new.__dict__.update(known)
    new.__dict__["_metadata"], new.__dict__["_parent"] = own, parent
    if "_flags_cache" in known:
        new.__dict__["_flags_cache"] = None
    return new


def parse_references_once() -> None:
    """Let OmegaConf parse the text of each reference once in this process, not at every access."""
    module: Any = omegaconf.base
    parse = getattr(module, "parse", None)
    if parse is not None and not hasattr(parse, "cache_info"):
        module.parse = functools.lru_cache(maxsize=4096)(parse)


def set_hydra_config(config: DictConfig) -> None:
    """Let ``HydraConfig`` be that of a job, as Hydra sets it, but without a copy of its hundreds of values."""
    OmegaConf.set_readonly(config.hydra, True)
    hidden = OmegaConf.create({})
    hidden.__dict__["_content"]["hydra"] = config.hydra  # whose parent stays `config`, so that references resolve
    HydraConfig.instance().cfg = hidden  # type: ignore[assignment]


def compose_once(context: HydraContext) -> None:
    """Let the jobs of a program be composed by a :class:`SweepComposer`."""
    parse_references_once()
    if type(context.config_loader) is ConfigLoaderImpl:
        context.config_loader = SweepComposer(context.config_loader)


def began(loader: ConfigLoader) -> float:
    """Return the time, by :func:`time.monotonic`, at which the sweep began to be composed."""
    return loader.began if isinstance(loader, SweepComposer) else time.monotonic()
