"""Every command of README.md and the guides runs, and so does every command that `lrbench` has."""

import shutil
from pathlib import Path

import pytest
import typer

from lrbench_pl import cli
from tests.docs.blocks import blocks, documents
from tests.docs.compose import ROOT
from tests.docs.running import DEMO, EASY, NOT_RUN, STEPS, of_document, run, shortened, why_not

# README.md's sweep, with which some guides begin
SWEEP = (
    "lrbench run -m lr_policy=fix,cosine,tri,sinexp 'seed=range(8)' max_steps=400 target=0.97 "
    "hydra.sweep.dir=multirun/first"
)


@pytest.fixture(scope="module")
def swept(made_once, tmp_path_factory):
    """A checkout in which README.md's own sweep has been run."""

    def fill(folder):
        _checkout(folder)
        assert run(shortened(SWEEP), folder, folder / "out.txt") == 0, (folder / "out.txt").read_text()

    own = tmp_path_factory.mktemp("swept") / "checkout"
    return Path(shutil.copytree(made_once("swept", fill), own, symlinks=True))


def _checkout(folder):
    shutil.copy2(ROOT / "run.py", folder)
    for name in ("conf", "experiments"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def _wrong(command, code, folder):
    """What is wrong with how a command ended; None if nothing is."""
    output = folder / "out.txt"
    ended = run(command, folder, output)
    said = output.read_text(errors="replace")
    undecided = ended == 3 and command.startswith("lrbench verify")  # so few seeds decide nothing
    if (ended == code or undecided) and "Traceback" not in said:
        return None
    return f"{command}\nexit code {ended} instead of {code}\n{said[-2000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("document", documents(ROOT), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_document_runs(document, swept, tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(swept, folder, symlinks=True)
    if not any(command == SWEEP for _, command, _ in of_document(document)):
        shutil.rmtree(folder / "multirun")  # a document makes what it shows; the sweep above is then finished before
    for block in blocks(document.read_text(encoding="utf-8")):
        if block.path is not None:
            (folder / block.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.path).write_text(block.text + "\n")
    wrong = []
    for line, command, code in of_document(document):
        if why_not(command) is None and (found := _wrong(shortened(command), code, folder)) is not None:
            wrong.append(f"{document.name}, line {line}: {found}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("command", DEMO)
def test_make_demo_has_the_commands_that_are_run_below(command):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    program, _, arguments = command.partition(" ")
    assert f"$(BIN)/{program} {arguments}" in makefile


@pytest.mark.slow
def test_what_make_demo_runs(tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    _checkout(checkout)
    wrong = [found for each in DEMO if (found := _wrong(shortened(each), 0, checkout)) is not None]
    assert not wrong, "\n\n".join(wrong)


# each command of the program in its default form, on README.md's sweep; those that change the database first
EACH = {
    "run": f"lrbench run max_steps={STEPS} target={EASY} check_every=20",
    "extend": "lrbench extend outputs/fix",
    "rank": "lrbench rank multirun/first",
    "report": "lrbench report multirun/first",
    "preview": "lrbench preview",
    "lint": "lrbench lint",
    "verify": "lrbench verify multirun/first --policy tri",
    "db add": "lrbench db add multirun/first",
    "db list": "lrbench db list",
    "db best": f"lrbench db best max_steps={STEPS} target={EASY} check_every=20",
    "db export": "lrbench db export",
}


def _commands(command, prefix=""):
    for name, each in getattr(command, "commands", {}).items():
        if hasattr(each, "commands"):
            yield from _commands(each, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}"


def test_no_command_of_the_program_is_forgotten():
    assert set(EACH) == set(_commands(typer.main.get_command(cli.app)))


@pytest.mark.slow
def test_every_command_of_the_program_runs_in_its_default_form(swept):
    longer = f"lrbench run lr_policy=fix extendable=true target=null max_steps={STEPS} hydra.run.dir=outputs/fix"
    assert _wrong(longer, 0, swept) is None
    wrong = [found for each in EACH.values() if (found := _wrong(each, 0, swept)) is not None]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["table", "csv", "json", "markdown"])
@pytest.mark.parametrize("command", ["rank multirun/first", "db list"])
def test_every_form_of_a_table_is_printed(command, form, swept):
    assert _wrong("lrbench db add multirun/first", 0, swept) is None
    assert _wrong(f"lrbench {command} --format {form}", 0, swept) is None


def test_what_is_not_run_is_said_and_is_in_a_document():
    commands = [command for document in documents(ROOT) for _, command, _ in of_document(document)]
    left_out = {command for command in commands if why_not(command) is not None}
    assert left_out  # the rest runs
    assert all(why for why in NOT_RUN.values())


@pytest.mark.slow
def test_a_command_that_fails_is_found(swept):
    assert "KeyError" not in (_wrong("lrbench rank multirun/first", 0, swept) or "")
    found = _wrong("lrbench rank nowhere", 0, swept)
    assert "exit code 2 instead of 0" in found
    assert "no such folder" in found
