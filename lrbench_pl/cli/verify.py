"""``lrbench verify``: decide whether a policy reaches its target, training further seeds if needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lrbench_pl.analysis.load import AnalysisError, Runs, load_runs
from lrbench_pl.analysis.sequential import Decision, decide, seeds_to_confirm
from lrbench_pl.cli.rebuild import rebuilt_command
from lrbench_pl.files import CONFIGURATION, ResultError
from lrbench_pl.reading import parse_json, read_yaml
from lrbench_pl.runs.config import program_options, quoted
from lrbench_pl.runs.result import RESULT_FILE, RunResult
from lrbench_pl.runs.spec import UNSET, Task, differing, named, shown
from lrbench_pl.verdict import check_target
from lrbench_pl.words import counted

FOLDER = "verify"  # runs that were added are below this folder

# Fields that all seeds must share: task and policy.
_SHARED = (
    "policy",
    "lr",
    *(field.name for field in fields(Task) if field.name != "settings"),
    "policy_id",
)
_COLUMNS = {field.name for field in fields(RunResult)}

_Run = tuple[RunResult, Path]


@dataclass(frozen=True)
class Seeds:
    """The finished runs of one policy on one task.

    Args:
        runs: Result and folder of each seed, in the order of the seeds.
        notes: Runs that were left out, with the reason.
    """

    runs: tuple[_Run, ...]
    notes: tuple[str, ...]

    @property
    def outcomes(self) -> list[bool]:
        """Whether each seed reached the target."""
        return [result.status == "reached" for result, _ in self.runs]

    @property
    def claim(self) -> str:
        """The claim to decide about, without its probability."""
        result = self.runs[0][0]
        rate = f", lr {result.lr:g}" if result.lr is not None else ""
        return (
            f"{result.policy} ({result.optimizer}{rate}) on {result.dataset} with {result.model} reaches "
            f"{result.target:g} within {counted(result.max_steps or 0, 'step')}"
        )


def read_seeds(folder: Path, where: Mapping[str, str]) -> Seeds:
    """Read the finished runs below a folder, which must differ only in their seed.

    A seed counts once. A run that failed or was stopped does not count.

    Args:
        folder: Folder of a sweep or a run.
        where: Values that columns or settings of the runs must have, such as ``{"policy": "tri"}``.

    Raises:
        AnalysisError: If there is no such run, a run has no target, or the runs differ in more than the seed.
    """
    found = load_runs(folder)
    _check_names(where, found)
    notes = [f"unreadable: {skipped.path}: {skipped.reason}" for skipped in found.skipped]
    finished: list[_Run] = []
    for result, at in _results(found):
        if not all(_matches(_value(result, name), value) for name, value in where.items()):
            continue
        if result.status in ("failed", "stopped") or result.seed is None:
            notes.append(f"not counted: {result.status}: {at}: {result.message}")
        else:
            finished.append((result, at))
    if not finished:
        conditions = "".join(f" {name}={value}" for name, value in where.items())
        raise AnalysisError(f"{folder}: no finished run{f' with{conditions}' if conditions else ''} to verify")
    _check_one_claim([result for result, _ in finished])
    seeds: dict[int, _Run] = {}
    for result, at in finished:
        if result.seed in seeds:
            notes.append(f"not counted: seed {result.seed} again: {at}")
        else:
            seeds[result.seed or 0] = result, at
    return Seeds(tuple(seeds[seed] for seed in sorted(seeds)), tuple(notes))


def _results(runs: Runs) -> Iterator[_Run]:
    """Yield results and folders, with fields of earlier versions completed as in the table."""
    for at, settings, mode, confirmations in runs.table.select("folder", "settings", "mode", "confirmations").rows():
        result = RunResult.read(Path(at) / RESULT_FILE)
        parsed = None if settings is None else parse_json(settings)
        yield replace(result, settings=parsed, mode=mode, confirmations=confirmations), Path(at)


def _check_names(names: Mapping[str, str], runs: Runs) -> None:
    """Require names of columns or settings."""
    columns = set(runs.table.columns) - {"folder", "settings"}
    settings = {key for text in runs.table["settings"].drop_nulls().unique() for key in json.loads(text)}
    for name in names:
        if name not in columns | settings:
            few = ", ".join(sorted(settings)[:8]) + (", …" if len(settings) > 8 else "")
            raise AnalysisError(
                f"--where must name a column of the results ({', '.join(sorted(columns))}) or a setting of the runs"
                f"{f' ({few})' if settings else ''}, got {name!r}"
            )


def _value(result: RunResult, name: str) -> Any:
    if name in _COLUMNS:
        return getattr(result, name)
    value = (result.settings or {}).get(name, UNSET)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else shown(value)


def _matches(value: Any, text: str) -> bool:
    """Return whether a value is the one that the text spells; 1e-2 is 0.01."""
    try:
        return float(text) == value or text == str(value)
    except ValueError:
        return text == str(value)


def _check_one_claim(results: Sequence[RunResult]) -> None:
    """Require that the results have a target and differ only in their seed."""
    first = results[0]
    if first.target is None:
        raise AnalysisError("verify needs runs with a target, got runs without one; train with target=VALUE")
    try:
        check_target(first.target, first.monitor or "", first.mode or "max", name="the runs' target")
    except ValueError as error:
        raise AnalysisError(str(error)) from error
    for name in _SHARED:
        values = {getattr(result, name) for result in results}
        if name in ("mode", "confirmations"):
            values.discard(None)  # missing in results of earlier versions
        if len(values) > 1:
            few = ", ".join(sorted(str(value).removesuffix(".0") for value in values)[:4]) + ", …" * (len(values) > 4)
            how = "--policy NAME" if name == "policy" else f"--where {name}=VALUE"
            raise _not_one_claim(f"{name} ({few})", how)
    if found := differing(result.settings for result in results):
        how = " ".join(f"--where {name}=VALUE" for name in list(found)[:3])
        raise _not_one_claim(named(list(found.items())), how)


def _not_one_claim(difference: str, how: str) -> AnalysisError:
    return AnalysisError(f"verify needs runs that differ in their seed alone; these differ in {difference}: add {how}")


def further_seeds(
    seeds: Seeds,
    folder: Path,
    most: int,
    train: Callable[[list[str], Path], None],
    overrides: Sequence[str] = (),
    trust: bool = False,
) -> Iterator[Seeds]:
    """Train one further seed after the other, configured as the first run, and yield all seeds after each.

    The command is rebuilt from the specification of the first run, which executes nothing that is not of this package.

    New seeds are above the largest existing one. Their runs are in ``verify`` below the folder, where the next call
    finds them. An interrupted training is repeated.

    Args:
        seeds: The existing seeds.
        folder: Folder given to :func:`verify`.
        most: Number of seeds in all.
        train: Runs ``lrbench run`` with the given arguments in the given working directory.
        overrides: Further overrides, of what is not part of a run's identity: ``dataset.root=/data``, ``trainer=gpu``.
        trust: Whether to start the command that is stored in ``.hydra`` instead.

    Raises:
        AnalysisError: If the configuration of the first run is not known or names other code, a training fails, or its
            task or policy differs from that of the first run.
    """
    runs = list(seeds.runs)
    result, base = min(runs, key=lambda run: (FOLDER in run[1].parts, run[1].parts))
    command, directory = stored_command(base) if trust else (rebuilt_command(result, base), Path.cwd())
    command = [each for each in command if not each.startswith("seed=")]
    while len(runs) < most:
        seed = 1 + max(result.seed or 0 for result, _ in runs)
        at = folder.resolve() / FOLDER / f"{base.name}-seed{seed}"
        shutil.rmtree(at, ignore_errors=True)  # of an interrupted or failed training
        train([*command, *overrides, f"seed={seed}", f"hydra.run.dir={quoted(str(at))}"], directory)
        try:
            result = RunResult.read(at / RESULT_FILE)
        except ResultError as error:
            raise AnalysisError(f"seed {seed} wrote no result: {error}") from error
        if result.status in ("failed", "stopped"):
            raise AnalysisError(f"seed {seed} {result.status}: {result.message} (in {at})")
        runs.append((result, at))
        try:
            _check_one_claim([each for each, _ in runs])
        except AnalysisError as error:
            raise AnalysisError(f"seed {seed} is not comparable with {base}: {error}") from error
        yield Seeds(tuple(runs), seeds.notes)


def stored_command(run: Path) -> tuple[list[str], Path]:
    """Return the arguments a run was started with, without its seed, and its working directory.

    Raises:
        AnalysisError: If they are not stored, or the directory does not exist any more.
    """
    try:
        stored = read_yaml(run / CONFIGURATION / "overrides.yaml")
        hydra: Any = read_yaml(run / CONFIGURATION / "hydra.yaml")["hydra"]
        directory = Path(hydra["runtime"]["cwd"])
        extra = program_options(hydra)
        overrides = [str(each) for each in stored]
    except Exception as error:  # of the YAML parser, of OmegaConf, of the file system
        raise AnalysisError(
            f"{run}: further seeds need the configuration in .hydra, which cannot be read "
            f"({' '.join(str(error).split())})"
        ) from error
    if not directory.is_dir():
        raise AnalysisError(f"{run}: further seeds need its working directory {directory}, which does not exist")
    kept = [each for each in overrides if each.lstrip("+").partition("=")[0] != "seed"]
    return [*extra, *kept], directory


def train(arguments: list[str], directory: Path) -> None:
    """Run ``lrbench run`` in a process of its own, with its output on standard error."""
    command = [sys.executable, "-m", "lrbench_pl", "run", *arguments]
    subprocess.run(command, cwd=directory, stdout=sys.stderr, check=False)


def verify(
    folder: Path,
    where: Mapping[str, str],
    share: float = 0.8,
    confidence: float = 0.95,
    most: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    overrides: Sequence[str] = (),
    trust: bool = False,
) -> tuple[Seeds, Decision]:
    """Decide whether a policy reaches its target with at least a given probability, from as few seeds as possible.

    Args:
        folder: Folder of a sweep or a run.
        where: Values that columns or settings of the runs must have, such as ``{"policy": "tri"}``.
        share: The probability to decide about.
        confidence: Confidence of the decision, see :func:`lrbench_pl.analysis.sequential.decide`.
        most: Train further seeds until it is decided or there are this many; None trains none.
        report: Called with each note on runs that were left out.
        overrides: Further overrides of the seeds that are trained.
        trust: Whether they are trained by the command stored in ``.hydra``, see :func:`further_seeds`.

    Raises:
        AnalysisError: See :func:`read_seeds` and :func:`further_seeds`.
        ValueError: If ``share`` or ``confidence`` is outside of (0, 1), or no number of seeds suffices.
    """
    decide((), share, confidence)  # checks the arguments before anything is read
    seeds_to_confirm(0, 0, share, confidence)
    seeds = read_seeds(folder, where)
    for line in seeds.notes:
        report(line)
    decision = decide(seeds.outcomes, share, confidence)
    if most is not None and decision.verdict == "undecided":
        for more in further_seeds(seeds, folder, most, train, overrides, trust):
            seeds, decision = more, decide(more.outcomes, share, confidence)
            if decision.verdict != "undecided":
                break
    return seeds, decision
