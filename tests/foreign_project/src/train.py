"""The training script of a project that was there before lrbench_pl; what it took for that is marked with (lrbench)."""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # as rootutils does
os.environ["PROJECT_ROOT"] = str(ROOT)

OmegaConf.register_new_resolver("twice", lambda number: 2 * number, replace=True)


def train(cfg: DictConfig) -> float:
    import pytorch_lightning as pl

    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = hydra.utils.instantiate(cfg.data)
    model = hydra.utils.instantiate(cfg.model)
    callbacks = [hydra.utils.instantiate(each) for each in cfg.callbacks.values()]
    trainer = hydra.utils.instantiate(cfg.trainer, callbacks=callbacks, logger=False)
    trainer.fit(model=model, datamodule=datamodule)

    import lrbench_pl  # (lrbench)

    lrbench_pl.write_result(trainer, cfg.paths.output_dir)  # (lrbench)
    return float(trainer.callback_metrics["val/acc"])


@hydra.main(version_base="1.3", config_path="../configs", config_name="train.yaml")
def main(cfg: DictConfig) -> float:
    from src.utils import shout

    shout(f"hidden units: {cfg.model.hidden}")
    return train(cfg)


if __name__ == "__main__":
    main()
