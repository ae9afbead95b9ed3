"""Data modules that hold a set as whole tensors: their base, and the one of images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from lrbench_pl.workloads.data.loaders import Augment, EvalLoader, Normalise, TrainLoader, sample_order
from lrbench_pl.workloads.data.sources import DataError, Splits, ensure_memory, held_out_samples, stratified_split

CheckOn = Literal["validation", "test"]
Device = Literal["auto", "cpu"]


class DeviceDataModule(pl.LightningDataModule):
    """Base of the data modules that hold their set as tensors on the training device.

    Args:
        batch_size: Samples per batch and process.
        seed: Seed of the data order.
        root: Folder of the files.
        check_on: ``validation`` or ``test``: the part on which checks are made.
        device: ``auto``, the training device; or ``cpu`` if that has no room.

    Raises:
        DataError: If an argument is out of its range.
    """

    def __init__(self, batch_size: int, seed: int, root: str, check_on: CheckOn, device: Device) -> None:
        super().__init__()
        if device not in ("auto", "cpu"):
            raise DataError(f"dataset.device must be 'auto' or 'cpu', got {device!r}")
        if check_on not in ("validation", "test"):
            raise DataError(f"dataset.check_on must be 'validation' or 'test', got {check_on!r}")
        whole_number("batch_size", batch_size, 1)
        self.batch_size, self.seed, self.root = batch_size, seed, root
        self.check_on, self.device = check_on, device

    def _check_batch(self, samples: int, what: str | None = None, remedy: str = "lower batch_size") -> None:
        """Refuse a batch that is larger than the training set."""
        batch = self.batch_size * self._world[1]
        if batch > samples:
            what = f"the training set of {samples}" if what is None else what
            raise DataError(f"a batch of {batch} samples is larger than {what}; {remedy}")

    def _place(self, *tensors: Tensor) -> list[Tensor]:
        """Return the tensors on the training device."""
        device = self._device
        if device.type != "cpu":
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            ensure_memory(size, device, "keep it in main memory with dataset.device=cpu")
        return [tensor.to(device) for tensor in tensors]

    @property
    def _device(self) -> torch.device:
        if self.device == "cpu" or self.trainer is None:
            return torch.device("cpu")
        return self.trainer.strategy.root_device

    @property
    def _world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


class TensorDataModule(DeviceDataModule):
    """Images held as one uint8 tensor on the training device.

    Order and augmentation are functions of (seed, position): runs can be paired, resumed in mid-epoch and cut into
    segments. Validation data is a stratified part of the training set, chosen by the seed.

    Args:
        source: ``(root, download, seed) -> Splits``.
        num_classes: Number of classes.
        input_shape: Shape of an image: (C, H, W).
        batch_size: Samples per batch and process.
        seed: Seed of the hold-out, of the order and of the augmentation.
        root: Folder of the files.
        download: Whether the source may download them.
        validation: Training samples held out to check on.
        check_on: ``validation``, or ``test`` for the paper's protocol: nothing is held out, checks use the test set.
        mean: Per channel in units of [0, 1], or ``image``: the mean image of the training samples.
        std: Per channel, or one number.
        pad: Zeros on each side before a random crop; 0 for none.
        flip: Whether to flip half of the samples.
        eval_batch_size: Samples per batch of validation and test; None for 200 on the CPU, where larger activations do
            not fit the caches, and 1000 elsewhere.
        train_eval: Training samples on which the final training loss is measured.
        device: ``auto``, the training device; or ``cpu`` if that has no room.

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
        check_on: CheckOn = "validation",
        mean: Sequence[float] | float | Literal["image"] = 0.0,
        std: Sequence[float] | float = 1.0,
        pad: int = 0,
        flip: bool = False,
        eval_batch_size: int | None = None,
        train_eval: int = 2000,
        device: Device = "auto",
    ) -> None:
        super().__init__(batch_size, seed, root, check_on, device)
        whole_number("dataset.pad", pad, 0)
        self.source, self.download = source, download
        self.num_classes, self.input_shape = num_classes, tuple(input_shape)
        self._held_out_samples = held_out_samples(validation, check_on)
        self.mean, self.std = mean, std
        self.augment = Augment(pad, flip)
        self.eval_batch_size, self.train_eval = eval_batch_size, train_eval
        self._splits: Splits | None = None

    @property
    def train_samples(self) -> int:
        """Number of training samples."""
        self.setup()
        return len(self._index)

    def prepare_data(self) -> None:
        """Download the files, if the source may, in one process."""
        if self.download:
            self.source(self.root, self.download, self.seed)

    def setup(self, stage: str | None = None) -> None:
        """Read, split and place the data."""
        if self._splits is not None:
            return
        splits = self.source(self.root, False, self.seed)
        self._check(splits)
        kept, held_out = stratified_split(splits.train_labels, self._held_out_samples, self.seed)
        self._check_batch(len(kept))
        self._index, self._held_out = kept, held_out
        self._splits = Splits(*self._place(*splits))

    def _check(self, splits: Splits) -> None:
        found = tuple(splits.train_images.shape[1:])
        if found != self.input_shape:
            raise DataError(f"dataset.input_shape must be that of the images, {found}, got {self.input_shape}")
        most = int(max(splits.train_labels.max(), splits.test_labels.max()))
        if most >= self.num_classes:
            raise DataError(f"dataset.num_classes must be above the largest label, {most}, got {self.num_classes}")

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
        """Return the endless stream of training batches."""
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
        """Return the data that checks are made on."""
        self.setup()
        return self.test_dataloader() if self.check_on == "test" else self._evaluate(train=True, index=self._held_out)

    def test_dataloader(self) -> EvalLoader:
        """Return the test set."""
        return self._evaluate(train=False, index=torch.arange(len(self._ready.test_labels)))

    def train_eval_dataloader(self) -> EvalLoader:
        """Return a fixed part of the training set, without augmentation."""
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


def whole_number(name: str, value: object, least: int) -> None:
    """Require an integer of at least ``least``.

    Raises:
        DataError: If it is none.

    Example:
        >>> whole_number("batch_size", 0, 1)
        Traceback (most recent call last):
        ...
        lrbench_pl.workloads.data.sources.DataError: batch_size must be an integer of at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{name} must be an integer of at least {least}, got {value!r}")


def held_out_part(name: str, value: object, samples: int) -> int:
    """Return the number of samples to hold out, given as a share of the set or as a number.

    Args:
        name: Name of the setting, for the message.
        value: A share between 0 and 1, or a number of samples.
        samples: Number of samples in the set.

    Raises:
        DataError: If it is neither, or would leave nothing.

    Example:
        >>> held_out_part("dataset.test", 0.1, 250), held_out_part("dataset.test", 40, 250)
        (25, 40)
    """
    number: object = max(1, round(value * samples)) if isinstance(value, float) and 0 < value < 1 else value
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number < samples:
        raise DataError(f"{name} must be a share between 0 and 1 or a number of samples below {samples}, got {value!r}")
    return number
