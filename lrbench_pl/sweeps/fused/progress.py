"""Progress of the groups of a fused sweep, for its view. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = ".fused"
_FILE = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a group is.

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
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = folder / f".{_FILE}"
            unfinished.write_text(json.dumps(asdict(self)), encoding="utf-8")
            os.replace(unfinished, folder / _FILE)


def read_progress(sweep: Path) -> list[Progress]:
    """Read the progress of the groups of a sweep.

    Args:
        sweep: Folder of the sweep.
    """
    found = []
    for path in sorted((sweep / FOLDER).glob(f"*/{_FILE}")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Progress(**json.loads(path.read_text(encoding="utf-8"))))
    return found


def clear_progress(sweep: Path) -> None:
    """Remove what processes that are gone have left; no group may be running."""
    folder = sweep / FOLDER
    for path in folder.glob(f"*/*{_FILE}"):
        with contextlib.suppress(OSError):
            path.unlink()
    for path in (*folder.glob("*"), folder):
        with contextlib.suppress(OSError):
            path.rmdir()  # if nothing else is in it
