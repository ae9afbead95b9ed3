"""Checkpoints of a group of jobs, in the folder of the sweep. The records are read without torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from lrbench_pl.files import FORMAT, check_format, replacing, version, write_atomically
from lrbench_pl.reading import read_json
from lrbench_pl.sweeps.fused.progress import FOLDER

_RECORD = "jobs.json"
_NAME = re.compile(r"step=(\d+)\.ckpt")

log = logging.getLogger(__name__)


class GroupFolder:
    """The checkpoints of one group.

    Args:
        path: Folder of the group, below ``.fused`` in the folder of the sweep.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, sweep: Path, jobs: Iterable[str]) -> GroupFolder:
        """Return the folder of a group.

        Args:
            sweep: Folder of the sweep.
            jobs: The ``run_id`` of each job.
        """
        name = hashlib.sha256(" ".join(sorted(jobs)).encode()).hexdigest()[:12]
        return cls(sweep / FOLDER / name)

    @property
    def jobs(self) -> frozenset[str]:
        """The ``run_id`` of every job of the group; empty if the folder cannot be read."""
        try:
            stored = read_json(self.path / _RECORD)
            check_format(stored.get("format"), stored.get("version"))
            return frozenset(map(str, stored["jobs"]))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return frozenset()

    @property
    def steps(self) -> list[int]:
        """The steps of its checkpoints, the latest first."""
        with contextlib.suppress(OSError):
            found = (_NAME.fullmatch(path.name) for path in self.path.iterdir())
            return sorted((int(match[1]) for match in found if match), reverse=True)
        return []

    def file(self, step: int) -> Path:
        """Return the file of a checkpoint."""
        return self.path / f"step={step:09d}.ckpt"

    def save(self, step: int, jobs: Collection[str], state: Mapping[str, Any]) -> None:
        """Write a checkpoint atomically and remove earlier ones; a failure is a warning.

        Args:
            step: Steps taken.
            jobs: The ``run_id`` of each job of the group.
            state: Tensors, numbers, text, and lists and mappings of these.
        """
        import torch

        try:
            if self.jobs != frozenset(jobs):
                record = {"format": FORMAT, "version": version(), "jobs": sorted(jobs)}
                write_atomically(self.path / _RECORD, json.dumps(record) + "\n")
            with replacing(self.file(step)) as file:
                torch.save({"format": FORMAT, "version": version(), **state}, file)
            for earlier in self.steps:
                if earlier != step:
                    self.file(earlier).unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
            log.warning("no checkpoint at step %d (%s); the group continues without it", step, error)

    def load(self) -> dict[str, Any] | None:
        """Load the latest checkpoint that can be read, onto the CPU; None if there is none.

        Raises:
            ResultError: If it was written by a later version.
        """
        import torch

        from lrbench_pl.callbacks.checkpoints import CheckpointError, check_intact

        for step in self.steps:
            path = self.file(step)
            try:
                check_intact(path)
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except (CheckpointError, OSError, RuntimeError, ValueError, EOFError) as error:
                log.warning("cannot resume from %s: %s", path, " ".join(str(error).split()))
                continue
            check_format(state.get("format"), state.get("version"))
            return state
        return None

    def discard(self) -> None:
        """Remove the folder, and that of all groups once it is empty."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()


def group_folders(sweep: Path) -> list[GroupFolder]:
    """Return the folders of the groups of a sweep that have a checkpoint, the most advanced first."""
    folders = [GroupFolder(path) for path in sorted((sweep / FOLDER).glob("*"))]
    return sorted((folder for folder in folders if folder.steps), key=lambda folder: -folder.steps[0])
