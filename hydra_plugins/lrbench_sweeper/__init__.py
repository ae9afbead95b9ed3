"""Sweepers for Hydra's plugin discovery: ``hydra/sweeper=lrbench``, and the default one of ``lrbench run``."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
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


class GridSweeper(BasicSweeper):
    """Hydra's basic sweeper, with a ``multirun.yaml`` that contains no passwords and is written atomically."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run all combinations of the arguments."""
        from lrbench_pl.runs.hydra_files import write_multirun  # here, since every Hydra program imports this module

        assert self.hydra_context is not None
        assert self.config is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        self.overrides = self.split_arguments(overrides, self.max_batch_size)
        write_multirun(self.config)
        returns = []
        first = 0
        while not self.is_done():
            batch = self.get_job_batch()
            self.validate_batch_is_legal(batch)
            results = self.launcher.launch(batch, initial_job_idx=first)
            for each in results:
                _ = each.return_value  # raises the error of a failed job
            first += len(batch)
            returns.append(results)
        return returns
