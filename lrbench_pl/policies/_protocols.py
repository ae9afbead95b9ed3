"""Protocols of policies and adaptive policies."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Policy(Protocol):
    """Callable that maps the steps taken, from 0, to the rate of the next step."""

    def __call__(self, t: int, /) -> float:
        """Return the learning rate of step ``t``."""
        ...


@runtime_checkable
class AdaptivePolicy(Protocol):
    """Policy that also observes the validation metric.

    Its state is explicit. The schedule that it applied is available as a plain policy.
    """

    def __call__(self, t: int, /) -> float:
        """Return the learning rate of step ``t``, given the observations so far."""
        ...

    def observe(self, t: int, value: float) -> None:
        """Observe the metric of a check before step ``t``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned."""
        ...

    def realised(self) -> Policy:
        """Return the schedule that was applied, as a plain policy."""
        ...
