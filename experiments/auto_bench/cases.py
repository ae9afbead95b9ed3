"""Tasks on which ``auto`` is compared with the default policy: data sets, optimizers, widths and batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor

HELD_OUT = 0.25
TARGET_SEEDS = (41, 42, 43)

# Optimizer and the rate that its users begin with; those of conf/optimizer.
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, 0.1, {}),
    "momentum": (torch.optim.SGD, 0.05, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, 0.05, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, 0.002, {}),
    "adamw": (torch.optim.AdamW, 0.002, {"weight_decay": 0.01}),
    "rmsprop": (torch.optim.RMSprop, 0.001, {}),
}


def _classes(seed: int, noise: float, count: int, features: int = 40) -> tuple[Any, Any]:
    made = datasets.make_classification(
        3000, features, n_informative=12, n_classes=count, flip_y=noise, class_sep=1.0, random_state=seed
    )
    return made[0], made[1]


# Inputs and labels (integers: classes; else a regression).
SETS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "digits": lambda: datasets.load_digits(return_X_y=True),
    "cancer": lambda: datasets.load_breast_cancer(return_X_y=True),
    "wine": lambda: datasets.load_wine(return_X_y=True),
    "classes": lambda: _classes(11, 0.01, 5),
    "noisy": lambda: _classes(12, 0.2, 5),
    "many": lambda: _classes(13, 0.0, 12),
    "two": lambda: _classes(14, 0.05, 2, 20),
    "moons": lambda: datasets.make_moons(3000, noise=0.25, random_state=15),
    "diabetes": lambda: datasets.load_diabetes(return_X_y=True),
    "friedman1": lambda: datasets.make_friedman1(3000, noise=0.5, random_state=16),
    "friedman2": lambda: datasets.make_friedman2(3000, noise=20.0, random_state=17),
    "linear": lambda: datasets.make_regression(3000, 40, n_informative=20, noise=30.0, random_state=18),
    # those of the former table, which are known by now
    "iris": lambda: datasets.load_iris(return_X_y=True),
    "friedman3": lambda: datasets.make_friedman3(3000, noise=0.1, random_state=26),
    "gaussians": lambda: datasets.make_gaussian_quantiles(n_samples=3000, n_features=10, n_classes=4, random_state=27),
    "hastie": lambda: datasets.make_hastie_10_2(3000, random_state=28),
    "swiss": lambda: datasets.make_swiss_roll(3000, noise=0.3, random_state=29),
    "sevens": lambda: _classes(30, 0.1, 7, 30),
    # held out, for the table alone
    "circles": lambda: datasets.make_circles(3000, noise=0.15, factor=0.6, random_state=51),
    "blobs": lambda: datasets.make_blobs(3000, 12, centers=10, cluster_std=4.0, random_state=52)[:2],
    "sparse": lambda: datasets.make_sparse_uncorrelated(3000, 20, random_state=53),
    "waves": lambda: datasets.make_s_curve(3000, noise=0.2, random_state=54),
    "ridge": lambda: datasets.make_regression(
        3000, 60, n_informative=30, effective_rank=15, tail_strength=0.3, noise=0.5, random_state=55
    ),
    "sixes": lambda: _classes(56, 0.05, 6, 25),
}


@dataclass(frozen=True)
class Case:
    """A task of the bench."""

    data: str
    optimizer: str
    width: int = 64
    batch: int = 64
    steps: int = 1000
    interval: int = 20
    factor: float = 1.0  # the optimizer's own rate in this task, in multiples of the usual one

    @property
    def name(self) -> str:
        """Its parts in one word."""
        parts = f"{self.data}-{self.optimizer}-{self.width}-{self.batch}"
        return parts if self.factor == 1 else f"{parts} x{self.factor:g}"

    @property
    def rate(self) -> float:
        """The optimizer's own rate."""
        return self.factor * OPTIMIZERS[self.optimizer][1]


def _cases(names: Sequence[str], widths: Sequence[int], batches: Sequence[int]) -> tuple[Case, ...]:
    """Every set with three optimizers, so that all six occur equally often; widths and batch sizes in turn."""
    optimizers, found = list(OPTIMIZERS), []
    for number, name in enumerate(names):
        for k in range(3):
            index = 3 * number + k
            found.append(
                Case(
                    name,
                    optimizers[(index + number // 2) % 6],
                    widths[index % len(widths)],
                    batches[(index // 2) % len(batches)],
                )
            )
    return tuple(found)


def _long(cases: Sequence[Case], optimizers: Sequence[str]) -> tuple[Case, ...]:
    """The tasks with some optimizers over a longer budget, without the largest."""
    smaller = [case for case in cases if 256 not in (case.width, case.batch)]
    return tuple(replace(case, steps=4000, interval=50) for case in smaller if case.optimizer in optimizers)


CASES = {
    "development": _cases(list(SETS)[:12], (64, 16, 256), (64, 16, 256)),
    "former": _cases(list(SETS)[12:18], (32, 128), (32, 128)),
    "table": _cases(list(SETS)[18:], (96, 24), (48, 24)),
}
ADAPTIVE = ("adam", "adamw", "rmsprop")
CASES["long_development"] = _long(CASES["development"] + CASES["former"], list(OPTIMIZERS))
CASES["long_table"] = _long(CASES["table"], ADAPTIVE)
SGD = [name for name in OPTIMIZERS if name not in ADAPTIVE]
CASES["long_sgd_development"] = _long(CASES["development"] + CASES["former"], SGD)
CASES["long_sgd_table"] = _long(CASES["table"], SGD)


@cache
def tensors(name: str) -> tuple[Tensor, Tensor]:
    """Return the standardised inputs of a set, and its labels or standardised numbers."""
    x, y = SETS[name]()
    x = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1.0)
    if np.issubdtype(np.asarray(y).dtype, np.floating) and len(set(y.tolist())) > 20:
        return torch.tensor(x).float(), torch.tensor((y - y.mean()) / y.std()).float()
    return torch.tensor(x).float(), torch.tensor(np.unique(y, return_inverse=True)[1]).long()
