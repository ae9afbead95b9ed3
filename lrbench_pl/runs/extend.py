"""Extend a run: a longer horizon from a checkpoint before its decay, as one composite policy."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrbench_pl.composing.settings import BRANCH_DECAYS
from lrbench_pl.files import CHECKPOINTS, EXTENDABLE, checkpoint_path, checkpoints_in, step_of, written_checkpoints
from lrbench_pl.policies import (
    AdaptivePolicy,
    Constant,
    Cyclic,
    Policy,
    Sequential,
    fields_of,
    from_config,
    policy_id,
    sampled,
    segments,
    to_config,
)
from lrbench_pl.policies import _checks as check
from lrbench_pl.runs.config import read_policy
from lrbench_pl.runs.folder import LOCK_FILE, Record, finished_result, read_result
from lrbench_pl.runs.imports import import_lightning
from lrbench_pl.runs.lint import Finding, TrainingPlan, resumed
from lrbench_pl.runs.locks import lock_of
from lrbench_pl.runs.options import UserError, check_whole
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import RunSpec
from lrbench_pl.words import counted

SHAPES: dict[str, Callable[[float, int], Policy]] = {
    "linear": BRANCH_DECAYS["linear"],
    "cosine": lambda lr, steps: Cyclic(0.0, lr, steps, "half_cosine"),  # the budget ends with it
    "1-sqrt": BRANCH_DECAYS["sqrt"],
}
_LOW = 0.1  # a constant rate of at most this share of the peak ends a decay; it is no stable phase

_HOW = "train it with extendable=true, which keeps the checkpoint at the end of the stable phase"


class ExtendError(ValueError):
    """Raised if a run cannot be extended; the message says why and what to do."""


@dataclass(frozen=True)
class StablePhase:
    """The stable phase of a policy.

    Args:
        before: The parts before it, as (start, policy).
        policy: Its policy, which counts from ``start``.
        start: Its first step.
        end: The first step of the decay, or the end of the budget.
    """

    before: tuple[tuple[int, Policy], ...]
    policy: Policy
    start: int
    end: int


def stable_phase(policy: Policy, max_steps: int, may_be_empty: bool = False) -> StablePhase:
    """Return the stable phase of a policy, which is followed by a decay or by the end of the budget.

    It is the last part with a constant rate, or the part before a final decay unless that part has a horizon of its
    own, as a warm-up has.

    Args:
        policy: The policy.
        max_steps: The budget, in optimizer steps.
        may_be_empty: Whether the final decay may follow another one or a warm-up, as in a policy that was composed
            during training. The stable phase then has the first rate of the decay, and no steps yet.

    Raises:
        ExtendError: If the policy has none.

    Example:
        >>> from lrbench_pl.policies import Constant, Polynomial
        >>> wsd = Sequential((Polynomial(0.01, 50, end_lr=0.1), Constant(0.1), Polynomial(0.1, 300)), (50, 700))
        >>> phase = stable_phase(wsd, 1000)
        >>> phase.policy, phase.start, phase.end
        (Constant(lr=0.1), 50, 700)
    """
    if isinstance(policy, AdaptivePolicy):
        raise ExtendError("an adaptive policy cannot be extended: its rates depend on the checks")
    parts = [(start, part) for start, part in segments(policy) if start < max_steps]
    ends = [start for start, _ in parts[1:]] + [max_steps]
    highest = max(policy(t) for t in sampled(policy, max_steps))
    last = len(parts) - 1
    while last > 0 and (rate := _constant_rate(parts[last][1], ends[last] - parts[last][0])) is not None:
        if rate > _LOW * highest * (1 + 1e-9):
            break
        last -= 1
    start, part = parts[last]
    if _constant_rate(part, ends[last] - start) is not None:
        return StablePhase(tuple(parts[:last]), part, start, ends[last])
    if last > 0 and _decays(part, ends[last] - start):
        if not fields_of(parts[last - 1][1], "horizon"):
            return StablePhase(tuple(parts[: last - 1]), parts[last - 1][1], parts[last - 1][0], start)
        if may_be_empty:
            return StablePhase(tuple(parts[:last]), Constant(part(0)), start, start)
    raise ExtendError(
        "the policy has no stable phase: expected a constant rate up to the end of the budget or up to a final decay, "
        "as fix, wsd and auto have; train such a policy"
    )


def _constant_rate(part: Policy, steps: int) -> float | None:
    """Return the rate of a part that never changes it; None for any other."""
    rates = {part(t) for t in sampled(part, steps)}
    return rates.pop() if len(rates) == 1 else None


def _decays(part: Policy, steps: int) -> bool:
    rates = [part(t) for t in sampled(part, steps)]
    falls = all(after <= before for before, after in itertools.pairwise(rates))
    return falls and rates[-1] < rates[0]


@dataclass(frozen=True)
class Extension:
    """A longer horizon of a policy, and a decay at its end.

    Args:
        max_steps: The new budget, in optimizer steps.
        shape: Shape of the decay: ``linear``, ``cosine`` or ``1-sqrt``.
        share: The decay as a share of the budget.
        policy: The composite: the policy up to its stable phase, that phase for longer, and the decay.
        decay_start: First step of the decay.
    """

    max_steps: int
    shape: str
    share: float
    policy: Policy
    decay_start: int

    @property
    def suffix(self) -> str:
        """Suffix of the policy's name: budget, shape and share of the decay."""
        return f"{self.max_steps}-{self.shape}-{self.share:g}"


def extended(
    phase: StablePhase, share: float, shape: str, available: int, max_steps: int | None = None, interval: int = 1
) -> Extension:
    """Continue a stable phase to a longer horizon, with a decay to zero at its end.

    Args:
        phase: The stable phase.
        share: The decay as a share of the new budget, in (0, 1).
        shape: Shape of the decay.
        available: Step of the first checkpoint that the extension may continue from.
        max_steps: The new budget; None for the shortest multiple of ``interval`` in which the decay begins at that
            checkpoint.
        interval: Steps between two checks.

    Raises:
        ExtendError: If an argument is out of range, or the decay would begin before the checkpoint.

    Example:
        >>> from lrbench_pl.policies import Constant
        >>> extended(stable_phase(Constant(0.1), 1000), 0.2, "linear", available=1000, max_steps=2000).policy
        Sequential(policies=(Constant(lr=0.1), Polynomial(init_lr=0.1, decay_steps=400, power=1.0, end_lr=0.0)), \
milestones=(1600,))
    """
    if shape not in SHAPES:
        raise ExtendError(f"--shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    try:
        check.number("--decay", share, "be a share of the new budget in (0, 1)", lambda value: 0 < value < 1)
        shortest = interval * math.ceil(available / (1 - share) / interval)
        budget = shortest if max_steps is None else max_steps
        check_whole("--max-steps", budget)
    except ValueError as error:
        raise ExtendError(str(error)) from error
    decay_steps = max(1, round(share * budget)) if max_steps is not None else budget - available
    start = budget - decay_steps
    if start < available:
        most = (budget - available) / budget
        lower = f"lower --decay to at most {math.floor(1000 * most) / 1000:g}, or " if most >= 0.001 else ""
        least = math.ceil(available / (1 - share))
        raise ExtendError(
            f"a decay over {share:g} of {counted(budget, 'step')} would begin at step {start}, before the checkpoint "
            f"of step {available}; {lower}raise --max-steps to {least}"
        )
    decay = SHAPES[shape](phase.policy(start - phase.start), decay_steps)
    stable = [(phase.start, phase.policy)] if phase.start < start else []  # one without steps is no part
    starts, parts = zip(*phase.before, *stable, (start, decay), strict=True)
    return Extension(budget, shape, share, Sequential(parts, starts[1:]), start)


# -- a run that is extended ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Original:
    """A run that can be extended.

    Args:
        folder: Its folder, which is only read.
        run_id: Its id.
        spec: Its specification.
        result: Its result; None while it has none.
        phase: The stable phase of its policy.
        horizon: Steps of its policy.
        checkpoints: Checkpoints in the stable phase by their step of the policy.
    """

    folder: Path
    run_id: str
    spec: RunSpec
    result: RunResult | None
    phase: StablePhase
    horizon: int
    checkpoints: Mapping[int, Path]


def read_original(folder: Path) -> Original:
    """Read a run that is to be extended.

    Raises:
        ExtendError: If it cannot be extended; the message begins with the folder.
    """
    try:
        return _read_original(folder)
    except (ExtendError, UserError) as error:
        raise ExtendError(f"{folder}: {error}") from error


def _read_original(folder: Path) -> Original:
    record, result = Record.read(folder), read_result(folder)
    if record is None:
        raise ExtendError("expected the folder of a run, with run.json and policy.yaml in it")
    spec = RunSpec.from_dict(record.configuration)
    if spec.task.max_steps is None:
        raise ExtendError("expected a run with a budget, got one without max_steps")
    if _has_policies(spec.task.settings):
        raise ExtendError("the policies of parameter groups or of other settings cannot be extended")
    if result is not None and result.status == "diverged":
        raise ExtendError(f"expected a run that can continue, got one that diverged ({result.message})")
    if not (folder / "policy.yaml").exists():
        why = f" ({result.message})" if result is not None and result.message else ""
        raise ExtendError(f"expected a run that has begun to train, got one without policy.yaml{why}; train it first")
    policy, horizon = read_policy(folder / "policy.yaml"), spec.task.max_steps
    is_composed = (folder / "tuning.json").exists()
    if is_composed:
        if result is None or result.status not in ("reached", "missed") or result.steps_run is None:
            raise ExtendError("a composition can be extended once it has ended; finish it with the same command")
        horizon = result.steps_run - (result.tuning_steps or 0)
    elif result is not None and result.policy_id not in (None, policy_id(policy, horizon)):
        raise ExtendError("policy.yaml is not the policy of result.json; restore it")
    phase = stable_phase(policy, horizon, may_be_empty=is_composed or bool(checkpoints_in(folder / EXTENDABLE)))
    _check_not_stopped(spec, result, phase)
    found = _checkpoints(folder, record.run_id, policy, phase)
    if not found:
        raise ExtendError(_why_none(result, phase))
    return Original(folder, record.run_id, spec, result, phase, horizon, found)


def _has_policies(settings: Any) -> bool:
    """Return whether settings hold policies, at any depth."""
    if isinstance(settings, Mapping):
        settings = [*settings, *settings.values()]
    if isinstance(settings, (list, tuple)):
        return any(map(_has_policies, settings))
    return isinstance(settings, str) and settings.startswith("lrbench_pl.policies.")


def _check_not_stopped(spec: RunSpec, result: RunResult | None, phase: StablePhase) -> None:
    """Refuse a run that stopped at its target in the stable phase: so would the extension."""
    if result is None or result.status != "reached" or not spec.stop_at_target:
        return
    length = (result.steps_run or 0) - (result.tuning_steps or 0)
    if length <= phase.end:
        raise ExtendError(
            f"it reached its target in the stable phase and stopped at step {length}, as any extension of it would; "
            "train it with stop_at_target=false and extendable=true"
        )


def _why_none(result: RunResult | None, phase: StablePhase) -> str:
    """Return why a run has no checkpoint in its stable phase, and what to do."""
    if result is not None and result.shared_with is not None:
        return f"it was not trained, but shares the outcome of run {result.shared_with}; extend that one"
    return f"it has no checkpoint before its decay, which begins at step {phase.end}; {_HOW}"


def _checkpoints(folder: Path, run_id: str, policy: Policy, phase: StablePhase) -> dict[int, Path]:
    """Return the checkpoints of a run in the stable phase of a policy, by their step of that policy."""
    import_lightning()
    from lrbench_pl.callbacks.checkpoints import CheckpointError, own_state, read_checkpoint

    found: dict[int, Path] = {}
    for path in (*checkpoints_in(folder / CHECKPOINTS), *checkpoints_in(folder / EXTENDABLE)):
        try:
            run = own_state(read_checkpoint(path)).get("run")
        except (CheckpointError, OSError) as error:
            raise ExtendError(f"{path.relative_to(folder)} cannot be read ({error}); {_HOW}") from error
        if run is None or run["run_id"] != run_id or run["policy"] is None:
            continue
        step = run.get("policy_step", step_of(path))
        if phase.start <= step <= phase.end and _same_rates(run["policy"], policy, step):
            found[step] = path
    return found


def _same_rates(stored: Mapping[str, Any], policy: Policy, steps: int) -> bool:
    before = from_config(stored)
    return all(before(t) == policy(t) for t in sampled(policy, steps))


def resumed_findings(plan: TrainingPlan, path: Path, run_id: str | None = None) -> list[Finding]:
    """Find what a training would change that resumes from a checkpoint, see :func:`lrbench_pl.runs.lint.resumed`.

    Args:
        plan: The training.
        path: The checkpoint, also one of a Lightning Trainer without this package; or the folder of a run, whose
            latest checkpoint is meant.
        run_id: Hash of the training's specification; a checkpoint of the same run has no finding.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or there is none.
    """
    from lrbench_pl.callbacks.checkpoints import CheckpointError, own_state, read_checkpoint

    if path.is_dir():
        kept = [*checkpoints_in(path), *checkpoints_in(path / CHECKPOINTS), *checkpoints_in(path / EXTENDABLE)]
        if not kept:
            raise CheckpointError(f"{path}: there is no checkpoint; give a file, or a run with extendable=true")
        path = max(kept, key=step_of)
    try:
        checkpoint = read_checkpoint(path)
        step = int(checkpoint["global_step"])
    except (CheckpointError, OSError, KeyError) as error:
        raise CheckpointError(f"{path}: expected a checkpoint of a Lightning Trainer ({error})") from error
    run = own_state(checkpoint).get("run") or {}
    if run_id is not None and run.get("run_id") == run_id:
        return []
    stored, rate = run.get("policy"), None
    made_for = None if stored is None else TrainingPlan(from_config(stored), run["max_steps"])
    if optimizers := checkpoint.get("optimizer_states"):
        group = optimizers[0]["param_groups"][0]
        rate = float(group["lr"]) / float(group.get("lr_scale", 1.0))
    return resumed(plan, int(run.get("policy_step", step)), made_for, rate)


# -- the folder of an extension --------------------------------------------------------------------------------


def check_folder(folder: Path, extension: Extension, spec: RunSpec) -> None:
    """Refuse a folder that holds another run.

    Raises:
        ExtendError: If it does.
    """
    record = Record.read(folder)
    if record is None:
        if (folder / "result.json").exists():
            raise ExtendError(f"{folder} holds another run; choose another folder with -o")
        return
    stored = record.configuration
    same = stored.get("policy") == to_config(extension.policy) and stored.get("seed") == spec.seed
    if not same or stored.get("task", {}).get("max_steps") != extension.max_steps:
        raise ExtendError(f"{folder} holds another run; choose another folder with -o")


def is_finished(folder: Path) -> bool:
    """Return whether the run in a folder has a final result."""
    record = Record.read(folder)
    return record is not None and finished_result(folder, record.run_id) is not None


def begin(folder: Path, source: Path, original: Original, extension: Extension) -> None:
    """Put the checkpoint that an extension begins from into its folder, where the run resumes from it.

    A folder that has a checkpoint already is left as it is.

    Args:
        folder: Folder of the extension.
        source: The checkpoint, of the original or of another extension of it.
        original: The run that is extended.
        extension: The extension.
    """
    from lrbench_pl.callbacks.checkpoints import own_state, read_checkpoint
    from lrbench_pl.runs.extend_checkpoint import plain, write

    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_of(folder / LOCK_FILE)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a file system without locks
            held.enter_context(lock)
        if checkpoints_in(folder / CHECKPOINTS):
            return
        checkpoint = plain(read_checkpoint(source))
        state = own_state(checkpoint)
        state["inherited"] = None
        state["run"] = {**(state.get("run") or {}), "run_id": original.run_id}
        step = checkpoint["global_step"]
        if step == extension.decay_start:  # the run begins where the stable phase ends
            write(checkpoint, checkpoint_path(folder / EXTENDABLE, step), written_checkpoints(folder / EXTENDABLE))
        write(checkpoint, checkpoint_path(folder / CHECKPOINTS, step), written_checkpoints(folder / CHECKPOINTS))


def prune_composed(folder: Path) -> None:
    """Remove the branch points of a finished composition that its policy has not kept."""
    with contextlib.suppress(ExtendError):
        found = read_original(folder).checkpoints
        drop_branch_points(folder, but=step_of(found[max(found)]))


def drop_branch_points(folder: Path, but: int) -> None:
    """Remove the branch points of a run that other extensions have begun from."""
    written = written_checkpoints(folder / EXTENDABLE)
    for path in checkpoints_in(folder / EXTENDABLE):
        if step_of(path) != but:
            written.delete(path)


def branch_points(value: Any, policy: Any, max_steps: int) -> Callable[[int], bool] | None:
    """Return when a run keeps a checkpoint from which it can be extended; None for never.

    Args:
        value: ``extendable`` of the configuration: true for the end of the stable phase, or a list of steps in it.
        policy: The policy, which is no callback.
        max_steps: The budget.

    Raises:
        UserError: If the policy has no stable phase, or a step lies outside of it.
    """
    if value is False or value is None:
        return None
    try:
        phase = stable_phase(policy, max_steps, may_be_empty=value is not True)
    except ExtendError as error:
        raise UserError(f"extendable={str(value).lower()}: {error}") from error
    steps: Sequence[int] = [phase.end] if value is True else list(value)
    for step in steps:
        if not max(1, phase.start) <= step <= phase.end:
            raise UserError(
                f"extendable must be steps of the stable phase, {max(1, phase.start)} to {phase.end}, got {step}"
            )
    kept = frozenset(steps)
    return lambda step: step in kept
