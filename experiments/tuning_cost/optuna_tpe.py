"""Optuna's TPE sampler with its Hyperband pruner, over the shapes of the pool and a log-uniform rate.

    python experiments/tuning_cost/optuna_tpe.py experiment=mnist_lenet seed=31 target=0.99 --out rows.csv

A trial is a training for the full budget, pruned at checks. The rate lies within a factor of 100 of the optimizer's
own, the span of the range test. Sampler and pruner are as Optuna makes them, but for resources in steps, from 1/32 of
the budget.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import optuna
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from protocol import SPAN, Outcome, main, pool

from lrbench_pl.runs import config
from lrbench_pl.runs.build import build
from lrbench_pl.runs.loggers import quiet_lightning

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class Pruning(pl.Callback):
    """Reports every check to the trial; stops the training if Optuna prunes it or at the cap."""

    def __init__(self, trial: optuna.Trial, monitor: str, left: int) -> None:
        self._trial, self._monitor, self._left = trial, monitor, left
        self.pruned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the check and ask whether to prune."""
        self._trial.report(float(trainer.callback_metrics[self._monitor]), trainer.global_step)
        self.pruned = self._trial.should_prune()
        trainer.should_stop = trainer.should_stop or self.pruned

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        """Stop at the cap."""
        if trainer.global_step >= self._left:
            trainer.should_stop = True


def tpe(overrides: list[str], cfg: DictConfig, cap: int) -> list[Outcome]:
    """Count the steps of all trials until one reaches the target at a check."""
    spent = trials = 0
    reached = False
    torch.set_num_threads(cfg.threads)

    def objective(trial: optuna.Trial) -> float:
        nonlocal spent, trials, reached
        shape = trial.suggest_categorical("lr_policy", pool())
        lr = trial.suggest_float("lr", cfg.lr / SPAN, cfg.lr * SPAN, log=True)
        mine = [f"lr_policy={shape}", f"lr={lr!r}", "stop_at_target=true", "logger=none", "checkpoint_every=null"]
        with quiet_lightning():
            pl.seed_everything(cfg.seed, workers=True, verbose=False)
            parts = build(config.compose([*overrides, *mine]))
            pruning = Pruning(trial, cfg.monitor, cap - spent)
            parts.trainer.callbacks.append(pruning)  # type: ignore[attr-defined]
            parts.trainer.fit(parts.module, datamodule=parts.data)
        verdict = parts.verifier.verdict
        spent, trials = spent + parts.trainer.global_step, trials + 1
        reached = verdict.status == "reached"
        print(f"  trial {trials}: {shape} at {lr:.3g}: {verdict.message}; {spent} steps spent", flush=True)
        if reached or spent >= cap:
            trial.study.stop()
        if verdict.best_value is None or (pruning.pruned and not reached) or verdict.status == "diverged":
            raise optuna.TrialPruned
        return verdict.best_value

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize" if cfg.mode == "max" else "minimize",
        sampler=optuna.samplers.TPESampler(seed=cfg.seed),
        pruner=optuna.pruners.HyperbandPruner(min_resource=max(1, cfg.max_steps // 32), max_resource=cfg.max_steps),
    )
    study.optimize(objective)
    return [Outcome("optuna", spent, reached, trials)]


if __name__ == "__main__":
    main(tpe, sys.argv[1:])
