"""Sources of images: each reads its files once and returns the whole set as uint8 tensors."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor
from torchvision.datasets.utils import check_integrity


class DataError(RuntimeError):
    """Data that cannot be used. The message says what was expected, what was found and what to do."""


class Splits(NamedTuple):
    """A whole data set. Images are uint8 of shape (N, C, H, W), labels int64 of shape (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits(root: str, download: bool, seed: int, test: int = 360) -> Splits:
    """Return scikit-learn's 1,797 digits of 8x8 pixels, ``test`` of them held out, chosen by the seed.

    Example:
        >>> splits = digits(root="", download=False, seed=0)
        >>> tuple(splits.train_images.shape), len(splits.test_labels)
        ((1437, 1, 8, 8), 360)

    Source: scikit-learn's ``load_digits`` (UCI, Alpaydin & Kaynak 1998).
    """
    del root, download  # bundled with scikit-learn
    images, labels = _all_digits()
    kept, held_out = stratified_split(labels, test, seed)
    return Splits(images[kept], labels[kept], images[held_out], labels[held_out])


@functools.cache  # the jobs of a sweep in one process share them
def _all_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    return images, torch.from_numpy(data.target).long()


def synthetic(
    root: str, download: bool, seed: int, shape: tuple[int, int, int], classes: int, train: int, test: int, noise: float
) -> Splits:
    """Return random class patterns under noise, of any shape and number of classes.

    Args:
        root: Not used.
        download: Not used.
        seed: Not used: the set is the same for every run.
        shape: Shape of an image: (C, H, W).
        classes: Number of classes, in turns.
        train: Number of training samples.
        test: Number of test samples.
        noise: Standard deviation of the noise, relative to that of the patterns.

    Example:
        >>> splits = synthetic("", False, 0, (1, 4, 4), classes=3, train=9, test=6, noise=1.0)
        >>> splits.train_labels.tolist()
        [0, 1, 2, 0, 1, 2, 0, 1, 2]
    """
    del root, download, seed
    ensure_memory((train + test) * torch.Size(shape).numel() * 5, torch.device("cpu"), "lower dataset.source.train")
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn((classes, *shape), generator=generator)
    labels = torch.arange(train + test) % classes
    images = torch.randn((train + test, *shape), generator=generator).mul_(noise).add_(patterns[labels])
    scaled = images.mul_(40 / (1 + noise**2) ** 0.5).add_(128).clamp_(0, 255).to(torch.uint8)
    labels = torch.cat((torch.arange(train) % classes, torch.arange(test) % classes))
    if train % classes:  # the labels of the test set start at 0 again
        scaled[train:] = scaled[train:].roll(train % classes, 0)
    return Splits(scaled[:train], labels[:train], scaled[train:], labels[train:])


@functools.lru_cache(maxsize=2)  # the jobs of a sweep in one process share them
def read_torchvision(name: str, root: str, download: bool) -> Splits:
    """Read MNIST, FashionMNIST, CIFAR10 or CIFAR100 with torchvision, which checks the files.

    Raises:
        DataError: If files are missing and ``download`` is false or fails, or if a file is damaged.
    """
    kind = getattr(torchvision.datasets, name)
    splits: list[Tensor] = []
    with _unpacked(kind, Path(root)) as folder:
        for train in (True, False):
            try:
                found = kind(root=folder, train=train, download=download or folder != root)
            except Exception as error:
                raise _unreadable(kind, Path(root), download, error) from error
            images, labels = torch.as_tensor(found.data), torch.as_tensor(found.targets).long()
            splits += [images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous(), labels]
    return Splits(*splits)


@contextlib.contextmanager
def _unpacked(kind: Any, root: Path) -> Iterator[str]:
    """Yield the folder to read from: ``root``, or a temporary one in which MNIST's archives are unpacked.

    torchvision reads MNIST's files unpacked, and unpacks only if it may download. Archives that are present and intact
    need no network, and nothing is written into the user's folder.
    """
    raw = root / kind.__name__ / "raw"
    archives = [(raw / name, md5) for name, md5 in getattr(kind, "resources", [])]
    if not archives or any((raw / path.stem).exists() or not path.exists() for path, _ in archives):
        yield str(root)
        return
    for path, md5 in archives:
        if not check_integrity(str(path), md5):
            raise DataError(f"{path} is damaged (its checksum is not {md5}); remove it and set dataset.download=true")
    with tempfile.TemporaryDirectory() as folder:
        beside = Path(folder) / kind.__name__ / "raw"
        beside.mkdir(parents=True)
        for path, _ in archives:
            (beside / path.name).symlink_to(path.resolve())
        yield folder


def torchvision_set(root: str, download: bool, seed: int, name: str) -> Splits:
    """Return a set of :func:`read_torchvision`. Its split does not depend on the seed."""
    del seed
    return read_torchvision(name, str(Path(root).expanduser().resolve()), download)


def _unreadable(kind: Any, root: Path, download: bool, error: Exception) -> DataError:
    name, reason = kind.__name__, " ".join(str(error).split()) or type(error).__name__
    folder = root / getattr(kind, "base_folder", name)
    if folder.is_dir() and not download:
        lists = [*getattr(kind, "train_list", []), *getattr(kind, "test_list", [])]
        damaged = [file for file, md5 in lists if not check_integrity(str(folder / file), md5)]
        return DataError(
            f"{name} in {folder} is incomplete or damaged ({', '.join(damaged) or reason}); remove that and set "
            "dataset.download=true, or point dataset.root=PATH at intact files"
        )
    if download:
        return DataError(
            f"{name} could not be downloaded to {root} ({reason}); fetch it yourself and set dataset.root=PATH"
        )
    return DataError(f"{name} was not found in {root}; set dataset.root=PATH to where it is, or dataset.download=true")


def held_out_samples(validation: int, check_on: str) -> int:
    """Return the number of training samples to hold out: ``validation``, or 0 if checks use the test set.

    Raises:
        DataError: If there would be no data to check on.

    Example:
        >>> held_out_samples(300, "validation"), held_out_samples(300, "test")
        (300, 0)
    """
    if check_on not in ("validation", "test"):
        raise DataError(f"dataset.check_on must be 'validation' or 'test', got {check_on!r}")
    if check_on == "test":
        return 0
    if isinstance(validation, bool) or not isinstance(validation, int) or validation < 1:
        raise DataError(
            f"dataset.validation must be at least 1 to check on held-out data, got {validation!r}; "
            "or set dataset.check_on=test"
        )
    return validation


def stratified_split(
    labels: Tensor, held_out: int, seed: int, name: str = "dataset.validation"
) -> tuple[Tensor, Tensor]:
    """Return the indices of the samples to keep and to hold out, stratified by class and chosen by the seed.

    Args:
        labels: int64, of shape (N,).
        held_out: Number of samples to hold out.
        seed: Seed of the choice.
        name: Name of the setting, for the message.

    Returns:
        Two index tensors, each in ascending order.

    Raises:
        DataError: If ``held_out`` is not an integer of at least 0, or if a class would have no sample left.

    Example:
        >>> kept, out = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1]), held_out=3, seed=0)
        >>> torch.bincount(torch.tensor([0, 0, 0, 0, 1, 1])[out]).tolist()
        [2, 1]
    """
    if isinstance(held_out, bool) or not isinstance(held_out, int) or held_out < 0:
        raise DataError(f"a hold-out must be a whole number of samples, got {held_out!r}")
    n = len(labels)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].sort(stable=True).indices]  # by class, shuffled within
    sizes = torch.bincount(labels)
    exact = sizes * (held_out / max(1, n))
    quota = exact.floor().long()
    quota[(exact - quota).argsort(descending=True, stable=True)[: held_out - int(quota.sum())]] += 1
    full = (quota >= sizes).logical_and(sizes > 0).nonzero().flatten()
    if len(full) or held_out >= n:
        smallest = int(sizes.min())
        raise DataError(
            f"a hold-out of {held_out} samples leaves nothing of a class to train on ({n} samples, the smallest class "
            f"has {smallest}); lower {name}"
        )
    starts = sizes.cumsum(0) - sizes
    out = torch.cat([order[s : s + q] for s, q in zip(starts.tolist(), quota.tolist(), strict=True)])
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[out] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def ensure_memory(wanted: int, device: torch.device, remedy: str) -> None:
    """Refuse data that does not fit the free memory of a device.

    Raises:
        DataError: With the memory needed, the memory that is free, and the remedy.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):  # not known on this system
            return
        free = max(free, total // 2)  # caches count as used, but are freed on demand
    if wanted > free:
        raise DataError(
            f"the data needs {wanted / 2**30:.1f} GiB on {device}, of which {free / 2**30:.1f} GiB are free; {remedy}"
        )
