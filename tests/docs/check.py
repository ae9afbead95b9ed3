"""Do what the documents say, each in a clean copy of the checkout, and hold the outcome against what they show.

    python -m tests.docs.check [DOCUMENT...]

Every command has to end as the document says; of the output below it every word has to come out (numbers differ from
one machine to another). A line each, exit code 1 if one fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.docs.blocks import Block, blocks, documents

ROOT = Path(__file__).resolve().parents[2]
_WORD = re.compile(r"\b[^\W\d_]{3,}\b")
_LIMIT_S = 900  # of one command


def checkout(to: Path) -> None:
    """Copy what git would keep of this working tree, changes not yet committed included.

    Raises:
        subprocess.CalledProcessError: If this is no checkout.
    """
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # not one that was removed
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def environment(copy: Path) -> dict[str, str]:
    """The variables under which the commands run: this Python, the packages of the copy, no service."""
    packages = copy.parent / "packages"  # these two alone, so that a reader's own modules must be found as for a reader
    packages.mkdir()
    for name in ("lrbench_pl", "hydra_plugins"):
        (packages / name).symlink_to(copy / name)
    ours = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
        "VENV": sys.prefix,
        "MAKEFLAGS": f"--old-file={sys.prefix}/.installed",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "110",
    }
    kept = {name: value for name, value in os.environ.items() if name not in ("LRBENCH_DB", "PYTHONSAFEPATH")}
    return kept | ours


def missing_words(shown: str, came_out: str) -> list[str]:
    """The words of a text that did not come out.

    Example:
        >>> missing_words("tri: reached 0.950 at step 100, …", "tri: missed 0.970 at step 90")
        ['reached']
    """
    there = set(_WORD.findall(came_out))
    return [word for word in dict.fromkeys(_WORD.findall(shown)) if word not in there]


def follow(document: Path) -> Iterator[tuple[bool, str]]:
    """Do what one document says, in its order; whether each step went well, and a line about it."""
    with tempfile.TemporaryDirectory(prefix="lrbench-docs-") as folder:
        copy = Path(folder) / "checkout"
        checkout(copy)
        (copy / ".venv").symlink_to(sys.prefix)  # `make demo` installs nothing here
        variables = environment(copy)
        came_out: str | None = ""
        for block in blocks(document.read_text(encoding="utf-8")):
            where = f"{document.relative_to(ROOT)}:{block.line}"
            if block.kind == "file":
                path = copy / str(block.path)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text + "\n", encoding="utf-8")
            elif block.kind == "commands" and block.not_run is not None:
                came_out = None
                yield True, f"not run  {where}: {block.not_run}"
            elif block.kind == "commands":
                came_out = ""
                for command in block.commands:
                    good, line, output = _run(block, command, copy, variables)
                    came_out += output
                    yield good, f"{line}  {where}: {command.strip()}" + ("" if good else f"\n{_indented(output)}")
            elif block.kind == "output" and came_out is not None and (lost := missing_words(block.text, came_out)):
                yield False, f"WRONG    {where}: did not come out: {' '.join(lost)}\n{_indented(came_out)}"


def _run(block: Block, command: str, copy: Path, variables: dict[str, str]) -> tuple[bool, str, str]:
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=copy,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return False, f"over {_LIMIT_S} s", ""
    seconds = time.perf_counter() - begin
    good = done.returncode == block.code
    said = "ok" if good else f"exit code {done.returncode} instead of {block.code}"
    return good, f"{said} {seconds:5.1f} s", done.stdout


def _indented(text: str, lines: int = 25) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])


def _report(document: Path) -> bool:
    good = True
    for fine, line in follow(document):
        good = good and fine
        print(line, flush=True)
    return good


def main(names: Sequence[str]) -> int:
    """Follow the documents, two at a time."""
    asked = [Path(name).resolve() for name in names] or documents(ROOT)
    with ThreadPoolExecutor(2) as pool:
        good = list(pool.map(_report, asked))
    print(f"{len(asked)} documents, {good.count(False)} with a fault")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
