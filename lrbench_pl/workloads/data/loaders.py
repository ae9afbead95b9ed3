"""Loaders of sets held as one tensor: batches are gathered, augmented and normalised on its device."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Longer than any training: a loader that has a length is not read ahead of the step it serves.
ENDLESS = 2**62


@dataclass(frozen=True)
class Normalise:
    """Map uint8 pixels to the network's input: ``(x / 255 - mean) / std``.

    Args:
        mean: Of shape (C, 1, 1), one per channel, or (C, H, W), a mean image; in units of [0, 1].
        std: Of shape (C, 1, 1) or a single number as a tensor.

    Example:
        >>> normalise = Normalise(torch.tensor(0.5), torch.tensor(0.5))
        >>> normalise(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([-1.,  1.])
    """

    mean: Tensor
    std: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 images."""
        return images.float().mul_(self._scale).sub_(self._shift)

    @functools.cached_property
    def _scale(self) -> Tensor:
        return 1 / (255 * self.std)

    @functools.cached_property
    def _shift(self) -> Tensor:
        return self.mean / self.std

    def to(self, device: torch.device) -> Normalise:
        """Return the same on a device."""
        return Normalise(self.mean.to(device), self.std.to(device))


@dataclass(frozen=True)
class Augment:
    """Random crop after padding and random horizontal flip, drawn for each sample.

    Args:
        pad: Zeros added on every side before the crop to the original size, at least 0.
        flip: Whether half of the samples are flipped.
    """

    pad: int = 0
    flip: bool = False

    @property
    def is_on(self) -> bool:
        """Return whether this changes any image."""
        return self.pad > 0 or self.flip

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Return random (n, 3) integers on the CPU: row offset, column offset, 1 for flipped."""
        corner = torch.randint(0, 2 * self.pad + 1, (n, 2), generator=generator)
        mirrored = torch.randint(0, 2 if self.flip else 1, (n, 1), generator=generator)
        return torch.cat((corner, mirrored), 1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return images (n, C, H, W), augmented as drawn."""
        each = torch.arange(len(images), device=images.device)
        if self.pad:
            height, width = images.shape[-2:]
            padded = torch.nn.functional.pad(images, (self.pad,) * 4)
            crops = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (n, C, rows, columns, H, W)
            images = crops.permute(0, 2, 3, 1, 4, 5)[each, draws[:, 0], draws[:, 1]]
        if self.flip:  # choosing whole images is five times faster than torch.where
            images = torch.cat((images, images.flip(-1))).index_select(0, each + len(images) * draws[:, 2])
        return images


class SampleStream:
    """The permutations of all epochs, concatenated, so that every batch cut from it is full.

    Args:
        index: The samples to permute. The stream is on the same device.
        seed: Seed of the permutations.

    Example:
        >>> stream = SampleStream(torch.tensor([5, 6, 7]), seed=0)
        >>> sorted(stream.cut(3, 6).tolist())
        [5, 6, 7]
    """

    def __init__(self, index: Tensor, seed: int) -> None:
        self._index, self._seed = index, seed
        self._permutation = functools.lru_cache(maxsize=2)(self._permute)

    def cut(self, start: int, end: int) -> Tensor:
        """Return the samples [start, end) of the stream."""
        n = len(self._index)
        epoch, first = divmod(start, n)
        parts = []
        while start < end:
            part = self._permutation(epoch)[first : first + end - start]
            parts.append(part)
            start += len(part)
            epoch, first = epoch + 1, 0
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _permute(self, epoch: int) -> Tensor:
        order = sample_order(len(self._index), self._seed, epoch)
        if self._index.is_cuda:  # a copy from pinned memory is not waited for
            order = order.pin_memory()
        return self._index[order.to(self._index.device, non_blocking=True)]


class StreamLoader(Iterator[tuple[Tensor, Tensor]]):
    """An endless stream of training batches, a pure function of (seed, position).

    With several processes, each takes its consecutive share of one global batch of the stream. Each ``next`` reads
    :attr:`position`: setting it back repeats the same batches bit for bit.

    Args:
        stream: The samples in training order.
        batch_size: Samples per batch and process.
        rank: Rank of this process.
        world_size: Number of processes that share each global batch.

    Attributes:
        position: Number of batches served so far.
    """

    def __init__(self, stream: SampleStream, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.position = 0
        self._stream, self._batch_size = stream, batch_size
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        """Return a number larger than the steps of any training."""
        return ENDLESS

    def __iter__(self) -> StreamLoader:
        """Return the loader itself: there is one stream."""
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return the next batch."""
        position, size = self.position, self._batch_size
        self.position = position + 1
        start = (position * self._world_size + self._rank) * size
        return self._gather(self._stream.cut(start, start + size), position)

    def _gather(self, index: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Return the batch of these samples, which is the ``position``-th."""
        return self.assemble(index, self.draws(position))

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Return the device of the batches."""

    def indices(self, position: int, steps: int) -> Tensor:
        """Return the samples of ``steps`` consecutive batches, of shape (steps, batch size), on the device."""
        size, world_size = self._batch_size, self._world_size
        whole = self._stream.cut(position * world_size * size, (position + steps) * world_size * size)
        return whole.view(steps, world_size, size)[:, self._rank]

    def draws(self, position: int) -> Tensor | None:
        """Return the random numbers of a batch's augmentation, on the CPU; None if there is none."""
        del position
        return None

    @abstractmethod
    def assemble(self, index: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the batch of these samples, augmented as drawn. The result depends on the arguments alone."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream."""
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a position."""
        self.position = state_dict["position"]


class TrainLoader(StreamLoader):
    """The endless stream of training batches of images or rows, a pure function of (seed, position).

    Args:
        inputs: Images, uint8 of shape (N, C, H, W), or rows, float32 of shape (N, F), on the training device.
        targets: Labels, int64 of shape (N,), or numbers, float32 of shape (N,), on the same device.
        index: The samples of the training set, on the CPU.
        batch_size: Samples per batch and process.
        seed: Seed of the order and of the augmentation.
        normalise: Maps uint8 images to the network's input; None for rows, which are served as they are.
        augment: Random crops and flips.
        rank: Rank of this process.
        world_size: Number of processes that share each global batch.

    Attributes:
        position: Number of batches served so far.

    Example:
        >>> images, labels = torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.arange(6)
        >>> same = Normalise(torch.tensor(0.0), torch.tensor(1.0))
        >>> loader = TrainLoader(images, labels, torch.arange(6), batch_size=4, seed=0, normalise=same)
        >>> first, second, third = (next(loader)[1] for _ in range(3))
        >>> sorted(torch.cat((first, second[:2])).tolist())
        [0, 1, 2, 3, 4, 5]
        >>> loader.position = 1
        >>> bool((next(loader)[1] == second).all())
        True
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        index: Tensor,
        batch_size: int,
        seed: int,
        normalise: Normalise | None,
        augment: Augment = Augment(),
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(SampleStream(index.to(inputs.device), seed), batch_size, rank, world_size)
        self._inputs, self._targets, self._seed = inputs, targets, seed
        self._device = inputs.device
        self._normalise = None if normalise is None else normalise.to(self._device)
        self._augment = augment
        self._generator = torch.Generator()

    @property
    def device(self) -> torch.device:
        """Return the device of the batches."""
        return self._device

    def draws(self, position: int) -> Tensor | None:
        """Return the random numbers of a batch's augmentation, on the CPU; None if there is none."""
        if not self._augment.is_on:
            return None
        size = self._batch_size
        self._generator.manual_seed(mixed_seed(self._seed, 1, position))
        draws = self._augment.draw(size * self._world_size, self._generator)
        return draws[self._rank * size : (self._rank + 1) * size]

    def assemble(self, index: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the batch of these samples, augmented as drawn. The result depends on the arguments alone."""
        inputs = self._inputs.index_select(0, index)  # on the CPU 25 times faster than [index]
        if draws is not None:
            inputs = self._augment(inputs, draws.to(self._device, non_blocking=True))
        inputs = inputs if self._normalise is None else self._normalise(inputs)
        return inputs, self._targets.index_select(0, index)


class EvalLoader:
    """A set of samples in large batches, once through, in order. Each process takes every ``world_size``-th sample.

    Args:
        inputs: Images, uint8 of shape (N, C, H, W), or rows, float32 of shape (N, F).
        targets: Labels, int64 of shape (N,), or numbers, float32 of shape (N,).
        index: The samples to show, on the CPU.
        batch_size: Samples per batch.
        normalise: Maps uint8 images to the network's input; None for rows, which are served as they are.
        rank: Rank of this process.
        world_size: Number of processes that share the set. No sample is shown twice.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        index: Tensor,
        batch_size: int,
        normalise: Normalise | None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._inputs, self._targets = inputs, targets
        self._index = index[rank::world_size].to(inputs.device)
        self._batch_size = batch_size
        self._normalise = None if normalise is None else normalise.to(inputs.device)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self._index) // self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of float32 inputs and their targets."""
        for index in torch.split(self._index, self._batch_size):
            inputs = self._inputs.index_select(0, index)
            yield inputs if self._normalise is None else self._normalise(inputs), self._targets.index_select(0, index)


def sample_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of ``n`` samples in an epoch.

    Example:
        >>> sorted(sample_order(4, seed=0, epoch=3).tolist())
        [0, 1, 2, 3]
    """
    return torch.randperm(n, generator=torch.Generator().manual_seed(mixed_seed(seed, 0, epoch)))


def mixed_seed(seed: int, stream: int, number: int) -> int:
    """Return one 63-bit seed for each (seed, stream, number). Seeds of neighbours are unrelated (splitmix64)."""
    x = (seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03 + number * 0x8CB92BA72F3D8DD7) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return (x ^ (x >> 31)) >> 1
