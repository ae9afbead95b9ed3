"""Odd files in folders of runs, in databases and exports: each is named and skipped, and the rest is used."""

import json
import os
import sqlite3

import pytest

from lrbench_pl.analysis.history import HistoryError, read_history
from lrbench_pl.analysis.load import load_runs
from lrbench_pl.files import ResultError
from lrbench_pl.reading import UnreadableError, parse_yaml, read_json
from lrbench_pl.runs.config import read_policy
from lrbench_pl.runs.folder import Record, read_result
from lrbench_pl.runs.options import UserError
from lrbench_pl.runs.result import RunResult, Setup
from lrbench_pl.runs.sharing import Pool
from lrbench_pl.selection.best import _read as read_lookup
from lrbench_pl.selection.selection_file import read_selection
from tests.analysis.test_ranking import COMMON, write
from tests.cli.test_cli import call

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
DIGITS = "1" * 5000
NESTED = "[" * 100_000


def result_text(**fields):
    return json.dumps({**COMMON, "run_id": "x", "policy": "odd", "status": "missed", "seed": 0, **fields})


def pipe(path):
    os.mkfifo(path)


def zeros(path):
    path.symlink_to("/dev/zero")


ODD = {
    "digits": (
        lambda path: path.write_text(result_text().replace('"seed": 0', f'"seed": {DIGITS}')),
        "too many digits",
    ),
    "nested": (lambda path: path.write_text(NESTED), "nested more than 64 levels"),
    "in a field": (lambda path: path.write_text('{"settings": ' + "[" * 90 + "]" * 90 + "}"), "nested more than"),
    "negative": (lambda path: path.write_text(result_text(status="reached", steps_to_target=-5)), "must be at least 0"),
    "beyond": (lambda path: path.write_text(result_text(status="reached", steps_to_target=10**9)), "at most max_steps"),
    "no time": (lambda path: path.write_text(result_text(wall_time_s=-1.0)), "'wall_time_s' must be at least 0"),
    "half a character": (lambda path: path.write_text(result_text(policy="\ud800")), "half of a character"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe{}"), "UTF-8"),
    "pipe": (pipe, "expected a regular file"),
    "zeros": (zeros, "expected a regular file"),
    "folder": (lambda path: path.mkdir(), "no result.json"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_result_is_named_and_skipped(tmp_path, name):
    good = write(tmp_path, "tri", 100, 0)
    odd = write(tmp_path, "cos", 100, 1)
    (odd / "metrics.csv").write_text("step,val/accuracy\n")
    (odd / "result.json").unlink()
    make, reason = ODD[name]
    make(odd / "result.json")
    runs = load_runs(tmp_path)
    assert runs.table["folder"].to_list() == [str(good)]
    ((skipped),) = runs.skipped
    assert (skipped.path, reason in skipped.reason) == (odd, True), skipped.reason
    assert len(skipped.reason) < 300
    assert read_result(odd) is None


@pytest.mark.parametrize("make", [pipe, zeros, lambda path: path.write_text(NESTED)])
def test_an_odd_file_of_any_name_is_refused(tmp_path, make):
    for name in ("run.json", "metrics.csv", "tuning.json", "selection.json", "lookup.json", "policy.yaml"):
        make(tmp_path / name)
    assert Record.read(tmp_path) is None
    with pytest.raises(HistoryError):
        read_history(tmp_path, "val/accuracy")
    with pytest.raises(ResultError):
        read_selection(tmp_path)
    with pytest.raises(UserError, match="remove it to look a policy up again"):
        read_lookup(tmp_path / "lookup.json")
    with pytest.raises(UserError, match="lr_policy_file="):
        read_policy(tmp_path / "policy.yaml")


@pytest.mark.parametrize(
    "history",
    [
        b"step,val/accuracy\n\xff\xfe,1\n",
        b"step,val/accuracy\n1e300,0.5\n",
        b"step,check/step,val/accuracy\n1,nan,0.5\n",
        b"step,val/accuracy\n" + DIGITS.encode() + b",0.5\n",
    ],
)
def test_an_odd_history_is_named_and_the_others_are_judged(tmp_path, monkeypatch, capsys, history):
    good = write(tmp_path, "tri", 100, 0, final_value=0.5, target=0.4)
    (good / "metrics.csv").write_text("step,val/accuracy\n99,0.5\n")
    odd = write(tmp_path, "cos", 100, 1, final_value=0.5, target=0.4)
    (odd / "metrics.csv").write_bytes(history)
    code, out, err = call(monkeypatch, capsys, "rank", tmp_path, "--target", "0.45")
    assert code == 0
    assert "tri" in out
    assert f"skipped: {odd}: metrics.csv" in err


@pytest.mark.parametrize("text", ["[]", '[{"spent": "x"}]', '{"spent": 1}', "[" * 90 + "]" * 90, '[{"rates": ["x"]}]'])
def test_an_odd_composition_leaves_the_report(tmp_path, monkeypatch, capsys, text):
    folder = write(tmp_path, "auto", 100, 0)
    (folder / "tuning.json").write_text(text)
    assert call(monkeypatch, capsys, "report", tmp_path, "-o", tmp_path / "page.html")[0] == 0


def test_aliases_in_yaml_are_refused_before_they_are_expanded(tmp_path, monkeypatch, capsys):
    assert len(BOMB) < 571
    with pytest.raises(UnreadableError, match="line 1: expected YAML without anchors and aliases, got 'a0'"):
        parse_yaml(BOMB)
    folder = write(tmp_path, "tri", 100, 0)
    (folder / "policy.yaml").write_text(BOMB)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "hydra.yaml").write_text(BOMB)
    (tmp_path / "multirun.yaml").write_text(BOMB)
    assert call(monkeypatch, capsys, "report", tmp_path, "-o", tmp_path / "page.html")[0] == 0
    code, _, err = call(monkeypatch, capsys, "db", "add", tmp_path, "--db", tmp_path / "runs.db")
    assert code == 2
    assert "without anchors and aliases" in err
    with pytest.raises(UserError, match="without anchors and aliases"):
        read_policy(folder / "policy.yaml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a: " + "[" * 100 + "]" * 100, "nested more than"), (f"a: {DIGITS}", "too many digits"), ("3", "a mapping")],
)
def test_other_odd_yaml_is_refused(text, reason):
    with pytest.raises(UnreadableError, match=reason):
        parse_yaml(text)


def test_a_large_file_is_refused_unread(tmp_path):
    path = tmp_path / "result.json"
    with open(path, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(UnreadableError, match="expected at most"):
        read_json(path)


def test_odd_rows_of_a_database_and_of_an_export_are_named(tmp_path, monkeypatch, capsys):
    db = tmp_path / "runs.db"
    for seed in range(4):
        folder = write(tmp_path / "sweep", "tri", 100, seed)
        (folder / "policy.yaml").write_text("_target_: lrbench_pl.policies.Constant\nlr: 0.1\n")
    assert call(monkeypatch, capsys, "db", "add", tmp_path / "sweep", "--db", db)[0] == 0
    with sqlite3.connect(db) as connection:
        for number, text in ((1, NESTED), (2, f'{{"seed": {DIGITS}}}'), (3, "\ufffd")):
            connection.execute("update lrbench_runs set result = ? where id = ?", (text, number))
    code, out, err = call(monkeypatch, capsys, "db", "list", "--db", db)
    assert (code, err.count("refused: row")) == (0, 3)
    exported = tmp_path / "runs.jsonl"
    assert call(monkeypatch, capsys, "db", "export", "--db", db, "-o", exported)[0] == 0
    exported.write_text(exported.read_text() + NESTED + "\n" + f'{{"seed": {DIGITS}}}\n')
    code, out, err = call(monkeypatch, capsys, "db", "add", exported, "--db", tmp_path / "other.db")
    assert (code, err.count("refused: ")) == (0, 2)
    assert "1 added" in out


@pytest.mark.parametrize("marker", [b"../elsewhere", b"\xff\xfe", b".", b"", b"a\0b", None])
def test_a_marker_names_a_folder_of_its_sweep(tmp_path, marker):
    sweep = tmp_path / "sweep"
    twin = RunResult(run_id="a", policy="step", status="missed", policy_id="x", steps_run=100)
    twin.write(tmp_path / "elsewhere")
    twin.write(sweep)
    pool = Pool.of(sweep, {"seed": 0}, Setup(policy_id="x"))
    pool.marker.parent.mkdir(parents=True)
    pool.marker.write_bytes(str(tmp_path / "elsewhere").encode() if marker is None else marker)
    assert pool.take(sweep / "1") is None
    pool.offer(twin, twin.write(sweep / "0").parent)
    assert pool.take(sweep / "1").shared_with == "a"


@pytest.mark.parametrize("table", ["lrbench_runs", "lrbench_format"])
def test_a_database_of_another_schema_says_so(tmp_path, monkeypatch, capsys, table):
    folder = write(tmp_path / "sweep", "tri", 100, 0)
    (folder / "policy.yaml").write_text("_target_: lrbench_pl.policies.Constant\nlr: 0.1\n")
    db = tmp_path / "runs.db"
    assert call(monkeypatch, capsys, "db", "add", tmp_path / "sweep", "--db", db)[0] == 0
    with sqlite3.connect(db) as connection:
        connection.execute(f"drop table {table}")
        connection.execute(f"create table {table} (id integer primary key, value text)")
    for command in (["list"], ["add", tmp_path / "sweep"]):
        code, _, err = call(monkeypatch, capsys, "db", *command, "--db", db)
        assert code == 2
        assert f"expected a policy database, got a table {table} of another schema, without" in err
