"""Does this policy reach the target for most seeds? Finished runs in the order of their seeds, and further ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lrbench_pl.analysis.load import AnalysisError, load_runs
from lrbench_pl.analysis.sequential import Decision, decide, seeds_to_confirm
from lrbench_pl.files import ResultError
from lrbench_pl.runs.config import program_options, quoted
from lrbench_pl.runs.result import RESULT_FILE, RunResult
from lrbench_pl.runs.spec import UNSET, Task, differing, named, shown
from lrbench_pl.verdict import check_target
from lrbench_pl.words import counted

FOLDER = "verify"  # below the folder asked about: the runs that were added

# What all runs must share, or they are no seeds of one claim: the task and the policy.
_CLAIM = (
    "policy",
    "lr",
    *(field.name for field in fields(Task) if field.name != "settings"),
    "policy_id",
)


@dataclass(frozen=True)
class Seeds:
    """The finished runs of one policy.

    Args:
        runs: Row and folder of each seed, in the order of the seeds.
        said: What was left out, and why.
    """

    runs: tuple[tuple[RunResult, Path], ...]
    said: tuple[str, ...]

    @property
    def outcomes(self) -> list[bool]:
        """Whether each seed reached the target."""
        return [row.status == "reached" for row, _ in self.runs]

    @property
    def claim(self) -> str:
        """What is to be decided, in words, without the share."""
        row = self.runs[0][0]
        rate = f", lr {row.lr:g}" if row.lr is not None else ""
        return (
            f"{row.policy} ({row.optimizer}{rate}) on {row.dataset} with {row.model} reaches "
            f"{row.target:g} within {counted(row.max_steps or 0, 'step')}"
        )


def read_seeds(folder: Path, where: Mapping[str, str]) -> Seeds:
    """The finished runs below a folder that are seeds of one claim.

    A seed counts once; a run that failed or was stopped says nothing and does not count.

    Args:
        folder: The folder of a sweep or a run.
        where: Columns and values that the runs must have, such as ``{"policy": "tri"}``.

    Raises:
        AnalysisError: If there is no such run, one of them has no target, or they differ in more than the seed.
    """
    found = load_runs([folder])
    known = set(found.table.columns) - {"folder", "settings"}
    settings = {key for text in found.table["settings"].drop_nulls().unique() for key in json.loads(text)}
    for name in where:
        if name not in known | settings:
            raise AnalysisError(
                f"--where must name a column of the results ({', '.join(sorted(known))}) or a setting of the runs"
                f"{f' ({_few(settings)})' if settings else ''}, got {name!r}"
            )
    said = [f"unreadable: {skipped.path}: {skipped.reason}" for skipped in found.skipped]
    finished: list[tuple[RunResult, Path]] = []
    seeds: dict[int, tuple[RunResult, Path]] = {}
    said_by_folder = found.table.select("folder", "settings", "mode", "confirmations").rows()
    for at, text, mode, confirmations in said_by_folder:
        row = RunResult.read(Path(at) / RESULT_FILE)
        row = replace(row, settings=None if text is None else json.loads(text), mode=mode, confirmations=confirmations)
        if not all(_is(_value(row, name), value) for name, value in where.items()):
            continue
        if row.status in ("failed", "stopped") or row.seed is None:
            said.append(f"not counted: {row.status}: {at}: {row.message}")
        else:
            finished.append((row, Path(at)))
    if not finished:
        asked = "".join(f" {name}={value}" for name, value in where.items())
        raise AnalysisError(f"{folder}: no finished run{f' with{asked}' if asked else ''} to verify")
    _check_one_claim([row for row, _ in finished])
    for row, at in finished:
        if row.seed in seeds:
            said.append(f"not counted: seed {row.seed} again: {at}")
        else:
            seeds[row.seed or 0] = row, at
    return Seeds(tuple(seeds[seed] for seed in sorted(seeds)), tuple(said))


def _value(row: RunResult, name: str) -> Any:
    if name in _COLUMNS:
        return getattr(row, name)
    value = (row.settings or {}).get(name, UNSET)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else shown(value)


_COLUMNS = {field.name for field in fields(RunResult)}


def _few(names: set[str]) -> str:
    return ", ".join(sorted(names)[:8]) + (", …" if len(names) > 8 else "")


def _is(value: Any, asked: str) -> bool:
    """Whether a field has the value that was asked for; 1e-2 is 0.01."""
    try:
        return float(asked) == value or asked == str(value)
    except ValueError:
        return asked == str(value)


def _check_one_claim(rows: list[RunResult]) -> None:
    if rows[0].target is None:
        raise AnalysisError("the runs had no target, so there is nothing to verify; give them target=")
    try:
        check_target(rows[0].target, rows[0].monitor or "", rows[0].mode or "max", name="the runs' target")
    except ValueError as error:
        raise AnalysisError(str(error)) from error
    for name in _CLAIM:
        values = {getattr(row, name) for row in rows}
        if name in ("mode", "confirmations"):
            values.discard(None)  # a row that does not say
        if len(values) > 1:
            few = ", ".join(sorted(str(value).removesuffix(".0") for value in values)[:4])
            how = "--policy NAME" if name == "policy" else f"--where {name}=VALUE"
            raise AnalysisError(
                f"the runs differ in {name} ({few}), so they are no seeds of one claim; choose by {how}"
            )
    if found := differing(row.settings for row in rows):
        how = " ".join(f"--where {name}=VALUE" for name in list(found)[:3])
        raise AnalysisError(
            f"the runs differ in {named(list(found.items()))}, so they are no seeds of one claim; choose by {how}"
        )


def further_seeds(seeds: Seeds, folder: Path, most: int, train: Callable[[list[str], Path], None]) -> Iterator[Seeds]:
    """Train one more seed after the other, with the configuration of the first run, and give all seeds after each.

    Seeds go on above the largest there is. What was trained lies in ``verify`` below the folder, where the next call
    finds it; a training that was interrupted is begun anew.

    Args:
        seeds: The seeds so far.
        folder: The folder asked about.
        most: Seeds in all.
        train: Runs ``lrbench run`` with these overrides in this working directory.

    Raises:
        AnalysisError: If the first run does not say how it was configured, a training fails, or what it trained is not
            the same claim.
    """
    runs = list(seeds.runs)
    base = min((at for _, at in runs), key=lambda at: (FOLDER in at.parts, at.parts))
    overrides, directory = stored_command(base)
    while len(runs) < most:
        seed = 1 + max(row.seed or 0 for row, _ in runs)
        at = folder.resolve() / FOLDER / f"{base.name}-seed{seed}"
        shutil.rmtree(at, ignore_errors=True)  # of a training that was interrupted or failed
        train([*overrides, f"seed={seed}", f"hydra.run.dir={quoted(str(at))}"], directory)
        try:
            row = RunResult.read(at / RESULT_FILE)
        except ResultError as error:
            raise AnalysisError(f"seed {seed} left no row: {error}") from error
        if row.status in ("failed", "stopped"):
            raise AnalysisError(f"seed {seed} {row.status}: {row.message} (in {at})")
        runs.append((row, at))
        try:
            _check_one_claim([row for row, _ in runs])
        except AnalysisError as error:
            raise AnalysisError(f"seed {seed} is another claim than {base}: {error}") from error
        yield Seeds(tuple(runs), seeds.said)


def stored_command(run: Path) -> tuple[list[str], Path]:
    """How a run was started: options and overrides without its seed, and its working directory.

    Raises:
        AnalysisError: If its folder does not say, or the directory is gone.
    """
    try:
        stored = OmegaConf.to_container(OmegaConf.load(run / ".hydra" / "overrides.yaml"))
        hydra: Any = OmegaConf.to_container(OmegaConf.load(run / ".hydra" / "hydra.yaml"))["hydra"]  # type: ignore[index,call-overload]
        directory = Path(hydra["runtime"]["cwd"])
        extra = program_options(hydra)
        overrides = [str(each) for each in stored]  # type: ignore[union-attr]
    except Exception as error:  # of the YAML parser, of OmegaConf, of the file system
        said = " ".join(str(error).split())
        raise AnalysisError(f"{run}: its .hydra does not say how it was configured ({said})") from error
    if not directory.is_dir():
        raise AnalysisError(f"{run}: it was started in {directory}, which is gone, so its paths may mean nothing")
    kept = [each for each in overrides if each.lstrip("+").partition("=")[0] != "seed"]
    return [*extra, *kept], directory


def train(arguments: list[str], directory: Path) -> None:
    """Run ``lrbench run`` as a process of its own, what it says on standard error."""
    command = [sys.executable, "-m", "lrbench_pl", "run", *arguments]
    subprocess.run(command, cwd=directory, stdout=sys.stderr, check=False)


def verify(
    folder: Path,
    where: Mapping[str, str],
    share: float = 0.8,
    confidence: float = 0.95,
    most: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Seeds, Decision]:
    """Decide whether a policy reaches its target with at least a given probability, from as few seeds as it takes.

    Args:
        folder: The folder of a sweep or a run.
        where: Columns and values that the runs must have, such as ``{"policy": "tri"}``.
        share: The probability in question.
        confidence: Of the decision, see :func:`lrbench_pl.analysis.sequential.decide`.
        most: Train further seeds until it is decided or there are this many; None trains none.
        say: Told of what was left out.

    Raises:
        AnalysisError: See :func:`read_seeds` and :func:`further_seeds`.
        ValueError: If ``share`` or ``confidence`` is out of its range, or no number of seeds would do.
    """
    decide((), share, confidence)  # refuses what is out of range before anything is read
    seeds_to_confirm(0, 0, share, confidence)
    seeds = read_seeds(folder, where)
    for line in seeds.said:
        say(line)
    decision = decide(seeds.outcomes, share, confidence)
    if most is not None and decision.verdict == "undecided":
        for more in further_seeds(seeds, folder, most, train):
            seeds, decision = more, decide(more.outcomes, share, confidence)
            if decision.verdict != "undecided":
                break
    return seeds, decision
