"""Compose the jobs of a sweep: each once, and what they have in common only once. Knows Hydra's internals."""

from __future__ import annotations

import copy
import os
import sys
import time
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

_SILENT_S = 2.0  # no progress is shown before
_EVERY_S = 5.0  # between two lines of progress
_PAUSE_S = 1.0  # between two batches of jobs, at least


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
        self._validated: dict[tuple[Any, ...], DictConfig] = {}
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
            return validated
        if time.monotonic() - self._latest > _PAUSE_S:
            self._count, self._next_line = 0, time.monotonic() + _SILENT_S
        self._validated[key] = config = super().load_sweep_config(master_config, sweep_overrides)
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
        config = copy.deepcopy(self._bases[key])
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


def set_hydra_config(config: DictConfig) -> None:
    """Let ``HydraConfig`` be that of a job, as Hydra sets it, but without a copy of its hundreds of values."""
    OmegaConf.set_readonly(config.hydra, True)
    hidden = OmegaConf.create({})
    hidden.__dict__["_content"]["hydra"] = config.hydra  # whose parent stays `config`, so that references resolve
    HydraConfig.instance().cfg = hidden  # type: ignore[assignment]


def compose_once(context: HydraContext) -> None:
    """Let the jobs of a program be composed by a :class:`SweepComposer`."""
    if type(context.config_loader) is ConfigLoaderImpl:
        context.config_loader = SweepComposer(context.config_loader)


def began(loader: ConfigLoader) -> float:
    """Return the time, by :func:`time.monotonic`, at which the sweep began to be composed."""
    return loader.began if isinstance(loader, SweepComposer) else time.monotonic()
