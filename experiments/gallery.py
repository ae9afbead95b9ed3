"""The gallery in docs/gallery: one page per family of policies, from the policies themselves and the frozen results.

    python experiments/gallery.py            # text and pictures; two trainings of some seconds for the adaptive ones
    python experiments/gallery.py --text     # text only

Formulas are those of the docstrings, shapes those of ``conf/lr_policy``, places and steps those of
``results.csv`` of the studies with a ``study.yaml``.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tables import Row, compared, spread, stage, workload

from lrbench_pl.policies import Cyclic, Policy, Sequential
from lrbench_pl.runs.config import register_resolvers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
GALLERY = ROOT / "docs" / "gallery"
STEPS = 1000  # of a curve
_EVERY = 4  # steps between its points
_AUTO_STEPS = 600  # budget of the training with `auto`
# the factor of the height at step t, by wave where they differ
DECAYS = {
    "none": "1",
    "halving": "1 / 2 ** floor((t + phase) / period)",
    "halving cosine": "1 / 2 ** floor((t + phase + period / 2) / period)",
    "exponential": "gamma ** t",
}
ADAPTIVE = ("auto", "plateau")  # without rates before a training
NOT_SHAPES = ("best", "range")


@dataclass(frozen=True)
class Family:
    """One page of the gallery.

    Args:
        page: Name of the page.
        title: Its title.
        text: A description, wrapped at 100 columns.
        members: Names in ``conf/lr_policy``; the first one stands for the family.
        formula: Formula, where it is not that of the members' types.
    """

    page: str
    title: str
    text: str
    members: tuple[str, ...]
    formula: str | None = None


FAMILIES = (
    Family(
        "fixed",
        "Fixed",
        "One rate throughout. The baseline of every comparison: what a schedule gains, it gains over this.",
        ("fix",),
    ),
    Family(
        "steps",
        "Steps",
        "The rate is constant and drops by a factor, at equal distances or at given milestones. Each drop\n"
        "trades the noise that explores for convergence, so most of the gain comes shortly after it.",
        ("step", "nstep", "nstep_late"),
    ),
    Family(
        "decay",
        "Smooth decay",
        "The rate falls without jumps and without cycles: linear, polynomial, exponential, inverse, sigmoid\n"
        "or along half a cosine. Those that end at zero need the budget to be known in advance.",
        ("linear", "cosine", "poly", "exp", "inv", "sig"),
    ),
    Family(
        "warmup",
        "Warm-up, WSD and one-cycle",
        "The rate first rises, because the first steps from random weights are the least stable, and then\n"
        "decays or stays before it decays. Common with Adam-family optimizers and large batches.",
        ("warmup_cosine", "warmup_linear", "wsd", "onecycle", "invsqrt"),
    ),
    Family(
        "triangle",
        "Triangular cycles",
        "The rate rises and falls linearly between two bounds (Smith 2017). The ends of the cycles are\n"
        "checkpoints at a low rate, so that a target can be reached before the budget ends.",
        ("tri", "tri2", "triexp", "dtri", "dtri2", "dtriexp"),
    ),
    Family(
        "sine",
        "Sine cycles",
        "Half sines between two bounds: as triangles, but longer near the upper bound.",
        ("sin", "sin2", "sinexp", "dsin", "dsin2", "dsinexp"),
    ),
    Family(
        "cosine",
        "Cosine cycles",
        "Full cosine waves between two bounds: smooth at both of them.",
        ("cos", "cos2", "cosexp", "upcos", "upcos2", "upcosexp"),
    ),
    Family(
        "restarts",
        "Restarts and sawtooth",
        "The rate falls and jumps back to the upper bound: a sawtooth, quarter sines or half cosines, the\n"
        "warm restarts of SGDR (Loshchilov & Hutter 2017).",
        ("cosrsw", "cosrsw2", "cosrswexp", "sinrsw", "sinrsw2", "sinrswexp", "rsw", "rsw2", "rswexp", "sgdr"),
    ),
    Family(
        "composites",
        "Composites",
        "Policies joined at milestones, the composition of the paper: *homogeneous* if all parts are of one\n"
        "function, *heterogeneous* otherwise. [Write a policy](../write-a-policy.md) shows others in YAML.",
        ("composite_tri", "composite_tri_cosine", "composite_fix_sin_linear"),
    ),
    Family(
        "plateau",
        "Change on a plateau",
        "LRBench's adaptive policy. It observes the checks, and changes the rate when they no longer improve:\n"
        "upwards early in the budget, downwards later. The picture is one training on the digits.",
        ("plateau",),
        "lr(t) = policies[i](t - start of i), where i moves by 1 after `patience` checks without an improvement\n"
        "        larger than `threshold`: up before switch_fraction * max_steps, down after it",
    ),
    Family(
        "auto",
        "Composed during training",
        "No shape is given. On a short budget, or with an optimizer other than SGD, `auto` compares short\n"
        "decays from two peaks and continues with longer ones. With SGD on a long budget it holds a peak, and\n"
        "decays when the target is in reach. [Compose a policy during training](../auto.md) describes its\n"
        "rules. The picture is one training of the first kind on the digits that reached its target; what it\n"
        "abandoned is dotted.",
        ("auto",),
        "lr(t) = peak, while the peak is held\n"
        "lr(t) = peak * (1 - (t - begin) / length), during a decay of `length` steps",
    ),
)


# -- policies --------------------------------------------------------------------------------------------------


@cache
def policy(name: str, lr: float = 1.0, max_steps: int = STEPS) -> Any:
    """Return a policy of ``conf/lr_policy`` as a value."""
    register_resolvers()
    file = OmegaConf.load(ROOT / "conf" / "lr_policy" / f"{name}.yaml")
    config = OmegaConf.create({"lr": lr, "max_steps": max_steps, "lr_policy": file})
    return instantiate(config.lr_policy)


def shape(name: str) -> str:
    """Return the comment at the head of a policy's YAML, without the name."""
    lines = (ROOT / "conf" / "lr_policy" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("# "):
            break
        comment.append(line[2:])
    text = re.sub(r"^[A-Z0-9]+: ", "", " ".join(comment)).strip()
    return text[0].upper() + text[1:]


def parts(whole: Policy) -> Iterator[Policy]:
    """Yield a policy, or the parts of a composite after the composite itself."""
    yield whole
    if isinstance(whole, Sequential):
        for part in whole.policies:
            yield from parts(part)


def formula(family: Family) -> str:
    """Return the formulas of the members' types, from their docstrings."""
    if family.formula is not None:
        return family.formula
    found = [part for name in family.members for part in parts(policy(name))]
    lines = []
    for kind in dict.fromkeys(type(part) for part in found):
        (first,) = re.findall(r"^ *(lr\(t\) = .+)$", kind.__doc__ or "", re.MULTILINE)
        lines.append((kind.__name__, first))
    indent = " " * (2 + max(len(name) for name, _ in lines))
    text = []
    for name, first in lines:
        text += [f"{name:{len(indent)}}{first}".replace(",  u = ", f"\n{indent}u = ")]
        if name == "Cyclic":
            cycles = [part for part in found if isinstance(part, Cyclic)]
            waves = dict.fromkeys(each.wave for each in cycles)
            text += [f"{indent}wave(u) = {wave_formula(wave)}  ({wave})" for wave in waves]
            decays = dict.fromkeys(_decay(each) for each in cycles)
            text += [f"{indent}decay(t) = {DECAYS[decay]}  ({decay.partition(' ')[0]})" for decay in decays]
    return "\n".join(text)


def wave_formula(wave: str) -> str:
    """Return the formula of a wave, from the docstring of ``Cyclic``."""
    (found,) = re.findall(rf"^ *{wave} +(\S.*?)  +``", Cyclic.__doc__ or "", re.MULTILINE)
    return str(found)


def _decay(cyclic: Cyclic) -> str:
    return f"{cyclic.decay} cosine" if cyclic.decay == "halving" and cyclic.wave == "cosine" else cyclic.decay


def example(family: Family) -> str:
    """Return a doctest: the first member with a peak of 1 over 100 steps, and some of its rates."""
    name = family.members[0]
    value = policy(name, 1.0, 100)
    kinds = sorted({type(part).__name__ for part in parts(value)})
    at = (0, 5, 25, 50, 75, 99)
    lines = f"{name} = {code(value)}".splitlines()
    return "\n".join(
        [
            f">>> from lrbench_pl.policies import {', '.join(kinds)}",
            *(f"{'...' if index else '>>>'} {line}" for index, line in enumerate(lines)),
            f">>> [round({name}(t), 4) for t in {at}]",
            str([round(value(t), 4) for t in at]),
        ]
    )


def code(value: Policy) -> str:
    """Return the call that makes a policy, without defaults; the parts of a composite on lines of their own."""
    if isinstance(value, Sequential):
        inner = "".join(f"        {code(part)},\n" for part in value.policies)
        return f"Sequential(\n    (\n{inner}    ),\n    milestones={value.milestones},\n)"
    given = {
        each.name: getattr(value, each.name) for each in fields(value) if getattr(value, each.name) != each.default
    }
    return f"{type(value).__name__}({', '.join(f'{name}={each!r}' for name, each in given.items())})"


# -- studies ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One policy in one study.

    Args:
        study: Folder of the study.
        task: Workload and budget.
        row: Its line in the table of the study.
        place: Its place among those it is compared with, from 1.
        of: How many those are.
        first: Name of the first of them.
        same_tier: Whether it is in the tier of the first.
        policy: Its name; after its name in ``conf/lr_policy`` those of other policies, such as of the momentum.
        tuned: Whether its rate was tuned; false for the default of the workload.
    """

    study: str
    task: str
    row: Row
    place: int
    of: int
    first: str
    same_tier: bool
    policy: str
    tuned: bool = True

    @property
    def lr_policy(self) -> str:
        """Its name in ``conf/lr_policy``."""
        return self.policy.partition(" + ")[0]


@cache
def entries() -> tuple[Entry, ...]:
    """Return every policy in every study: tuned ones among themselves if there are several, others among all."""
    found = []
    for path in sorted(each.with_name("results.csv") for each in HERE.glob("policies_*/study.yaml")):
        results = pl.read_csv(path)
        usual = stage(results, "default").row(0, named=True)
        task = f"{workload(usual)}, {usual['max_steps']} steps"
        rows = [row for row in compared(results) if " in " not in row.name]
        tuned = [row for row in rows if row.name not in ("auto", "the default")]
        for row in rows:
            among = tuned if row in tuned and len(tuned) > 1 else rows
            is_default = row.name == "the default"
            found.append(
                Entry(
                    study=path.parent.name,
                    task=task,
                    row=row,
                    place=among.index(row) + 1,
                    of=len(among),
                    first=among[0].name,
                    same_tier=row.tier == among[0].tier,
                    policy=usual["policy"] if is_default else row.name,
                    tuned=not is_default,
                )
            )
    return tuple(found)


@dataclass(frozen=True)
class Pair:
    """One policy with one optimizer.

    Args:
        study: Folder of the study.
        task: Workload and budget.
        policy: Its name.
        optimizer: Name of the optimizer.
        steps: Median steps to the target; infinite if most seeds missed.
        reached: Seeds that reached it.
        n: Seeds.
        best: Least median of a policy with this optimizer.
    """

    study: str
    task: str
    policy: str
    optimizer: str
    steps: float
    reached: int
    n: int
    best: float


@cache
def pairs() -> tuple[Pair, ...]:
    """Return every policy with every optimizer of the studies of optimizers."""
    found = []
    for path in sorted(HERE.glob("optimizers_*/results.csv")):
        rows = stage(pl.read_csv(path), "run")
        task = f"{workload(rows.row(0, named=True))}, {rows['max_steps'][0]} steps"
        medians = {}
        for (name, optimizer), part in rows.group_by("policy", "optimizer"):
            steps = [math.inf if each is None else float(each) for each in part["steps_to_target"]]
            medians[str(name), str(optimizer)] = statistics.median(steps), sum(map(math.isfinite, steps)), len(steps)
        for (name, optimizer), (median, reached, n) in sorted(medians.items()):
            best = min(each for (_, other), (each, *_) in medians.items() if other == optimizer)
            found.append(Pair(path.parent.name, task, name, optimizer, median, reached, n, best))
    return tuple(found)


def won(family: Family) -> list[str]:
    """Return a line for each study, or optimizer, in which a member was first."""
    lines = [
        f"`{each.policy}`: first of {each.of} on {each.task}; {_steps(each.row)}, speed-up over the default "
        f"{f'{each.row.counted}, its search counted' if each.policy == 'auto' else each.row.speed_up} "
        f"({_link(each.study)})."
        for each in _of(family)
        if each.place == 1
    ]
    for study, name, mine in _pairs_of(family):
        if first := [pair for pair in mine if pair.steps == pair.best and math.isfinite(pair.steps)]:
            lines.append(f"`{name}`: fewest steps with {_optimizers(first)} on {first[0].task} ({_link(study)}).")
    if family.page == "auto":
        lines.append(_bench()[0])
    return lines


def lost(family: Family) -> list[str]:
    """Return a line for each study, or optimizer, in which a member was significantly worse or missed."""
    lines = []
    for each in [*_of(family), *_defaults(family)]:
        name = f"`{each.policy}`" + ("" if each.tuned else f" as the untuned default, at {each.row.lr:g}")
        if not each.same_tier:
            lines.append(
                f"{name}: significantly worse than `{each.first}` on {each.task}; {_steps(each.row)} "
                f"({_link(each.study)})."
            )
        elif each.row.reached < each.row.n:
            lines.append(
                f"{name}: missed on {each.row.n - each.row.reached} of {each.row.n} seeds on {each.task} "
                f"({_link(each.study)})."
            )
    for study, name, mine in _pairs_of(family):
        if missed := [pair for pair in mine if not math.isfinite(pair.steps)]:
            shown = ", ".join(f"{pair.optimizer} ({pair.reached}/{pair.n} reached)" for pair in missed)
            lines.append(f"`{name}`: missed on most seeds with {shown} on {missed[0].task} ({_link(study)}).")
    if family.page == "auto":
        lines.append(_bench()[1])
    return lines


def _of(family: Family) -> list[Entry]:
    return [each for each in entries() if each.tuned and each.lr_policy in family.members]


def _defaults(family: Family) -> list[Entry]:
    return [each for each in entries() if not each.tuned and each.lr_policy in family.members]


def _pairs_of(family: Family) -> Iterator[tuple[str, str, list[Pair]]]:
    """Yield study, policy and its pairs, those with the fewest steps first."""
    for study in dict.fromkeys(pair.study for pair in pairs()):
        for name in family.members:
            mine = [pair for pair in pairs() if (pair.study, pair.policy) == (study, name)]
            if mine:
                yield study, name, sorted(mine, key=lambda pair: (pair.steps, pair.optimizer))


def _bench() -> tuple[str, str]:
    """Return how ``auto`` compares with its default policy on ``auto_bench``: for it, and against it."""
    rows = pl.read_csv(HERE / "auto_bench" / "table.csv")
    ways = {way: rows.filter(way=way) for way in ("auto", "cosine")}
    reached = {way: f"{part['reached'].sum()} of {len(part)}" for way, part in ways.items()}
    medians = {way: dict(part.group_by("case").agg(pl.col("steps").median()).rows()) for way, part in ways.items()}
    ratios = [medians["auto"][case] / steps for case, steps in medians["cosine"].items()]
    mean = statistics.geometric_mean(ratios)
    return (
        f"`auto`: on {len(ratios)} tasks with small perceptrons it reached the target in {reached['auto']} trainings, "
        f"`cosine` at the optimizer's own rate in {reached['cosine']}, in {mean:.2f} times the steps (geometric mean; "
        f"{_link('auto_bench')}).",
        f"`auto`: on {sum(ratio > 1.1 for ratio in ratios)} of these {len(ratios)} tasks it took more than 1.1 times "
        f"the steps of `cosine`, {max(ratios):.2f} times in the worst case ({_link('auto_bench')}).",
    )


def _steps(row: Row) -> str:
    shown = f"{row.reached} of {row.n} seeds reached the target"
    missed = row.steps.value is None or math.isinf(row.steps.value)
    return shown if missed else f"{shown}, median {spread(row.steps, '.0f')} steps"


def _optimizers(found: Sequence[Pair]) -> str:
    return ", ".join(f"{pair.optimizer} ({pair.steps:.0f})" for pair in found)


def _link(study: str) -> str:
    return f"[{study}](../../experiments/{study}/README.md)"


def places(family: Family) -> list[str]:
    """Return a table of the family's members in the studies; empty if there are none."""
    found = _of(family)
    if not found:
        return []
    lines = [
        "| study | policy | place | reached | steps, median [95 %] | speed-up over the default | with tuning |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in found:
        lines.append(
            f"| {_link(each.study)} | `{each.policy}` | {each.place} of {each.of} | {each.row.reached}/{each.row.n} "
            f"| {spread(each.row.steps, '.0f')} | {each.row.speed_up} | {each.row.counted} |"
        )
    return lines


# -- pages -----------------------------------------------------------------------------------------------------


def page(family: Family) -> str:
    """Return the page of a family in Markdown."""
    lines = [f"# {family.title}", "", family.text, ""]
    lines += [f"![Rates of {', '.join(family.members)} over the budget]({family.page}.svg)", ""]
    lines += ["## Formula", "", "```text", *formula(family).splitlines(), "```", ""]
    lines += ["## Policies", "", "| `lr_policy` | shape |", "|---|---|"]
    lines += [f"| `{name}` | {shape(name)} |" for name in family.members]
    if family.page not in ADAPTIVE:
        lines += ["", f"    lrbench preview lr_policy={','.join(family.members)}"]
        lines += ["", "In Python, with a peak of 1 over 100 steps:", "", "```python", example(family), "", "```"]
    else:
        lines += ["", f"    lrbench run lr_policy={family.members[0]} max_steps=400"]
    lines += ["", "## When it won", ""]
    gains = won(family)
    lines += [line for text in gains for line in _item(text)] or ["It was first in none of our studies."]
    lines += ["", "## When not", ""]
    losses = lost(family)
    lines += [line for text in losses for line in _item(text)]
    absent = [name for name in family.members if not _took_part(name)]
    if absent:
        lines += _item(f"No study has run {', '.join(f'`{name}`' for name in absent)}.")
    if not losses and not absent:
        lines.append("It was never significantly worse than the first, and never missed.")
    lines.append("")
    if table := places(family):
        lines += ["## In the studies", "", *_prose(_HOW), "", *table, ""]
    return "\n".join(lines).rstrip() + "\n"


_HOW = (
    "Every policy at its best peak rate, chosen by short runs on another seed. *place*: among the tuned policies of "
    "the study; among all for `auto`, or if there is only one. *with tuning*: the steps of the tuning runs, or of the "
    "search of `auto`, are counted. Policies next to each other are often not significantly different; the study has "
    "the tiers."
)


def _took_part(name: str) -> bool:
    return any(each.lr_policy == name for each in entries()) or any(pair.policy == name for pair in pairs())


def _item(text: str) -> list[str]:
    """Return an item of a list, wrapped at 100 columns."""
    first, *rest = _prose(text, 98)
    return [f"- {first}", *(f"  {line}" for line in rest)]


def _prose(text: str, width: int = 100) -> list[str]:
    """Wrap text without breaking code, which may hold spaces."""
    words = re.findall(r"(?:`[^`]*`|\S)+", text)
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def index() -> str:
    """Return the index of the gallery in Markdown."""
    lines = ["# Gallery", ""]
    lines += _prose(
        "Every policy of `conf/lr_policy` by its family: formula, picture, and when it won in our studies and when "
        "not. `python experiments/gallery.py` makes these pages from the policies and the frozen results."
    )
    lines += ["", "![One policy of each family over the budget](families.svg)", ""]
    lines += [
        "| family | policies | studies | first | no significant difference | significantly worse |",
        "|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        names = ", ".join(f"`{name}`" for name in family.members)
        counts = " | ".join(f"{each or '–'}" for each in standing(family))
        lines.append(f"| [{family.title}]({family.page}.md) | {names} | {counts} |")
    lines += ["", *_prose(_STANDING)]
    return "\n".join(lines) + "\n"


_STANDING = (
    "*studies*: those of policies in which a member took part. The best member counts: it was first, or in the tier of "
    "the first, or significantly worse. Rates are tuned, but few workloads were studied: this is "
    "no ranking of families. Run the candidates on your task: `lrbench run -m lr_policy=tri,cosine,wsd seed=0,1,2`."
)


def standing(family: Family) -> tuple[int, int, int, int]:
    """Return the studies of a family: all, first, in the tier of the first, significantly worse."""
    best: dict[str, Entry] = {}
    for each in _of(family):
        if each.study not in best or each.place < best[each.study].place:
            best[each.study] = each
    first = sum(each.place == 1 for each in best.values())
    worse = sum(not each.same_tier for each in best.values())
    return len(best), first, len(best) - first - worse, worse


def texts() -> dict[Path, str]:
    """Return the pages by their paths."""
    return {GALLERY / "README.md": index()} | {GALLERY / f"{each.page}.md": page(each) for each in FAMILIES}


# -- pictures --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One small plot.

    Args:
        name: Its title.
        lines: Steps, rates and whether they are dotted.
    """

    name: str
    lines: tuple[tuple[Sequence[float], Sequence[float], bool], ...]


def panel(name: str) -> Panel:
    """Return the curve of a policy with rates before a training."""
    at = range(0, STEPS, _EVERY)
    return Panel(name, (([100 * t / STEPS for t in at], [policy(name)(t) for t in at], False),))


def trained(name: str) -> Panel:
    """Train an adaptive policy on the bundled digits and return the rates that it applied."""
    with tempfile.TemporaryDirectory() as folder:
        task = ["target=0.975", f"max_steps={_AUTO_STEPS}"] if name == "auto" else ["target=null", f"max_steps={STEPS}"]
        command = [sys.executable, str(ROOT / "run.py"), f"lr_policy={name}", *task]
        subprocess.run([*command, f"hydra.run.dir={folder}"], check=True, stdout=subprocess.DEVNULL)
        if name == "auto":
            return Panel(name, tuple(_segments(json.loads((Path(folder) / "tuning.json").read_text()))))
        found = pl.read_csv(Path(folder) / "metrics.csv", infer_schema_length=None)
    found = found.filter(pl.col("lr").is_not_null())
    rates = [rate / max(found["lr"]) for rate in found["lr"]]
    return Panel(name, (([100 * step / STEPS for step in found["step"]], rates, False),))


def _segments(records: Sequence[dict[str, Any]]) -> Iterator[tuple[list[float], list[float], bool]]:
    from lrbench_pl.analysis.plots import tuning_info

    segments = tuning_info(records, "auto").segments
    top = max(max(segment.rates) for segment in segments if segment.kind != "range")
    for segment in segments:
        if segment.kind != "range":
            span, last = segment.end - segment.begin, len(segment.rates) - 1
            at = [100 * (segment.begin + span * index / last) / _AUTO_STEPS for index in range(last + 1)]
            yield at, [rate / top for rate in segment.rates], not segment.kept


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels in a grid, legible on a light and on a dark ground."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    grey = "#808080"
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": path.stem,
        "font.size": 8,
        "text.color": grey,
        "axes.edgecolor": grey,
        "axes.labelcolor": grey,
        "xtick.color": grey,
        "ytick.color": grey,
    }
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with pyplot.rc_context(settings):
        size = (2.35 * columns, 1.35 * rows) if len(panels) > 1 else (4.7, 1.8)
        figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for index, axes in enumerate(grid.flat):
            if index >= len(panels):
                axes.set_axis_off()
                continue
            for steps, rates, dotted in panels[index].lines:
                axes.plot(steps, rates, ":" if dotted else "-", color="#2a86d8", linewidth=1.4)
            axes.set(xlim=(0, 100), ylim=(0, 1.08), xticks=(0, 50, 100), yticks=(0, 1))
            axes.set_title(panels[index].name, fontsize=9, pad=3)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            axes.tick_params(labelleft=index % columns == 0, labelbottom=index + columns >= len(panels))
        figure.supxlabel("% of the budget", fontsize=8)
        figure.supylabel("rate / peak", fontsize=8)
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def main() -> None:
    """Write the pages, and draw the pictures."""
    GALLERY.mkdir(exist_ok=True)
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
    if "--text" in sys.argv[1:]:
        return
    panels = {
        name: trained(name) if name in ADAPTIVE else panel(name) for family in FAMILIES for name in family.members
    }
    for family in FAMILIES:
        draw([panels[name] for name in family.members], GALLERY / f"{family.page}.svg")
    draw([panels[family.members[0]] for family in FAMILIES], GALLERY / "families.svg")


if __name__ == "__main__":
    main()
