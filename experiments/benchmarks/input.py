"""Throughput of the input pipeline, against torchvision's data sets in a DataLoader.

    python experiments/benchmarks/input.py [--root data] [--quick]

Images per second of the loaders alone (MNIST; CIFAR-10 with crop and flip; the DataLoader with 0 and with 2 workers),
and training steps per second of LeNet and CNN3, on a GPU also of ResNet-32, against a bare PyTorch loop over tensors in
memory and against Lightning with the DataLoader; in NHWC unless stated otherwise. Ways alternate in rounds: medians of
the paired ratios, with quartiles. Random images replace sets whose files are not under --root; they cost the same.
"""

from __future__ import annotations

import argparse
import functools
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
from lrbench_pl.policies import Constant
from lrbench_pl.workloads.classifier import Classifier
from lrbench_pl.workloads.data import Augment, DataError, Normalise, TrainLoader
from lrbench_pl.workloads.data.sources import read_torchvision
from lrbench_pl.workloads.models import cifar_resnet, cnn3, lenet

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WARM_UP = 5  # steps before the clock
SGD = functools.partial(torch.optim.SGD, lr=1e-4, momentum=0.9)

Net = Callable[[], nn.Module]


@dataclass(frozen=True)
class Samples:
    """A training set with its batch size, normalization and augmentation."""

    name: str
    images: Tensor
    labels: Tensor
    batch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment

    def ours(self) -> TrainLoader:
        """Return the loader of this package."""
        mean, std = (torch.tensor(value)[:, None, None] for value in (self.mean, self.std))
        images, labels, index = self.images.to(DEVICE), self.labels.to(DEVICE), torch.arange(len(self.labels))
        return TrainLoader(images, labels, index, self.batch_size, 0, Normalise(mean, std), self.augment)

    def usual(self, workers: int) -> DataLoader[Any]:
        """Return a DataLoader with the usual transforms of torchvision."""
        crops = [v2.RandomCrop(self.images.shape[-1], padding=self.augment.pad)] if self.augment.pad else []
        flips = [v2.RandomHorizontalFlip()] if self.augment.flip else []
        end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
        images = PilImages(self.images, self.labels, v2.Compose([*crops, *flips, *end]))
        return DataLoader(
            images, self.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )  # fmt: skip


class PilImages(Dataset[tuple[Any, int]]):
    """Images as in torchvision's data sets: one PIL image at a time through a transform."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Any) -> None:
        self.images, self.labels, self.transform = images.permute(0, 2, 3, 1).contiguous().numpy(), labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index].squeeze())), int(self.labels[index])


def read(name: str, root: str, shape: tuple[int, ...]) -> tuple[str, Tensor, Tensor]:
    """Return the training images, or random ones of the same shape."""
    try:
        splits = read_torchvision(name, root, False)
    except DataError:
        images = torch.randint(0, 256, (20_000, *shape), dtype=torch.uint8)
        return f"random images like {name}'s", images, torch.randint(0, 10, (20_000,))
    return name, splits.train_images, splits.train_labels


def forever(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield batches, epoch after epoch."""
    while True:
        yield from loader


def finish() -> None:
    """Wait until the device is idle."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def images_per_second(batches: Iterator[Any], n: int) -> float:
    """Return the throughput of a loader over n batches, without the first two."""
    next(batches), next(batches)
    finish()
    start = time.perf_counter()
    served = sum(len(next(batches)[1]) for _ in range(n))
    finish()
    return served / (time.perf_counter() - start)


def bare_loop(net: Net, samples: Samples, steps: int) -> float:
    """Return the steps per second of plain PyTorch over prepared batches."""
    model = net().to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = SGD(model.parameters())
    loader = samples.ours()
    batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in (next(loader) for _ in range(20))]
    start = 0.0
    for step in range(steps + WARM_UP):
        if step == WARM_UP:
            finish()
            start = time.perf_counter()
        images, labels = batches[step % len(batches)]
        loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    finish()
    return steps / (time.perf_counter() - start)


class Clock(pl.Callback):
    """Records the times at the end of the warm-up and of the training."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        """Start the clock after the warm-up."""
        if trainer.global_step == WARM_UP:
            finish()
            self.times.append(time.perf_counter())

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Stop the clock."""
        finish()
        self.times.append(time.perf_counter())


def lightning(net: Net, loader: Any, steps: int, *callbacks: pl.Callback, channels_last: bool = True) -> float:
    """Return the steps per second of a Lightning fit, without its start."""
    clock = Clock()
    trainer = pl.Trainer(
        max_steps=steps + WARM_UP, max_epochs=-1, accelerator=DEVICE.type, devices=1, limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*callbacks, clock],
    )  # fmt: skip
    trainer.fit(Classifier(net(), SGD, 10, channels_last=channels_last), loader)
    return steps / (clock.times[1] - clock.times[0])


def compare(title: str, ways: dict[str, Callable[[], float]], rounds: int, unit: str) -> None:
    """Run the ways alternately; the first is ours."""
    for way in ways.values():
        way()
    measured = []
    for index in range(rounds):
        names = list(ways) if index % 2 == 0 else list(reversed(ways))
        measured.append({name: ways[name]() for name in names})
    first, *others = ways
    print(f"\n{title} ({rounds} paired rounds, median [quartiles])")
    print(f"  {first:<34} {statistics.median(m[first] for m in measured):>10,.0f} {unit}")
    for other in others:
        low, middle, high = statistics.quantiles([m[first] / m[other] for m in measured], n=4)
        value = statistics.median(m[other] for m in measured)
        print(f"  {other:<34} {value:>10,.0f} {unit}   ours / it: {middle:.2f} [{low:.2f}, {high:.2f}]", flush=True)


def compare_loaders(samples: Samples, rounds: int, scale: int) -> None:
    """Measure images per second."""
    ways: dict[str, Callable[[], float]] = {"ours": lambda: images_per_second(samples.ours(), 200 * scale)}
    for workers in (0, 2):
        stream = forever(samples.usual(workers))
        ways[f"DataLoader, {workers} workers"] = functools.partial(images_per_second, stream, 15 * scale)
    compare(f"Input of {samples.name}", ways, rounds, "images/s")


def compare_trainings(name: str, net: Net, samples: Samples, rounds: int, steps: int) -> None:
    """Measure training steps per second."""
    plain = samples.usual(0)
    ways = {
        "Lightning, policy, our tensors": lambda: lightning(
            net, samples.ours(), steps, LRPolicyCallback(Constant(1e-4))
        ),
        "bare PyTorch loop": lambda: bare_loop(net, samples, steps),
        "Lightning, DataLoader, 0 workers": lambda: lightning(net, plain, steps),
        "the same in NCHW, as is usual": lambda: lightning(net, plain, steps, channels_last=False),
    }
    compare(f"Training {name}, batch {samples.batch_size}, on {DEVICE.type}", ways, rounds, "steps/s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", default="data", help="folder of MNIST and CIFAR-10 in torchvision's layout")
    parser.add_argument("--quick", action="store_true", help="few rounds, for a first look")
    arguments = parser.parse_args()
    rounds, scale = (3, 1) if arguments.quick else (7, 3)
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    small, colour = (1, 28, 28), (3, 32, 32)
    mnist = Samples(*read("MNIST", arguments.root, small), 64, (0.13,), (0.31,), Augment())
    read_cifar = read("CIFAR10", arguments.root, colour)
    make_cifar = functools.partial(
        Samples, *read_cifar, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26), augment=Augment(pad=4, flip=True)
    )
    cifar = make_cifar(batch_size=100)
    compare_loaders(mnist, rounds, scale)
    compare_loaders(cifar, rounds, scale)
    compare_trainings("LeNet", functools.partial(lenet, 10, small), mnist, rounds, 50 * scale)
    compare_trainings("CNN3", functools.partial(cnn3, 10, colour), cifar, rounds, 12 * scale)
    if DEVICE.type == "cuda":
        resnet = functools.partial(cifar_resnet, 32, 10, colour)
        compare_trainings("ResNet-32", resnet, make_cifar(batch_size=128), rounds, 50 * scale)


if __name__ == "__main__":
    main()
