"""Make an engine, or choose one and the size of its groups by a short trial."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from lrbench_pl.sweeps.fused.captured import CapturedEngine
from lrbench_pl.sweeps.fused.engine import CannotFuse, Engine, Replica
from lrbench_pl.sweeps.fused.stacked import StackedEngine, uses_kernels
from lrbench_pl.workloads.data.loaders import StreamLoader

ENGINES: dict[str, type[StackedEngine] | type[CapturedEngine]] = {
    "stacked": StackedEngine,
    "captured": CapturedEngine,
}


def make_engine(
    name: str, replicas: Sequence[Replica], loaders: Sequence[StreamLoader], *, precision: str, device: torch.device
) -> Engine:
    """Return an engine of this name.

    Args:
        name: ``stacked`` or ``captured``.
        replicas: The jobs, at least one.
        loaders: The training batches of each stream, on the device.
        precision: The Trainer's.
        device: Where to train.

    Raises:
        CannotFuse: If the engine cannot train these replicas together.
    """
    if name not in ENGINES:
        raise CannotFuse(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    return ENGINES[name](replicas, loaders, precision, device)


def choose_engine(
    replicas: Sequence[Replica],
    loaders: Sequence[StreamLoader],
    *,
    precision: str,
    device: torch.device,
    max_group: int | None = None,
    seconds: float = 20.0,
) -> tuple[str, int]:
    """Return the engine that trains these replicas fastest, and the number of replicas of a group.

    Groups grow by factors of two while that makes the training of all replicas faster and memory allows it. On the CPU
    only the stacked engine is tried, against one training alone. On a GPU its kernels are compiled when a network first
    needs them, so that for images it is tried only if the jobs take longer than that.

    Args:
        replicas: The jobs, at least one.
        loaders: The training batches of each stream, on the device.
        precision: The Trainer's.
        device: Where to train.
        max_group: Most replicas of a group; None for as many as pay.
        seconds: No further trial of an engine begins after so many seconds.

    Raises:
        CannotFuse: If no engine can train these replicas together, or if nothing is gained.
    """
    most = min(len(replicas), max_group or len(replicas))
    steps = len(replicas) * len(replicas[0].rates)
    reasons: list[str] = []
    best = ("", 0, 0.0)
    for name in ("captured", "stacked") if device.type == "cuda" else ("stacked",):
        is_compiled = name == "stacked" and uses_kernels(replicas[0].module.model, device)
        if is_compiled and best[0] and steps < _COMPILE_S * best[2]:
            continue
        try:
            size, rate = _grow(partial(_rate, name, replicas, loaders, precision, device), most, seconds)
        except CannotFuse as refusal:
            reasons.append(f"{name}: {refusal}")
            continue
        if rate > best[2]:
            best = (name, size, rate)
    if not best[0]:
        raise CannotFuse("; ".join(reasons) if len(reasons) > 1 else reasons[0].partition(": ")[2])
    name, size, rate = best
    if device.type == "cpu" and len(replicas) > 1:
        alone = 1 / (1 / _rate("captured", replicas, loaders, precision, device, 1) + _TRAINER_S)
        if rate < _LEAST_GAIN * alone:
            raise CannotFuse("on the CPU such networks train no faster stacked than one by one")
    groups = -(-len(replicas) // size)
    return name, -(-len(replicas) // groups)


_COMPILE_S = 60.0  # that the jobs must take at least before kernels are compiled for them, which takes up to half
_TRAINER_S = 0.0005  # of a step that a training by itself spends in the loop of the Trainer, at least
_LEAST_GAIN = 1.1  # over trainings by themselves
_LEAST_GROWTH = 1.1  # of the rate, that makes a group of twice the size worth its memory
_FIRST_SIZE = 8
_TRIAL_STEPS = 5
_TRIALS = 5  # at most, of which the fastest counts: others may be using the machine
_TRIAL_S = 1.0  # after which no further one begins


def _grow(rate_of: Callable[[int], float], most: int, seconds: float) -> tuple[int, float]:
    """Return the size of a group from which on it does not get faster, and its rate."""
    size = min(_FIRST_SIZE, most)
    best, rate = size, rate_of(size)
    deadline = time.monotonic() + seconds
    while size < most and time.monotonic() < deadline:
        size = min(2 * size, most)
        try:
            found = rate_of(size)
        except torch.cuda.OutOfMemoryError:
            break
        if found < _LEAST_GROWTH * rate:
            break
        best, rate = size, found
    return best, rate


def _rate(
    name: str,
    replicas: Sequence[Replica],
    loaders: Sequence[StreamLoader],
    precision: str,
    device: torch.device,
    size: int,
) -> float:
    """Return the steps per second of all replicas of a group together."""
    engine: Engine | None = None
    try:
        engine = make_engine(name, replicas[:size], loaders, precision=precision, device=device)
        steps = min(_TRIAL_STEPS, max(1, len(replicas[0].rates) // 3))
        engine.advance(steps)
        times: list[float] = []
        left = (len(replicas[0].rates) - steps) // steps
        while len(times) < min(_TRIALS, left) and (len(times) < 2 or sum(times) < _TRIAL_S):
            began = _now(device)
            engine.advance(steps)
            times.append(_now(device) - began)
        return size * steps / min(times) if times else float(size)
    finally:
        del engine
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
