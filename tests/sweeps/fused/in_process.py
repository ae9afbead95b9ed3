"""``run.py`` with the workers of a fused sweep in its own process, which is faster, and with failures on request.

    python in_process.py FAILURES ARGUMENTS...

``FAILURES`` is a list separated by commas: ``most=3`` (more than three jobs have not enough memory), ``memory_at=40``
(the first engine has not enough memory from this step on), ``refuse=REASON``, ``break=MESSAGE``, ``lost=4`` (a group
with the job of seed 4 ends its process), ``early=4`` (Ctrl-C meets its worker before it begins), ``trial=ENGINE`` and
``refuse_trial=REASON`` (what the trial of the engines finds), ``kill_at=60`` (the process is killed at this step) or
``none``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from lrbench_pl.sweeps.fused import placing, session
from lrbench_pl.sweeps.fused.engine import CannotFuse

GIVEN: dict[str, str] = {}
made: list[Any] = []


def in_slots(slots: Any, waiting: Any, every_s: float | None = None) -> Iterator[Any]:
    """Run the calls one after the other."""
    while waiting:
        key, call = waiting.popleft()
        seeds = [str(each.config.seed) for each in getattr(call, "calls", [call])]
        if GIVEN.get("lost") in seeds:
            yield key, "its process was killed (SIGKILL), probably for lack of memory"
        elif GIVEN.get("early") in seeds:
            yield key, None
        else:
            yield key, call()


make = session.make_engine


def make_engine(name: str, replicas: Any, loaders: Any, **place: Any) -> Any:
    """Make an engine that fails as requested."""
    if "refuse" in GIVEN:
        raise CannotFuse(GIVEN["refuse"])
    if "break" in GIVEN:
        raise RuntimeError(GIVEN["break"])
    if "most" in GIVEN and len(replicas) > int(GIVEN["most"]):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    engine = make(name, replicas, loaders, **place)
    advance, is_first = engine.advance, not made
    made.append(name)

    def failing(steps: int) -> None:
        advance(steps)
        if "kill_at" in GIVEN and engine.step >= int(GIVEN["kill_at"]):
            os.kill(os.getpid(), signal.SIGKILL)
        if is_first and "memory_at" in GIVEN and engine.step >= int(GIVEN["memory_at"]):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    engine.advance = failing
    return engine


def choose_engine(replicas: Any, loaders: Any, **place: Any) -> tuple[str, int]:
    """Find what is requested."""
    if "refuse_trial" in GIVEN:
        raise CannotFuse(GIVEN["refuse_trial"])
    return GIVEN["trial"], 3


if __name__ == "__main__":
    GIVEN.update(each.partition("=")[::2] for each in sys.argv[1].split(","))
    session.choose_engine = choose_engine
    placing.in_slots = in_slots  # type: ignore[assignment]
    session.make_engine = make_engine
    sys.argv = [str(Path(__file__).resolve().parents[3] / "run.py"), *sys.argv[2:]]
    from lrbench_pl.cli.run import main

    main()
