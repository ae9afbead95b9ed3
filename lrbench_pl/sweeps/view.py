"""How far a sweep is: one live view on a terminal, a line per finished job elsewhere. Reads the folders alone."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
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
from lrbench_pl.words import counted, is_accuracy, metric_name, metric_value

_LOOKS_EVERY_S = 1.0
_SHOWN_RUNNING = 8


@dataclass
class Glance:
    """The jobs of a sweep at one moment.

    Args:
        states: Of each folder.
        rows: Of those that have one.
    """

    states: dict[Path, State] = field(default_factory=dict)
    rows: dict[Path, RunResult] = field(default_factory=dict)

    def count(self, *states: State) -> int:
        """Jobs in one of these states."""
        counted = Counter(self.states.values())
        return sum(counted[state] for state in states)

    @property
    def ended(self) -> int:
        """Jobs with a row."""
        return self.count("finished", "failed", "stopped")

    def best(self, mode: str = "max") -> RunResult | None:
        """The row with the best value of the monitor."""
        checked = [row for row in self.rows.values() if row.best_value is not None]
        choose = max if mode == "max" else min
        return choose(checked, key=lambda row: row.best_value or 0.0, default=None)


def look(folders: Sequence[Path], known: Glance | None = None) -> Glance:
    """Read the folders; those whose row is known and finished are not read again."""
    seen = Glance()
    for folder in folders:
        if known is not None and known.states.get(folder) == "finished":
            seen.states[folder], seen.rows[folder] = "finished", known.rows[folder]
            continue
        seen.states[folder] = state_of(folder)
        row = read_result(folder)
        if row is not None:
            seen.rows[folder] = row
    return seen


def in_words(seconds: float) -> str:
    """A duration for a person.

    Example:
        >>> in_words(8.2), in_words(75), in_words(7500)
        ('8 s', '1 min 15 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class SweepView:
    """Shows a sweep while the block runs, and sums it up after it.

    Args:
        folders: Of its jobs.
        sweep: The folder of the sweep, to be named.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        console: Where to show it; standard output by default.
    """

    def __init__(
        self, folders: Sequence[Path], sweep: str | Path, mode: str = "max", console: Console | None = None
    ) -> None:
        self._folders, self._sweep, self._mode = list(folders), sweep, mode
        # in a file a line stays one line
        self._console = console or Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty(), highlight=False)
        self._began = self._last = time.monotonic()  # the start, and the end of the last job
        self._glance = look(self._folders)
        self._before = self._glance.count("finished")  # of an earlier start
        self._told: set[Path] = {folder for folder, state in self._glance.states.items() if state == "finished"}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._live: Live | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> SweepView:
        """Begin to show."""
        begun = self._glance.count("begun", "stopped", "failed")
        words = f"{counted(len(self._folders), 'job')} in {self._sweep}"
        if self._before or begun:
            words += f": {self._before} finished before, {begun} begun"
        self._say(words)
        if self._console.is_terminal and not self._console.is_dumb_terminal:  # which cannot go back over a line
            self._live = Live(self._drawn(), console=self._console, auto_refresh=False, transient=True)
            self._live.start()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Sum up."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self._live is not None:
            self._live.stop()
        if error is None:
            counts = Counter(row.status for row in self._glance.rows.values())
            shown = ", ".join(f"{number} {status}" for status, number in counts.most_common())
            self._say(f"{counted(len(self._folders), 'job')}: {shown}; {in_words(time.monotonic() - self._began)}")

    def ended(self, folder: Path, row: RunResult) -> None:
        """A job has ended: tell of it."""
        with self._lock:
            self._glance.states[folder] = state_of(folder)
            self._glance.rows[folder] = row
            if folder in self._told:
                return
            self._told.add(folder)
            self._last = time.monotonic()
            self._refresh()  # first, since each line draws the view again
            record = Record.read(folder)
            for line in record.notes if record else ():
                self._say(f"{folder.name}: {line}")
            left = self._time_left()
            after = f" ({left} left)" if left else ""
            self._say(f"{len(self._told)} of {len(self._folders)}: {headline(row, with_seed=True)}{after}")

    def interrupted(self) -> None:
        """The sweep ends before its jobs."""
        with self._lock:
            self._glance = look(self._folders, self._glance)
        stopped = self._glance.count("stopped")
        self._say(
            f"interrupted with {self._glance.count('finished')} of {counted(len(self._folders), 'job')} finished"
            f"{f' and {stopped} stopped' if stopped else ''}; the same command goes on from here"
        )

    def _time_left(self) -> str:
        """As long as the jobs so far took for each that is left, less what has gone by since the last of them."""
        done = len(self._told) - self._before
        rest = len(self._folders) - len(self._told)
        if not done or not rest:
            return ""
        left = (self._last - self._began) / done * rest - (time.monotonic() - self._last)
        return in_words(left) if left > 0 else ""

    def _say(self, words: str) -> None:
        self._console.print(Text(words))
        self._console.file.flush()

    def _watch(self) -> None:
        while not self._over.wait(_LOOKS_EVERY_S):
            with self._lock:
                self._glance = look(self._folders, self._glance)
                self._refresh()

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._drawn(), refresh=True)

    def _drawn(self) -> Group:
        seen, total = self._glance, len(self._folders)
        bar = Table.grid(padding=(0, 1))
        counts = f"{seen.count('finished')} of {total} done, {seen.count('running')} running"
        for state in ("failed", "stopped"):
            if number := seen.count(state):
                counts += f", {number} {state}"
        left = self._time_left()
        bar.add_row(ProgressBar(total=total, completed=seen.ended, width=20), counts, f"{left} left" if left else "")
        lines = [bar]
        best = seen.best(self._mode)
        if best is not None:
            monitor = best.monitor or "val/accuracy"
            value = metric_value(monitor, best.best_value or 0.0)
            metric = "" if is_accuracy(monitor) else f"{metric_name(monitor)} "
            words = f"best so far: {metric}{value} at step {best.best_step} by {label(best)}"
            lines.append(Text(words))  # type: ignore[arg-type]
        running = [folder for folder, state in seen.states.items() if state == "running"]
        shown = ", ".join(_name(folder) for folder in running[:_SHOWN_RUNNING])
        more = f" and {len(running) - _SHOWN_RUNNING} more" if len(running) > _SHOWN_RUNNING else ""
        if shown:
            lines.append(Text(f"running: {shown}{more}"))  # type: ignore[arg-type]
        return Group(*lines)


def _name(folder: Path) -> str:
    record = Record.read(folder)
    if record is None:
        return folder.name
    said = record.configuration
    return f"{folder.name} ({said.get('names', {}).get('policy')}, seed {said.get('seed')})"
