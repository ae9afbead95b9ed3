"""``lrbench extend``: continue runs from a checkpoint of their stable phase, and branch decays from it."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lrbench_pl.cli.rebuild import command_of
from lrbench_pl.cli.verify import stored_command
from lrbench_pl.files import EXTENDABLE, checkpoints_in, step_of, write_atomically
from lrbench_pl.policies import to_config
from lrbench_pl.runs.config import compose, quoted
from lrbench_pl.runs.extend import (
    SHAPES,
    ExtendError,
    Extension,
    Original,
    begin,
    check_folder,
    drop_branch_points,
    extended,
    is_finished,
    read_original,
)
from lrbench_pl.runs.folder import read_result
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import differing, named, of_task
from lrbench_pl.words import clean, counted

OUTPUT = Path("outputs/extended")
_POLICIES = ".policies"  # folder of the composites, below the output

Train = Callable[[Sequence[str], Path], None]


@dataclass(frozen=True)
class Branch:
    """An extension of one run.

    Args:
        original: The run.
        extension: Its longer horizon and its decay.
        name: Name of the policy.
        folder: Folder of the extension.
        policy_file: File of the composite.
        command: Arguments of ``lrbench run``.
        directory: Working directory of the command.
    """

    original: Original
    extension: Extension
    name: str
    folder: Path
    policy_file: Path
    command: tuple[str, ...]
    directory: Path


def extend(
    folders: Sequence[Path],
    decays: Sequence[float],
    shapes: Sequence[str],
    max_steps: int | None = None,
    by: int | None = None,
    output: Path = OUTPUT,
    overrides: Sequence[str] = (),
    trust: bool = False,
    train: Train | None = None,
) -> list[RunResult]:
    """Extend runs, each by every decay in every shape.

    Everything is checked before anything is trained. The branch that decays last goes first, since its stable phase
    has the checkpoints from which the others begin. An extension that is finished is not trained again, one that was
    interrupted resumes.

    Args:
        folders: Folders of the runs, which are only read.
        decays: Decays as shares of the new budget.
        shapes: Shapes of the decays.
        max_steps: The new budget; None for the shortest, in which the decay begins at the checkpoint.
        by: Steps to add to the budget, instead of ``max_steps``.
        output: Folder of the extensions.
        overrides: Further overrides of what is not part of a run's identity: ``dataset.root=/data``, ``trainer=gpu``.
        trust: Whether to train by the command stored in ``.hydra``, which may execute anything.
        train: Runs ``lrbench run`` with the given arguments in the given working directory; None for this process.

    Returns:
        The results in the order of training.

    Raises:
        ExtendError: If a run cannot be extended, or an extension failed.
        AnalysisError: If the command of a run cannot be rebuilt.
    """
    _check_arguments(folders, decays, shapes, max_steps, by)
    names = [folder.resolve().name for folder in folders]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ExtendError(f"several folders are called {repeated[0]!r}; extend them one by one, each with another -o")
    plans = []
    for folder in folders:
        original = read_original(folder)
        plans.append(list(_branches(original, decays, shapes, _budget(original, max_steps, by), output)))
    with tempfile.TemporaryDirectory() as trial:  # nothing is written where it stays before everything is checked
        planned = [
            [_with_command(each, branches, overrides, trust, Path(trial)) for each in branches] for branches in plans
        ]
    for each in itertools.chain(*planned):
        check_folder(each.folder, each.extension, each.original.spec)
    for each in itertools.chain(*planned):
        _write_policy(each.extension, each.policy_file)
    return [result for branches in planned for result in _train_all(branches, train or run_here)]


def summary(results: Sequence[RunResult], output: Path) -> str:
    """Summarize extensions in one line.

    Example:
        >>> each = RunResult("a", "wsd-2000-linear-0.2", "missed", steps_run=2000, inherited_steps=700)
        >>> summary([each], Path("outputs/extended"))
        '1 extension in outputs/extended: 1300 steps trained, 700 inherited; lrbench rank outputs/extended'
    """
    inherited = sum(result.inherited_steps or 0 for result in results)
    trained = sum(result.steps_run or 0 for result in results) - inherited
    return (
        f"{counted(len(results), 'extension')} in {output}: {counted(trained, 'step')} trained, {inherited} inherited; "
        f"lrbench rank {output}"
    )


def run_here(arguments: Sequence[str], directory: Path) -> None:
    """Do what ``lrbench run`` does, in this process."""
    from lrbench_pl.cli.run import main

    before, argv = Path.cwd(), sys.argv
    os.chdir(directory)
    try:
        main(arguments)
    except SystemExit as end:  # the result tells what happened
        if end.code == 130:
            raise
    finally:
        os.chdir(before)
        sys.argv = argv


def _check_arguments(
    folders: Sequence[Path], decays: Sequence[float], shapes: Sequence[str], max_steps: int | None, by: int | None
) -> None:
    if not folders:
        raise ExtendError("expected the folder of a run that was trained with extendable=true; give DIR")
    if max_steps is not None and by is not None:
        raise ExtendError(f"the new budget must be given once, got --max-steps {max_steps} and --by {by}; give one")
    if by is not None and by < 1:
        raise ExtendError(f"--by must be an integer of at least 1, got {by}")
    for name, values in (("--decay", decays), ("--shape", shapes)):
        if not values or len(set(values)) != len(values):
            raise ExtendError(f"{name} must be one value or several different ones, got {','.join(map(str, values))!r}")
    if unknown := [shape for shape in shapes if shape not in SHAPES]:
        raise ExtendError(f"--shape must be {', '.join(SHAPES)} or several of them, got {unknown[0]!r}")


def _budget(original: Original, max_steps: int | None, by: int | None) -> int | None:
    return original.horizon + by if by is not None else max_steps


def _branches(
    original: Original, decays: Sequence[float], shapes: Sequence[str], max_steps: int | None, output: Path
) -> Iterator[Branch]:
    """Yield the branches of a run, the one that decays last first."""
    available = min(original.checkpoints) if max_steps is not None else max(original.checkpoints)
    interval = int(original.spec.task.settings.get("check_every", 1))
    try:
        found = [
            extended(original.phase, decay, shape, available, max_steps, interval)
            for decay in decays
            for shape in shapes
        ]
    except ExtendError as error:
        raise ExtendError(f"{original.folder}: {error}") from error
    for each in sorted(found, key=lambda extension: -extension.decay_start):
        name = f"{original.spec.policy_name.replace('/', '-')}-{each.suffix}"
        folder = (output / name / original.folder.resolve().name).absolute()
        file = (output / _POLICIES / f"{original.folder.resolve().name}" / f"{name}.yaml").absolute()
        yield Branch(original, each, name, folder, file, (), Path.cwd())


def _with_command(
    branch: Branch, branches: Sequence[Branch], overrides: Sequence[str], trust: bool, trial: Path
) -> Branch:
    """Return a branch with the command that trains it.

    Args:
        branch: The branch.
        branches: All branches of its run, the one that is trained first first.
        overrides: Further overrides.
        trust: Whether to take the command that is stored in ``.hydra``.
        trial: Folder for the policy while the command is checked.
    """
    original, extension = branch.original, branch.extension
    leads = branch is branches[0]
    points = sorted({each.extension.decay_start for each in branches}) if leads else [extension.decay_start]
    task = replace(original.spec.task, max_steps=extension.max_steps)
    own = [
        f"lr_policy_file={quoted(str(branch.policy_file))}",
        f"extendable=[{','.join(map(str, points))}]",
        f"trainer.log_every_n_steps={_log_every(original)}",
        *overrides,
        f"hydra.run.dir={quoted(str(branch.folder))}",
    ]
    if trust:
        command, directory = stored_command(original.folder)
        command = [each for each in command if not re.match(r"[+~]*lr_policy[.=@]", each)]  # the file replaces it
        given = {each.lstrip("+").partition("=")[0] for each in command}
        settings: Mapping[str, Any] = task.settings
        command += [f"seed={original.spec.seed}", f"max_steps={extension.max_steps}"]
        command += [f"check_every={settings['check_every']}"]
        command += [f"{unit}=null" for unit in ("max_epochs", "max_tokens") if unit in given]
        return replace(branch, command=(*command, *own), directory=directory)
    spec = replace(
        original.spec,
        task=task,
        policy_name=branch.name,
        policy=to_config(extension.policy),
    )
    on_cpu = original.result is not None and original.result.device == "cpu"
    file = _write_policy(extension, trial / branch.policy_file.name)
    command = command_of(spec.to_dict(), original.folder, on_cpu, file, "its extension")
    return replace(branch, command=(*(each for each in command if not each.startswith("lr_policy_file=")), *own))


def _write_policy(extension: Extension, path: Path) -> Path:
    return write_atomically(path, OmegaConf.to_yaml(OmegaConf.create(to_config(extension.policy))))


def _log_every(original: Original) -> int:
    """Return the steps between two rows of the history, which depend on the budget."""
    return int(compose([f"max_steps={original.spec.task.max_steps}"]).trainer.log_every_n_steps)


def _differences(original: Original, result: RunResult) -> Iterator[str]:
    """Yield in what an extension differs from its original, which a stored command may let depend on the budget."""
    found = differing([original.spec.task.settings, of_task(result.settings or {})])
    if found:
        which = named(list(found.items()))
        yield f"it differs from {original.folder} in {which}, so that it continues another training"


def _train_all(branches: Sequence[Branch], train: Train) -> Iterator[RunResult]:
    """Train the branches of one run."""
    for branch in branches:
        sources = dict(branch.original.checkpoints)
        for other in branches:
            if other.extension.decay_start >= branch.extension.decay_start and other is not branch:
                paths = {step_of(path): path for path in checkpoints_in(other.folder / EXTENDABLE)}
                sources |= {step: path for step, path in paths.items() if step not in sources}
        step = max(each for each in sources if each <= branch.extension.decay_start)
        if not is_finished(branch.folder):
            begin(branch.folder, sources[step], branch.original, branch.extension)
        train(branch.command, branch.directory)
        result = read_result(branch.folder)
        if result is None or result.status in ("failed", "stopped"):
            why = "it wrote no result" if result is None else f"{result.status}: {result.message}"
            raise ExtendError(f"{branch.name}: {why} (in {branch.folder}); the same command continues")
        for line in _differences(branch.original, result):
            print(clean(f"{branch.name}: {line}"), file=sys.stderr)
        yield result
    with contextlib.suppress(OSError):
        drop_branch_points(branches[0].folder, but=branches[0].extension.decay_start)
