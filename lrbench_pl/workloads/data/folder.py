"""Trees of image files, read by a DataLoader with workers: for sets that do not fit a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler, Subset

from lrbench_pl.workloads.data.loaders import sample_order
from lrbench_pl.workloads.data.sources import DataError, stratified_split

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in torchvision's references


class EpochsSampler(Sampler[int]):
    """The permutations of all epochs one after the other, this process's share of each global batch of them.

    Args:
        n: Samples of the set.
        batch_size: Samples per batch and process.
        seed: Of the order.
        rank: This process, of ``world_size``.
        world_size: Processes that share each global batch.
        batches: Length of the stream.

    Example:
        >>> one, two = (list(EpochsSampler(4, 1, seed=0, rank=rank, world_size=2, batches=2)) for rank in (0, 1))
        >>> sorted(one + two)
        [0, 1, 2, 3]
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, batches: int = 2**40
    ) -> None:
        self._n, self._batch_size, self._seed = n, batch_size, seed
        self._rank, self._world_size, self._batches = rank, world_size, batches

    def __len__(self) -> int:
        """Samples in the stream."""
        return self._batches * self._batch_size

    def __iter__(self) -> Iterator[int]:
        """Indices below n."""
        epoch, order = -1, torch.empty(0)
        for batch in range(self._batches):
            start = (batch * self._world_size + self._rank) * self._batch_size
            for number in range(start, start + self._batch_size):
                if number // self._n != epoch:
                    epoch = number // self._n
                    order = sample_order(self._n, self._seed, epoch)
                yield int(order[number % self._n])


class ImageFolderDataModule(pl.LightningDataModule):
    """``root/train/CLASS/*`` and ``root/val/CLASS/*``: random resized crops and flips; resize and centre crop to check.

    Args:
        num_classes: Classes, checked against the folders.
        input_shape: What the network gets: (3, H, H).
        batch_size: Samples per batch and process.
        seed: Of the hold-out and of the order.
        root: Folder that holds ``train`` and ``val``.
        validation: Training samples held out.
        check_on: ``validation``, or ``test`` for the images of ``val``.
        workers: Processes that read images.
        train_eval: Training samples on which the final training loss is measured.

    Raises:
        DataError: If the folders are absent or hold other classes.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: Sequence[int],
        batch_size: int,
        seed: int = 0,
        root: str = "data",
        validation: int = 0,
        check_on: Literal["validation", "test"] = "validation",
        workers: int = 4,
        train_eval: int = 2000,
    ) -> None:
        super().__init__()
        if check_on not in ("validation", "test"):
            raise DataError(f"dataset.check_on must be 'validation' or 'test', got {check_on!r}")
        self.num_classes, self.input_shape = num_classes, tuple(input_shape)
        self.batch_size, self.seed, self.root = batch_size, seed, Path(root).expanduser()
        self.validation, self.check_on = validation, check_on
        self.workers, self.train_eval = workers, train_eval

    def setup(self, stage: str | None = None) -> None:
        """List the files and choose the hold-out."""
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        size = self.input_shape[-1]
        end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]
        training = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *end])
        checking = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), *end])
        for part in ("train", "val"):
            if not (self.root / part).is_dir():
                raise DataError(
                    f"images were not found in {self.root / part}; expected {part}/CLASS/*.jpg there: "
                    "set dataset.root=PATH"
                )
        augmented = ImageFolder(str(self.root / "train"), training)
        plain = ImageFolder(str(self.root / "train"), checking)
        if len(augmented.classes) != self.num_classes:
            raise DataError(
                f"{self.root / 'train'} holds {len(augmented.classes)} classes, "
                f"but dataset.num_classes is {self.num_classes}"
            )
        kept, held_out = stratified_split(torch.tensor(augmented.targets), self.validation, self.seed)
        if self.batch_size > len(kept):
            raise DataError(
                f"a batch of {self.batch_size} samples is larger than the training set of {len(kept)}; lower batch_size"
            )
        self._train, self._held_out = Subset(augmented, kept.tolist()), Subset(plain, held_out.tolist())
        self._fixed = Subset(plain, kept[sample_order(len(kept), self.seed, 0)[: self.train_eval]].tolist())
        self._test = ImageFolder(str(self.root / "val"), checking)

    def train_dataloader(self) -> DataLoader[Any]:
        """The endless stream of training batches."""
        rank, world = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        sampler = EpochsSampler(len(self._train), self.batch_size, self.seed, rank, world)
        return self._loader(self._train, sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """What checks are made on."""
        return self.test_dataloader() if self.check_on == "test" else self._loader(self._held_out)

    def test_dataloader(self) -> DataLoader[Any]:
        """The images of ``val``."""
        return self._loader(self._test)

    def train_eval_dataloader(self) -> DataLoader[Any]:
        """A fixed part of the training set, without augmentation."""
        return self._loader(self._fixed)

    def _loader(self, images: Any, sampler: Sampler[int] | None = None) -> DataLoader[Any]:
        return DataLoader(
            images,
            self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),
        )
