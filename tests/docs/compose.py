"""Whether commands of the documents can be run at all: parsed and composed, without running them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from lrbench_pl import cli
from lrbench_pl.cli import preview
from lrbench_pl.runs.config import build_policy, compose, expand
from lrbench_pl.runs.options import check_config

ROOT = Path(__file__).resolve().parents[2]
# the choices without which an option does not exist; running text names such options alone
_NEEDS = {
    "hydra.sweeper.": "hydra/sweeper=lrbench",
    "hydra.launcher.": "hydra/launcher=joblib",
    **{f"logger.{name}.": f"logger={name}" for name in ("wandb", "tensorboard", "mlflow", "aim")},
}


class CommandError(ValueError):
    """A command that cannot be run as it stands."""


def check_command(command: str, folder: Path) -> None:
    """Parse one command; compose what it configures.

    Args:
        command: As it stands in a document, or options alone, such as ``seed=0,1``.
        folder: Where the files of the document are.

    Raises:
        CommandError: If it names something that is not there.
        Exception: Whatever Hydra, OmegaConf or click says of it.
    """
    words = shlex.split(command, comments=True)
    while words and re.match(r"^[A-Z_]+=", words[0]):
        words.pop(0)
    if words[0] == "timeout":
        words = words[next(i for i, word in enumerate(words) if i and word[0].isdigit()) + 1 :]
    program, *arguments = words
    if program == "python" and arguments[0] == "run.py":
        _check_run(arguments[1:], folder)
    elif program == "python":
        _check_script(arguments, folder)
    elif program == "lrbench" and arguments[:1] == ["run"]:
        _check_run(arguments[1:], folder)
    elif program == "lrbench":
        _check_lrbench(arguments, folder)
    elif program == "make":
        _check_make(arguments)
    elif program == "pip":
        _check_extras(arguments)
    elif "=" in program:
        needed = [choice for prefix, choice in _NEEDS.items() if program.startswith(prefix)]
        _compose([*needed, *words], [], True)


def _check_run(arguments: list[str], folder: Path) -> None:
    many = "-m" in arguments or "--multirun" in arguments
    overrides, own = _without_options(arguments, folder)
    _compose(overrides, own, many)


def _without_options(arguments: Sequence[str], folder: Path) -> tuple[list[str], list[str]]:
    """The overrides, and the search path of the reader's own files."""
    overrides, own = [], []
    words = iter(arguments)
    for word in words:
        if word == "--config-dir":
            path = folder / next(words)
            if not path.is_dir():
                raise CommandError(f"--config-dir {path.name}: the document writes no such folder")
            own = [f"hydra.searchpath=['file://{path}']"]
        elif word in ("--cfg", "-p"):
            next(words)
        elif word.startswith("-"):
            if word not in ("-m", "--multirun", "--help"):
                raise CommandError(f"run.py has no option {word} that is known here")
        else:
            overrides.append(word)
    return overrides, own


def _compose(overrides: list[str], own: list[str], many: bool) -> None:
    """Compose jobs in which every value of a sweep occurs, and build their policies."""
    jobs = expand([*own, *overrides])
    if len(jobs) > 1 and not many:
        raise CommandError("several values need -m")
    seen: set[str] = set()
    for job in jobs:
        if seen.issuperset(job):
            continue
        seen.update(job)
        cfg = compose([each for each in job if not each.startswith("lr_policy_file=")])
        cfg.logger = {}  # whose packages need not be installed here
        check_config(cfg)
        if not own:  # whose classes are there only when the document is followed
            build_policy(cfg)


def _check_script(arguments: list[str], folder: Path) -> None:
    script = arguments[0]
    if not (ROOT / script).is_file() and not (folder / script).is_file():
        raise CommandError(f"there is no {script}")
    if script.startswith("experiments/"):
        _compose([each for each in arguments[1:] if re.match(r"^[\w.]+=", each)], [], False)


def _check_lrbench(arguments: list[str], folder: Path) -> None:
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        name = arguments.pop(0) if arguments else "--help"
        if name == "--help":
            return
        if name not in command.commands:
            raise CommandError(f"lrbench has no command {name}; it has {', '.join(command.commands)}")
        command = command.commands[name]
    if not arguments or "--help" in arguments:  # only mentioned
        return
    context = command.make_context(command.name, list(arguments))
    given = context.params.get("overrides")
    if given and command.name in ("preview", "lint"):
        if context.params["config_dir"] is None:
            preview.planned_runs(given)
        else:
            _check_run(["-m", "--config-dir", str(context.params["config_dir"]), *given], folder)
    elif given:
        _compose(list(given), [], False)


def _check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)
    for name in arguments:
        variable, equals, _ = name.partition("=")
        if equals:
            if f"$({variable})" not in makefile:
                raise CommandError(f"make has no variable {variable}")
        elif name not in targets:
            raise CommandError(f"make has no target {name}")


def _check_extras(arguments: list[str]) -> None:
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    for found in re.findall(r"(?:lrbench_pl|\.)\[([\w,]+)\]", " ".join(arguments)):
        for name in found.split(","):
            if name not in known:
                raise CommandError(f"lrbench_pl has no extra {name}")
