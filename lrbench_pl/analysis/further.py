"""The commands that train further seeds of runs, from what Hydra stored beside them."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lrbench_pl.overrides import program_options, quoted_path
from lrbench_pl.reading import read_yaml

_SWEPT = ("lr_policy", "seed")  # keys that a command gives itself
_DROPPED = ("hydra.mode=", "hydra.sweep.", "hydra.run.", "hydra.output_subdir=", "hydra/sweeper=", "hydra.sweeper.")


def commands(runs: pl.DataFrame, groups: Sequence[Mapping[str, Any]], seeds: int) -> list[str]:
    """Return the commands that add seeds to groups of runs; groups that differ in their policy alone share one.

    The new runs get seeds that none of the groups has, and lie below the folder of the first run's sweep, so that the
    next ranking of that folder has them. Runs that are judged at another target are trained beyond their own.

    Args:
        runs: The table of runs, with the columns that identify the groups.
        groups: Values of these columns.
        seeds: Number of seeds to add to each group.

    Returns:
        No command if Hydra's files are missing beside a run of a group, the policy was not chosen by name, or the
        seed tells the groups apart.
    """
    if any("seed" in group for group in groups):
        return []
    stored = [_stored(_of_group(runs, group)) for group in groups]
    used = [seed for group in groups for seed in _of_group(runs, group)["seed"].drop_nulls().to_list()]
    if not used or not seeds or any(each is None for each in stored):
        return []
    first = max(used) + 1
    together: dict[tuple[str, ...], list[str]] = {}
    for each in stored:
        overrides, policy = each or ((), "")
        names = together.setdefault(overrides, [])
        names += [policy] if policy not in names else []
    folders = _new_folders(Path(_of_group(runs, groups[0])["folder"][0]).parent, first)
    found = []
    for folder, (overrides, policies) in zip(folders, together.items(), strict=False):
        words = ["lrbench", "run", "-m", *overrides, f"lr_policy={','.join(policies)}"]
        words += ["stop_at_target=false"] if "open" in runs.columns and not _is_whole(overrides) else []
        words += [_seeds(first, seeds), f"hydra.sweep.dir={_shown(folder)}"]
        found.append(shlex.join(words))
    return found


def _new_folders(sweep: Path, first: int) -> Iterator[Path]:
    """Yield folders that do not exist yet, below the folder of the sweep that further seeds were added to."""
    while re.fullmatch(r"seeds-\d+(-\d+)?", sweep.name):
        sweep = sweep.parent
    names = itertools.chain([f"seeds-{first}"], (f"seeds-{first}-{number}" for number in itertools.count(2)))
    return (sweep / name for name in names if not (sweep / name).exists())


def _of_group(runs: pl.DataFrame, group: Mapping[str, Any]) -> pl.DataFrame:
    return runs.filter(*(pl.col(key).eq_missing(value) for key, value in group.items()))


def _is_whole(overrides: Sequence[str]) -> bool:
    """Return whether runs with these overrides use their whole budget."""
    return any(each.lower().endswith("stop_at_target=false") for each in overrides)


def _seeds(first: int, number: int) -> str:
    return f"seed={first}" if number == 1 else f"seed=range({first},{first + number})"


def _stored(runs: pl.DataFrame) -> tuple[tuple[str, ...], str] | None:
    """Return the overrides of a group's first run and the choice of its policy; None if they are not stored."""
    if not runs.height:
        return None
    try:
        hydra: Any = read_yaml(Path(runs["folder"][0]) / ".hydra" / "hydra.yaml")["hydra"]
        task = [str(each) for each in hydra["overrides"]["task"]]
        options = program_options(hydra)
        given = [str(each) for each in hydra["overrides"]["hydra"]]
        policy = str(hydra["runtime"]["choices"]["lr_policy"])
    except Exception:  # missing, incomplete, or not written by Hydra
        return None
    if policy == "None":
        return None
    kept = [each for each in task if each.lstrip("+").partition("=")[0] not in _SWEPT]
    kept_hydra = [each for each in given if not each.startswith(_DROPPED) and each not in options]
    return (*options, *kept, *kept_hydra), policy


def _shown(folder: Path) -> str:
    """Return a folder relative to the working directory if it lies there, with Hydra's quotes if it needs them."""
    text = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
    return quoted_path(Path(text))
