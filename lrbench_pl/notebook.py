"""A sweep over policies and seeds as a function call: for notebooks and scripts without Hydra."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

from lrbench_pl.policies import Policy
from lrbench_pl.reading import read_json
from lrbench_pl.saving import RESULT_FILE, check_names, outcome_fields, policy_fields, save
from lrbench_pl.verdict import Mode, TargetCheck, Verdict, whole_number
from lrbench_pl.words import counted

if TYPE_CHECKING:
    from lrbench_pl.analysis.load import Runs

Train = Callable[[Any, int], Any]

_FINISHED = ("reached", "missed", "diverged")  # a failed or stopped training is repeated
_SAME = ("policy_repr", "seed", "max_steps", "target", "monitor", "mode", "confirmations")


def sweep(
    policies: Mapping[str, Policy] | Sequence[Policy],
    seeds: Iterable[int],
    train: Train,
    *,
    folder: str | Path,
    max_steps: int,
    target: float | None = None,
    monitor: str = "val/accuracy",
    mode: Mode = "max",
    confirmations: int = 1,
    show: bool = True,
    **names: Any,
) -> Runs:
    """Train each policy with each seed and save the results in a folder.

    ``train(policy, seed)`` is your function. It yields ``(step, value)`` after each validation: optimizer steps taken
    and the metric. Once the target is confirmed, or the value is not finite, nothing more is asked of it, so a
    generator stops training there. It may also return a list of such pairs, a ``Verdict``, or what has one in its
    attribute ``verdict``, such as a ``TargetCheck`` or an ``LRPolicyCallback``.

    Calling it again continues: trainings that reached or missed the target or diverged are not repeated, those that
    failed or were interrupted are. A training that raises an error is a ``failed`` result, and the sweep continues.

    Args:
        policies: The policies by name, or a list of policies, which are named by their repr.
        seeds: The seeds.
        train: Your function of policy and seed. Seed your random generators in it.
        folder: Where the results go, one folder per training; ``lrbench rank``, ``report`` and ``db`` read it.
        max_steps: The budget of each training in optimizer steps.
        target: Value that the metric has to reach (equality suffices), or None for no target.
        monitor: Name of the metric.
        mode: Whether a larger (``max``) or a smaller (``min``) value is better.
        confirmations: Checks in a row that must meet the target.
        show: Whether to print a line per training.
        **names: Fields of each result: ``dataset``, ``model``, ``optimizer``, ``batch_size``, ``study``.

    Returns:
        The runs of the folder, as :func:`lrbench_pl.load_runs` gives them; ``lrbench_pl.rank`` takes their ``table``.

    Raises:
        ValueError: If an argument is out of its range, or the folder holds a training of another task under one of
            these names; before anything is trained.

    Example:
        >>> import tempfile
        >>> from lrbench_pl.policies import Constant
        >>> def train(policy, seed):
        ...     for step in (10, 20):
        ...         yield step, min(1.0, policy(step) * step)
        >>> policies = {"slow": Constant(0.01), "fast": Constant(0.05)}
        >>> runs = sweep(policies, [0], train, folder=tempfile.mkdtemp(), max_steps=20, target=0.9)
        1/2 slow, seed 0: missed 0.9 within 20 steps; best 0.2 at step 20
        2/2 fast, seed 0: reached 0.9 at step 20
        >>> runs.table["steps_to_target"].to_list()
        [20, None]
    """
    question = {"target": target, "monitor": monitor, "mode": mode, "confirmations": confirmations}
    max_steps = whole_number("max_steps", max_steps)
    TargetCheck(**question)  # type: ignore[arg-type]  # refused before anything is trained
    named = check_names(names)
    jobs = [
        _Job(Path(folder), name, policy, seed, max_steps, question, named)
        for name, policy in _by_name(policies).items()
        for seed in _checked_seeds(seeds)
    ]
    finished = {job.path for job in jobs if job.is_finished()}
    failed = 0
    for index, job in enumerate(jobs, 1):
        is_new = job.path not in finished
        message = job.run(train) if is_new else "finished before"
        failed += message.startswith("failed")
        if show:
            print(f"{index}/{len(jobs)} {job.name}, seed {job.seed}: {message}", flush=True)
    if failed and show:
        print(f"{counted(failed, 'training')} failed; call sweep() again to repeat them", flush=True)
    from lrbench_pl.analysis.load import load_runs  # here: training needs no analysis library

    return load_runs([folder])


class _Job:
    """One training of a sweep."""

    def __init__(
        self,
        folder: Path,
        name: str,
        policy: Policy,
        seed: int,
        max_steps: int,
        question: Mapping[str, Any],
        names: Mapping[str, Any],
    ) -> None:
        self.name, self.policy, self.seed = name, policy, seed
        self.path = folder / f"{_file_name(name)}-seed{seed}"
        self._check = TargetCheck(**question, max_steps=max_steps)
        self._fields = {**policy_fields(policy, max_steps), **question, "policy": name, "seed": seed, **names}
        self._fields["run_id"] = self.path.name

    def is_finished(self) -> bool:
        """Return whether the folder holds the result of this training; refuse that of another one."""
        try:
            found = read_json(self.path / RESULT_FILE)
        except (OSError, ValueError):
            return False
        if not isinstance(found, dict):
            return False
        other = next((name for name in _SAME if found.get(name) != self._fields[name]), None)
        if other is not None:
            raise ValueError(
                f"{self.path} holds a training with {other}={found.get(other)!r}, expected {self._fields[other]!r}; "
                "give the sweep another folder"
            )
        return found.get("status") in _FINISHED

    def run(self, train: Train) -> str:
        """Train, save the result and return its message."""
        reset = getattr(self.policy, "reset", None)
        if callable(reset):
            reset()
        try:
            self._follow(train(self.policy, self.seed))
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
            self._check.end("stopped", f"interrupted after step {self._check.steps_run}")
            self._save()
            raise
        except Exception as error:
            self._check.end("failed", f"{type(error).__name__}: {error}")
        verdict = self._save()
        return f"failed: {verdict.message}" if verdict.status == "failed" else verdict.message

    def _follow(self, outcome: Any) -> None:
        verdict = getattr(outcome, "verdict", outcome)
        if isinstance(verdict, Verdict):
            for each in verdict.checks:
                self._check.update(each.step, each.value, each.seconds)
            if verdict.status in ("diverged", "failed", "stopped"):
                self._check.end(verdict.status, verdict.message)
            self._end(verdict.steps_run)
        else:
            self._follow_checks(_pairs(outcome))

    def _follow_checks(self, checks: Iterable[tuple[int, SupportsFloat]]) -> None:
        for step, value in checks:
            if not math.isfinite(float(value)):
                self._check.end("diverged", f"the metric became non-finite by step {step}; try a lower learning rate")
                return
            if self._check.update(step, value):
                return
        self._end(self._check.steps_run)

    def _end(self, steps: int) -> None:
        self._check.steps_run = steps
        if steps < (self._check.max_steps or 0):
            self._check.end("stopped", f"stopped at step {steps} of {self._check.max_steps}: the training ended")

    def _save(self) -> Verdict:
        verdict = self._check.verdict
        save(self.path, {**self._fields, **outcome_fields(verdict, self._check)}, self.policy, self._check.checks)
        return verdict


def _pairs(outcome: Any) -> Iterable[tuple[int, SupportsFloat]]:
    if not isinstance(outcome, Iterable):
        raise TypeError(
            f"train(policy, seed) must yield or return (step, value) pairs, or return a verdict, got {outcome!r}"
        )
    for pair in outcome:
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f"train(policy, seed) must yield pairs (step, value), got {pair!r}")
        yield pair[0], pair[1]


def _by_name(policies: Mapping[str, Policy] | Sequence[Policy]) -> dict[str, Policy]:
    named = dict(policies) if isinstance(policies, Mapping) else {repr(policy): policy for policy in policies}
    if not named:
        raise ValueError("expected at least one policy, got none")
    for name, policy in named.items():
        if not callable(policy):
            raise ValueError(f"policy {name!r} must be callable: t -> learning rate, got {policy!r}")
    if len({_file_name(name) for name in named}) < len(named):
        raise ValueError(f"the names of the policies must differ in their letters and digits, got {', '.join(named)}")
    return named


def _checked_seeds(seeds: Iterable[int]) -> list[int]:
    listed = [whole_number("a seed", seed, least=0) for seed in seeds]
    if not listed:
        raise ValueError("expected at least one seed, got none")
    return listed


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", name).strip("_.")[:100]
