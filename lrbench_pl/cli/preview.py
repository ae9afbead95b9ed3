"""``lrbench preview``: compute and draw the rates of policies without training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from lrbench_pl.policies import EXACT_STEPS, AdaptivePolicy, Policy, policy_id, table
from lrbench_pl.runs.config import build_policy, compose, expand
from lrbench_pl.runs.lint import TrainingPlan, training_plan
from lrbench_pl.runs.options import UserError
from lrbench_pl.words import policy_file_name

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
    """

    name: str
    rates: tuple[float, ...]
    policy_id: str | None


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
            name = str(cfg.names.policy) if cfg.lr_policy_file is None else policy_file_name(cfg.lr_policy_file)
            varying = [part.removeprefix("lr_policy=") for part, varies in zip(each, vary, strict=True) if varies]
            found.append(PlannedRun(", ".join(varying) or name, training_plan(cfg, _policy(cfg))))
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
    return Curve(run.name, tuple(table(policy, n)), identity)


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
    """Draw the curves below each other in Braille characters, on one scale.

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
    height = height or (8 if len(curves) == 1 else 4 if len(curves) <= 6 else 2)
    top = max(max(each.rates) for each in curves)
    label = max(5, len(f"{top:.3g}"))
    columns = max(20, width) - label - 2
    lines = []
    for each in curves:
        lines.append(each.name)
        rows = _braille(each.rates, top, columns, height)
        for index, row in enumerate(rows):
            mark = f"{top:.3g}" if index == 0 else "0" if index == height - 1 else ""
            lines.append(f"{mark:>{label}} {row}".rstrip())
        end = f"steps {len(each.rates)}"
        lines.append(f"{'':>{label}} 0{end:>{columns - 1}}")
    return "\n".join(lines)


def _braille(rates: Sequence[float], top: float, columns: int, height: int) -> list[str]:
    """Return the lines of a curve; a character has 2 x 4 dots."""
    across, down = 2 * columns, 4 * height
    cells = [[0] * columns for _ in range(height)]
    for x in range(across):
        begin = x * len(rates) // across
        within = rates[begin : max(begin + 1, math.ceil((x + 1) * len(rates) / across))]
        level = [round((down - 1) * (1 - (rate / top if top else 0.0))) for rate in (min(within), max(within))]
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

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for index, each in enumerate(curves):
        style = ("-", "--", ":", "-.")[index // 10 % 4]  # ten colours, then dashes
        axes.plot(each.rates, style, label=each.name, linewidth=1.4)
    axes.set(xlabel="optimizer step", ylabel="learning rate", ylim=(0, None), xlim=(0, None))
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize="small", ncols=1 + len(curves) // 25)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path
