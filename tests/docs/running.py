"""The commands of the documents, run for real but short: what ``make docs-check`` does in hours, in seconds.

A command of ``python`` or ``lrbench`` runs in a process forked from one that has everything imported; others run in a
shell. Budgets are cut, data that must be downloaded and machines that are not there are replaced; nothing else is.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests import forks
from tests.docs.blocks import blocks, inline

STEPS = 60
EASY = 0.2  # a target for so few steps
_LIMIT_S = 180  # of one command, on a busy machine
_BARE = re.compile(r"^(lrbench( db)?( \w+)?|make \w+)$")  # the name of a command in running text
# what has no short form, or would leave this machine: by what it begins with, and why
NOT_RUN = {
    "make test": "the suite itself",
    "make bench": "measures for an hour; the scripts are run by tests of their own",
    "make study": "trains for hours; tests/experiments runs a study",
    "make demo": "installs; its two commands stand below",
    "source .venv": "the tests run in it",
    "pip install": "the network",
    "python experiments/benchmarks/": "measures for minutes, or needs a GPU",
    "ray start": "a cluster",
    "wandb login": "an account",
    "wandb sync multirun": "sends",
    "wandb sync": "sends",
    "git clone": "the network",
}
# its two commands, as they stand in the Makefile
DEMO = ("python run.py --multirun experiment=demo hydra.sweep.dir=multirun/demo", "lrbench rank multirun/demo")
_INSTEAD = (  # of what is not on this machine; the launchers have tests of their own
    (r"experiment=(mnist|cifar10|imagenet|kjv|letter)\w*", "dataset=synthetic"),
    (r"dataset\.download=true ?", ""),
    (r"logger=(mlflow|aim|many)", "logger=tensorboard"),
    (r"hydra/launcher=(submitit_slurm|submitit_local|ray|joblib|fused)", "hydra/launcher=basic"),
    (r"'?\+?hydra\.launcher\.[\w.]+=[^\s']+'? ?", ""),
    (r"/shared/multirun", "multirun"),
    (r"PATH/policy\.yaml", "multirun/first/0/policy.yaml"),
    (r"--run \d+", "--run 4"),
)


def of_document(document: Path) -> list[tuple[int, str, int]]:
    """Line, command and exit code of every command in a document, in order; bare names of commands left out."""
    text = document.read_text(encoding="utf-8")
    found = [
        (block.line, command.strip(), block.code)
        for block in blocks(text)
        if block.kind == "commands"
        for command in block.commands
    ]
    programs = re.compile(r"^(\w+=\S+ )*(python|lrbench|source|make|pip|wandb|ray|git|timeout) ")
    found += [(line, command, 0) for line, command in inline(text) if programs.match(command)]
    found = [each for each in found if not _BARE.match(each[1].partition("#")[0].strip())]
    return sorted(found, key=lambda each: each[0])


def why_not(command: str) -> str | None:
    """Why a command is not run, or None."""
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), None)


def shortened(command: str) -> str:
    """The command with a budget of a second.

    Example:
        >>> shortened("python run.py -m lr_policy=tri seed=0,1 max_steps=5000")
        'python run.py -m lr_policy=tri seed=0,1 max_steps=60 check_every=20 checkpoint_every=60 target=0.2'
        >>> shortened("lrbench verify multirun/first --run 40")
        'lrbench verify multirun/first --run 4'
    """
    if command.startswith("lrbench db best"):
        return re.sub(r"max_steps=\d+", f"max_steps={STEPS} target={EASY}", command)
    if not _trains(command) and not command.startswith("lrbench verify"):
        return command
    if "--cfg" in command or "--help" in command:  # which train nothing
        return command
    for old, new in _INSTEAD:
        command = re.sub(old, new, command)
    if not _trains(command):
        return command
    command = command.partition(" #")[0]
    command = re.sub(r"max_steps=(\d+)", lambda found: f"max_steps={_budget(int(found[1]))}", command)
    command = re.sub(r"target=(0\.\d+)", f"target={EASY}", command)
    command = re.sub(r"seed=0,1,2[\d,]*|'seed=range\(\d+\)'", "seed=0,1", command)
    own = {"max_steps": STEPS, "check_every": STEPS // 3, "checkpoint_every": STEPS, "target": EASY}
    more = [f"{key}={value}" for key, value in own.items() if f"{key}=" not in command]
    return " ".join([command, *more])


def _trains(command: str) -> bool:
    return "run.py" in command or "lrbench run" in command


def _budget(steps: int) -> int:
    """Different budgets stay different: a folder that holds another one is refused."""
    return STEPS if steps <= 5000 else 2 * STEPS


def run(command: str, folder: Path, output: Path) -> int:
    """Run a command in a folder; its exit code. What it prints is in ``output``."""
    words = shlex.split(command, comments=True)
    variables = {}
    while re.match(r"^[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    command = re.sub(r"^wandb ", f"{shlex.quote(sys.executable)} -m wandb ", command)
    if words[0] not in ("python", "lrbench"):
        environment = {**os.environ, **_environment(folder), **variables}
        with output.open("wb") as file:
            return subprocess.run(
                ["bash", "-c", command], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, timeout=_LIMIT_S,
            ).returncode  # fmt: skip
    programs = {"python": [sys.executable], "lrbench": [sys.executable, str(Path(sys.executable).with_name("lrbench"))]}
    environment = {name: value for name, value in os.environ.items() if name != "LRBENCH_DB"}
    with output.open("wb") as file:
        process = forks.start(
            [*programs[words[0]], *words[1:]], folder, {**environment, **_environment(folder), **variables}, file
        )
        try:
            return process.wait(_LIMIT_S)
        except subprocess.TimeoutExpired:
            return 124
        finally:
            process.kill_group()


def _environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
        "HOME": str(folder),
    }
