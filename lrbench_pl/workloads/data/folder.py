"""Image folders, read by a DataLoader with workers, for sets that do not fit the device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from lrbench_pl.workloads.data.loaders import ENDLESS, SampleStream, mixed_seed, sample_order
from lrbench_pl.workloads.data.sources import DataError, held_out_samples, stratified_split

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in torchvision's references


class StreamSampler(Sampler[list[tuple[int, int]]]):
    """Batches of this process from a :class:`SampleStream`, each a list of (position in the stream, sample).

    Args:
        n: Number of samples in the set.
        batch_size: Samples per batch and process.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes that share each global batch.

    Attributes:
        start: First batch of the next pass.

    Example:
        >>> one, two = (next(iter(StreamSampler(4, 2, seed=0, rank=rank, world_size=2))) for rank in (0, 1))
        >>> [place for place, _ in one + two], sorted(sample for _, sample in one + two)
        ([0, 1, 2, 3], [0, 1, 2, 3])
    """

    def __init__(self, n: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.start = 0
        self._stream = SampleStream(torch.arange(n), seed)
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield batches without end."""
        for batch in itertools.count(self.start):
            first = (batch * self._world_size + self._rank) * self._batch_size
            last = first + self._batch_size
            yield list(zip(range(first, last), self._stream.cut(first, last).tolist(), strict=True))


class DrawnImages(Dataset[Any]):
    """Images with random transforms that are a function of (seed, position in the stream), whichever worker runs them.

    Args:
        images: The set, with its transforms.
        seed: Seed of the transforms.
    """

    def __init__(self, images: Dataset[Any], seed: int) -> None:
        self._images, self._seed = images, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """Return the image and the label of (position, sample)."""
        place, sample = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self._seed, 1, place))
            return self._images[sample]


class WorkerLoader(Iterator[Any]):
    """The endless stream of training batches, read by workers, a pure function of (seed, position).

    Like :class:`TrainLoader`, it reads :attr:`position` at each ``next``. Changing it restarts the workers.

    Args:
        images: The set, with its transforms.
        sampler: The order.
        seed: Seed of the transforms.
        options: Options of the ``DataLoader``.

    Attributes:
        position: Number of batches served so far.
    """

    def __init__(self, images: Dataset[Any], sampler: StreamSampler, seed: int, options: dict[str, Any]) -> None:
        self.position = 0
        self._sampler = sampler
        self._loader = DataLoader(DrawnImages(images, seed), batch_sampler=sampler, **options)
        self._batches: Iterator[Any] | None = None
        self._next = 0

    def __len__(self) -> int:
        """Return a number larger than the steps of any training."""
        return ENDLESS

    def __next__(self) -> Any:
        """Return the next batch: images of shape (B, C, H, W) in float32, labels of shape (B,)."""
        if self._batches is None or self._next != self.position:
            self._sampler.start = self.position
            self._batches = iter(self._loader)
        batch = next(self._batches)
        self.position += 1
        self._next = self.position
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream."""
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a position."""
        self.position = state_dict["position"]


class WholeLoader:
    """A DataLoader over this process's share of a set, which Lightning therefore does not split again.

    Args:
        images: The share of this process.
        options: Options of the ``DataLoader``.
    """

    def __init__(self, images: Dataset[Any], options: dict[str, Any]) -> None:
        self._loader = DataLoader(images, **options)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over batches of images (B, C, H, W) and labels (B,)."""
        return iter(self._loader)


class ImageFolderDataModule(pl.LightningDataModule):
    """Images in ``root/train/CLASS/*`` and ``root/val/CLASS/*``.

    Training uses random resized crops and flips; checks and test resize and crop the centre.

    Args:
        num_classes: Number of classes, checked against the folders.
        input_shape: Shape of the network's input: (3, H, H).
        batch_size: Samples per batch and process.
        seed: Seed of the hold-out and of the order.
        root: Folder that holds ``train`` and ``val``.
        validation: Training samples held out to check on.
        check_on: ``validation``, or ``test``: nothing is held out, checks use the images of ``val``.
        workers: Number of processes that read images.
        train_eval: Training samples on which the final training loss is measured.

    Raises:
        DataError: If the folders are missing or hold another number of classes.
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
        self.num_classes, self.input_shape = num_classes, tuple(input_shape)
        self.batch_size, self.seed, self.root = batch_size, seed, Path(root).expanduser()
        self.check_on, self._held_out_samples = check_on, held_out_samples(validation, check_on)
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
        kept, held_out = stratified_split(torch.tensor(augmented.targets), self._held_out_samples, self.seed)
        if self.batch_size > len(kept):
            raise DataError(
                f"a batch of {self.batch_size} samples is larger than the training set of {len(kept)}; lower batch_size"
            )
        self._train, self._held_out = Subset(augmented, kept.tolist()), Subset(plain, held_out.tolist())
        self._fixed = Subset(plain, kept[sample_order(len(kept), self.seed, 0)[: self.train_eval]].tolist())
        self._test = ImageFolder(str(self.root / "val"), checking)

    @property
    def train_samples(self) -> int:
        """Number of training samples, after :meth:`setup`."""
        return len(self._train)

    def train_dataloader(self) -> WorkerLoader:
        """Return the endless stream of training batches."""
        sampler = StreamSampler(len(self._train), self.batch_size, self.seed, *self._world)
        return WorkerLoader(self._train, sampler, self.seed, self._options)

    def val_dataloader(self) -> WholeLoader:
        """Return the data that checks are made on."""
        return self.test_dataloader() if self.check_on == "test" else self._share(self._held_out)

    def test_dataloader(self) -> WholeLoader:
        """Return the images of ``val``."""
        return self._share(self._test)

    def train_eval_dataloader(self) -> WholeLoader:
        """Return a fixed part of the training set, without augmentation."""
        return self._share(self._fixed)

    @property
    def _world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator().manual_seed(self.seed),  # of the workers' seeds
        }

    def _share(self, images: Any) -> WholeLoader:
        rank, world_size = self._world
        share = Subset(images, range(rank, len(images), world_size))
        return WholeLoader(share, {**self._options, "batch_size": self.batch_size})
