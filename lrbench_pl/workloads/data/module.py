"""The data module: a source, split and served as whole tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from lrbench_pl.workloads.data.loaders import Augment, EvalLoader, Normalise, TrainLoader, sample_order
from lrbench_pl.workloads.data.sources import DataError, Splits, ensure_memory, held_out_samples, stratified_split


class TensorDataModule(pl.LightningDataModule):
    """A data set held as one uint8 tensor on the device that trains.

    Order and augmentation are functions of (seed, position): runs can be paired, resumed in mid-epoch and cut into
    segments. Validation data is held out of the training set, of each class its share, chosen by the seed.

    Args:
        source: ``(root, download, seed) -> Splits``.
        num_classes: Classes of the set.
        input_shape: Of an image: (C, H, W).
        batch_size: Samples per batch and process.
        seed: Of the hold-out, of the order and of the augmentation.
        root: Folder of the files.
        download: Whether the source may fetch them.
        validation: Training samples held out to check on.
        check_on: ``validation``, or ``test`` for the paper's protocol: nothing is held out, checks use the test set.
        mean: Per channel in units of [0, 1], or ``image``: the mean image of the training samples.
        std: Per channel, or one number.
        pad: Zeros on each side before a random crop; 0 for none.
        flip: Whether to mirror half of the samples.
        eval_batch_size: Samples per batch of validation and test; None for 200 on the CPU, whose caches hold the
            activations of no more, and 1000 elsewhere.
        train_eval: Training samples on which the final training loss is measured.
        device: ``auto``, the training device; or ``cpu``, when that has no room.

    Raises:
        DataError: If an argument does not fit the data.

    Example:
        >>> from lrbench_pl.workloads.data import digits
        >>> data = TensorDataModule(digits, num_classes=10, input_shape=(1, 8, 8), batch_size=64, validation=300)
        >>> data.setup("fit")
        >>> images, labels = next(data.train_dataloader())
        >>> tuple(images.shape), sum(len(y) for _, y in data.val_dataloader())
        ((64, 1, 8, 8), 300)
    """

    def __init__(
        self,
        source: Callable[[str, bool, int], Splits],
        num_classes: int,
        input_shape: Sequence[int],
        batch_size: int,
        seed: int = 0,
        root: str = "data",
        download: bool = False,
        validation: int = 0,
        check_on: Literal["validation", "test"] = "validation",
        mean: Sequence[float] | float | Literal["image"] = 0.0,
        std: Sequence[float] | float = 1.0,
        pad: int = 0,
        flip: bool = False,
        eval_batch_size: int | None = None,
        train_eval: int = 2000,
        device: Literal["auto", "cpu"] = "auto",
    ) -> None:
        super().__init__()
        if device not in ("auto", "cpu"):
            raise DataError(f"dataset.device must be 'auto' or 'cpu', got {device!r}")
        for name, value, least in (("batch_size", batch_size, 1), ("dataset.pad", pad, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise DataError(f"{name} must be an integer of at least {least}, got {value!r}")
        self.source, self.root, self.download = source, root, download
        self.num_classes, self.input_shape = num_classes, tuple(input_shape)
        self.batch_size, self.seed = batch_size, seed
        self.check_on, self._held_out_samples = check_on, held_out_samples(validation, check_on)
        self.mean, self.std = mean, std
        self.augment = Augment(pad, flip)
        self.eval_batch_size, self.train_eval = eval_batch_size, train_eval
        self.device = device
        self._splits: Splits | None = None

    def prepare_data(self) -> None:
        """Fetch the files on one process alone, where that is wanted."""
        if self.download:
            self.source(self.root, self.download, self.seed)

    def setup(self, stage: str | None = None) -> None:
        """Read, split and place the data."""
        if self._splits is not None:
            return
        splits = self.source(self.root, False, self.seed)
        self._check(splits)
        kept, held_out = stratified_split(splits.train_labels, self._held_out_samples, self.seed)
        world_batch = self.batch_size * self._world[1]
        if world_batch > len(kept):
            raise DataError(
                f"a batch of {world_batch} samples is larger than the training set of {len(kept)}; lower batch_size"
            )
        device = self._device
        if device.type != "cpu":
            size = sum(tensor.numel() * tensor.element_size() for tensor in splits)
            ensure_memory(size, device, "keep it in main memory with dataset.device=cpu")
        self._index, self._held_out = kept, held_out
        self._splits = Splits(*(tensor.to(device) for tensor in splits))

    def _check(self, splits: Splits) -> None:
        found = tuple(splits.train_images.shape[1:])
        if found != self.input_shape:
            raise DataError(f"dataset.input_shape must be that of the images, {found}, got {self.input_shape}")
        most = int(max(splits.train_labels.max(), splits.test_labels.max()))
        if most >= self.num_classes:
            raise DataError(f"dataset.num_classes must be above the largest label, {most}, got {self.num_classes}")

    @property
    def _device(self) -> torch.device:
        if self.device == "cpu" or self.trainer is None:
            return torch.device("cpu")
        return self.trainer.strategy.root_device

    @property
    def _world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    @property
    def _ready(self) -> Splits:
        if self._splits is None:
            self.setup()
        assert self._splits is not None
        return self._splits

    @functools.cached_property
    def _normalise(self) -> Normalise:
        if self.mean == "image":
            images = self._ready.train_images.cpu()
            parts = [images[part].double().sum(0) for part in torch.split(self._index, 5000)]
            mean = torch.stack(parts).sum(0).div(255 * len(self._index)).float()
        else:
            mean = _per_channel(self.mean)
        return Normalise(mean, _per_channel(self.std))

    def train_dataloader(self) -> TrainLoader:
        """The endless stream of training batches."""
        splits, (rank, world_size) = self._ready, self._world
        return TrainLoader(
            splits.train_images,
            splits.train_labels,
            self._index,
            self.batch_size,
            self.seed,
            self._normalise,
            self.augment,
            rank,
            world_size,
        )

    def val_dataloader(self) -> EvalLoader:
        """What checks are made on."""
        self.setup()
        return self.test_dataloader() if self.check_on == "test" else self._evaluate(train=True, index=self._held_out)

    def test_dataloader(self) -> EvalLoader:
        """The test set."""
        return self._evaluate(train=False, index=torch.arange(len(self._ready.test_labels)))

    def train_eval_dataloader(self) -> EvalLoader:
        """A fixed part of the training set, without augmentation."""
        self.setup()
        order = sample_order(len(self._index), self.seed, epoch=0)
        return self._evaluate(train=True, index=self._index[order[: self.train_eval]])

    def _evaluate(self, train: bool, index: Tensor) -> EvalLoader:
        splits = self._ready
        images, labels = splits[:2] if train else splits[2:]
        size = self.eval_batch_size or (200 if images.device.type == "cpu" else 1000)
        return EvalLoader(images, labels, index, size, self._normalise, *self._world)


def _per_channel(value: Sequence[float] | float | str) -> Tensor:
    tensor = torch.tensor(value, dtype=torch.float32)
    return tensor[:, None, None] if tensor.ndim else tensor
