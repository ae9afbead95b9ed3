"""Trainings per hour of the fused engines, against the same trainings one by one, in parallel processes, and bare.

    python experiments/benchmarks/fused.py [--device cpu] [--nets perceptron] [--rounds 3] [--seconds 3]

Ways, in turns, each for some seconds in its steady state (steps alone, without checks):

- fused: all jobs as one program, at the sizes of --sizes; on the CPU one such program for each core
- a: one process that trains in a Lightning Trainer, as `lrbench run` does, one job after the other
- b: several such processes at once: as many as cores (CPU), or 1, 4, 8 and 13 on one GPU (under MPS if it starts)
- c: one process with a bare PyTorch loop

Shown are steps per second of all jobs together (median and quartiles over the rounds), the memory of the device, and
jobs per hour: of (a) with the start of a process for each job, of (b) with the set-up of a fit in a process that is
there already, of fused with the start of its process and the building and capturing of the group. The data are random
images of each set's shape, since only speed is measured; the perceptron's are the bundled digits' shape.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
BEGAN = time.time()


@dataclass(frozen=True)
class Net:
    """A network of the benchmark: name, shape, batch size, precision, steps of one job, group sizes on a GPU."""

    model: str
    shape: tuple[int, int, int]
    batch: int
    precision: str
    steps: int
    sizes: tuple[int, ...]
    augmented: bool = False
    channels_last: bool = True
    engine: str = "stacked"


NETS = {
    "perceptron": Net("mlp", (1, 8, 8), 64, "32-true", 3000, (32, 128, 512)),
    "lenet": Net("lenet", (1, 28, 28), 64, "32-true", 10000, (16, 64)),
    "cnn3": Net("cnn3", (3, 32, 32), 100, "bf16-mixed", 70000, (16, 64)),
    "resnet20": Net("resnet20", (3, 32, 32), 128, "bf16-mixed", 64000, (16, 64), augmented=True),
}


def build(net: Net, device: str, seed: int = 0, samples: int = 8000) -> tuple[Any, Any]:
    """Return a module and its data on the device, and the Trainer that placed them."""
    import torch

    from lrbench_pl.workloads.classifier import Classifier
    from lrbench_pl.workloads.data import TensorDataModule
    from lrbench_pl.workloads.data.sources import Splits
    from lrbench_pl.workloads.models import cifar_resnet, cnn3, lenet, mlp

    def source(root: str, download: bool, seed: int) -> Splits:
        generator = torch.Generator().manual_seed(0)

        def part(n: int) -> tuple[torch.Tensor, torch.Tensor]:
            images = torch.randint(0, 256, (n, *net.shape), dtype=torch.uint8, generator=generator)
            return images, torch.randint(0, 10, (n,), generator=generator)

        return Splits(*part(samples), *part(1000))

    models: dict[str, Callable[..., Any]] = {
        "mlp": mlp, "lenet": lenet, "cnn3": cnn3, "resnet20": partial(cifar_resnet, 20),
    }  # fmt: skip
    torch.manual_seed(seed)
    optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4)
    module = Classifier(models[net.model](10, net.shape), optimizer, 10, channels_last=net.channels_last)
    data = TensorDataModule(
        source, 10, net.shape, net.batch, 0, validation=1000, mean=0.5, std=0.25,
        pad=4 if net.augmented else 0, flip=net.augmented,
    )  # fmt: skip
    return module, data


def make_trainer(net: Net, device: str, *callbacks: Any) -> Any:
    """Return a Trainer as a run builds it."""
    import pytorch_lightning as pl

    return pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, precision=net.precision, max_steps=10**8,
        max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks), val_check_interval=10**7, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        log_every_n_steps=100,
    )  # fmt: skip


# -- a worker process -------------------------------------------------------------------------------------------


def worker(device: str) -> None:
    """Train what each line of standard input says, and answer with a line."""
    import torch

    quiet()
    torch.set_num_threads(1)
    make_trainer(NETS["perceptron"], device)
    if device == "cuda":
        torch.zeros(1, device="cuda")
    groups: dict[str, Any] = {}
    print(json.dumps({"ready": time.time()}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        net = NETS[task["net"]]
        if task["way"] == "fused":
            key = f"{task['net']} {task['size']}"
            group = groups.setdefault(key, None) or Fused(net, device, task["size"], task["engine"])
            groups[key] = group
            time.sleep(max(0.0, task["begin"] - time.time()))
            found = group.run(task["seconds"])
        else:
            way = in_trainer if task["way"] == "trainer" else bare
            found = way(net, device, task["begin"], task["seconds"])
        print(json.dumps(found), flush=True)


def in_trainer(net: Net, device: str, begin: float, seconds: float) -> dict[str, float]:
    """Train in a Lightning Trainer with a policy; count the steps between two points in time."""
    import pytorch_lightning as pl

    from lrbench_pl.callbacks.lr_policy import LRPolicyCallback

    told = time.time()

    class Clock(pl.Callback):
        first = 0.0
        counted_from = counted_to = -1
        at: float = 0.0
        ended: float = 0.0

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            now = time.time()
            if not self.first:
                synchronize(device)
                self.first = time.time()
            if self.counted_from < 0 and now >= begin:
                synchronize(device)
                self.counted_from, self.at = trainer.global_step, time.time()
            elif self.counted_from >= 0 and now >= begin + seconds and self.counted_to < 0:
                synchronize(device)
                self.counted_to, self.ended = trainer.global_step, time.time()
                trainer.should_stop = True

    clock = Clock()
    module, data = build(net, device)
    trainer = make_trainer(net, device, LRPolicyCallback(lambda step: 0.01 / (1 + 1e-4 * step)), clock)
    trainer.fit(module, datamodule=data)
    rate = (clock.counted_to - clock.counted_from) / (clock.ended - clock.at)
    return {"rate": rate, "setup": clock.first - told, "memory": memory(device)}


def bare(net: Net, device: str, begin: float, seconds: float) -> dict[str, float]:
    """Train in a plain loop; count the steps between two points in time."""
    told = time.time()
    module, data = build(net, device)
    data.trainer = make_trainer(net, device)
    data.setup()
    loader, module = data.train_dataloader(), module.to(device)
    optimizer = module.configure_optimizers()
    steps, counted, at, first = 0, -1, 0.0, 0.0
    while True:
        batch = next(loader)
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + 1e-4 * steps)
        optimizer.zero_grad()
        with autocast(net, device):
            loss = module.loss(module(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        steps += 1
        now = time.time()
        if steps == 1:
            synchronize(device)
            first = time.time()
        if counted < 0 and now >= begin:
            synchronize(device)
            counted, at = steps, time.time()
        elif counted >= 0 and now >= begin + seconds:
            synchronize(device)
            return {"rate": (steps - counted) / (time.time() - at), "setup": first - told, "memory": memory(device)}


class Workers:
    """Processes that train on command."""

    def __init__(self, device: str, count: int) -> None:
        self._device, self.all = device, []
        self._start()  # which reads the libraries from the disk
        more = [self._spawn() for _ in range(count - 1)]
        self.all += more
        for process in more:
            json.loads(process.stdout.readline())
        self.start_s = self._start()

    def _spawn(self) -> Any:
        command = [sys.executable, __file__, "--worker", "--device", self._device]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def _start(self) -> float:
        began = time.time()
        process = self._spawn()
        ready = json.loads(process.stdout.readline())["ready"]
        self.all.append(process)
        return float(ready) - began

    def run(self, net: str, way: str, count: int, seconds: float, **options: Any) -> dict[str, float]:
        """Let some of them train at the same time; return the sum of their rates and what else they measured."""
        lead = 1.2 + 0.1 * count + (0.8 if net == "resnet20" else 0.0)
        task = json.dumps({"net": net, "way": way, "begin": time.time() + lead, "seconds": seconds, **options})
        for process in self.all[:count]:
            process.stdin.write(task + "\n")
            process.stdin.flush()
        found = [json.loads(process.stdout.readline()) for process in self.all[:count]]
        return {
            "rate": sum(each["rate"] for each in found),
            "setup": statistics.median(each["setup"] for each in found),
            "memory": sum(each["memory"] for each in found),
        }

    def close(self) -> None:
        """End them."""
        for process in self.all:
            process.kill()
            process.wait()


# -- fused ------------------------------------------------------------------------------------------------------


class Fused:
    """A group that trains in this process."""

    def __init__(self, net: Net, device: str, jobs: int, engine: str, steps: int = 10**6) -> None:
        import torch

        from lrbench_pl.sweeps.fused.choice import make_engine
        from lrbench_pl.sweeps.fused.engine import Replica

        self.device, self.jobs = device, jobs
        began = time.time()
        _, data = build(net, device)
        data.trainer = make_trainer(net, device)
        data.setup()
        replicas = [Replica(build(net, device)[0], [0.01 * (1 + job / jobs)] * 20000, 0, 0) for job in range(jobs)]
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        loaders = [data.train_dataloader()]
        self.engine = make_engine(engine, replicas, loaders, precision=net.precision, device=torch.device(device))
        self.validation = data.val_dataloader()
        self.engine.advance(3)
        synchronize(device)
        self.setup = time.time() - began

    def run(self, seconds: float) -> dict[str, float]:
        """Train for some seconds."""
        chunk = 4
        synchronize(self.device)
        began, steps = time.time(), 0
        while time.time() - began < seconds and self.engine.step + chunk < 20000:
            self.engine.advance(chunk)
            synchronize(self.device)
            steps += chunk
            chunk = min(128, max(chunk, int(chunk * 0.25 * seconds / max(1e-3, time.time() - began))))
        elapsed = time.time() - began
        return {"rate": self.jobs * steps / elapsed, "setup": self.setup, "memory": memory(self.device)}

    def close(self) -> None:
        """Free its memory."""
        import gc

        import torch

        del self.engine
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()


# -- helpers ----------------------------------------------------------------------------------------------------


def synchronize(device: str) -> None:
    """Wait for the device."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def autocast(net: Net, device: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context of a precision."""
    import torch

    is_mixed = net.precision == "bf16-mixed"
    return torch.autocast(device, torch.bfloat16, cache_enabled=False) if is_mixed else contextlib.nullcontext()


def memory(device: str) -> float:
    """Return the largest memory that this process held, in GiB: the device's, or the process's on the CPU."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_reserved() / 2**30
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def quiet() -> None:
    """Silence Lightning."""
    import pytorch_lightning  # noqa: F401  (which sets the level)

    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@contextlib.contextmanager
def mps(device: str) -> Iterator[bool]:
    """Let processes share the GPU through NVIDIA's MPS, if its daemon starts."""
    control = shutil.which("nvidia-cuda-mps-control")
    if device != "cuda" or control is None:
        yield False
        return
    folder = tempfile.mkdtemp()
    variables = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
    os.environ.update(variables)
    try:
        started = subprocess.run([control, "-d"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        started = False
    if not started:
        for name in variables:
            os.environ.pop(name)
    try:
        yield started
    finally:
        if started:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run([control], input="quit\n", text=True, capture_output=True, timeout=10)
        for name in variables:
            os.environ.pop(name, None)


def say(*words: object) -> None:
    """Print with the time."""
    print(f"[{time.time() - BEGAN:6.1f}]", *words, flush=True)


def quartiles(values: Sequence[float]) -> str:
    """Return median and quartiles."""
    if len(values) < 2:
        return f"{values[0]:,.0f}"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{statistics.median(values):,.0f} [{low:,.0f}, {high:,.0f}]"


def compare(name: str, arguments: argparse.Namespace, workers: Workers, rows: list[dict[str, Any]]) -> None:
    """Measure all ways of one network in turns."""
    net, device = NETS[name], arguments.device
    sizes = [int(size) for size in arguments.sizes.split(",")] if arguments.sizes else list(net.sizes)
    engine = arguments.engine or ("stacked" if device == "cpu" else net.engine)
    groups: dict[str, Fused] = {}
    ways: dict[str, tuple[int, Callable[[], dict[str, float]]]] = {}  # jobs at once, and how to measure them
    for size in sizes:
        if device == "cpu":  # one group for each core
            options = {"size": size, "engine": engine}
            count = max(arguments.processes)
            ways[f"fused {count} x {size}"] = (
                count * size,
                partial(workers.run, name, "fused", count, arguments.seconds, **options),
            )
            continue
        try:
            group = groups[f"fused {size}"] = Fused(net, device, size, engine)
            ways[f"fused {size}"] = size, partial(group.run, arguments.seconds)
        except Exception as error:
            say(name, f"fused {size}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    ways["c bare"] = 1, partial(workers.run, name, "bare", 1, arguments.seconds)
    for count in arguments.processes:
        way = "a one" if count == 1 else f"b {count}"
        ways[way] = count, partial(workers.run, name, "trainer", count, arguments.seconds)
    measured: dict[str, list[dict[str, float]]] = {}
    if device == "cuda":  # once unmeasured: each process loads the kernels
        workers.run(name, "trainer", max(arguments.processes), 0.1)
    until = time.time() + arguments.each
    for _ in range(arguments.rounds):
        for way, (_, run) in ways.items():
            if time.time() < until:
                measured.setdefault(way, []).append(run())
    for way, found in measured.items():
        rates = [each["rate"] for each in found]
        rate, setup = statistics.median(rates), statistics.median(each["setup"] for each in found)
        jobs = ways[way][0]
        start = workers.start_s if way[0] in "acf" else 0.0
        hours = jobs / (start + setup + net.steps * jobs / rate)
        row = {
            "net": name, "way": way, "steps_per_s": rates, "setup_s": setup, "start_s": start,
            "memory_gib": max(each["memory"] for each in found), "jobs_per_hour": 3600 * hours, **asdict(net),
        }  # fmt: skip
        rows.append(row)
        say(
            f"{name:10} {way:12} {quartiles(rates):>28} steps/s  {3600 * hours:9,.0f} jobs/h  "
            f"set-up {setup:5.1f} s  memory {row['memory_gib']:5.1f} GiB"
        )
    own = [row for row in rows if row["net"] == name]
    best = {
        kinds: max(
            (row for row in own if row["way"][0] in kinds),
            default=None,
            key=lambda row: statistics.median(row["steps_per_s"]),
        )
        for kinds in ("f", "a", "ab", "c")
    }
    if all(best.values()):
        for what in ("steps_per_s", "jobs_per_hour"):
            value = {k: statistics.median(r[what]) if what == "steps_per_s" else r[what] for k, r in best.items()}  # type: ignore[index]
            shown = ", ".join(f"{value['f'] / value[k]:.1f} x ({k[-1]})" for k in ("a", "ab", "c"))
            say(f"{name:10} {what}: fused is {shown}; best (b) is {best['ab']['way']}")  # type: ignore[index]
    for group in groups.values():
        group.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--nets", default="", help="separated by commas; perceptron on the CPU, all on a GPU")
    parser.add_argument("--sizes", default="", help="jobs of a group, separated by commas")
    parser.add_argument("--engine", default="", help="stacked or captured")
    parser.add_argument("--processes", default="", help="processes at once, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--limit", type=float, default=1e9, help="begin no further network after so many seconds")
    parser.add_argument("--each", type=float, default=1e9, help="measure one network no longer than so many seconds")
    parser.add_argument("--wait", default="", help="start the processes, then wait until this file exists")
    parser.add_argument("--out", default="", help="file for the numbers, as JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.device)
        return
    import torch

    quiet()
    is_cuda = arguments.device == "cuda"
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    counts = arguments.processes or ("1,4,8,13" if is_cuda else f"1,{cores}")
    arguments.processes = sorted({int(count) for count in counts.split(",")})
    rows: list[dict[str, Any]] = []
    where = torch.cuda.get_device_name() if is_cuda else f"{cores} cores"
    with mps(arguments.device) as shared:
        say(f"{where}, torch {torch.__version__}, MPS {'on' if shared else 'off'}; random data of each set's shape")
        workers = Workers(arguments.device, max(arguments.processes))
        say(f"{len(workers.all)} workers; one starts in {workers.start_s:.1f} s")
        while arguments.wait and not Path(arguments.wait).exists():
            time.sleep(0.2)
        try:
            default = ",".join(NETS) if is_cuda else "perceptron"
            for name in (arguments.nets or default).split(","):
                if time.time() - BEGAN > arguments.limit:
                    say("out of time before", name)
                    break
                compare(name, arguments, workers, rows)
                if arguments.out:
                    Path(arguments.out).write_text(json.dumps(rows, indent=1))
        finally:
            workers.close()


if __name__ == "__main__":
    main()
