"""``lrbench report --watch``: rewrite the report while a sweep runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from lrbench_pl.analysis.load import AnalysisError
from lrbench_pl.analysis.web_page import Live
from lrbench_pl.runs.folder import RECORD_FILE
from lrbench_pl.runs.result import RESULT_FILE
from lrbench_pl.sweeps.reservations import running_sweeps
from lrbench_pl.sweeps.view import SweepState, read_sweep
from lrbench_pl.words import clean, counted

_LEAST_S = 0.1
_CHECKS_TO_END = 2  # between two batches of a selection nothing runs for a moment

# Writes the page: a live one, or an ordinary one for None. Returns the number of runs in it.
Write = Callable[[Live | None], int]


@dataclass
class Progress:
    """The progress of the sweeps below some folders.

    Args:
        folders: The folders.
        state: States of the runs.
        planned: Folders of all runs, those that have not started included.
        is_running: Whether a sweep or a run is running.
    """

    folders: Sequence[Path]
    state: SweepState = field(default_factory=SweepState)
    planned: set[Path] = field(default_factory=set)
    is_running: bool = False

    def update(self) -> None:
        """Read the folders again; results that are final are not read twice."""
        found = dict.fromkeys(path for folder in self.folders for path in _walk(folder.resolve()))
        reserved = {path for sweep, _ in found for path in running_sweeps(sweep)}
        started = [path for path, is_run in found if is_run]
        self.planned |= {*started, *reserved}
        self.state = read_sweep(started, self.state)
        self.is_running = bool(reserved) or self.state.count("running") > 0

    @property
    def has_started(self) -> bool:
        """Whether there is any run."""
        return bool(self.state.states)

    def __str__(self) -> str:
        """Return the progress in a few words."""
        words = f"{self.state.ended} of {counted(len(self.planned), 'run')} finished"
        problems = ((name, self.state.count(name)) for name in ("failed", "stopped"))
        return ", ".join([words, *(f"{number} {name}" for name, number in problems if number)])


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield every folder below a folder, and whether it is that of a run."""
    for path, folders, files in os.walk(folder):
        yield Path(path), RECORD_FILE in files or RESULT_FILE in files
        folders[:] = [name for name in folders if not name.startswith(".")]


def watch(folders: Sequence[Path], write: Write, output: Path, every: float) -> None:
    """Rewrite a page whenever runs have ended, until no sweep is running any more.

    The last page is an ordinary one. Before the first result it waits, also for the folder itself.

    Args:
        folders: Folders of sweeps or runs.
        write: Writes the page.
        output: The page, for messages.
        every: Seconds between two looks at the folders.

    Raises:
        ValueError: If ``every`` is out of range.
        AnalysisError: If the runs cannot be analysed as requested, once they have ended.
        SystemExit: With code 130, after Ctrl-C.
    """
    if not every >= _LEAST_S:
        raise ValueError(f"--every must be at least {_LEAST_S:g} seconds, got {every:g}")
    progress, ended, shown = Progress(folders), 0, ""
    try:
        while ended < _CHECKS_TO_END:
            progress.update()
            if (words := str(progress)) != shown or not shown:
                shown = words
                _rewrite(write, progress, every)
            ended = 0 if progress.is_running or not progress.has_started else ended + 1
            if ended < _CHECKS_TO_END:
                time.sleep(every)
    except KeyboardInterrupt:
        if progress.state.results:
            _finish(write, output)
        sys.exit(130)
    _finish(write, output)


def _rewrite(write: Write, progress: Progress, every: float) -> None:
    now = datetime.now()
    live = Live(str(time.time_ns()), every, f"updated {now:%H:%M:%S}, {progress}")
    try:
        write(live)
    except AnalysisError as error:  # no result yet, or none of the baseline
        print(f"waiting: {clean(' '.join(str(error).split()))}", flush=True)
        return
    print(f"{now:%H:%M:%S}: {progress}", flush=True)


def _finish(write: Write, output: Path) -> None:
    print(f"{counted(write(None), 'run')} in {output}", flush=True)
