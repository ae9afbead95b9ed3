"""Sweeps as a user starts them, killed and started again. Whatever hangs is ended after a time.

All but Ray's processes are forked from one that has everything imported.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import forks

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("seconds_to_target", "wall_time_s")
LIMIT_S = 600
LONG = ("max_steps=600", "check_every=100", "checkpoint_every=50", "target=null")
Process = forks.Process | subprocess.Popen[bytes]
# Ray runs its workers at niceness 15, so that beside other tests they would get nothing done
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}


def needs(package: str) -> None:
    """Skip a test of what is not installed."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def command(folder: Path, launcher: str, *overrides: str) -> list[str]:
    sweep = ["-m", "trainer=cpu", f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder}", *overrides]
    return [sys.executable, str(ROOT / "run.py"), *sweep]


def sweep(
    folder: Path, launcher: str, *overrides: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a sweep to its end."""
    words = command(folder, launcher, *overrides)
    if launcher != "ray" and environment is None:
        return forks.run(words, folder.parent, ENVIRONMENT, LIMIT_S)
    return subprocess.run(
        words,
        cwd=folder.parent,
        env={**ENVIRONMENT, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def start(folder: Path, launcher: str, *overrides: str, output: Path | None = None) -> Process:
    """Start a sweep in a process group of its own, with its output in a file or nowhere."""
    words = command(folder, launcher, *overrides)
    with open(output or os.devnull, "w") as file:
        if launcher != "ray":
            return forks.start(words, folder.parent, ENVIRONMENT, file)
        return subprocess.Popen(
            words, cwd=folder.parent, env=ENVIRONMENT, stdout=file, stderr=file, start_new_session=True
        )


class Terminal:
    """A sweep on a terminal of its own, where a user can press Ctrl-C."""

    # a suite that runs in the background of a script was told to ignore Ctrl-C; whoever sits at a terminal was not
    TAKEN = (
        "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )

    def __init__(self, folder: Path, launcher: str, *overrides: str) -> None:
        self._mark = f"SWEEP_ON_TERMINAL={folder}"
        self._keyboard, screen = os.openpty()
        words = command(folder, launcher, *overrides)
        environment = {**ENVIRONMENT, **dict([self._mark.split("=", 1)]), "TERM": "xterm"}
        self.process: Process
        if launcher == "ray":
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.TAKEN, *words],
                cwd=folder.parent,
                env=environment,
                stdin=screen,
                stdout=screen,
                stderr=screen,
                start_new_session=True,
            )
        else:
            self.process = forks.start(words, folder.parent, environment, terminal=screen)
        os.close(screen)
        self._shown = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # all who held the other end have gone
            while data := os.read(self._keyboard, 65536):
                self._shown += data

    def ctrl_c(self) -> None:
        """Interrupt every process of the foreground."""
        os.write(self._keyboard, b"\x03")

    def text(self) -> str:
        """What was printed, to its end."""
        self._reader.join(timeout=30)
        return self._shown.decode(errors="replace")

    def interrupted(self) -> str:
        """Press Ctrl-C, wait until everything has ended with code 130, and return what was printed."""
        self.ctrl_c()
        assert self.process.wait(timeout=300) == 130, self.text()
        assert wait_for(lambda: not self.living(), limit_s=60), self.living()
        text = self.text()
        assert "Traceback" not in text
        return text

    def living(self) -> list[str]:
        """The command lines of the sweep and of everything it started."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, _, _, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
                marked = self._mark.encode() in (path / "environ").read_bytes().split(b"\0")
                if state != "Z" and (marked or int(session) == self.process.pid):
                    found.append((path / "cmdline").read_text().replace("\0", " "))
        return found

    def close(self) -> None:
        """Leave nothing behind."""
        end(self.process)
        self._reader.join(timeout=30)
        os.close(self._keyboard)


def group(number: int) -> list[str]:
    """The command lines of the living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, its_group = (path / "stat").read_text().rpartition(")")[2].split()[:3]
            if state != "Z" and int(its_group) == number:
                found.append((path / "cmdline").read_text().replace("\0", " "))
    return found


def records(folder: Path) -> list[dict[str, Any]]:
    return [record for path in folder.glob("*/run.json") if (record := _json(path))]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in folder.glob("*/result.json") if (row := _json(path))]


def numbers(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every row without its times, in an order of their own."""
    kept = [{name: value for name, value in row.items() if name not in TIMES} for row in rows(folder)]
    return sorted((str(row["run_id"]), row) for row in kept)


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def wait_for(condition: Any, limit_s: float = 300.0) -> bool:
    """Look every twentieth of a second."""
    deadline = time.monotonic() + limit_s
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(met)


def kill_in_the_middle(
    process: Process, folder: Path, how: str, chance: random.Random, after: str = "*/run.json"
) -> None:
    """Kill a sweep at a random moment after one of its jobs has written a file: the parent, a worker first, or all."""
    begun = time.time()
    wait_for(lambda: process.poll() is not None or any(_mtime(path) > begun for path in folder.glob(after)))
    time.sleep(chance.uniform(0.1, 1.2))
    if how == "worker":
        fresh = [path for path in folder.glob("*/run.json") if _mtime(path) > begun]
        pids = {int(record["pid"]) for path in fresh if (record := _json(path))} - {process.pid}
        if pids:
            _kill(chance.choice(sorted(pids)))
            time.sleep(chance.uniform(0.1, 0.5))
    if how == "all":
        _kill_group(process)
    process.kill()
    process.wait(timeout=30)


def end(process: Process) -> None:
    """Leave nothing behind."""
    _kill_group(process)
    process.wait(timeout=30)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _kill_group(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
