"""``hydra/sweeper=lrbench``; the work is in ``lrbench_pl.selection.sweeper``: Hydra finds sweepers only here."""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LRBenchSweeper(Sweeper):
    """Selects a policy from a pool; the options are those of ``conf/hydra/sweeper/lrbench.yaml``."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take the configured launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Select."""
        from lrbench_pl.selection.sweeper import Race  # not above: Hydra imports this module for --help too

        assert self.hydra_context is not None
        assert self.config is not None
        assert self.launcher is not None
        race = Race(self.hydra_context.config_loader, self.launcher, self.config)
        return race.run(arguments, self.options)
