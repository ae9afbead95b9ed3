"""Make an engine, or choose one and the size of its groups by a short trial."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lrbench_pl.sweeps.fused.captured import CapturedEngine
from lrbench_pl.sweeps.fused.engine import CannotFuse, Engine, Replica
from lrbench_pl.sweeps.fused.stacked import StackedEngine
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
