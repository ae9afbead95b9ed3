"""The folder of a sweep or a run, looked at before anything is done."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Writable(Callback):
    """A callback of Hydra that ends the program with one line where nothing could be kept."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a single run."""
        refuse_unwritable(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a sweep."""
        refuse_unwritable(Path(config.hydra.sweep.dir))


def refuse_unwritable(folder: Path) -> None:
    """End with one line and exit code 1 if a folder cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
    except OSError as error:
        print(f"cannot write into {folder}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
