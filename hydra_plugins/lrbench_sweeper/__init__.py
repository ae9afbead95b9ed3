"""Sweeper ``hydra/sweeper=lrbench`` for Hydra's plugin discovery; implemented in ``lrbench_pl.selection.sweeper``."""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LRBenchSweeper(Sweeper):
    """Select a policy from a pool; ``conf/hydra/sweeper/lrbench.yaml`` lists the options."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Instantiate the configured launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the selection."""
        from lrbench_pl.selection.sweeper import Race  # here, since every Hydra program imports this module

        assert self.hydra_context is not None
        assert self.config is not None
        assert self.launcher is not None
        race = Race(self.hydra_context.config_loader, self.launcher, self.config)
        return race.run(arguments, self.options)
