"""One contract of the policy database, kept by a SQLite file and by a PostgreSQL server."""

import dataclasses
import getpass
import glob
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest
import sqlalchemy as sa

from lrbench_pl.policies import Constant, Polynomial, to_config
from lrbench_pl.runs.result import RunResult
from lrbench_pl.selection.database import DatabaseError, MissingDatabaseError, PolicyDatabase
from lrbench_pl.selection.exchange import export, read_sources
from lrbench_pl.selection.records import stored_run

ROW = {
    "dataset": "digits",
    "model": "mlp",
    "optimizer": "momentum",
    "batch_size": 64,
    "max_steps": 100,
    "target": 0.95,
    "monitor": "val/accuracy",
    "steps_run": 40,
}
EVIL = {"_target_": "os.system", "command": "touch pwned"}


def run(seed=0, policy=None, **changes):
    row = {**ROW, "run_id": f"r{seed}", "policy": "p", "status": "reached", "steps_to_target": 40, "seed": seed}
    return stored_run({**row, **changes}, to_config(policy or Constant(0.1)))


def folder(at, number=0, policy=None, config=None, **changes):
    result = dataclasses.replace(run(number, policy).result, **changes)
    result.write(at)
    (at / "policy.yaml").write_text(json.dumps(config or to_config(policy or Constant(0.1))))
    return at


def _programs():
    on_path = shutil.which("initdb")
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb")) + ([on_path] if on_path else [])
    return Path(found[0]).resolve().parent if found else None


@pytest.fixture(scope="session")
def server():
    """A private PostgreSQL cluster on a free port of the loopback interface."""
    pytest.importorskip("psycopg", reason="no psycopg")
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server programs (Debian: apt-get install postgresql)")
    root = os.geteuid() == 0
    if root and (shutil.which("runuser") is None or subprocess.run(["id", "postgres"], capture_output=True).returncode):
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    user = "postgres" if root else getpass.getuser()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = Path(tempfile.mkdtemp(prefix="lrbench-pg-"))
    if root:
        shutil.chown(home, "postgres")

    def call(name, *arguments):
        command = [str(programs / name), "-D", str(home / "data"), *arguments]
        done = subprocess.run(
            ["runuser", "-u", "postgres", "--", *command] if root else command,
            cwd=home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=300,
        )
        return done.returncode

    options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {home}"
    started = call("initdb", "-A", "trust", "-U", user, "-E", "UTF8") == 0
    started = started and call("pg_ctl", "-w", "-l", str(home / "log"), "-o", options, "start") == 0
    try:
        if not started:
            pytest.skip("PostgreSQL could not be started")
        yield f"postgresql://{user}@127.0.0.1:{port}"
    finally:
        if started:
            call("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return str(tmp_path / "runs.db")
    base = request.getfixturevalue("server")
    name = f"t{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(f"{base.replace('postgresql:', 'postgresql+psycopg:')}/postgres")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{base}/{name}"


class TestContract:
    def test_what_is_added_is_read_and_added_once(self, url):
        runs = [run(0), run(1, Polynomial(0.1, 100), versions={"torch": "2"}), run(2, dataset="mnist")]
        with PolicyDatabase(url, create=True) as database:
            assert database.add(runs) == 3
            assert database.add([*runs, run(3), run(3)]) == 1
        with PolicyDatabase(url) as database:
            found = database.read()
            assert not found.refused
            assert sorted(each.result.seed for each in found.runs) == [0, 1, 2, 3]
            assert all(each in found.runs for each in runs)
            assert [each.result.seed for each in database.read(dataset="mnist").runs] == [2]
            with pytest.raises(DatabaseError, match=r"expected a filter by one of run_id, .*, got 'color'"):
                database.read(color="red")

    def test_a_database_that_holds_nothing_is_missing(self, url):
        with pytest.raises(MissingDatabaseError, match="lrbench db add DIR"):
            PolicyDatabase(url)

    @pytest.mark.slow
    def test_several_processes_add_at_once(self, url, tmp_path):
        for seed in range(12):
            folder(tmp_path / "sweep" / str(seed), seed)
        code = "import sys; from lrbench_pl.cli import main; sys.argv = ['lrbench', *sys.argv[1:]]; main()"
        command = [sys.executable, "-c", code, "db", "add", str(tmp_path / "sweep"), "--db", url]
        writers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
        ]
        said = [writer.communicate(timeout=100) for writer in writers]
        assert [writer.returncode for writer in writers] == [0, 0, 0], said
        assert sum(int(out.split(": ")[-1].split()[0]) for out, _ in said) == 12
        with PolicyDatabase(url) as database:
            assert sorted(each.result.seed for each in database.read().runs) == list(range(12))

    def test_a_hostile_row_in_it_is_refused_and_the_rest_is_read(self, url):
        with PolicyDatabase(url, create=True) as database:
            database.add([run(0), run(1)])
            with database._engine.begin() as connection:
                statement = "UPDATE lrbench_runs SET policy_config = :evil WHERE run_id = 'r0'"
                connection.execute(sa.text(statement), {"evil": json.dumps(EVIL)})
            found = database.read()
        assert [each.result.run_id for each in found.runs] == ["r1"]
        assert "policy: _target_ must be lrbench_pl.policies.X" in found.refused[0].reason
        assert "got 'os.system'" in found.refused[0].reason


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_an_export_is_read_back_as_it_was(tmp_path, form):
    runs = [run(0, best_value=0.1 + 0.2, message='a "b", c', versions={"torch": "2"}), run(1, Polynomial(0.1, 9))]
    path = tmp_path / f"runs.{form}"
    path.write_text(export(runs, form))
    found = read_sources([path])
    assert found.runs == tuple(runs)
    with pytest.raises(DatabaseError, match="--format must be jsonl or csv, got 'xml'"):
        export(runs, "xml")


@pytest.mark.parametrize(
    ("changes", "config", "reason"),
    [
        ({}, EVIL, "policy: _target_ must be lrbench_pl.policies.X .* got 'os.system'"),
        ({}, {"_target_": "lrbench_pl.policies.Constant", "lr": 0.2}, "policy_id must be .* for this policy, got "),
        (
            {"status": "failed", "message": "disk full"},
            None,
            r"expected a run that ended, got one that failed \(disk full\)",
        ),
        ({"status": "stopped"}, None, "expected a run that ended, got one that was stopped"),
        ({"seed": None}, None, "seed is missing; a record must contain the task"),
        ({"max_steps": 10**9}, None, "max_steps must lie in 1 to 10000000, got 1000000000"),
        ({"batch_size": 0}, None, "field .batch_size. must be at least 1, got 0"),
        ({"steps_to_target": 101}, None, r"field .steps_to_target. must be at most max_steps \(100\), got 101"),
        ({"seed": 2**63}, None, "field .seed. must be int"),
    ],
)
def test_a_bad_run_is_refused_in_one_line_and_the_good_one_kept(tmp_path, changes, config, reason):
    folder(tmp_path / "good", 7)
    folder(tmp_path / "bad", config=config, **changes)
    found = read_sources([tmp_path])
    assert [each.result.seed for each in found.runs] == [7]
    (refused,) = found.refused
    assert refused.source == str(tmp_path / "bad")
    assert re.search(reason, refused.reason), refused.reason
    assert "\n" not in refused.reason


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(DatabaseError, match=r"expected a folder of runs, or a \.jsonl or \.csv"):
        read_sources([tmp_path / "nowhere"])
    with pytest.raises(DatabaseError, match="no run found"):
        read_sources([tmp_path])
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DatabaseError, match="policy_config among them"):
        read_sources([tmp_path / "a.csv"])
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DatabaseError, match="expected text in UTF-8"):
        read_sources([tmp_path / "b.jsonl"])
    (tmp_path / "c.jsonl").write_text("{\n[]\n")
    assert len(read_sources([tmp_path / "c.jsonl"]).refused) == 2
    RunResult(run_id="a", policy="p", status="missed", seed=0, **ROW).write(tmp_path / "d")
    assert "the policy is missing" in read_sources([tmp_path / "d"]).refused[0].reason
    (tmp_path / "d" / "policy.yaml").write_text("a: [")
    assert "policy.yaml cannot be read" in read_sources([tmp_path / "d"]).refused[0].reason


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("mysql://host/x", "--db must be a SQLite file or a PostgreSQL URL, got one of 'mysql'"),
        ("://", "--db must be a path or a URL"),
        ("nowhere/runs.db", "no policy database at nowhere/runs.db"),
        (__file__, "file is not a database"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_line(where, message):
    with pytest.raises(DatabaseError, match=message):
        PolicyDatabase(where)


def test_the_environment_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("LRBENCH_DB", str(tmp_path / "mine.db"))
    with PolicyDatabase(create=True) as database:
        database.add([run()])
    assert (tmp_path / "mine.db").is_file()
