"""Train once, or a sweep with -m: python run.py --help."""

import hydra
from omegaconf import DictConfig

from lrbench_pl.config import register_resolvers, use_own_launchers

register_resolvers()  # also for --help and --cfg, which compose without running
use_own_launchers()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run one job."""
    from lrbench_pl import experiment  # torch takes seconds; --help should not

    return experiment.main(cfg)


if __name__ == "__main__":
    main()
