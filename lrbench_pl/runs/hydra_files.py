"""Write what Hydra stores of a configuration: without passwords, atomically, and never through a link of others."""

from __future__ import annotations

import contextlib
import logging
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper

from lrbench_pl.files import CONFIGURATION, open_to_append, write_atomically
from lrbench_pl.runs.imports import import_run
from lrbench_pl.runs.processes import is_first_process
from lrbench_pl.words import without_passwords


class HydraFiles(Callback):
    """Hydra callback that writes ``.hydra`` into the folder of each job, in place of Hydra."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse another folder, into which Hydra would write passwords."""
        _check_unset(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse another folder, into which Hydra would write passwords; note what its sweeper will replace."""
        _check_unset(config)
        path = _multirun_file(config)
        with contextlib.suppress(OSError, UnicodeDecodeError):
            _before[path] = path.read_text(encoding="utf-8") if path.exists() else None

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the configuration of a job; if it cannot be written, nor can its result, which the run reports."""
        import_run()  # which the job needs next, and which costs more if a part of it is imported alone
        if not is_first_process():
            return
        folder = Path(config.hydra.runtime.output_dir) / CONFIGURATION
        with contextlib.suppress(OSError):
            if folder.is_symlink():
                folder.unlink()
            task = _plain(config)
            hydra = {"hydra": task.pop("hydra")}
            overrides = hydra["hydra"]["overrides"]["task"]
            for name, part in (("config", task), ("hydra", hydra), ("overrides", overrides)):
                _write(folder / f"{name}.yaml", part, is_durable=False)  # nothing is resumed from them


_before: dict[Path, str | None] = {}  # content of multirun.yaml before the sweep of this program


def _multirun_file(config: DictConfig) -> Path:
    return Path(str(config.hydra.sweep.dir)) / "multirun.yaml"


def restore_multirun(config: DictConfig) -> None:
    """Restore the ``multirun.yaml`` that Hydra replaced before this sweep was refused."""
    path = _multirun_file(config)
    if path in _before:
        with contextlib.suppress(OSError):
            content = _before.pop(path)
            if content is None:
                path.unlink(missing_ok=True)
            else:
                write_atomically(path, content)


def write_multirun(config: DictConfig) -> None:
    """Write ``multirun.yaml`` into the folder of a sweep.

    Raises:
        CompactHydraException: If it cannot be written.
    """
    path = _multirun_file(config)
    try:
        write_configuration(path, config)
    except OSError as error:
        raise CompactHydraException(f"cannot write {path}: {error.strerror or error}") from error


def write_configuration(path: Path, config: DictConfig | ListConfig) -> None:
    """Write a configuration as YAML, with references unresolved and passwords masked."""
    _write(path, _plain(config))


def _write(path: Path, plain: Any, is_durable: bool = True) -> None:
    write_atomically(path, without_passwords(to_yaml(plain)), is_durable)


def _plain(config: DictConfig | ListConfig) -> Any:
    """Return a configuration as plain data, with references unresolved."""
    return OmegaConf.to_container(config, resolve=False, enum_to_str=True)


def to_yaml(plain: Any) -> str:
    """Return plain data as YAML as :meth:`OmegaConf.to_yaml` writes it, by the emitter in C where PyYAML has it.

    Example:
        >>> print(to_yaml({"seed": 0, "name": "1e3"}), end="")
        seed: 0
        name: '1e3'
    """
    return yaml.dump(plain, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=_Dumper)


class _Dumper(getattr(yaml, "CDumper", yaml.Dumper)):  # type: ignore[misc]
    """Dumper that quotes texts as OmegaConf does."""


_Dumper.add_representer(str, get_omega_conf_dumper().str_representer)


class LogFile(logging.FileHandler):
    """A log file that is opened as a regular file, not through a link that stands in its place."""

    def _open(self) -> TextIOWrapper:
        return open_to_append(Path(self.baseFilename))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Drop a message that the disk has no room for; it is on the terminal too."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _check_unset(config: DictConfig) -> None:
    if (given := config.hydra.output_subdir) is not None:
        print(
            f"hydra.output_subdir must be null, got {given!r}: the configuration is written into {CONFIGURATION}, "
            "without passwords; leave it out",
            file=sys.stderr,
        )
        sys.exit(1)
