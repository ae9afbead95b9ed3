"""Programs of this project in processes forked from one that has everything imported, since imports take seconds.

A forked process does what ``python run.py …`` does in one of its own: it has the folder, environment, output and
session that it is given, and its threads, ``atexit`` functions and exit code. The Python programs that it starts, such
as the workers of a sweep, are forked in the same way, from a process that knows nothing of the program. What depends on
how Python itself starts (locale, home, ``PYTHONPATH``), or on what it does with its objects at the end, is not shown.
"""

from __future__ import annotations

import _posixsubprocess
import atexit
import contextlib
import ctypes
import fcntl
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
import termios
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
_IMPORTED = (
    *("lrbench_pl.cli", "lrbench_pl.cli.run", "lrbench_pl.sweeps.launch"),
    *("lrbench_pl.workloads.data", "lrbench_pl.workloads.models", "lrbench_pl.workloads.classifier"),
    *("lrbench_pl.selection.sweeper", "sklearn.datasets", "pytorch_lightning.loggers", "torch._dynamo"),
    *("scipy.stats", "plotly.graph_objects", "sqlalchemy"),  # polars has threads, which a fork would lose
    *("loky.process_executor", "lrbench_pl.sweeps.fused.session"),
)
_FILES = 400  # more than a program has open
_CHILD_SUBREAPER = 36  # of prctl: a process whose parent has ended becomes a child of this one


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
    args: Sequence[Any],
    folder: Path,
    environment: Mapping[str, str],
    out: Any = None,
    err: Any = None,
    terminal: int | None = None,
) -> Process:
    """Start a program.

    Args:
        args: The command, beginning with ``sys.executable`` and a script or ``-m`` and a module.
        folder: Its working directory.
        environment: Its whole environment.
        out: Where its output goes, an open file; None for nowhere.
        err: Where its errors go; None for where the output goes.
        terminal: A terminal that becomes its own, in place of both.
    """
    words = [str(word) for word in args]
    assert words[0] == sys.executable, words
    reading, writing = os.pipe()
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        to = nowhere if out is None else out.fileno()
        order = {"words": words[1:], "folder": str(folder), "environment": dict(environment)}
        order["terminal"] = terminal is not None
        standard = [nowhere, to, to if err is None else err.fileno()] if terminal is None else [terminal] * 3
        socket.send_fds(_server(), [json.dumps(order).encode()], [*standard, writing])
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
    if order["terminal"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    _enter(order)
    return list(order["words"])


def _enter(order: Mapping[str, Any]) -> None:
    """Let this process be that of a program, which does not know from which it was forked."""
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    os.chdir(order["folder"])
    random.seed()
    from lightning_fabric.utilities.rank_zero import _get_rank
    from lightning_utilities.core.rank_zero import rank_zero_only

    rank_zero_only.rank = _get_rank() or 0  # which Lightning reads when it is imported


def _run(words: Sequence[str]) -> int:
    """Run a program; return its exit code."""
    try:
        _program(words)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except Exception:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(code: int) -> None:
    """End as an interpreter does, but leave its objects to the system: to free them takes longer than most programs."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            file.flush()
    os._exit(code & 0xFF)


def _program(words: Sequence[str]) -> None:
    """Do what ``python WORDS`` does."""
    warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)  # of what is imported
    if words[0] == "-m":
        sys.argv, sys.path[0] = list(words[1:]), os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = list(words), str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


# -- in a program: the Python programs that it starts ------------------------------------------------------------


def _fork_children() -> Sequence[str] | None:
    """Let the Python programs that this one starts be forked from a copy of it as it is now.

    Returns:
        In such a program the words of its command; None in this process.
    """
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1)
    parent = os.getpid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        return _fork_for(parent, theirs)
    theirs.close()
    lock, start = threading.Lock(), _posixsubprocess.fork_exec

    def fork_exec(args: Any, executables: Any, close: Any, kept: Any, folder: Any, environment: Any, *more: Any) -> int:
        words = [os.fsdecode(word) for word in args]
        words[1:2] = words[1:2] if words[1:2] != ["-u"] else []
        is_script = len(words) > 1 and (words[1] == "-m" or not words[1].startswith("-"))
        if words[0] != sys.executable or not is_script or more[15] is not None:  # a function to call before
            return start(args, executables, close, kept, folder, environment, *more)
        pairs = None if environment is None else [os.fsdecode(pair).split("=", 1) for pair in environment]
        kept = [int(handle) for handle in kept if handle != more[7]]  # where a failure to execute would be told
        standard = [given if given != -1 else number for number, given in enumerate((more[0], more[3], more[5]))]
        order = {
            "words": words[1:],
            "folder": os.getcwd() if folder is None else os.fsdecode(folder),
            "environment": dict(os.environ if pairs is None else pairs),
            "session": bool(more[9]),
            "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
            "numbers": [0, 1, 2, *kept],
        }
        with lock:
            socket.send_fds(ours, [json.dumps(order).encode()], [*standard, *kept])
            return int(ours.recv(100))

    _posixsubprocess.fork_exec = subprocess._fork_exec = fork_exec
    return None


def _fork_for(parent: int, orders: socket.socket) -> Sequence[str]:
    """Fork a child of the parent for each of its orders, and end with it; return the words of its command there."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # of a terminal, until a child is the program
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    os.closerange(3, orders.fileno())  # whoever reads what the program writes would wait for this process too
    os.closerange(orders.fileno() + 1, _FILES)
    while True:
        message, handles, _, _ = socket.recv_fds(orders, 1 << 20, 250)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            between = os.getpid()
            if os.fork():
                os._exit(0)  # and its child becomes one of the parent
            break
        for handle in handles:
            os.close(handle)
    while os.getppid() == between:
        time.sleep(0.001)
    if os.getppid() != parent:  # which was killed meanwhile
        os._exit(0)
    orders.send(str(os.getpid()).encode())
    orders.close()
    order = json.loads(message)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    high = [fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, _FILES) for handle in handles]
    os.closerange(0, _FILES)
    for number, handle in zip(order["numbers"], high, strict=True):
        os.dup2(handle, number)
        os.close(handle)
    if order["session"]:
        os.setsid()
    time.sleep(0.2)  # submitit makes the folder of a job while its interpreter starts
    _enter(order)
    words = _fork_children()
    if words is None:
        words = list(order["words"])
        signal.pthread_sigmask(signal.SIG_SETMASK, order["blocked"])
    return words


if __name__ == "__main__":
    _import_all()
    _words = _serve(socket.socket(fileno=int(sys.argv[1])))
    if _words is not None:
        _end(_run(_fork_children() or _words))
