"""The lock, the record and the state of a run's folder."""

import signal
import subprocess
import sys
import threading

import pytest

from lrbench_pl.runs.folder import (
    ChangedConfigurationError,
    Record,
    add_note,
    check_same_run,
    differences,
    finished_result,
    hold_folder,
    state_of,
)
from lrbench_pl.runs.result import RunResult


def result(status="missed", run_id="a"):
    return RunResult(run_id=run_id, policy="fix", status=status)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"lr": 0.1}, {"lr": 0.1}, []),
        ({"lr": 0.1}, {"lr": 0.2}, ["lr: 0.1 -> 0.2"]),
        ({"lr": 0.1}, {}, ["lr: 0.1 -> (unset)"]),
        ({"a": {"b": [1]}, "z": 1}, {"a": {"b": [2]}, "z": 1}, ["a.b: [1] -> [2]"]),
        ({"a": {"b": 1}}, {"a": None}, ["a: {'b': 1} -> None"]),
    ],
)
def test_differences(old, new, expected):
    assert differences(old, new) == expected


def test_the_states_of_a_folder(tmp_path):
    assert state_of(tmp_path) == "missing"
    with hold_folder(tmp_path, "a", {}) as found:
        assert found is None
        assert state_of(tmp_path) == "running"
    assert state_of(tmp_path) == "unfinished"
    for status, state in (("failed", "failed"), ("stopped", "stopped"), ("diverged", "finished")):
        result(status).write(tmp_path)
        assert state_of(tmp_path) == state


@pytest.mark.parametrize(("status", "again"), [("missed", False), ("failed", True), ("stopped", True)])
def test_a_final_result_is_given_and_another_removed(tmp_path, status, again):
    with hold_folder(tmp_path, "a", {}):
        result(status).write(tmp_path)
    with hold_folder(tmp_path, "a", {}) as found:
        assert (found is None) == again
        assert (tmp_path / "result.json").exists() != again


def test_another_configuration_is_refused(tmp_path):
    with hold_folder(tmp_path / "new", "a", {"lr": 0.1}):
        pass
    with pytest.raises(ChangedConfigurationError, match=r"lr: 0.1 -> 0.2. Choose another folder"):
        check_same_run(tmp_path / "new", "b", {"lr": 0.2})
    (tmp_path / "old").mkdir()
    result(run_id="c").write(tmp_path / "old")  # as earlier versions left it
    with pytest.raises(ChangedConfigurationError, match="holds the run c of another configuration"):
        check_same_run(tmp_path / "old", "b", {})
    check_same_run(tmp_path / "old", "c", {})
    assert finished_result(tmp_path / "old", "b") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run_id": "a"}'])
def test_a_broken_record_is_none(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    assert Record.read(tmp_path) is None


def test_notes_are_kept_until_the_next_start(tmp_path):
    with hold_folder(tmp_path, "a", {}):
        add_note(tmp_path, "first")
        add_note(tmp_path, "second")
    assert Record.read(tmp_path).notes == ("first", "second")
    with hold_folder(tmp_path, "a", {}):
        assert Record.read(tmp_path).notes == ()


HOLDER = """
import sys, time
from pathlib import Path
from lrbench_pl.runs.folder import hold_folder
with hold_folder(Path(sys.argv[1]), "a", {}):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_killed_process_releases_its_folder(tmp_path, holder):
    assert state_of(tmp_path) == "running"
    holder.kill()
    holder.wait()
    assert state_of(tmp_path) == "unfinished"


def test_a_folder_in_use_is_waited_for(tmp_path, holder, caplog):
    threading.Timer(1.0, holder.kill).start()
    with hold_folder(tmp_path, "a", {}) as found:
        assert found is None
        assert holder.wait() == -signal.SIGKILL
    assert f"{tmp_path} is in use by process {holder.pid} on " in caplog.text
