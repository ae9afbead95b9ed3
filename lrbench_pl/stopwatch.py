"""Measure training time with pauses. Standard library only."""

from __future__ import annotations

import time


class Stopwatch:
    """The total of the seconds between starts and stops.

    Args:
        seconds: Seconds that were measured before.

    Example:
        >>> watch = Stopwatch(2.5)
        >>> watch.seconds
        2.5
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._before + running

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped since."""
        return self._started is not None

    def start(self) -> None:
        """Start, or go on if it runs."""
        self.stop()
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Stop; the seconds so far are kept."""
        self._before = self.seconds
        self._started = None
