"""The script that Lightning starts for each further process of a run on several devices."""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any


def join(job: dict[str, Any]) -> None:
    """Take part in a run as one of its further processes.

    Args:
        job: What :func:`lrbench_pl.runs.processes.one_job` has written.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals
    from omegaconf import OmegaConf

    from lrbench_pl.runs.config import register_resolvers
    from lrbench_pl.runs.imports import import_run
    from lrbench_pl.runs.processes import end_with

    end_with(os.getppid())
    setup_globals()
    register_resolvers()
    HydraConfig.instance().cfg = OmegaConf.create(job["hydra"])
    cfg = OmegaConf.create(job["cfg"])
    cfg.share_equal = False  # the first process has looked
    import_run().run(cfg, job["output"])


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as _file:
        _job = pickle.load(_file)
    sys.path[:] = _job["path"]
    join(_job)
