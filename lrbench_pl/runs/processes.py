"""Runs on several devices: the further processes join this run instead of repeating the whole command.

Lightning starts each further process with the command line of the first, which in a sweep is the whole sweep.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lrbench_pl.runs.imports import import_lightning

if TYPE_CHECKING:
    from omegaconf import DictConfig

_ENVIRONMENT = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextlib.contextmanager
def further_processes(cfg: DictConfig, output: Path) -> Iterator[None]:
    """Let further processes that Lightning starts in this context join the run.

    Inside the context ``sys.argv`` is the script ``further_process.py``; afterwards the process can train another run.

    Args:
        cfg: The configuration of the run.
        output: The folder of the run.
    """
    import torch.distributed
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    import __main__

    plain = {"hydra": OmegaConf.to_container(HydraConfig.instance().cfg), "cfg": OmegaConf.to_container(cfg)}
    job = {"path": sys.path, **plain, "output": output}
    before = sys.argv, __main__.__spec__, {name: os.environ.get(name) for name in _ENVIRONMENT}
    with tempfile.NamedTemporaryFile(prefix="lrbench-", suffix=".job") as file:
        pickle.dump(job, file)
        file.flush()
        sys.argv, __main__.__spec__ = [str(Path(__file__).with_name("further_process.py")), file.name], None
        try:
            yield
        finally:
            sys.argv, __main__.__spec__, environment = before
            for name, value in environment.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def is_first_process() -> bool:
    """Return whether this process is the one that writes and prints."""
    import_lightning()
    from pytorch_lightning.utilities import rank_zero_only

    return int(getattr(rank_zero_only, "rank", 0)) == 0


def exit_with_parent(parent: int) -> None:
    """Exit this process within a second after its parent has died.

    Args:
        parent: Id of the parent process.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
