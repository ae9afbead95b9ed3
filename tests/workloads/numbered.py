"""Data whose images carry their own number, and a run that notes which samples each process was shown.

python -m tests.workloads.numbered FOLDER PROCESSES
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lrbench_pl.workloads.classifier import Classifier
from lrbench_pl.workloads.data import Splits, TensorDataModule

TRAIN, TEST, HELD_OUT = 61, 23, 13  # none is a multiple of two processes' batches
BATCH = 8  # of all processes together
CLASSES = 7


def numbered(root: str, download: bool, seed: int) -> Splits:
    """Two pixels hold the number of the sample, one its label."""
    del root, download, seed
    parts = []
    for n in (TRAIN, TEST):
        number = torch.arange(n)
        pixels = torch.stack((number // 16, number % 16, number % CLASSES, number * 37 % 256), 1)
        parts += [pixels.to(torch.uint8).view(n, 1, 2, 2), number % CLASSES]
    return Splits(*parts)


def numbers(images: Tensor) -> list[int]:
    """The numbers of a normalised batch of :func:`numbered` images."""
    pixels = images.mul(255).round().long().flatten(1)
    return (pixels[:, 0] * 16 + pixels[:, 1]).tolist()


def data(batch_size: int = BATCH, **changes: Any) -> TensorDataModule:
    """The numbered samples, as they are."""
    defaults = {"num_classes": CLASSES, "input_shape": (1, 2, 2), "validation": HELD_OUT, "eval_batch_size": 5}
    return TensorDataModule(numbered, batch_size=batch_size, **{**defaults, **changes})


def module() -> Classifier:
    """A linear classifier with the same weights in every process."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES))
    nn.init.normal_(net[1].weight)
    return Classifier(net, partial(torch.optim.SGD, lr=0.01), CLASSES)


class Notes(pl.Callback):
    """What this process saw."""

    def __init__(self) -> None:
        self.train: list[list[int]] = []
        self.checked: list[int] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, *_: Any) -> None:
        """Note a training batch."""
        self.train.append(numbers(batch[0]))

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, *_: Any) -> None:
        """Note a batch of a check."""
        self.checked += numbers(batch[0])


def run(folder: Path, processes: int) -> None:
    """Test the first weights, then train for a few steps with one check; one file of notes per process."""
    torch.set_num_threads(1)
    notes = Notes()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=12,
        max_epochs=-1,
        val_check_interval=12,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[notes],
    )
    classifier, samples = module(), data(BATCH // processes)
    tested = trainer.test(classifier, samples, verbose=False)[0]
    trainer.fit(classifier, datamodule=samples)
    checked = {name: float(value) for name, value in trainer.callback_metrics.items()}
    found = {"train": notes.train, "checked": notes.checked, "tested": tested, "metrics": checked}
    (folder / f"{processes}-{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
