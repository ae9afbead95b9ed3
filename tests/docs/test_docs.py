"""The commands of README.md and the guides can be run: their quick half; `make docs-check` runs them."""

import re

import pytest

from tests.docs.blocks import blocks, documents, inline
from tests.docs.check import follow, missing_words
from tests.docs.compose import ROOT, check_command

STUDIES = sorted(ROOT.glob("experiments/*/README.md"))
NO_COMMANDS = {"comparison.md"}


def written(document, folder):
    """A folder with the files that a document tells its reader to write."""
    for block in blocks(document.read_text(encoding="utf-8")):
        if block.path is not None:
            path = folder / block.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("document", [*documents(ROOT), *STUDIES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_can_be_run(document, tmp_path):
    text = document.read_text(encoding="utf-8")
    folder = written(document, tmp_path)
    commands = [
        (block.line, command) for block in blocks(text) if block.kind == "commands" for command in block.commands
    ]
    assert bool(commands) is (document.name not in NO_COMMANDS)
    for line, command in [*commands, *inline(text)]:
        try:
            check_command(command, folder)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{document.name}, line {line}: {command}\n{error}")


@pytest.mark.parametrize("document", documents(ROOT), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_it_links_to_is_there(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        path = document.parent / name if name else document
        assert path.is_file(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], target


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python run.py lr_polcy=tri", "Could not override 'lr_polcy'"),
        ("python run.py lr_policy=trii", "Could not find 'lr_policy/trii'"),
        ("python run.py lr_policy=step lr_policy.size=5", "Could not override 'lr_policy.size'"),
        ("python run.py lr_policy=step lr_policy.gamma=5", "gamma must lie in"),
        ("python run.py lr_policy=tri seed=0,1", "several values need -m"),
        ("python run.py --multi lr_policy=tri", "run.py has no option --multi"),
        ("python run.py --config-dir mine lr_policy=tri", "the document writes no such folder"),
        ("python experiments/none.py", "there is no experiments/none.py"),
        ("lrbench rank multirun/first --metrics utility", "No such option: --metrics"),
        ("lrbench rnk multirun/first", "lrbench has no command rnk"),
        ("lrbench lint lr_policy=steps", "lr_policy has no choice 'steps'; did you mean step"),
        ("make docs", "make has no target docs"),
        ("pip install 'lrbench_pl[rays]'", "lrbench_pl has no extra rays"),
        ("pip install '.[rays]'", "lrbench_pl has no extra rays"),
        ("max_tims=3600", "Could not override 'max_tims'"),
        ("hydra.launcher.jobs_per_gpus=2", "Could not override 'hydra.launcher.jobs_per_gpus'"),
    ],
)
def test_what_was_renamed_is_caught(command, message, tmp_path):
    with pytest.raises(Exception, match=re.escape(message)):
        check_command(command, tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        "WANDB_MODE=offline python run.py -m logger=wandb 'lr_policy=glob(t*)' seed=0,1  # as it stands",
        "timeout -s KILL 15 python run.py lr_policy=tri max_time=3600",
        "python run.py --cfg hydra -p hydra.launcher hydra/launcher=submitit_slurm "
        "'+hydra.launcher.slurm_constraint=a100'",
        "lrbench db best max_steps=2000 -o policy.yaml",
        "hydra.sweeper.tuning_budget=4",
    ],
)
def test_what_is_there_is_not(command, tmp_path):
    check_command(command, tmp_path)


def test_commands_output_and_files_are_told_apart():
    found = blocks(
        "Text.\n\n    python run.py \\\n        lr=0.1\n    lrbench rank a\n\n    tier  rank\n\n       2     6\n\n"
        "<!-- not run: needs SLURM -->\n    python run.py seed=1\n\n    tri: reached\n\n"
        "<!-- exits with 3 -->\n    lrbench verify a\n\n```yaml\n# @package _global_\n# mine/x.yaml\na: 1\n```\n\n"
        "```python\n# my.py\nx = 1\n```\n\n```python\n>>> 1\n1\n\n```\n\n```yaml\na: 1\n```\n"
    )
    assert [(block.line, block.kind) for block in found] == [
        (3, "commands"), (7, "output"), (12, "commands"), (14, "output"), (17, "commands"), (19, "file"), (25, "file"),
        (30, "doctest"), (36, "other"),
    ]  # fmt: skip
    assert found[0].commands == ["python run.py lr=0.1", "lrbench rank a"]
    assert found[1].text == "tier  rank\n\n   2     6"
    assert [(block.not_run, block.code) for block in found[2:6]] == [("needs SLURM", 0)] * 2 + [(None, 3), (None, 0)]
    assert [block.path for block in found if block.path] == ["mine/x.yaml", "my.py"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- not run -->\n    make demo\n", "line 1: expected <!-- not run: REASON -->"),
        ("\n```python\nx = 1\n```\n", "line 2: a Python block must begin with"),
    ],
)
def test_a_block_that_nothing_would_check_is_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        blocks(text)


def test_words_not_numbers_have_to_come_out():
    shown = "tri (momentum, lr 0.05): reached 0.950 at step 100 (run 5k81djq2), …"
    assert missing_words(shown, "cos\ntri momentum\nreached 0.951 at step 90, run x") == []
    assert missing_words(shown, "tri momentum missed step run") == ["reached"]


def test_a_document_is_followed(tmp_path, monkeypatch):
    document = tmp_path / "guide.md"
    monkeypatch.setattr("tests.docs.check.ROOT", tmp_path)
    monkeypatch.setattr("tests.docs.check.checkout", lambda to: to.mkdir())
    document.write_text(
        "```yaml\n# mine/a.yaml\nwords: here\n```\n\n    cat mine/a.yaml\n\n    words: there\n\n"
        "<!-- exits with 1 -->\n    cat nowhere\n\n    cat mine/b.yaml\n\n"
        "<!-- not run: dangerous -->\n    cat /\n\n    all of it\n"
    )
    assert [good for good, _ in follow(document)] == [True, False, True, True, True]
