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
        is_over: Whether there are runs, and none will follow. Unknown, and so false, if other programs than
            ``lrbench run`` have written any, since these hold no locks.
    """

    folders: Sequence[Path]
    state: SweepState = field(default_factory=SweepState)
    planned: set[Path] = field(default_factory=set)
    is_over: bool = False

    def update(self) -> None:
        """Read the folders again; results that are final are not read twice."""
        found = {path: files for folder in self.folders for path, files in _walk(folder.resolve())}
        reserved = {path for sweep in found for path in running_sweeps(sweep)}
        started = [path for path, files in found.items() if files]
        self.planned |= {*started, *reserved}
        self.state = read_sweep(started, self.state)
        is_known = bool(started) and all(RECORD_FILE in found[path] for path in started)
        self.is_over = is_known and not reserved and not self.state.count("running")

    def __str__(self) -> str:
        """Return the progress in a few words."""
        words = f"{self.state.ended} of {counted(len(self.planned), 'run')} finished"
        problems = ((name, self.state.count(name)) for name in ("failed", "stopped"))
        return ", ".join([words, *(f"{number} {name}" for name, number in problems if number)])


def _walk(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """Yield every folder below a folder, with the files in it that only runs have."""
    for path, folders, files in os.walk(folder):
        yield Path(path), {RECORD_FILE, RESULT_FILE}.intersection(files)
        folders[:] = [name for name in folders if not name.startswith(".")]


def watch(folders: Sequence[Path], write: Write, output: Path, every: float) -> None:
    """Rewrite a page whenever runs have ended, until no sweep is running any more or Ctrl-C is pressed.

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
            ended = ended + 1 if progress.is_over else 0
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
