"""What one command tells the user, or itself, to run next: quoted whole, with the options it was started with."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lrbench_pl.analysis.sequential import MOST_SEEDS, evidence, seeds_to_confirm
from lrbench_pl.cli import verify as module
from lrbench_pl.cli.verify import stored_command, verify
from lrbench_pl.runs.config import program_options, quoted
from lrbench_pl.runs.result import RunResult
from lrbench_pl.selection.request import Request
from lrbench_pl.selection.sweeper import Race
from lrbench_pl.selection.trials import Candidate, Selection, SelectionOptions, SelectionTask
from tests.analysis.test_ranking import COMMON, write
from tests.cli.test_cli import call

SOURCES = [
    {"path": "/the/conf", "provider": "main"},
    {"path": "/my conf", "provider": "command-line"},
    {"path": "/more", "provider": "hydra.searchpath in command-line"},
]


def hydra_node(cwd, **changes):
    node = {
        "runtime": {"cwd": str(cwd), "config_sources": SOURCES},
        "job": {"config_name": "config"},
        "overrides": {"hydra": ["hydra.searchpath=[/more]", "hydra.mode=MULTIRUN"]},
    }
    return {**node, **changes}


OPTIONS = ["--config-dir", "/my conf", "hydra.searchpath=[/more]"]


@pytest.mark.parametrize(
    "text",
    ["plain", "it's", "a\\b", "a\\'b", "ends\\", "a${b}c", "a\\${b}", "x y,z", "[a]", "é", "{", "12", "null", "="],
)
def test_hydra_reads_back_what_was_quoted(text):
    value = OverridesParser.create().parse_override(f"key={quoted(text)}").value()
    assert OmegaConf.create({"key": value}).key == text


def test_options_of_the_program_are_kept(tmp_path):
    assert program_options(hydra_node(tmp_path)) == OPTIONS
    named = hydra_node(tmp_path, job={"config_name": "mine"})
    assert program_options(named) == [*OPTIONS[:2], "--config-name", "mine", OPTIONS[2]]


def stored(run, cwd):
    (run / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.create(["lr_policy=tri", "seed=0"]), run / ".hydra" / "overrides.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": hydra_node(cwd)}), run / ".hydra" / "hydra.yaml")


def test_a_stored_run_is_repeated_with_its_options(tmp_path):
    run = write(tmp_path, "tri", 100, 0)
    stored(run, tmp_path)
    assert stored_command(run) == ([*OPTIONS, "lr_policy=tri"], tmp_path)


def test_further_seeds_go_into_a_folder_with_a_quote_in_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "it's a ${sweep}"
    stored(write(folder, "tri", 100, 0), tmp_path)
    trained = []

    def train(arguments, directory):
        given = dict(each.split("=", 1) for each in arguments[-2:])
        at = OmegaConf.create(
            {"at": OverridesParser.create().parse_override(f"at={given['hydra.run.dir']}").value()}
        ).at
        row = {**COMMON, "policy": "tri", "steps_to_target": 100, "best_value": 0.98}
        RunResult(run_id="x", status="reached", **row, seed=int(given["seed"])).write(at)
        trained.append(at)

    monkeypatch.setattr(module, "train", train)
    _, decision = verify(folder, {}, most=2, trust=True)
    assert decision.seeds == 2
    assert trained[0].startswith(str(folder.resolve()))


def test_the_line_to_run_a_selection_has_the_options_too(tmp_path, capsys):
    folder = tmp_path / "it's"
    candidate = Candidate("cosine", "sgd", 0.1)
    run = folder / "120-steps" / "cosine-sgd-0.1-seed-0"
    run.mkdir(parents=True)
    (run / "policy.yaml").write_text("_target_: lrbench_pl.policies.Constant\nlr: 0.1\n")
    config = OmegaConf.create({"hydra": {**hydra_node(tmp_path), "sweep": {"dir": str(folder)}}})
    race = Race(None, None, config)
    task = SelectionTask(max_steps=120, interval=10, optimizers={"sgd": 0.1})
    race.request = Request(SelectionOptions(), task, {}, False, "null", {}, 0.9, {})
    race._end(Selection(candidate, 120, "reached"))
    words = shlex.split(capsys.readouterr().out.split("run it: lrbench run ")[1])
    assert words[:3] == OPTIONS
    (policy,) = [word for word in words if word.startswith("lr_policy_file=")]
    assert OverridesParser.create().parse_override(policy).value() == str(folder / "policy.yaml")


@pytest.mark.parametrize(
    ("reached", "seeds", "share", "confidence"),
    [
        (0, 0, 0.8, 0.95),
        (4, 5, 0.8, 0.95),
        (5, 6, 0.9, 0.99),
        (1, 1, 0.001, 0.95),
        (30, 30, 0.8, 0.95),
        (0, 0, 0.999, 0.9),
    ],
)
def test_seeds_to_confirm_are_the_fewest_that_do(reached, seeds, share, confidence):
    import math

    more = seeds_to_confirm(reached, seeds, share, confidence)
    enough = -math.log1p(-confidence)
    assert evidence(reached + more, seeds + more, share)[0] >= enough
    assert more == 0 or evidence(reached + more - 1, seeds + more - 1, share)[0] < enough


def test_a_share_that_no_number_of_seeds_confirms_is_refused_in_a_line(tmp_path, monkeypatch, capsys):
    """Before it, each seed was counted by itself: 3.8 million of them."""
    write(tmp_path, "tri", 100, 0)
    code, out, err = call(monkeypatch, capsys, "verify", tmp_path, "--share", "0.999999")
    assert (code, out) == (2, "")
    assert err == (
        f"error: a share of 0.999999 at confidence 0.95 takes more than {MOST_SEEDS:,} seeds to confirm; "
        "give a smaller --share\n"
    )
    code, out, _ = call(monkeypatch, capsys, "verify", tmp_path, "--share", "0.9999")
    assert code == 3
    assert "further successes in a row confirm it" in out
