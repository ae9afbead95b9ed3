"""Programs of this project in processes forked from one that has everything imported, since imports take seconds.

A forked process does what ``python run.py …`` does in one of its own: it has the folder, environment, output and
session that it is given, and ends as an interpreter ends. What depends on how Python itself starts (locale, home,
``PYTHONPATH``) is not shown by it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
_IMPORTED = (
    *("lrbench_pl.cli", "lrbench_pl.cli.run", "lrbench_pl.sweeps.launch"),
    *("lrbench_pl.workloads.data", "lrbench_pl.workloads.models", "lrbench_pl.workloads.classifier"),
    *("lrbench_pl.selection.sweeper", "sklearn.datasets", "pytorch_lightning.loggers", "torch._dynamo"),
    *("scipy.stats", "plotly.graph_objects", "sqlalchemy"),  # polars has threads, which a fork would lose
)


class Process:
    """A forked program in a session of its own; used as :class:`subprocess.Popen` is."""

    def __init__(self, args: Sequence[str], status: int) -> None:
        self.args = args
        self.returncode: int | None = None
        self._status: IO[str] = open(status, encoding="ascii")  # noqa: SIM115 - closed when the process has ended
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process lives."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process.

        Raises:
            subprocess.TimeoutExpired: If it lives longer.
        """
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = code = int(self._status.readline())
            self._status.close()
            return code
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process if it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process, not what it has started."""
        self.send_signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """Kill the process and what it has started, and wait."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.kill()
        self.wait(30)


def start(
    args: Sequence[Any], folder: Path, environment: Mapping[str, str], out: Any = None, err: Any = None
) -> Process:
    """Start a program.

    Args:
        args: The command, beginning with ``sys.executable`` and a script or ``-m`` and a module.
        folder: Its working directory.
        environment: Its whole environment.
        out: Where its output goes, an open file; None for nowhere.
        err: Where its errors go; None for where the output goes.
    """
    words = [str(word) for word in args]
    assert words[0] == sys.executable, words
    reading, writing = os.pipe()
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        to = nowhere if out is None else out.fileno()
        order = {"words": words[1:], "folder": str(folder), "environment": dict(environment)}
        socket.send_fds(
            _server(), [json.dumps(order).encode()], [nowhere, to, to if err is None else err.fileno(), writing]
        )
    finally:
        os.close(nowhere)
        os.close(writing)
    return Process(words, reading)


def run(
    args: Sequence[Any], folder: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with its output as text; kill it if it takes longer.

    Raises:
        subprocess.TimeoutExpired: If it took longer.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(args, folder, environment, out, err)
        try:
            process.wait(timeout)
        except BaseException:
            process.kill_group()
            raise
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return subprocess.CompletedProcess(process.args, process.returncode or 0, *texts)


@functools.cache
def _server() -> socket.socket:
    """Start the process from which all others of this one are forked; it ends when this one does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with theirs:
        handle = theirs.fileno()
        server = subprocess.Popen(
            [sys.executable, __file__, str(handle)], env=environment, pass_fds=[handle], start_new_session=True
        )

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours


# -- in the process from which others are forked -----------------------------------------------------------------


def _import_all() -> None:
    from lrbench_pl.runs.imports import import_run

    import_run()
    for module in _IMPORTED:
        importlib.import_module(module)
    gc.freeze()


def _serve(orders: socket.socket) -> Sequence[str] | None:
    """Fork a process for each order; return the words of its command in that process, None at the end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who wait for the programs are not waited for
    while True:
        message, handles, _, _ = socket.recv_fds(orders, 1 << 20, 4)
        if not message:
            return None
        if os.fork() == 0:
            orders.close()
            return _forked(json.loads(message), handles)
        for handle in handles:
            os.close(handle)


def _forked(order: dict[str, Any], handles: Sequence[int]) -> Sequence[str]:
    """Fork once more: the one waits and tells how the other, which returns from here, has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status = handles[3]
    pid = os.fork()
    if pid:
        for handle in handles[:3]:
            os.close(handle)
        os.write(status, f"{pid}\n".encode())
        _, ended = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):
            os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
        os._exit(0)
    os.setsid()
    for number, handle in enumerate(handles[:3]):
        os.dup2(handle, number)
    for handle in handles:
        os.close(handle)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    random.seed()
    return list(order["words"])


def _program(words: Sequence[str]) -> None:
    """Do what ``python WORDS`` does."""
    if words[0] == "-m":
        sys.argv, sys.path[0] = list(words[1:]), os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = list(words), str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _import_all()
    _words = _serve(socket.socket(fileno=int(sys.argv[1])))
    if _words is not None:
        _program(_words)
