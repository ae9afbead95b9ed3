"""A training cut into legs: what a tuner asks for, and what it is told. No torch, no Lightning."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lrbench_pl.policies import Policy

Kind = Literal["range", "trunk", "branch", "keep"]


@dataclass(frozen=True)
class Leg:
    """A stretch of training that ends at a check; a sweep of a range test may end between two.

    Args:
        kind: ``range`` (a range test), ``trunk`` (goes on), ``branch`` (decays) or ``keep`` (no steps: only snapshots).
        policy: The whole policy, whose rate at ``start``, ``start + 1``, … is applied.
        start: The policy's own clock at the first step.
        steps: Optimizer steps; the leg ends at the first check at or after them. 0: nothing is trained.
        restore: Name of the snapshot to go back to before it.
        skip: Steps whose batches are passed over after that.
        save: Name under which the state after it is kept: ``start``, ``trunk`` or ``best``.
        averaged: Whether the check at its end looks at the averaged weights; it can then not reach the target.
        note: Why it is taken, for the record.
        avoided: Choices that what came before it showed to be bad, in words, for the record.
    """

    kind: Kind
    policy: Policy
    start: int
    steps: int
    restore: str | None = None
    skip: int = 0
    save: str | None = None
    averaged: bool = False
    note: str = ""
    avoided: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Outcome:
    """What came of a leg.

    Args:
        steps: Optimizer steps taken.
        value: The monitored metric at its last check; None if it took no step.
        diverged: Whether the training loss became non-finite, stood clearly above its start, or came back to it after
            a clear fall.
        losses: Training loss of each step, only for a ``range`` leg.
        spent: Steps of the whole training so far.
    """

    steps: int
    value: float | None = None
    diverged: bool = False
    losses: tuple[float, ...] = field(default=())
    spent: int = 0


# A tuner yields legs, is sent their outcomes, and returns what it found.
Tuner = Generator[Leg, Outcome, Any]


class Journal:
    """A tuner, and all that it was told: told again, another one comes to the same point.

    Args:
        tuner: One that has not begun.

    Attributes:
        found: What the tuner returned; None while it has not.
        failure: Why it could not go on, in words; None if it could.

    Example:
        >>> def twice():
        ...     outcome = yield Leg("trunk", float, 0, 10)
        ...     yield Leg("trunk", float, outcome.steps, 10)
        ...     return "done"
        >>> journal, again = Journal(twice()), Journal(twice())
        >>> journal.send(None).start, journal.send(Outcome(20)).start
        (0, 20)
        >>> [leg.start for leg in again.replay(journal.state_dict())]
        [0, 20]
        >>> again.send(Outcome(10)) is None, again.found
        (True, 'done')
    """

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner
        self._outcomes: list[Outcome] = []
        self._marks: list[str] = []  # of the legs that followed
        self.found: Any = None
        self.failure: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether there is no leg any more."""
        return bool(self._marks) and self._marks[-1] == _END

    def send(self, outcome: Outcome | None) -> Leg | None:
        """The next leg after an outcome, the first one after None; None at the end."""
        if outcome is not None:
            self._outcomes.append(outcome)
        leg: Leg | None = None
        try:
            leg = self._tuner.send(outcome)  # type: ignore[arg-type]  # None begins a generator
        except StopIteration as end:
            self.found = end.value
        except ValueError as error:
            self.failure = str(error)
        self._marks.append(_END if leg is None else _mark(leg))
        return leg

    def replay(self, state: Mapping[str, Any]) -> list[Leg]:
        """Tell the tuner what another one was told.

        Args:
            state: :meth:`state_dict` of the other's journal.

        Returns:
            The legs so far; the last one is under way.

        Raises:
            ValueError: If it asks for another leg than the other did.
        """
        legs = []
        outcomes = [Outcome(**{**kept, "losses": tuple(kept["losses"])}) for kept in state["outcomes"]]
        for number, (outcome, mark) in enumerate(zip((None, *outcomes), state["marks"], strict=True), 1):
            leg = self.send(outcome)
            if self._marks[-1] != mark:
                instead = "ends" if leg is None else f"takes a {leg.kind} of {leg.steps} steps from {leg.start}"
                raise ValueError(f"the plan {instead} where leg {number} of the checkpoint was another one")
            if leg is not None:
                legs.append(leg)
        return legs

    def state_dict(self) -> dict[str, Any]:
        """The outcomes, and what tells the legs apart, as plain data."""
        return {"outcomes": [asdict(outcome) for outcome in self._outcomes], "marks": list(self._marks)}


_END = "end"


def _mark(leg: Leg) -> str:
    """What tells legs apart, whatever is said of them."""
    return hashlib.sha256(repr(replace(leg, note="")).encode()).hexdigest()[:16]
