"""Progress of the groups of a fused sweep, for its view. Imports no torch."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lrbench_pl.files import remove_temporary, write_atomically
from lrbench_pl.reading import read_json

FOLDER = ".fused"
_FILE = "progress.json"


@dataclass(frozen=True)
class Progress:
    """Progress of one group.

    Args:
        jobs: Jobs that still train.
        step: Steps taken.
        max_steps: The budget.
        seconds: Seconds since its start.
    """

    jobs: int
    step: int
    max_steps: int
    seconds: float

    @property
    def seconds_left(self) -> float:
        """Seconds to the end of the budget, at the speed so far.

        Example:
            >>> Progress(jobs=8, step=250, max_steps=1000, seconds=10.0).seconds_left
            30.0
        """
        return self.seconds / self.step * (self.max_steps - self.step) if self.step else 0.0

    def write(self, folder: Path) -> None:
        """Write it into the folder of the group; a failure does not matter."""
        with contextlib.suppress(OSError):
            write_atomically(folder / _FILE, json.dumps(asdict(self)))


def read_progress(sweep: Path) -> list[Progress]:
    """Read the progress of the groups of a sweep.

    Args:
        sweep: Folder of the sweep.
    """
    found = []
    for path in sorted((sweep / FOLDER).glob(f"*/{_FILE}")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Progress(**read_json(path)))
    return found


def clear_progress(sweep: Path) -> None:
    """Remove what processes that are gone have left; no group may be running."""
    folder = sweep / FOLDER
    for group in folder.glob("*"):
        with contextlib.suppress(OSError):
            (group / _FILE).unlink(missing_ok=True)
            remove_temporary(group)
            group.rmdir()  # if nothing else is in it
    with contextlib.suppress(OSError):
        folder.rmdir()
