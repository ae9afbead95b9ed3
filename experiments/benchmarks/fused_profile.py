"""Milliseconds a step of the fused engines on a GPU, by network, number of jobs, precision and number of streams.

    python experiments/benchmarks/fused_profile.py [--limit 90] [--kernels]

Configurations are in the order of what they tell; those that do not begin within the limit are left out. First comes
whether a rate for each row rounds like torch's own scalar rate. With --kernels: which kernels of a captured
step take the time, and what part of it the GPU computes.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fused import NETS, Fused, quiet, say

from lrbench_pl.sweeps.fused import captured

# network, engine, jobs, precision, streams, whether captured in a graph
PLAN: list[tuple[str, str, int, str, int, bool]] = [
    ("lenet", "captured", 32, "32-true", 16, True),
    ("cnn3", "captured", 16, "bf16-mixed", 16, True),
    ("resnet20", "captured", 16, "bf16-mixed", 16, True),
    ("perceptron", "stacked", 128, "32-true", 0, True),
    ("perceptron", "captured", 128, "32-true", 16, True),
    ("lenet", "captured", 1, "32-true", 1, False),
    ("lenet", "captured", 1, "32-true", 1, True),
    ("lenet", "captured", 32, "32-true", 4, True),
    ("lenet", "captured", 32, "32-true", 32, True),
    ("lenet", "captured", 128, "32-true", 16, True),
    ("lenet", "stacked", 32, "32-true", 0, True),
    ("lenet", "captured", 32, "bf16-mixed", 16, True),
    ("lenet", "captured", 8, "32-true", 8, True),
    ("cnn3", "captured", 1, "bf16-mixed", 1, True),
    ("cnn3", "captured", 16, "bf16-mixed", 4, True),
    ("cnn3", "captured", 16, "32-true", 16, True),
    ("cnn3", "stacked", 16, "bf16-mixed", 0, True),
    ("cnn3", "captured", 64, "bf16-mixed", 16, True),
    ("resnet20", "captured", 1, "bf16-mixed", 1, True),
    ("resnet20", "captured", 16, "bf16-mixed", 4, True),
    ("resnet20", "captured", 16, "bf16-mixed", 8, True),
    ("resnet20", "stacked", 16, "bf16-mixed", 0, True),
    ("resnet20", "captured", 16, "32-true", 16, True),
    ("perceptron", "stacked", 512, "32-true", 0, True),
    ("perceptron", "stacked", 2048, "32-true", 0, True),
    ("resnet20", "captured", 64, "bf16-mixed", 16, True),
    ("cnn3", "captured", 32, "bf16-mixed", 32, True),
]


def rounding(device: str) -> None:
    """Print which way of adding a product with a column rounds as ``add_(alpha=...)`` does."""
    n, rows = 200_000, 8
    total, factor = torch.randn(rows, n, device=device), torch.randn(rows, n, device=device)
    rates = torch.rand(rows, 1, device=device)
    expected = torch.stack([total[i].add(factor[i], alpha=float(rates[i])) for i in range(rows)])
    listed = torch.stack(
        [torch._foreach_add([total[i]], [factor[i]], alpha=float(rates[i]))[0] for i in range(rows)]  # type: ignore[call-overload]
    )
    ways = {
        "foreach": listed,
        "addcmul": total.addcmul(factor, rates),
        "addcmul float64": total.clone().addcmul_(factor, rates.double()),
    }
    for way, found in ways.items():
        say(f"{way}: {int((found != expected).sum())} of {expected.numel()} differ from add")


def time_of(function: Any, times: int) -> float:
    """Return the milliseconds of a call on the device."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(times):
        function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / times


def measure(name: str, engine: str, jobs: int, precision: str, streams: int, graphed: bool) -> dict[str, Any]:
    """Return the times of one configuration."""
    captured._STREAMS = streams or captured._STREAMS
    net = replace(NETS[name], precision=precision)
    torch.cuda.reset_peak_memory_stats()
    group = Fused(net, "cuda", jobs, engine)
    program: Any = group.engine
    step = program._graph.replay if graphed else program._take_step
    program._place.zero_()
    ms = min(time_of(step, 10), time_of(step, 20))
    began = time.time()
    program.evaluate([group.validation])
    found = {
        "ms": ms,
        "steps_per_s": jobs / ms * 1000,
        "setup_s": group.setup,
        "evaluate_ms": 1000 * (time.time() - began),
        "memory_gib": torch.cuda.max_memory_reserved() / 2**30,
    }
    with torch.no_grad():
        coefficients = program._coefficients[0]
        found["update_ms"] = time_of(
            lambda: program._update.apply(program._parameters, program._gradients, coefficients), 10
        )
    group.close()
    return found


KERNELS = [
    ("cnn3", 16, True), ("resnet20", 16, True), ("cnn3", 16, False), ("resnet20", 16, False), ("lenet", 32, True),
]  # fmt: skip
_REPLAYS = 5


def kernels(name: str, jobs: int, channels_last: bool) -> dict[str, Any]:
    """Print and return the kernels that a captured step of a network spends its time in."""
    from torch.profiler import ProfilerActivity, profile

    group = Fused(replace(NETS[name], channels_last=channels_last), "cuda", jobs, "captured")
    program: Any = group.engine
    program._place.zero_()
    ms = min(time_of(program._graph.replay, 10), time_of(program._graph.replay, 20))
    program._place.zero_()
    evaluate_ms = []
    for _ in range(4):  # eager, captured, replayed twice
        began = time.time()
        program.evaluate([group.validation])
        evaluate_ms.append(1000 * (time.time() - began))
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(_REPLAYS):
            program._graph.replay()
        torch.cuda.synchronize()
    totals: dict[str, list[float]] = {}
    spans = []
    for event in found.events():
        begin, end = event.time_range.start, event.time_range.end
        if event.device_type.name == "CUDA" and end > begin:
            totals.setdefault(event.name, []).append(end - begin)
            spans.append((begin, end))
    spans.sort()
    busy, reached = 0.0, 0.0
    for begin, end in spans:
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    wall = reached - spans[0][0] if spans else float("nan")
    spent = sum(map(sum, totals.values()))
    top = sorted(totals.items(), key=lambda item: -sum(item[1]))[:12]
    form = "NHWC" if channels_last else "NCHW"
    say(
        f"{name} {jobs} {form}: {ms:.2f} ms a step, {1000 * jobs / ms:,.0f} steps/s; GPU busy {busy / wall:.0%}, "
        f"{spent / wall:.1f} kernels at once, {len(spans) / _REPLAYS:.0f} kernels a step; "
        f"evaluate {', '.join(f'{each:.1f}' for each in evaluate_ms)} ms"
    )
    for kernel, times in top:
        count = len(times) / _REPLAYS
        say(f"    {sum(times) / spent:6.1%}  {count:6.0f} x {sum(times) / len(times):8.1f} us  {kernel[:110]}")
    group.close()
    return {
        "net": name, "jobs": jobs, "form": form, "ms": ms, "evaluate_ms": evaluate_ms, "busy": busy / wall,
        "at_once": spent / wall, "top": [(kernel, len(times) / _REPLAYS, sum(times) / spent) for kernel, times in top],
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--limit", type=float, default=90.0, help="begin no further configuration after so many seconds"
    )
    parser.add_argument("--out", default="", help="file for the numbers, as JSON")
    parser.add_argument("--first", type=int, default=0, help="how many configurations; 0 for all")
    parser.add_argument("--kernels", action="store_true", help="only the kernels of captured steps")
    arguments = parser.parse_args()
    quiet()
    began, rows = time.time(), []
    for profiled in KERNELS if arguments.kernels else ():
        if time.time() - began > arguments.limit:
            say("out of time before", *profiled)
            break
        try:
            rows.append(kernels(*profiled))
        except Exception as error:
            say(*profiled, type(error).__name__, " ".join(str(error).split())[:300])
        if arguments.out:
            Path(arguments.out).write_text(json.dumps(rows, indent=1))
    if arguments.kernels:
        return
    rounding("cuda")
    for configuration in PLAN[: arguments.first or None]:
        if time.time() - began > arguments.limit:
            say("out of time before", *configuration)
            break
        try:
            found = measure(*configuration)
            rows.append({"configuration": configuration, **found})
            shown = "  ".join(f"{key} {value:,.2f}" for key, value in found.items())
            say(f"{' '.join(map(str, configuration)):48} {shown}")
        except Exception as error:
            say(*configuration, type(error).__name__, " ".join(str(error).split())[:300])
        gc.collect()
        torch.cuda.empty_cache()
        if arguments.out:
            Path(arguments.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
