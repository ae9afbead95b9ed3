"""Lightning's learning-rate finder, then torch's OneCycleLR at the suggested peak over the budget, in a plain Trainer.

    python experiments/tuning_cost/lr_finder_onecycle.py experiment=mnist_lenet seed=31 --out rows.csv

The finder has Lightning's defaults (100 steps) over the rates of the range test; its steps count.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from protocol import SPAN, Outcome, main
from pytorch_lightning.tuner import Tuner

from lrbench_pl.runs import config
from lrbench_pl.runs.build import build
from lrbench_pl.runs.loggers import quiet_lightning
from lrbench_pl.verdict import meets

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class Target(pl.Callback):
    """Ends a training at the first check that meets the target."""

    def __init__(self, monitor: str, target: float, mode: str) -> None:
        self._monitor, self._target, self._mode = monitor, target, mode
        self.met = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the training if the check reached the target."""
        value = float(trainer.callback_metrics[self._monitor])
        self.met = meets(value, self._target, self._mode)  # type: ignore[arg-type]
        trainer.should_stop = trainer.should_stop or self.met


def lr_finder_onecycle(overrides: list[str], cfg: DictConfig, cap: int) -> list[Outcome]:
    """Count the steps of the finder and of one training."""
    torch.set_num_threads(cfg.threads)
    with quiet_lightning():
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        parts = build(config.compose([*overrides, "logger=none"]))  # its Trainer is not used
        finder = Tuner(_trainer(cfg)).lr_find(
            parts.module,
            datamodule=parts.data,
            min_lr=cfg.lr / SPAN,
            max_lr=cfg.lr * SPAN,
            update_attr=False,
        )
        peak = None if finder is None else finder.suggestion()
        spent = 0 if finder is None else len(finder.results["lr"])
        if peak is None:
            print("  the finder suggests nothing")
            return [Outcome("lr_finder_onecycle", spent, False, 1)]
        print(f"  peak {peak:.3g} after {spent} steps", flush=True)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        parts = build(config.compose([*overrides, "logger=none"]))
        _schedule(parts.module, peak, cfg.max_steps)
        target = Target(cfg.monitor, cfg.target, cfg.mode)
        trainer = _trainer(cfg, target)
        trainer.fit(parts.module, datamodule=parts.data)
    return [Outcome("lr_finder_onecycle", spent + trainer.global_step, target.met, 2)]


def _trainer(cfg: DictConfig, *callbacks: pl.Callback) -> pl.Trainer:
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        val_check_interval=cfg.check_every * cfg.trainer.accumulate_grad_batches,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
    )
    return trainer


def _schedule(module: pl.LightningModule, peak: float, steps: int) -> None:
    """Add OneCycleLR to the module's optimizer, with cycled momentum if it has one, as torch does."""
    bring = module.configure_optimizers

    def configured() -> Any:
        optimizer: Any = bring()
        groups = optimizer.param_groups
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[peak * group.get("lr_scale", 1.0) for group in groups],
            total_steps=steps,
            cycle_momentum=bool(groups[0].get("momentum") or groups[0].get("betas")),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    module.configure_optimizers = configured  # type: ignore[method-assign]


if __name__ == "__main__":
    main(lr_finder_onecycle, sys.argv[1:])
