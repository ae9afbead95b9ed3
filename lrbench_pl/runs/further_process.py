"""Script that Lightning starts for each further process of a run on several devices."""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any


def join(job: dict[str, Any]) -> None:
    """Join a run as one of its further processes.

    Args:
        job: The run, as :func:`lrbench_pl.runs.processes.further_processes` pickles it.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals
    from omegaconf import OmegaConf

    from lrbench_pl.runs.config import register_resolvers
    from lrbench_pl.runs.imports import import_run
    from lrbench_pl.runs.processes import exit_with_parent

    exit_with_parent(os.getppid())
    setup_globals()
    register_resolvers()
    HydraConfig.instance().cfg = OmegaConf.create(job["hydra"])
    cfg = OmegaConf.create(job["cfg"])
    cfg.share_equal = False  # decided by the first process
    import_run().run(cfg, job["output"])


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as _file:
        _job = pickle.load(_file)
    sys.path[:] = _job["path"]
    join(_job)
