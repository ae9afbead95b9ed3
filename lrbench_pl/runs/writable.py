"""Check that the folder of a run or a sweep can be written, before anything else."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Writable(Callback):
    """Hydra callback that exits with one line if the folder cannot be written."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folder of a single run."""
        check_writable(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folder of a sweep."""
        check_writable(Path(config.hydra.sweep.dir))


def check_writable(folder: Path) -> None:
    """Exit with one line and code 1 if a folder cannot be created or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
    except OSError as error:
        print(f"cannot write into {folder}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
