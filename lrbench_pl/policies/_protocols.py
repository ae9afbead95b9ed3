"""What counts as a policy, and what as an adaptive one."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Policy(Protocol):
    """Anything that maps the number of optimizer steps taken, from 0, to the learning rate of the next step."""

    def __call__(self, t: int, /) -> float:
        """The learning rate of step ``t``."""
        ...


@runtime_checkable
class AdaptivePolicy(Protocol):
    """A policy that also looks at the validation metric. Its state is explicit, its outcome a plain policy."""

    def __call__(self, t: int, /) -> float:
        """The learning rate of step ``t``, as far as is known by now."""
        ...

    def observe(self, t: int, value: float) -> None:
        """Take note of the metric at a check before step ``t``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        ...

    def realised(self) -> Policy:
        """The schedule that was in fact applied, as a plain policy."""
        ...
