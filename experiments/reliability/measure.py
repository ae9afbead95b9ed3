"""Kill runs, sweeps, selections and databases thousands of times, and compare what they end with.

    python experiments/reliability/measure.py [--hours 1.0] [--only run,auto] [--seed 0] [--missing-first] [-o FILE]

Each trial acts in a folder of its own, is struck once, acts again undisturbed, and is compared with what was never
struck. It prints nothing for a trial that ends equal. Trials are appended to the table, so that the study can be run in
pieces; the same trial is not repeated. With ``--missing-first`` the operations that no trial in the table has struck
come first, before any moment. Needs Linux and a C compiler.

How a trial is struck:

``write``   SIGKILL at the N-th operation that changes a file: a write (half of it is done), an open that creates, a
            rename, a removal, a truncation, an fsync; N goes through all of them
``time``    SIGKILL at a moment that is uniform in the CPU time of the undisturbed act, whatever else the machine does
``ENOSPC``  from the N-th operation on, nothing can be written
``EIO``     the N-th operation fails
``two``     two processes act at the same moment, and one of them is killed at such a moment
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import errno
import gc
import json
import mmap
import os
import random
import select
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT_S = 120.0  # an act that takes longer is counted as one that hangs
TIMES = ("seconds_to_target", "wall_time_s", "message")


@dataclass(frozen=True)
class Trial:
    """One trial; the counts are of results, or of rows of a database.

    Args:
        act: What was struck.
        strike: How.
        at: The number of the operation, or the moment in milliseconds of CPU time.
        seed: Seed of a moment.
        struck: Whether the act was still going on.
        ended: How the struck act ended: ``killed``, ``refused`` with an error, or ``whole``.
        lost: Results that are missing at the end.
        doubled: Results that are there twice.
        unequal: Results that differ from the undisturbed ones.
        histories: Histories, policies and records of segments that are missing or differ.
        left: Temporary files and checkpoints that are left at the end.
        silent: Acts that ended as if whole, without having done it.
        repeated: Batches that were trained again.
        whole: Batches of the undisturbed act.
    """

    act: str
    strike: str
    at: int
    seed: int
    struck: int
    ended: str
    lost: int
    doubled: int
    unequal: int
    histories: int
    left: int
    silent: int
    repeated: int
    whole: int


@dataclass(frozen=True)
class End:
    """The end of an act in a process of its own; the seconds are those of CPU time."""

    code: int
    operations: int
    seconds: float


@dataclass(frozen=True)
class Act:
    """An act that is struck.

    Args:
        name: Its name in the table.
        prepare: Fills the folder before.
        do: Acts in the folder; also the second time.
        results: Reads its results in the end, by name: what may not be lost, doubled or unequal.
        files: Reads histories and the like.
        full: Whether its every write also fails without space and by EIO.
    """

    name: str
    prepare: Callable[[Path], None]
    do: Callable[[Path], None]
    results: Callable[[Path], dict[str, list[Any]]]
    files: Callable[[Path], dict[str, Any]]
    full: bool = False


# -- processes ---------------------------------------------------------------------------------------------------

_batches = mmap.mmap(-1, 8)  # trained by all processes


def batches() -> int:
    """Return the batches that were trained so far."""
    return int(struct.unpack("q", _batches[:8])[0])


def count_batches() -> None:
    """Count the batches that are trained in this process and its children."""
    from lrbench_pl.workloads.classifier import Classifier

    step: Any = Classifier.training_step

    def training_step(self: Any, *arguments: Any) -> Any:
        _batches[:8] = struct.pack("q", batches() + 1)
        return step(self, *arguments)

    Classifier.training_step = training_step  # type: ignore[method-assign]


class Process:
    """A forked process that acts in a folder."""

    def __init__(
        self,
        do: Callable[[Path], None],
        folder: Path,
        at: int = 0,
        code: int = 0,
        lasting: int = 0,
        killed_after: int | None = None,
    ) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            if killed_after is not None:
                assert ctypes.CDLL(None).fault_kill_after(ctypes.c_long(killed_after * 1_000_000)) == 0
            os._exit(_act(do, folder, writing, at, code, lasting))
        os.close(writing)
        self._reading = reading

    def end(self) -> End:
        """Wait for its end; kill it if it takes too long."""
        if not select.select([self._reading], [], [], LIMIT_S)[0]:
            os.kill(self.pid, signal.SIGKILL)
        told = os.read(self._reading, 100)
        os.close(self._reading)
        _, status, used = os.wait4(self.pid, 0)
        operations = int(told) if told else 0
        return End(os.waitstatus_to_exitcode(status), operations, used.ru_utime + used.ru_stime)


def _act(do: Callable[[Path], None], folder: Path, told: int, at: int, code: int, lasting: int) -> int:
    with open(os.environ.get("RELIABILITY_LOG", os.devnull), "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(folder.parent)
    library = ctypes.CDLL(None)
    library.fault_arm(str(folder).encode(), ctypes.c_long(at), code, lasting)
    exit_code = 0
    try:
        do(folder)
    except SystemExit as error:
        exit_code = error.code if isinstance(error.code, int) else 1
    except (OSError, ValueError):  # which a command prints in one line
        exit_code = 1
    except BaseException:
        traceback.print_exc()
        exit_code = 99
    sys.stdout.flush()
    library.fault_count.restype = ctypes.c_long
    os.write(told, str(library.fault_count()).encode())
    return exit_code


# -- acts --------------------------------------------------------------------------------------------------------

_RUN = ("max_steps=60", "check_every=10", "checkpoint_every=20", "trainer=cpu", "target=null", "lr_policy=tri")
_AUTO = ("max_steps=160", "check_every=10", "checkpoint_every=20", "trainer=cpu", "target=0.999", "lr_policy=auto")
_SELECTION = (
    *("-m", "hydra/sweeper=lrbench", "hydra/launcher=basic", "trainer=cpu", "target=0.8", "max_steps=64"),
    *("check_every=8", "checkpoint_every=16", "lr_policy=fix,cosine", "lr=0.05", "hydra.sweeper.confirm=1"),
    *("hydra.sweeper.first=0.25", "hydra.sweeper.bisections=0"),
)


def run(*overrides: str) -> Callable[[Path], None]:
    """Return the act of a single run."""
    from lrbench_pl.runs import run as experiment
    from lrbench_pl.runs.config import compose

    def do(folder: Path) -> None:
        cfg = compose([*overrides, f"logger.csv.save_dir={folder}"])
        result = experiment.run(cfg, folder)
        sys.exit(1 if result.status in ("failed", "stopped") else 0)

    return do


def program(*words: str) -> Callable[[Path], None]:
    """Return the act of a command ``lrbench run -m``."""

    def do(folder: Path) -> None:
        from lrbench_pl.cli.run import main

        main([*words, f"hydra.sweep.dir={folder}"])

    return do


def results(folder: Path, pattern: str = "result.json") -> dict[str, list[Any]]:
    """Read results by run id."""
    found: dict[str, list[Any]] = {}
    for path in sorted(folder.glob(pattern)):
        with contextlib.suppress(OSError, ValueError):
            stored = json.loads(path.read_text())
            known = {name: value for name, value in stored.items() if name not in TIMES}
            if known["status"] not in ("failed", "stopped"):
                found.setdefault(known["run_id"], []).append(known)
    return found


def files(folder: Path) -> dict[str, Any]:
    """Read histories, policies and records of segments, by run."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("**/result.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            run_id = json.loads(path.read_text())["run_id"]
            for name in ("policy.yaml", "tuning.json"):
                if (file := path.with_name(name)).exists():
                    found[f"{run_id}/{name}"] = file.read_text()
            with open(path.with_name("metrics.csv"), newline="") as history:
                rows = list(csv.DictReader(history))
            found[f"{run_id}/metrics.csv"] = [
                {name: value for name, value in row.items() if name != "check/seconds" and value} for row in rows
            ]
    return found


def selection_files(folder: Path) -> dict[str, Any]:
    """Read the selection too."""
    found = files(folder)
    with contextlib.suppress(OSError, ValueError):
        stored = json.loads((folder / "selection.json").read_text())
        found["selection.json"] = {name: value for name, value in stored.items() if name in ("winner", "trials")}
    return found


def add(folder: Path) -> None:
    """Add the runs beside the folder to the database in it."""
    from lrbench_pl.cli.db import add_command

    add_command([folder.parent / "runs"], str(folder / "runs.db"))


def rows(folder: Path) -> dict[str, list[Any]]:
    """Read the rows of a database by run id."""
    found: dict[str, list[Any]] = {}
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(folder / "runs.db")) as database:
        if database.execute("PRAGMA integrity_check").fetchone() == ("ok",):
            for run_id, *row in database.execute("SELECT run_id, digest, result, policy_config FROM lrbench_runs"):
                found.setdefault(run_id, []).append(row)
    return found


def acts(work: Path) -> list[Act]:
    """Return all that is struck; fills the folder ``work/runs``."""
    single, auto = run(*_RUN), run(*_AUTO)
    for seed in range(3):
        folder = work / "runs" / str(seed)
        if not (folder / "result.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            assert Process(run(*_RUN, f"seed={seed}"), folder).end().code == 0
    shutil.rmtree(work / "interrupted", ignore_errors=True)
    (work / "interrupted").mkdir()
    whole = operations(single, work / "counted")
    Process(single, work / "interrupted", at=whole * 3 // 4).end()
    assert list((work / "interrupted" / "checkpoints").glob("step=*.ckpt"))

    def interrupted(folder: Path) -> None:
        shutil.copytree(work / "interrupted", folder)

    def empty(folder: Path) -> None:
        folder.mkdir()

    def known(folder: Path) -> None:
        folder.mkdir()
        os.symlink(work / "runs" / "0", folder.parent / "first")
        from lrbench_pl.cli.db import add_command

        def do(folder: Path) -> None:
            add_command([work / "runs" / "0"], str(folder / "runs.db"))

        Process(do, folder).end()

    selection = program(*_SELECTION)
    return [
        Act("run", empty, single, results, files, full=True),
        Act("resumed run", interrupted, single, results, files),
        Act("auto", empty, auto, results, files),
        Act("selection", empty, selection, lambda folder: results(folder, "**/result.json"), selection_files),
        Act("database", known, add, rows, lambda folder: {}, full=True),
    ]


def operations(do: Callable[[Path], None], folder: Path) -> int:
    """Return the operations of an undisturbed act."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return Process(do, folder).end().operations


# -- trials ------------------------------------------------------------------------------------------------------


class Struck:
    """Trials of one act, each in a folder of its own.

    Args:
        act: The act.
        work: Folder of all.
    """

    def __init__(self, act: Act, work: Path) -> None:
        self.act, self._work = act, work
        Process(act.do, self._fresh()).end()  # the first one is slower
        folder = self._fresh()
        before = batches()
        ends = Process(act.do, folder).end()
        assert ends.code == 0, f"{act.name} does not end: {ends}"
        self.operations, self.seconds, self.batches = ends.operations, ends.seconds, batches() - before
        self._results, self._files = act.results(folder), act.files(folder)
        assert self._results

    def _fresh(self) -> Path:
        above = self._work / "trial"
        shutil.rmtree(above, ignore_errors=True)
        above.mkdir(parents=True)
        os.symlink(self._work / "runs", above / "runs")
        self.act.prepare(above / "folder")
        return above / "folder"

    def trial(self, strike: str, at: int, seed: int) -> Trial:
        """Strike once, act again, and compare."""
        folder, before = self._fresh(), batches()
        code, lasting = {"ENOSPC": (errno.ENOSPC, 1), "EIO": (errno.EIO, 0)}.get(strike, (0, 0))
        silent = 0
        if strike == "two":
            other = Process(self.act.do, folder)
            struck = Process(self.act.do, folder, killed_after=at).end().code == -signal.SIGKILL
            ended = "killed" if struck else "whole"
            silent = int(other.end().code != 0)  # the one that was not killed has nothing to complain of
        elif strike == "time":
            struck = Process(self.act.do, folder, killed_after=at).end().code == -signal.SIGKILL
            ended = "killed" if struck else "whole"
        else:
            end = Process(self.act.do, folder, at, code, lasting).end()
            struck = end.code == -signal.SIGKILL or end.operations >= at
            ended = "killed" if end.code == -signal.SIGKILL else "refused" if end.code else "whole"
            silent = int((ended == "whole" and self._difference(folder)) or end.code == 99)
        last = Process(self.act.do, folder).end()
        lost, doubled, unequal = self._counts(folder)
        found = self.act.files(folder)
        histories = sum(found.get(name) != content for name, content in self._files.items()) + (last.code != 0)
        repeated = batches() - before - self.batches
        left = len(self.found())
        values = (lost, doubled, unequal, histories, left, silent, repeated, self.batches)
        return Trial(self.act.name, strike, at, seed, int(struck), ended, *values)

    def found(self) -> list[str]:
        """Return the temporary files and checkpoints in the folder of the latest trial."""
        above = self._work / "trial" / "folder"
        return [str(path.relative_to(above)) for path in above.rglob("*") if path.suffix in (".ckpt", ".tmp")]

    def _counts(self, folder: Path) -> tuple[int, int, int]:
        found = self.act.results(folder)
        lost = sum(name not in found for name in self._results)
        doubled = sum(len(each) > 1 for each in found.values()) + sum(name not in self._results for name in found)
        unequal = sum(found[name][0] != each[0] for name, each in self._results.items() if name in found)
        return lost, doubled, unequal

    def _difference(self, folder: Path) -> bool:
        return any(self._counts(folder)) or self.act.files(folder) != self._files


def missing(struck: list[Struck], done: Container[tuple[str, str, str]]) -> list[tuple[Struck, str, int]]:
    """Return the operations that were not struck yet, kills before failures, the acts in turn."""
    found: list[tuple[Struck, str, int]] = []
    for strikes in (("write",), ("ENOSPC", "EIO")):
        queues = [
            [(each, strike, number) for strike in strikes for number in range(1, each.operations + 1)]
            for each in struck
            if strikes == ("write",) or each.act.full
        ]
        for turn in zip_longest(*queues):
            found += [each for each in turn if each and (each[0].act.name, each[1], str(each[2])) not in done]
    return found


def plan(struck: list[Struck], seed: int) -> Iterator[tuple[Struck, str, int, int]]:
    """Yield trials without end: all acts alike, every operation of each before moments alone."""
    chance = random.Random(seed)
    queues: list[list[tuple[Struck, str, int]]] = []
    for each in struck:
        numbers = list(range(1, each.operations + 1))
        chance.shuffle(numbers)
        queue = [(each, "write", number) for number in numbers]
        if each.act.full:
            queue += [(each, strike, number) for strike in ("ENOSPC", "EIO") for number in numbers]
            chance.shuffle(queue)
        queues.append(queue)
    number = 0
    while True:
        for each, queue in zip(struck, queues, strict=True):
            number += 1
            if each.seconds > 1.5 and number // len(struck) % 2:  # a long one every second time
                continue
            if queue:
                yield (*queue.pop(), seed)
            milliseconds = int(each.seconds * 1000 * chance.random())
            yield each, "two" if number % 8 == 0 else "time", milliseconds, seed


def main() -> None:
    """Run trials until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--only", default="", help="acts, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="of the order and of the moments; another for each piece")
    parser.add_argument("--missing-first", action="store_true", help="begin with the operations not struck yet")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results.csv")
    arguments = parser.parse_args()
    _with_library()
    _import_all()
    names = [field.name for field in fields(Trial)]
    done: set[tuple[str, str, str]] = set()
    if arguments.output.exists():
        with arguments.output.open(newline="") as file:
            done = {(row["act"], row["strike"], row["at"]) for row in csv.DictReader(file)}
    with tempfile.TemporaryDirectory() as name, arguments.output.open("a", newline="") as file:
        work = Path(name).resolve()
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if not done:
            writer.writeheader()
        chosen = arguments.only.split(",") if arguments.only else None
        struck = [Struck(act, work) for act in acts(work) if chosen is None or act.name in chosen]
        for each in struck:
            print(f"{each.act.name}: {each.operations} operations, {each.batches} batches, {each.seconds:.2f} s")
        deadline = time.monotonic() + arguments.hours * 3600
        ahead = missing(struck, done) if arguments.missing_first else []
        if arguments.missing_first:
            print(f"{len(ahead)} operations were not struck yet", flush=True)
        first = ((*trial, arguments.seed) for trial in ahead)
        for each, strike, at, seed in chain(first, plan(struck, arguments.seed)):
            if time.monotonic() > deadline:
                break
            if (each.act.name, strike, str(at)) in done:
                continue
            trial = each.trial(strike, at, seed)
            done.add((each.act.name, strike, str(at)))
            writer.writerow(asdict(trial))
            file.flush()
            if trial.lost or trial.doubled or trial.unequal or trial.histories or trial.silent or trial.left:
                print(trial, each.found(), flush=True)


def _with_library() -> None:
    """Start again with the library that strikes."""
    if "RELIABILITY_LIBRARY" in os.environ:
        return
    folder = tempfile.mkdtemp()
    library = Path(folder) / "faults.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "RELIABILITY_LIBRARY": folder, "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def _import_all() -> None:
    os.environ.pop("LD_PRELOAD")  # of children that are not forked
    shutil.rmtree(os.environ["RELIABILITY_LIBRARY"])  # it is loaded
    sys.path.insert(0, str(ROOT))
    import importlib

    import torch

    torch.set_num_threads(1)
    for module in (
        *("lrbench_pl.runs.run", "lrbench_pl.cli.run", "lrbench_pl.cli.db", "lrbench_pl.sweeps.dispatch"),
        "lrbench_pl.sweeps.local",
        *("lrbench_pl.workloads.data", "lrbench_pl.workloads.models", "lrbench_pl.workloads.classifier"),
        *("lrbench_pl.selection.sweeper", "lrbench_pl.selection.database", "lrbench_pl.selection.exchange"),
        *("sklearn.datasets", "pytorch_lightning.loggers", "torch._dynamo", "sqlalchemy", "scipy.stats"),
    ):
        importlib.import_module(module)
    from lrbench_pl.runs.config import compose
    from lrbench_pl.runs.describe import specify

    specify(compose())  # versions and commit are looked up once, so that a commit meanwhile changes no result
    count_batches()
    gc.freeze()


if __name__ == "__main__":
    main()
