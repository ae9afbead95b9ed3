"""What a folder says of its run."""

import pytest

from lrbench_pl.runs.folder import (
    ChangedConfigurationError,
    Record,
    claim,
    differences,
    finished_row,
    note,
    refuse_other,
    state_of,
)
from lrbench_pl.runs.result import RunResult


def row(status="missed", run_id="a"):
    return RunResult(run_id=run_id, policy="fix", status=status)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"lr": 0.1}, {"lr": 0.1}, []),
        ({"lr": 0.1}, {"lr": 0.2}, ["lr: 0.1 -> 0.2"]),
        ({"lr": 0.1}, {}, ["lr: 0.1 -> (nothing)"]),
        ({"a": {"b": [1]}, "z": 1}, {"a": {"b": [2]}, "z": 1}, ["a.b: [1] -> [2]"]),
        ({"a": {"b": 1}}, {"a": None}, ["a: {'b': 1} -> None"]),
    ],
)
def test_differences(old, new, said):
    assert differences(old, new) == said


def test_the_states_of_a_folder(tmp_path):
    assert state_of(tmp_path) == "missing"
    with claim(tmp_path, "a", {}) as found:
        assert found is None
        assert state_of(tmp_path) == "running"
    assert state_of(tmp_path) == "begun"
    for status, state in (("failed", "failed"), ("stopped", "stopped"), ("diverged", "finished")):
        row(status).write(tmp_path)
        assert state_of(tmp_path) == state


@pytest.mark.parametrize(("status", "again"), [("missed", False), ("failed", True), ("stopped", True)])
def test_a_claim_gives_a_finished_row_and_clears_another(tmp_path, status, again):
    with claim(tmp_path, "a", {}):
        row(status).write(tmp_path)
    with claim(tmp_path, "a", {}) as found:
        assert (found is None) == again
        assert (tmp_path / "result.json").exists() != again


def test_another_configuration_is_refused(tmp_path):
    with claim(tmp_path / "new", "a", {"lr": 0.1}):
        pass
    with pytest.raises(ChangedConfigurationError, match=r"lr: 0.1 -> 0.2. Give another folder"):
        refuse_other(tmp_path / "new", "b", {"lr": 0.2})
    (tmp_path / "old").mkdir()
    row(run_id="c").write(tmp_path / "old")  # as earlier versions left it
    with pytest.raises(ChangedConfigurationError, match="holds the run c of another configuration"):
        refuse_other(tmp_path / "old", "b", {})
    refuse_other(tmp_path / "old", "c", {})
    assert finished_row(tmp_path / "old", "b") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run_id": "a"}'])
def test_a_broken_record_is_none(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    assert Record.read(tmp_path) is None


def test_notes_are_kept_until_it_is_begun_again(tmp_path):
    with claim(tmp_path, "a", {}):
        note(tmp_path, "first")
        note(tmp_path, "second")
    assert Record.read(tmp_path).notes == ("first", "second")
    with claim(tmp_path, "a", {}):
        assert Record.read(tmp_path).notes == ()
