"""Train once, or a sweep with -m: python run.py --help."""

import sys

try:
    import importlib.metadata

    importlib.metadata.version("lrbench_pl")  # what a checkout alone does not have
    import hydra
    from omegaconf import DictConfig
except ImportError as error:
    sys.exit(
        f"error: lrbench_pl is not installed for this Python ({sys.executable}: {error}); "
        "run `make install`, then `.venv/bin/python run.py …`, or `python -m pip install -e .` here"
    )

from lrbench_pl.config import register_resolvers, use_own_launchers
from lrbench_pl.config_errors import said_in_one_line

register_resolvers()  # also for --help and --cfg, which compose without running
use_own_launchers()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run one job."""
    from lrbench_pl import experiment  # torch takes seconds; --help should not

    return experiment.main(cfg)


if __name__ == "__main__":
    with said_in_one_line():
        main()
