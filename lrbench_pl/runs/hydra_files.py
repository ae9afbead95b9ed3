"""Write what Hydra stores of a configuration: without passwords, atomically, and never through a link of others."""

from __future__ import annotations

import contextlib
import logging
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf

from lrbench_pl.files import CONFIGURATION, open_to_append, write_atomically
from lrbench_pl.runs.processes import is_first_process
from lrbench_pl.words import without_passwords


class HydraFiles(Callback):
    """Hydra callback that writes ``.hydra`` into the folder of each job, in place of Hydra."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse another folder, into which Hydra would write passwords."""
        _check_unset(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse another folder, into which Hydra would write passwords."""
        _check_unset(config)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the configuration of a job; if it cannot be written, nor can its result, which the run reports."""
        if not is_first_process():
            return
        folder = Path(config.hydra.runtime.output_dir) / CONFIGURATION
        with contextlib.suppress(OSError):
            if folder.is_symlink():
                folder.unlink()
            write_configuration(folder / "config.yaml", _part(config, hydra=False))
            write_configuration(folder / "hydra.yaml", _part(config, hydra=True))
            write_configuration(folder / "overrides.yaml", config.hydra.overrides.task)


def write_multirun(config: DictConfig) -> None:
    """Write ``multirun.yaml`` into the folder of a sweep.

    Raises:
        CompactHydraException: If it cannot be written.
    """
    path = Path(str(config.hydra.sweep.dir)) / "multirun.yaml"
    try:
        write_configuration(path, config)
    except OSError as error:
        raise CompactHydraException(f"cannot write {path}: {error.strerror or error}") from error


def write_configuration(path: Path, config: DictConfig | ListConfig) -> None:
    """Write a configuration as YAML, with references unresolved and passwords masked."""
    write_atomically(path, without_passwords(OmegaConf.to_yaml(config)))


class LogFile(logging.FileHandler):
    """A log file that is opened as a regular file, not through a link that stands in its place."""

    def _open(self) -> TextIOWrapper:
        return open_to_append(Path(self.baseFilename))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Drop a message that the disk has no room for; it is on the terminal too."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _part(config: DictConfig, hydra: bool) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if (key == "hydra") is hydra])


def _check_unset(config: DictConfig) -> None:
    if (given := config.hydra.output_subdir) is not None:
        print(
            f"hydra.output_subdir must be null, got {given!r}: the configuration is written into {CONFIGURATION}, "
            "without passwords; leave it out",
            file=sys.stderr,
        )
        sys.exit(1)
