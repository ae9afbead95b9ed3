"""The engines that train several replicas of one network as one program: their common interface."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lrbench_pl.workloads.module import SupervisedModule

Batches = Iterable[tuple[Tensor, Tensor]]


class CannotFuse(ValueError):  # noqa: N818  (a refusal, not a fault)
    """Jobs that no engine trains together. The message is the reason, in one line."""


@dataclass(frozen=True, eq=False)
class Replica:
    """One job as an engine sees it.

    Args:
        module: Built as the run of its seed builds it, with the initial weights. It stays on the CPU; only
            :meth:`Engine.export` writes into it.
        rates: The policy's rate of each step, finite and at least 0. Groups with an ``lr_scale`` multiply it.
        stream: Index of the training loader that it reads.
        seed: Seed of the run.
        random: State of the CPU's random numbers after the module was built, as ``torch.get_rng_state`` returns it. On
            the CPU dropout continues from it, as in the run of its own. None: from the seed.
        target_std: Unit of the root mean squared error of a regression.
    """

    module: SupervisedModule
    rates: Sequence[float]
    stream: int
    seed: int
    random: Tensor | None = None
    target_std: float = 1.0


class Engine(Protocol):
    """Trains replicas of one network together. Replicas are numbered in the order given.

    Attributes:
        name: ``stacked`` or ``captured``.
        step: Steps taken.
        alive: The replicas that still train.
    """

    name: str
    step: int
    alive: list[int]

    def advance(self, steps: int) -> None:
        """Take steps. The host waits for nothing on the device in between."""

    def nonfinite(self) -> dict[int, int]:
        """Return the number of the step, from 1, at which each replica's loss first was not finite.

        Replicas that left are not in it.
        """

    def train_losses(self) -> dict[int, Tensor]:
        """Return the losses of the steps of the last :meth:`advance`, float32 on the CPU, of each replica alive."""

    def evaluate(self, loaders: Sequence[Batches]) -> dict[int, dict[str, float]]:
        """Return the metrics of a check of each replica alive, under the names that its module logs.

        Args:
            loaders: The validation batches of each stream. Streams that share an object share its batches.
        """

    def leave(self, replicas: Collection[int]) -> None:
        """Stop training replicas. They keep their weights; once a quarter has left, the rest moves together."""

    def export(self, replica: int) -> None:
        """Copy weights and buffers into the replica's module: the current ones, or those with which it left."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training continues from, as plain tensors and numbers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of the same replicas."""


def subset(state: Mapping[str, Any], replicas: Sequence[int]) -> dict[str, Any]:
    """Return the state of some replicas of an engine, for an engine of these alone.

    Args:
        state: From :meth:`Engine.state_dict`.
        replicas: Those to keep, in the order in which the new engine has them.
    """
    rows = [row for row in state["rows"] if row in replicas]
    places = [state["rows"].index(row) for row in rows]
    number = {replica: index for index, replica in enumerate(replicas)}

    def pick(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[places].clone()
        if isinstance(value, list):
            return [value[place] for place in places]
        return {key: pick(each) for key, each in value.items()}

    def renumbered(value: Mapping[int, Any]) -> dict[int, Any]:
        return {number[replica]: each for replica, each in value.items() if replica in number}

    return {
        "step": state["step"],
        "rows": [number[row] for row in rows],
        "alive": [number[replica] for replica in state["alive"] if replica in number],
        "parameters": pick(state["parameters"]),
        "buffers": pick(state["buffers"]),
        "optimizer": pick(state["optimizer"]),
        "random": pick(state["random"]),
        "left": renumbered(state["left"]),
        "nonfinite": renumbered(state["nonfinite"]),
    }
