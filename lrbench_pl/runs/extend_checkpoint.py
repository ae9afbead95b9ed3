"""Turn the checkpoint of a composition into that of the composed policy, applied from the start."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lrbench_pl.callbacks.checkpoints import STATE_KEY
from lrbench_pl.callbacks.composer import LRPolicyComposer
from lrbench_pl.callbacks.history_file import parse, to_text
from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
from lrbench_pl.files import WrittenFiles, replacing

_STEPS = ("optim_progress", "optim_step_progress")  # parts of Lightning's loops that count optimizer steps


def plain(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with the steps, the checks and the history of the policy alone.

    The checkpoint of a composition counts abandoned steps too. They are taken out of its counters, and what was
    checked and logged in them out of its checks and its history. So are the checks of averaged weights, which a plain
    policy does not make. Any other checkpoint is returned as it is.
    """
    found = copy.copy(dict(checkpoint))
    found[STATE_KEY] = state = dict(found[STATE_KEY])
    run = state.get("run") or {}
    path: Sequence[Mapping[str, int]] | None = run.get("path")
    if path is None:
        return found
    before, after = int(found["global_step"]), int(run["policy_step"])
    lost = before - after
    batches_per_step = _batches_per_step(found["loops"], before)
    found["loops"] = copy.deepcopy(found["loops"])
    _take_off(found["loops"]["fit_loop"], lost, lost * batches_per_step)
    found["global_step"] = after
    composed = found["callbacks"][LRPolicyComposer.__qualname__]
    checks = [{**each, "step": step} for each in composed["checks"] if (step := _moved(each["step"], path)) is not None]
    found["callbacks"] = {name: each for name, each in found["callbacks"].items() if each is not composed}
    found["callbacks"][LRPolicyCallback.__qualname__] = {
        "steps": after,
        "checks": checks,
        "seconds": composed["seconds"],
        "policy": None,
    }
    state["history"] = [_moved_history(text, path) for text in state["history"]]
    state["unlogged"] = {}
    return found


def write(checkpoint: Mapping[str, Any], path: Path, written: WrittenFiles) -> None:
    """Write a checkpoint atomically, as one that the run in the folder has written."""
    with replacing(path) as file:
        torch.save(dict(checkpoint), file)
        file.flush()
        written.add(path.name, os.fstat(file.fileno()))


def _batches_per_step(loops: Mapping[str, Any], steps: int) -> int:
    """Return the batches of an optimizer step."""
    batches = loops["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]
    return max(1, round(batches / steps)) if steps else 1


def _take_off(loop: dict[str, Any], steps: int, batches: int) -> None:
    """Take abandoned steps and batches off the counters of Lightning's fit loop."""
    for name, state in loop.items():
        if name == "epoch_loop.state_dict":
            state["_batches_that_stepped"] = max(0, state.get("_batches_that_stepped", 0) - steps)
        elif name == "epoch_loop.batch_progress":
            _lower(state, batches)
        elif any(name.endswith(part) for part in _STEPS):
            _lower(state, steps)


def _lower(state: dict[str, Any], number: int) -> None:
    """Lower every counter below a progress."""
    for name, value in state.items():
        if isinstance(value, dict):
            _lower(value, number)
        elif isinstance(value, int) and not isinstance(value, bool) and name != "optimizer_position":
            state[name] = max(0, value - number)


def _moved(step: int, path: Sequence[Mapping[str, int]]) -> int | None:
    """Return the step of the policy at the end of a step of the training; None if it was abandoned."""
    for kept in path:
        if kept["spent"] < step <= kept["spent"] + kept["steps"]:
            return step - kept["spent"] + kept["policy_step"]
    return None


def _moved_history(text: str, path: Sequence[Mapping[str, int]]) -> str:
    """Return the rows of a history that belong to the policy, at its steps."""
    rows = []
    for row in parse(text):
        step = _moved(int(row.get("step", -1)) + 1, path)
        if step is None or float(row.get("check/averaged", 0)) > 0:
            continue
        moved = {name: value for name, value in row.items() if name != "check/averaged"} | {"step": str(step - 1)}
        if "check/step" in row:
            moved["check/step"] = str(float(step))
        rows.append(moved)
    return to_text(rows)
