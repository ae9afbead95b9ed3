"""``lrbench preview``: compute and draw the rates of policies without training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from lrbench_pl.policies import EXACT_STEPS, AdaptivePolicy, Policy, policy_id, settings_of, table
from lrbench_pl.runs.config import build_policy, compose, expand
from lrbench_pl.runs.lint import TrainingPlan, training_plan
from lrbench_pl.runs.options import UserError
from lrbench_pl.runs.spec import policy_name

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a Braille character, by column and row


@dataclass(frozen=True)
class PlannedRun:
    """A run that has not started.

    Args:
        name: Its name, from the overrides that distinguish it from the other runs.
        plan: Its policy and budget.
    """

    name: str
    plan: TrainingPlan


@dataclass(frozen=True)
class Curve:
    """The rates of a policy over its budget.

    Args:
        name: Name of the run.
        rates: One per optimizer step.
        policy_id: Equal for equal curves; None for an adaptive policy, whose rates depend on the training.
        others: Momentum, weight decay and rates of groups and further optimizers, by name, if the policy sets them.
    """

    name: str
    rates: tuple[float, ...]
    policy_id: str | None
    others: tuple[tuple[str, tuple[float, ...]], ...] = ()


def planned_runs(overrides: Sequence[str]) -> list[PlannedRun]:
    """Return every run that ``lrbench run -m OVERRIDES`` would start.

    Raises:
        UserError: If a configuration cannot be composed, or its policy has no rates before training.

    Example:
        >>> [run.name for run in planned_runs(["lr_policy=tri,cos", "max_steps=100,200"])]
        ['tri, max_steps=100', 'tri, max_steps=200', 'cos, max_steps=100', 'cos, max_steps=200']
    """
    from lrbench_pl.runs.config_errors import explain

    expanded = expand(overrides)
    vary = [len({each[i] for each in expanded}) > 1 for i in range(len(overrides))]
    found = []
    for each in expanded:
        try:
            cfg = compose(each)
            varying = [part.removeprefix("lr_policy=") for part, varies in zip(each, vary, strict=True) if varies]
            found.append(PlannedRun(", ".join(varying) or policy_name(cfg), training_plan(cfg, _policy(cfg))))
        except Exception as error:
            if (message := explain(error)) is None:
                raise
            raise UserError(message) from error
    return found


def _policy(cfg: DictConfig) -> Policy:
    """Build the policy of a configuration, which must have rates before training."""
    policy = build_policy(cfg)
    if isinstance(policy, (Mapping, DictConfig)):
        raise UserError(
            f"lr_policy={cfg.names.policy}: expected a YAML with _target_, such as lrbench_pl.policies.Constant, got "
            f"{', '.join(map(str, policy)) or 'nothing'}"
        )
    if not callable(policy):
        raise UserError(f"lr_policy={cfg.names.policy} has no rates before training; preview and lint need a policy")
    found: Policy = policy
    return found


def curve(run: PlannedRun) -> Curve:
    """Return the rates that a run would apply.

    Example:
        >>> from lrbench_pl.policies import Step
        >>> curve(PlannedRun("step", TrainingPlan(Step(1.0, 0.5, 2), max_steps=4))).rates
        (1.0, 1.0, 0.5, 0.5)
    """
    policy, n = run.plan.policy, run.plan.max_steps
    if n > EXACT_STEPS:
        raise UserError(
            f"a preview has at most {EXACT_STEPS} steps, got max_steps={n}; give fewer, the shape is the same"
        )
    identity = None if isinstance(policy, AdaptivePolicy) else policy_id(policy, n)
    rates, *others = ((name, tuple(table(part, n))) for name, part in settings_of(policy).items())
    return Curve(run.name, rates[1], identity, tuple(others))


def panels(curves: Sequence[Curve]) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """Return the names and values of the curves by what they show: the learning rate, and other settings.

    Example:
        >>> panels([Curve("cosine", (0.1,), "a", (("lr/head", (0.2,)), ("weight_decay", (0.01,))))])
        {'learning rate': [('cosine', (0.1,)), ('cosine, head', (0.2,))], 'weight decay': [('cosine', (0.01,))]}
    """
    found: dict[str, list[tuple[str, tuple[float, ...]]]] = {"learning rate": []}
    for each in curves:
        found["learning rate"].append((each.name, each.rates))
        for setting, values in each.others:
            optimizer, _, rest = setting.partition("/") if setting.startswith("optimizer_") else ("", "", setting)
            kind, _, group = rest.partition("/")
            label = ", ".join(part for part in (each.name, optimizer.replace("_", " "), group) if part)
            title = "learning rate" if kind == "lr" else kind.replace("_", " ")
            found.setdefault(title, []).append((label, values))
    return found


def equal_curves(curves: Sequence[Curve]) -> list[list[str]]:
    """Return groups of names with the same rates over the same budget.

    Example:
        >>> equal_curves([Curve("fix", (0.1,), "a"), Curve("step", (0.1,), "a"), Curve("tri", (0.2,), "b")])
        [['fix', 'step']]
    """
    groups: dict[str, list[str]] = {}
    for each in curves:
        if each.policy_id is not None:
            groups.setdefault(each.policy_id, []).append(each.name)
    return [names for names in groups.values() if len(names) > 1]


def draw(curves: Sequence[Curve], width: int = 80, height: int | None = None) -> str:
    """Draw the curves below each other in Braille characters, the rates on one scale, each other setting on its own.

    Args:
        curves: At least one curve.
        width: Characters per line, at least 20.
        height: Lines per curve; by default fewer for many curves.

    Example:
        >>> print(draw([Curve("linear", tuple(1 - t / 100 for t in range(100)), "a")], width=30, height=2))
        linear
            1 ⠉⠙⠒⠒⠒⠦⠤⠤⣄⣀⣀⡀
            0            ⠈⠉⠉⠙⠒⠒⠒⠦⠤⠤⣄⣀
              0             steps 100
    """
    shown = panels(curves)
    count = sum(map(len, shown.values()))
    height = height or (8 if count == 1 else 4 if count <= 6 else 2)
    columns = max(20, width)
    lines: list[str] = []
    for title, named in shown.items():
        of = "" if title == "learning rate" else f"{title} of "
        bottom = 0.0 if not of else min(min(values) for _, values in named)
        top = max(max(values) for _, values in named)
        for name, values in named:
            lines += [f"{of}{name}", *_drawn(values, bottom, top, columns, height)]
    return "\n".join(lines)


def _drawn(values: Sequence[float], bottom: float, top: float, width: int, height: int) -> list[str]:
    """Return the lines of a curve and of its axis."""
    label = max(5, len(f"{top:.3g}"), len(f"{bottom:.3g}"))
    columns = width - label - 2
    lines = []
    for index, row in enumerate(_braille(values, bottom, top, columns, height)):
        mark = f"{top:.3g}" if index == 0 else f"{bottom:.3g}" if index == height - 1 else ""
        lines.append(f"{mark:>{label}} {row}".rstrip())
    end = f"steps {len(values)}"
    return [*lines, f"{'':>{label}} 0{end:>{columns - 1}}"]


def _braille(rates: Sequence[float], bottom: float, top: float, columns: int, height: int) -> list[str]:
    """Return the lines of a curve; a character has 2 x 4 dots."""
    across, down = 2 * columns, 4 * height
    cells = [[0] * columns for _ in range(height)]
    for x in range(across):
        begin = x * len(rates) // across
        within = rates[begin : max(begin + 1, math.ceil((x + 1) * len(rates) / across))]
        span = top - bottom
        level = [round((down - 1) * (1 - ((v - bottom) / span if span else 0.0))) for v in (min(within), max(within))]
        for y in range(level[1], level[0] + 1):
            cells[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
    return ["".join(chr(0x2800 + cell) if cell else " " for cell in row).rstrip() for row in cells]


def write_png(curves: Sequence[Curve], path: str | Path) -> Path:
    """Write the curves as a PNG; needs matplotlib.

    Raises:
        UserError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("a PNG needs matplotlib: pip install 'lrbench_pl[png]', or write .html") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = panels(curves)
    size = (8, 4.5 + 2.5 * (len(shown) - 1))
    figure, every_axes = pyplot.subplots(len(shown), figsize=size, layout="constrained", squeeze=False)
    for (title, named), axes in zip(shown.items(), every_axes[:, 0], strict=True):
        for index, (name, values) in enumerate(named):
            style = ("-", "--", ":", "-.")[index // 10 % 4]  # ten colours, then dashes
            axes.plot(values, style, label=name if title == "learning rate" else f"{name}: {title}", linewidth=1.4)
        axes.set(xlabel="optimizer step", ylabel=title, xlim=(0, None))
        if title == "learning rate":
            axes.set(ylim=(0, None))
        axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize="small", ncols=1 + len(curves) // 25)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path
