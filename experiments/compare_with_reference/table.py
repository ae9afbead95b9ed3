"""Rates of LRBench's 34 functions as its public code evaluates them, against ours.

    python experiments/compare_with_reference/table.py          # the table, from the frozen results.csv
    python experiments/compare_with_reference/table.py --run    # computed again: writes results.csv and figure.png

Nothing here is code of LRBench. Its functions are reimplemented from the published formulas and from their observed
behaviour: see :class:`NStep`, :class:`Piecewise` and :func:`plain`.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrbench_pl.policies import LRBENCH_POLICIES, Cyclic, Policy, from_lrbench

RESULTS = Path(__file__).parent / "results.csv"
FIGURE = Path(__file__).parent / "figure.png"
SAME = 1e-9  # relative: a triangle by asin(sin) is rounded to about 1e-14
FULL = range(10_001)

Parameters = Mapping[str, Any]
Rate = Callable[[int], float | None]  # None: no real number


# The reference.


def plain(name: str, k0: float, k1: float | None = None, gamma: float = 1.0, p: float = 1.0, l: Any = 1) -> Rate:  # noqa: E741
    """Return a function that keeps no state. A rate that is an error or complex there is ``None`` here.

    Bounds are signed there, ``k0 + (k1 - k0) g(t)``: with ``k0 > k1`` a wave is upside down. POLY runs from ``k1`` to
    ``k0``, needs both, and does not end at ``l``. SIG takes the exponential of any number. The functions that halve
    divide by a power of two that is an integer of any length. A restarting wave is at its lower bound when it restarts.
    """

    def rate(t: int) -> float | None:
        try:
            if name == "POLY":
                if k1 is None:
                    return None
                left = (1 - t / l) ** p  # Python: complex where the base is negative and p no integer
                return None if isinstance(left, complex) else k0 + (k1 - k0) * left
            if k1 is not None:
                return k0 + (k1 - k0) * wave(name, t, l, gamma)
            return k0 * decay(name, t, gamma, p, l)
        except OverflowError:
            return None

    return rate


def decay(name: str, t: int, gamma: float, p: float, l: Any) -> float:  # noqa: E741 - LRBench's name
    """Return g(t) of a function with one bound; raises OverflowError if SIG's exponential does."""
    shapes: dict[str, Callable[[], float]] = {
        "FIX": lambda: 1.0,
        "STEP": lambda: gamma ** math.floor(t / l),
        "EXP": lambda: gamma**t,
        "INV": lambda: 1 / (1 + gamma * t) ** p,
        "SIG": lambda: 1 / (1 + math.exp(-gamma * (t - l))),
    }
    return shapes[name]()


def wave(name: str, t: int, l: int, gamma: float) -> float:  # noqa: E741 - LRBench's name
    """Return g(t) of a function with two bounds; raises OverflowError after 1,024 halvings."""
    family = name.removesuffix("EXP").removesuffix("2")
    half_cycles = t / l + (family[0] == "D")
    left = math.ceil(t / l) - t / l  # of the cycle, for those that restart: 0, not 1, at a restart
    shapes: dict[str, Callable[[], float]] = {
        "TRI": lambda: 2 / math.pi * abs(math.asin(math.sin(math.pi / 2 * half_cycles))),
        "SIN": lambda: abs(math.sin(math.pi / 2 * half_cycles)),
        "COS": lambda: (1 + math.cos(math.pi * half_cycles)) / 2,
        "UPCOS": lambda: (1 + math.cos(math.pi * (half_cycles + 1))) / 2,
        "RSW": lambda: left,
        "SINRSW": lambda: math.sin(math.pi / 2 * left),
        "COSRSW": lambda: (1 - math.cos(math.pi * left)) / 2,
    }
    height = shapes[family.removeprefix("D")]()
    if name.endswith("EXP"):
        return height * gamma**t
    if name.endswith("2"):
        halvings = math.floor(t / l) if family.endswith("RSW") else math.floor((half_cycles + (family == "COS")) / 2)
        integer: int = 2**halvings
        return height / integer
    return height


class NStep:
    """NSTEP, which counts the milestones it has passed, once for all objects of the process.

    A call passes one milestone at most and never goes back; a new object sets the count to 0 for all.
    """

    passed = 0

    def __init__(self, k0: float, gamma: float, milestones: Sequence[int]) -> None:
        self.k0, self.gamma, self.milestones = k0, gamma, milestones
        NStep.passed = 0

    def __call__(self, t: int) -> float:
        """The rate of a call with ``t``, which depends on the calls before."""
        ahead = self.milestones[NStep.passed :]
        NStep.passed += bool(ahead) and t >= ahead[0]
        return self.k0 * self.gamma**NStep.passed


class Piecewise:
    """A composite, which counts the boundaries it has passed in the same way, once per object.

    A part's clock begins at the last boundary that was passed, whatever ``t`` is: it may be negative.
    """

    def __init__(self, parts: Sequence[Rate], boundaries: Sequence[int]) -> None:
        self.parts, self.boundaries, self.passed = parts, boundaries, 0

    def __call__(self, t: int) -> float | None:
        """The rate of a call with ``t``, which depends on the calls before."""
        ahead = self.boundaries[self.passed :]
        self.passed += bool(ahead) and t >= ahead[0]
        return self.parts[self.passed](t - (self.boundaries[self.passed - 1] if self.passed else 0))


def reference(parameters: Parameters | Sequence[Parameters], boundaries: Sequence[int] | None = None) -> Rate:
    """Build the function that LRBench makes of its parameters."""
    if not isinstance(parameters, Mapping):
        return Piecewise([reference(part) for part in parameters], boundaries or ())
    given = dict(parameters)
    name = given.pop("lrPolicy")
    return NStep(given["k0"], given["gamma"], given["l"]) if name == "NSTEP" else plain(name, **given)


# The cases.


@dataclass(frozen=True)
class Case:
    """A function, and the steps at which it is evaluated.

    Args:
        case: The situation, in words.
        parameters: LRBench's, of one function or of the parts of a composite.
        right: Which rate is right, and why.
        steps: Evaluated in this order.
        before: Evaluated earlier, in this order.
        twin: Whether those were evaluated on another object, made at the same time.
        boundaries: Of a composite.
    """

    case: str
    parameters: Parameters | Sequence[Parameters]
    right: str = ""
    steps: range = FULL
    before: range = range(0)
    twin: bool = False
    boundaries: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Name of the function, or of the composite's functions."""
        parts = [self.parameters] if isinstance(self.parameters, Mapping) else self.parameters
        return " + ".join(part["lrPolicy"] for part in parts)

    def ours(self) -> Policy:
        """Return our policy of these parameters."""
        return from_lrbench(self.parameters, self.boundaries)

    def theirs(self) -> list[float | None]:
        """Return the reference's rates at the steps."""
        first = reference(self.parameters, self.boundaries)
        asked = reference(self.parameters, self.boundaries) if self.twin else first
        for t in self.before:
            first(t)
        return [asked(t) for t in self.steps]


RANGE = {"k0": 0.001, "k1": 0.006, "l": 2000}
EXAMPLES: dict[str, Parameters] = {
    "FIX": {"k0": 0.01},
    "STEP": {"k0": 0.01, "gamma": 0.85, "l": 2000},
    "NSTEP": {"k0": 0.01, "gamma": 0.1, "l": [4000, 8000]},
    "EXP": {"k0": 0.01, "gamma": 0.99994},
    "INV": {"k0": 0.01, "gamma": 0.0001, "p": 0.75},
    "POLY": {"k0": 0.0001, "k1": 0.01, "p": 1.2, "l": 10_000},
    "SIG": {"k0": 0.01, "gamma": -0.001, "l": 5000},
}
WAVES = [name for name in LRBENCH_POLICIES if name not in EXAMPLES]
RESTARTING = [name for name in WAVES if "RSW" in name]
COMPOSITE: list[Parameters] = [
    {"lrPolicy": "FIX", "k0": 0.01},
    {"lrPolicy": "TRI", "k0": 0.001, "k1": 0.006, "l": 1000},
    {"lrPolicy": "POLY", "k0": 0.0001, "k1": 0.006, "p": 1.2, "l": 2000},
]
IN_ORDER = "in order"


def example(name: str, **changed: Any) -> dict[str, Any]:
    """Return example parameters of a function; waves that decay exponentially have a gamma."""
    gamma = {"gamma": 0.99994} if name.endswith("EXP") else {}
    return {"lrPolicy": name, **EXAMPLES.get(name, {**RANGE, **gamma}), **changed}


def cases() -> Iterator[Case]:
    """Yield the 34 functions evaluated in order, then other uses by a training or a user."""
    for name in LRBENCH_POLICIES:
        yield Case(IN_ORDER, example(name), "a restart is at the upper bound" if name in RESTARTING else "")
    joined: dict[str, Any] = {"parameters": COMPOSITE, "boundaries": (4000, 8000)}
    nsteps = [example("NSTEP", l=[1000, 2000]), example("NSTEP", k0=0.005, l=[1000, 2000])]
    pure = "a rate is a function of t alone"
    late = range(9000, 10_001)
    yield Case("a composite, in order", **joined)
    yield Case("a composite, asked again from 0", **joined, before=FULL, right=pure)
    yield Case("a composite, resumed at 9,000", **joined, steps=late, right=pure)
    yield Case("a composite, in order", nsteps, boundaries=(4000,), right="each part passes its own milestones")
    yield Case("asked again from 0", example("NSTEP"), before=FULL, right=pure)
    yield Case("resumed at 9,000", example("NSTEP"), steps=late, right=pure)
    yield Case(
        "the second of two made together, trained after the first",
        example("NSTEP"), before=FULL, twin=True, right="policies do not share a count",
    )  # fmt: skip
    for p in (1.2, 1, 2):
        yield Case(f"past l, p = {p}", example("POLY", l=8000, p=p), "the decay ends at l and stays")
    yield Case(
        "k0 alone",
        {"lrPolicy": "POLY", "k0": 0.01, "p": 1.2, "l": 10_000},
        "it ends at 0, as published",
    )
    yield Case("k0 > k1", example("POLY", k0=0.01, k1=0.0001), "it decays: from the larger to the smaller")
    for name in WAVES:
        yield Case("k0 > k1", example(name, k0=0.006, k1=0.001), "min(k0, k1) + abs(k0 - k1) g(t), as published")
    yield Case("steep", example("SIG", gamma=-0.1, l=2000), "it goes to 0")
    for name in WAVES:
        if name.endswith("2"):  # never at a restart
            yield Case("more than 1,024 halvings", example(name, l=4), "it goes to k0", range(1, 10_002, 4))


# Results and their tables.


def row(case: Case) -> dict[str, str]:
    """Compare: steps that agree, the largest relative difference and its step, steps without a number."""
    ours = case.ours()
    apart: dict[int, float] = {}
    none = []
    for t, theirs in zip(case.steps, case.theirs(), strict=True):
        if theirs is None:
            none.append(t)
        elif abs(theirs - ours(t)) > SAME * ours(t):
            apart[t] = abs(theirs - ours(t)) / ours(t)
    largest = max(apart, key=apart.__getitem__, default=None)
    return {
        "case": case.case,
        "function": case.name,
        "parameters": written(case.parameters, case.boundaries),
        "ours": kind(ours),
        "steps": str(len(case.steps)),
        "agree": str(len(case.steps) - len(apart) - len(none)),
        "first": str(min([*apart, *none], default="")),
        "largest": "" if largest is None else f"{apart[largest]:.3g}",
        "at": "" if largest is None else str(largest),
        "no_number": str(len(none)),
        "right": case.right,
    }


def written(parameters: Parameters | Sequence[Parameters], boundaries: Sequence[int] | None) -> str:
    """Format parameters in one line.

    Example:
        >>> written({"lrPolicy": "STEP", "k0": 0.1, "l": [7, 9]}, None)
        'k0=0.1 l=[7, 9]'
        >>> written([{"lrPolicy": "FIX", "k0": 0.1}, {"lrPolicy": "FIX", "k0": 0.2}], [30])
        'k0=0.1; k0=0.2; at [30]'
    """
    parts = [parameters] if isinstance(parameters, Mapping) else parameters
    shown = [" ".join(f"{key}={value}" for key, value in part.items() if key != "lrPolicy") for part in parts]
    return "; ".join([*shown, *([f"at {list(boundaries)}"] if boundaries else [])])


def kind(policy: Policy) -> str:
    """Name the type, with the wave and its decay."""
    if not isinstance(policy, Cyclic):
        return type(policy).__name__
    return " ".join(["Cyclic", policy.wave, *([] if policy.decay == "none" else [policy.decay])])


def tables(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the tables: the 34 functions in order, then the other cases, equal results together."""
    plainly = [row for row in rows if row["case"] == IN_ORDER]
    shown = [
        "| function | parameters | ours | agrees on | largest difference | at t | right |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in plainly:
        shown.append(
            f"| {row['function']} | {row['parameters']} | {row['ours']} | {share([row])} | {row['largest']} "
            f"| {row['at']} | {row['right']} |"
        )
    shown += [
        "",
        "| asked | function | parameters | agrees on | first apart at t | largest difference | no number at | right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        if row["case"] != IN_ORDER:
            composite = row["function"] if " + " in row["function"] else ""
            groups.setdefault((row["case"], composite, row["right"]), []).append(row)
    for (case, _, right), group in groups.items():
        names = [row["function"] for row in group]
        largest = max((row["largest"] for row in group if row["largest"]), key=float, default="")
        shown.append(
            f"| {case} | {', '.join(names) if len(names) < 10 else f'the {len(names)} waves'} "
            f"| {group[0]['parameters'].replace(' gamma=0.99994', '')} | {share(group)} "
            f"| {number(min((row['first'] for row in group if row['first']), key=int, default=''))} | {largest} "
            f"| {number(str(sum(int(row['no_number']) for row in group) or ''))} | {right} |"
        )
    return shown


def number(text: str) -> str:
    """Format an integer with separators, or nothing."""
    return f"{int(text):,}" if text else ""


def share(rows: Sequence[Mapping[str, str]]) -> str:
    """Format the steps that agree, of all; ``all 5`` if all do."""
    agree, steps = (sum(int(row[key]) for row in rows) for key in ("agree", "steps"))
    return f"all {steps:,}" if agree == steps else f"{agree:,} of {steps:,}"


def draw() -> None:
    """Draw the four kinds of disagreement into ``figure.png``."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    chosen = {(case.case, case.name): case for case in cases()}
    panels = [
        ("COSRSW at a restart", [chosen[IN_ORDER, "COSRSW"]], (1980, 2020), "linear"),
        ("POLY past l = 8,000", [chosen[f"past l, p = {p}", "POLY"] for p in (1, 2, 1.2)], (6500, 10_000), "linear"),
        ("NSTEP, asked again from 0", [chosen["asked again from 0", "NSTEP"]], (0, 10_000), "log"),
        ("steep SIG", [chosen["steep", "SIG"]], (0, 10_000), "log"),
    ]
    figure, grid = plt.subplots(2, 2, figsize=(9, 5.5), layout="constrained")
    for axes, (title, shown, limits, scale) in zip(grid.flat, panels, strict=True):
        for index, case in enumerate(shown):
            p = f", p = {case.parameters['p']}" if len(shown) > 1 else ""  # type: ignore[call-overload]
            steps = [t for t in case.steps if limits[0] <= t <= limits[1]]
            answers = dict(zip(case.steps, case.theirs(), strict=True))
            dots = "o" if len(steps) < 100 else ""
            ours = case.ours()
            axes.plot(steps, [ours(t) for t in steps], "-", color="0.75", lw=5, label="" if index else "ours")
            known = [t for t in steps if answers[t] is not None]
            (line,) = axes.plot(
                known, [answers[t] for t in known], "--", marker=dots, ms=3, lw=1.3, label=f"reference{p}"
            )
            if len(known) < len(steps):
                last = known[-1]
                axes.plot(last, answers[last], "x", color=line.get_color(), ms=9, mew=2, label="no number from here")
        axes.set(title=title, xlim=limits, yscale=scale, xlabel="step", ylabel="learning rate")
        axes.legend(fontsize=8)
    figure.savefig(FIGURE, dpi=100, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Print the table, computed first with ``--run``."""
    parser = argparse.ArgumentParser(description="LRBench's 34 functions against ours.")
    parser.add_argument("--run", action="store_true", help="compute again; write results.csv and figure.png")
    if parser.parse_args().run:
        rows = [row(case) for case in cases()]
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        draw()
    try:
        with RESULTS.open(newline="") as file:
            print("\n".join(tables(list(csv.DictReader(file)))))
    except FileNotFoundError:
        sys.exit(f"{RESULTS.name} is not there: expected the frozen rows beside this script; --run computes them")


if __name__ == "__main__":
    main()
