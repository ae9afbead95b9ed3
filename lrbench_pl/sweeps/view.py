"""Show the progress of a sweep: a live view on a terminal, elsewhere one line per job. Reads only the folders."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lrbench_pl.runs.describe import headline, label
from lrbench_pl.runs.folder import Record, State, read_result, state_of
from lrbench_pl.runs.result import RunResult
from lrbench_pl.sweeps.fused.progress import read_progress
from lrbench_pl.words import clean, counted, is_accuracy, metric_name, metric_value

_REFRESH_S = 1.0
_MOST_RUNNING = 8


@dataclass
class SweepState:
    """The states of the jobs of a sweep.

    Args:
        states: State of each folder.
        results: Results of the folders that have one.
    """

    states: dict[Path, State] = field(default_factory=dict)
    results: dict[Path, RunResult] = field(default_factory=dict)

    def count(self, *states: State) -> int:
        """Count the jobs in any of these states."""
        numbers = Counter(self.states.values())
        return sum(numbers[state] for state in states)

    @property
    def ended(self) -> int:
        """Number of jobs that have ended, finished or not."""
        return self.count("finished", "failed", "stopped")

    def best(self, mode: str = "max") -> RunResult | None:
        """Return the result with the best value of the monitor."""
        checked = [result for result in self.results.values() if result.best_value is not None]
        choose = max if mode == "max" else min
        return choose(checked, key=lambda result: result.best_value or 0.0, default=None)


def read_sweep(folders: Sequence[Path], known: SweepState | None = None) -> SweepState:
    """Read the folders of a sweep, except those that were finished before.

    Args:
        folders: Folders of the jobs.
        known: An earlier state of the sweep.
    """
    found = SweepState()
    for folder in folders:
        if known is not None and known.states.get(folder) == "finished":
            found.states[folder], found.results[folder] = "finished", known.results[folder]
            continue
        result = read_result(folder)
        found.states[folder] = state_of(folder, result)
        if result is not None:
            found.results[folder] = result
    return found


def format_duration(seconds: float) -> str:
    """Format a duration.

    Example:
        >>> format_duration(8.2), format_duration(75), format_duration(7500)
        ('8 s', '1 min 15 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class SweepView:
    """Context manager that shows the progress of a sweep, and a summary at its end.

    Args:
        folders: Folders of the jobs.
        sweep: Folder of the sweep.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        console: Console to print to; standard output by default.
        start: Start of the sweep, by :func:`time.monotonic`; now by default.
        finished: Results of folders that were finished by earlier commands, so far as they were read already.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        sweep: str | Path,
        mode: str = "max",
        console: Console | None = None,
        start: float | None = None,
        finished: Mapping[Path, RunResult] | None = None,
    ) -> None:
        self._folders, self._sweep, self._mode = list(folders), sweep, mode
        # do not wrap lines in a file
        self._console = console or Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty(), highlight=False)
        self._first = self._last = time.monotonic()  # start of the first job, end of the latest one
        self._start = self._first if start is None else start
        known = dict(finished or {})
        self._state = read_sweep(self._folders, SweepState(dict.fromkeys(known, "finished"), known))
        self._before = self._state.count("finished")  # by earlier commands
        self._shown: set[Path] = {folder for folder, state in self._state.states.items() if state == "finished"}
        self._queued: set[Path] = set()  # jobs that were interrupted and wait for their turn again
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._live: Live | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> SweepView:
        """Start the view."""
        started = self._state.count("unfinished", "stopped", "failed")
        words = f"{counted(len(self._folders), 'job')} in {self._sweep}"
        if self._before or started:
            words += f": {self._before} finished before, {started} to resume"
        self._print(words)
        if self._console.is_terminal and not self._console.is_dumb_terminal:  # a dumb terminal cannot redraw lines
            self._live = Live(self._render(), console=self._console, auto_refresh=False, transient=True)
            self._live.start()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the view and print the summary."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self._live is not None:
            self._live.stop()
        if error is None:
            counts = Counter(
                "without a target" if result.status == "missed" and result.target is None else result.status
                for result in self._state.results.values()
            )
            shown = ", ".join(f"{number} {status}" for status, number in counts.most_common())
            self._print(
                f"{counted(len(self._folders), 'job')}: {shown}; {format_duration(time.monotonic() - self._start)}"
            )

    def ended(self, folder: Path, result: RunResult) -> None:
        """Print the notes and the headline of a job that has ended."""
        with self._lock:
            self._state.states[folder] = state_of(folder)
            self._state.results[folder] = result
            if folder in self._shown:
                return
            self._shown.add(folder)
            self._last = time.monotonic()
            self._refresh()  # first, since every printed line redraws the view
            record = Record.read(folder)
            for line in record.notes if record else ():
                self._print(f"{folder.name}: {line}")
            left = self._time_left()
            after = f" ({left} left)" if left else ""
            self._print(f"{len(self._shown)} of {len(self._folders)}: {headline(result, with_seed=True)}{after}")

    def queued_again(self, folder: Path, message: str) -> None:
        """Print that a job was interrupted and waits for its turn again."""
        with self._lock:
            self._queued.add(folder)
            self._refresh()
            self._print(message)

    def interrupted(self) -> None:
        """Print how far the sweep got when it was interrupted."""
        with self._lock:
            self._state = read_sweep(self._folders, self._state)
        stopped = self._state.count("stopped")
        self._print(
            f"interrupted with {self._state.count('finished')} of {counted(len(self._folders), 'job')} finished"
            f"{f' and {stopped} stopped' if stopped else ''}; the same command resumes the sweep"
        )

    def _time_left(self) -> str:
        """Estimate the time left from the mean time per job so far.

        The time since the latest job ended is subtracted. A fused sweep is estimated from the steps of its groups.
        """
        if groups := read_progress(Path(self._sweep)):  # their jobs end together
            return format_duration(max(group.seconds_left for group in groups))
        done = len(self._shown) - self._before
        rest = len(self._folders) - len(self._shown)
        if not done or not rest:
            return ""
        left = (self._last - self._first) / done * rest - (time.monotonic() - self._last)
        return format_duration(left) if left > 0 else ""

    def _print(self, text: str) -> None:
        self._console.print(Text("\n".join(map(clean, text.split("\n")))))
        self._console.file.flush()

    def _watch(self) -> None:
        while not self._over.wait(_REFRESH_S):
            with self._lock:
                self._state = read_sweep(self._folders, self._state)
                self._refresh()

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._render(), refresh=True)

    def _render(self) -> Group:
        state, total = self._state, len(self._folders)
        bar = Table.grid(padding=(0, 1))
        counts = f"{state.count('finished')} of {total} done, {state.count('running')} running"
        if again := sum(state.states.get(folder) in ("unfinished", "missing") for folder in self._queued):
            counts += f", {again} queued again"
        for name in ("failed", "stopped"):
            if number := state.count(name):
                counts += f", {number} {name}"
        left = self._time_left()
        bar.add_row(ProgressBar(total=total, completed=state.ended, width=20), counts, f"{left} left" if left else "")
        lines = [bar]
        best = state.best(self._mode)
        if best is not None:
            monitor = best.monitor or "val/accuracy"
            value = metric_value(monitor, best.best_value or 0.0)
            metric = "" if is_accuracy(monitor) else f"{metric_name(monitor)} "
            words = f"best so far: {metric}{value} at step {best.best_step} by {label(best)}"
            lines.append(Text(words))  # type: ignore[arg-type]
        running = [folder for folder, each in state.states.items() if each == "running"]
        shown = ", ".join(_name(folder) for folder in running[:_MOST_RUNNING])
        more = f" and {len(running) - _MOST_RUNNING} more" if len(running) > _MOST_RUNNING else ""
        if shown:
            lines.append(Text(f"running: {shown}{more}"))  # type: ignore[arg-type]
        for group in read_progress(Path(self._sweep)):
            words = f"{counted(group.jobs, 'job')} fused, at step {group.step} of {group.max_steps}"
            lines.append(Text(words))  # type: ignore[arg-type]
        return Group(*lines)


def _name(folder: Path) -> str:
    record = Record.read(folder)
    if record is None:
        return folder.name
    return clean(f"{folder.name} ({record.configuration.get('policy_name')}, seed {record.configuration.get('seed')})")
