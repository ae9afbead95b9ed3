"""A mistake in a configuration gives one line with a suggestion, in run.py, preview, lint and db."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lrbench_pl.cli import preview
from lrbench_pl.runs.config import conf_dir, expand
from lrbench_pl.runs.config_errors import explain, one_line_errors
from lrbench_pl.runs.options import UserError
from tests.cli.test_cli import call

ROOT = Path(__file__).resolve().parents[2]

MISTAKES = [
    pytest.param(["lr_polcy=tri"], "there is no key 'lr_polcy'; did you mean lr_policy?", id="key-of-a-group"),
    pytest.param(["max_stpes=10"], "there is no key 'max_stpes'; did you mean max_steps?", id="key"),
    pytest.param(["experment=demo"], "there is no key 'experment'; did you mean experiment?", id="group-without-value"),
    pytest.param(["devices=2"], "there is no key 'devices'; did you mean trainer.devices?", id="key-below"),
    pytest.param(
        ["lr_policy=step", "lr_policy.stepsize=5"],
        "there is no key 'lr_policy.stepsize'; did you mean lr_policy.step_size?",
        id="nested-key",
    ),
    pytest.param(
        ["hydra/lancher=joblib"], "there is no group 'hydra/lancher'; did you mean hydra/launcher?", id="group"
    ),
    pytest.param(
        ["trainer=gpus"],
        "trainer has no choice 'gpus'; did you mean gpu? choose from bf16, cpu, ddp, default, gpu",
        id="choice",
    ),
    pytest.param(["lr_policy"], "expected KEY=VALUE, such as lr_policy=tri, got 'lr_policy'", id="no-value"),
]


@pytest.mark.parametrize("command", ["preview", "lint", "db best"])
@pytest.mark.parametrize(("overrides", "message"), MISTAKES)
def test_the_commands_suggest_what_was_meant(overrides, message, command, monkeypatch, capsys):
    if command == "db best" and overrides[0].startswith("lr_policy"):
        pytest.skip("it sets lr_policy itself")
    assert call(monkeypatch, capsys, *command.split(), *overrides) == (2, "", f"error: {message}\n")


def run_py(folder, *arguments, **variables):
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments, f"hydra.run.dir={folder}"],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lr_polcy=tri"], "error: there is no key 'lr_polcy'; did you mean lr_policy?\n"),
        (["-m", "max_stpes=10,20"], "error: there is no key 'max_stpes'; did you mean max_steps?\n"),
        (["--help", "lr_polcy=tri"], "error: there is no key 'lr_polcy'; did you mean lr_policy?\n"),
    ],
)
def test_run_py_suggests_what_was_meant(arguments, message, tmp_path):
    done = run_py(tmp_path / "run", *arguments)
    assert (done.returncode, done.stderr) == (1, message)
    assert not (tmp_path / "run").exists()


def test_hydra_full_error_shows_the_traceback(tmp_path):
    done = run_py(tmp_path / "run", "lr_polcy=tri", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_other_errors_keep_their_traceback_and_the_environment_is_restored():
    with pytest.raises(KeyError, match="a bug"), one_line_errors():
        raise KeyError("a bug")
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_an_unknown_choice_lists_the_choices(monkeypatch, capsys):
    code, _, error = call(monkeypatch, capsys, "preview", "lr_policy=trii")
    assert code == 2
    assert error.startswith("error: lr_policy has no choice 'trii'; did you mean tri? choose from auto, best, ")
    for path in (conf_dir() / "lr_policy").glob("*.yaml"):
        assert f" {path.stem}" in error


YAMLS = [
    pytest.param(
        "_target_: lrbench_pl.policies.Constant\n\tlr: 0.1\n",
        "line 2: YAML is indented with spaces, got a tab; replace it by spaces",
        id="tab",
    ),
    pytest.param(
        "_target_: lrbench_pl.policies.Constant\nlr: [0.1\n",
        "line 3: invalid YAML: expected ',' or ']', but got '<stream end>', while parsing a flow sequence that "
        "begins in line 2; correct the file there",
        id="bracket",
    ),
    pytest.param(
        "_target_: lrbench_pl.policies.Constant\nlr: 0.1: 2\n",
        "line 2: invalid YAML: mapping values are not allowed here; correct the file there",
        id="colon",
    ),
    pytest.param(
        "lr: 0.1\nlr: 0.2\n",
        "line 2: invalid YAML: found duplicate key lr, while constructing a mapping that begins in line 1; "
        "correct the file there",
        id="twice",
    ),
]


@pytest.mark.parametrize(("text", "message"), YAMLS)
def test_invalid_yaml_is_named_with_its_line(text, message, tmp_path, monkeypatch, capsys):
    path = tmp_path / "lr_policy" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(text)
    found = call(monkeypatch, capsys, "preview", "--config-dir", tmp_path, "lr_policy=mine")
    assert found == (2, "", f"error: {path}, {message}\n")


def test_run_py_names_the_file_too(tmp_path):
    path = tmp_path / "lr_policy" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("_target_: lrbench_pl.policies.Constant\n\tlr: 0.1\n")
    done = run_py(tmp_path / "run", "--config-dir", str(tmp_path), "lr_policy=mine")
    assert done.returncode == 1
    assert done.stderr == f"error: {path}, line 2: YAML is indented with spaces, got a tab; replace it by spaces\n"


@pytest.mark.parametrize(("text", "got"), [("", "nothing"), ("a b c\n", "a b c"), ("lr: 0.1\n", "lr")])
def test_a_policy_without_target_class_is_refused(text, got, tmp_path, monkeypatch, capsys):
    (tmp_path / "lr_policy").mkdir()
    (tmp_path / "lr_policy" / "mine.yaml").write_text(text)
    code, _, error = call(monkeypatch, capsys, "preview", "--config-dir", tmp_path, "lr_policy=mine")
    assert code == 2
    assert "lr_policy=mine: expected a YAML with _target_" in error
    assert error.endswith(f"got {got}\n")


def test_an_unknown_choice_in_a_file_lists_the_choices(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /trainer: gpus\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match="trainer has no choice 'gpus'; did you mean gpu"):
        preview.planned_runs([f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"])


def test_other_errors_are_not_explained():
    assert explain(KeyError("a bug")) is None
    with pytest.raises(UserError) as caught:
        expand(["lr_policy"])
    assert explain(caught.value) == "expected KEY=VALUE, such as lr_policy=tri, got 'lr_policy'"


@pytest.mark.parametrize("there", [(), ("hydra", "omegaconf", "antlr4", "yaml", "packaging")], ids=["bare", "hydra"])
def test_a_checkout_that_is_not_installed_says_what_to_do(there, tmp_path):
    checkout, packages = tmp_path / "checkout", tmp_path / "packages"
    packages.mkdir()
    for name in there:
        (packages / name).symlink_to(Path(importlib.util.find_spec(name).origin).parent)
    for name in ("conf", "lrbench_pl"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "run.py", checkout)
    done = subprocess.run(
        [sys.executable, "-S", "run.py"],  # -S: without the packages of this environment
        cwd=checkout,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: lrbench_pl is not installed for this Python ({sys.executable}: ")
    assert done.stderr.endswith("`.venv/bin/python run.py …`, or `python -m pip install -e .` here\n")
    assert done.stderr.count("\n") == 1
